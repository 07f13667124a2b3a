"""Beside the tokenizers that people use: the ids of tiktoken and Hugging Face, the merges of its trainer."""

# ruff: noqa: RUF001

import functools
import json
import random
import unicodedata

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

tiktoken = pytest.importorskip("tiktoken")
tokenizers = pytest.importorskip("tokenizers")
transformers = pytest.importorskip("transformers")

import npgpt  # noqa: E402
from npgpt.text import bpe, gpt1  # noqa: E402
from npgpt.text.cleaning import CLEANINGS  # noqa: E402
from npgpt.text.load import load_tokenizer  # noqa: E402
from npgpt.text.tokenizer import END_OF_TEXT, BPETokenizer, ByteTokenizer  # noqa: E402

# As tiktoken_ext.openai_public has it for GPT-2.
PATTERN = r"'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
CODE_POINTS = [chr(c) for c in range(0x110000) if not 0xD800 <= c < 0xE000]
TINY = npgpt.GPTConfig(n_layer=1, n_head=1, n_embd=4, block_size=256, vocab_size=274)
BLOCKS = [CODE_POINTS[i : i + 16384] for i in range(0, len(CODE_POINTS), 16384)]


@pytest.fixture(scope="module")
def ours(data_dir):
    return load_tokenizer(data_dir / "gpt2-vocab")


@pytest.fixture(scope="module")
def tik(data_dir):
    from tiktoken.load import data_gym_to_mergeable_bpe_ranks

    files = [str(data_dir / "gpt2-vocab" / name) for name in ("vocab.bpe", "encoder.json")]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TIKTOKEN_CACHE_DIR", "")  # no copies elsewhere
        ranks = data_gym_to_mergeable_bpe_ranks(*files)
    special = {END_OF_TEXT: 50256}
    return tiktoken.Encoding("gpt2", pat_str=PATTERN, mergeable_ranks=ranks, special_tokens=special)


@pytest.fixture(scope="module")
def hugging(data_dir):
    files = [str(data_dir / "gpt2-vocab" / name) for name in ("encoder.json", "vocab.bpe")]
    return tokenizers.ByteLevelBPETokenizer(*files)


def same(ours, tik, hugging, text: str):
    ids = ours.encode(text).tolist()
    assert ids == tik.encode_ordinary(text)
    assert ids == hugging.encode(text).ids
    assert ours.decode(ids) == text


def test_every_file_of_the_real_data(ours, tik, hugging, data_dir):
    paths = sorted(path for path in data_dir.rglob("*") if path.is_file())
    texts = [path.read_bytes().decode("utf-8") for path in paths]
    assert sum(map(len, texts)) > 10_000_000
    for path, text, theirs in zip(paths, texts, hugging._tokenizer.encode_batch_fast(texts), strict=True):
        ids = ours.encode(text).tolist()
        assert ids == tik.encode_ordinary(text), path
        assert ids == theirs.ids, path
        assert ours.decode(ids) == text == ours.decode_bytes(ids).decode()


def test_every_code_point_alone(ours, tik, hugging):
    for some in BLOCKS:
        ids = [ours.encode(c).tolist() for c in some]
        assert ids == [tik.encode_ordinary(c) for c in some]
        assert ids == [e.ids for e in hugging._tokenizer.encode_batch_fast(some)]


def test_every_code_point_in_context_beside_tiktoken(ours, tik):
    """Behind and before a letter, a blank, a digit and itself; line ends keep the cases apart."""
    for some in BLOCKS:
        text = "\n".join(f"a{c}1\n {c} \n{c}{c}a\n'{c}" for c in some)
        assert ours.encode(text).tolist() == tik.encode_ordinary(text)


def test_every_code_point_in_context_beside_hugging_face(ours, hugging):
    texts = ["\n".join(f"a{c} {c}1" for c in some) for some in BLOCKS]
    for text, theirs in zip(texts, hugging._tokenizer.encode_batch_fast(texts), strict=True):
        assert ours.encode(text).tolist() == theirs.ids


FRAGMENTS = (
    "👩‍👩‍👧‍👦¦👍🏽¦🇧🇷🇵🇹¦❤️¦1️⃣¦🏴󠁧󠁢󠁥󠁮󠁧󠁿¦e\u0301¦a\u0303o\u0302¦\u0301¦\u200d¦\u200b"
    "¦ ¦  ¦     ¦\n¦\r\n¦\n\n\n¦\t¦\u00a0¦\u3000¦\u2028¦\u0085¦\x1c¦\x00"
    "¦'s¦'t¦'re¦'ve¦'m¦'ll¦'d¦'S¦'LL¦''¦'¦’s¦x'll¦don't¦<|endoftext|>"
    "¦ção¦não¦Ação¦123¦４５¦²¦Ⅷ¦word¦ word¦日本語¦العربية¦हिन्दी¦ไทย¦한국어"
    "¦\ufffd¦\ufeff¦\uffff¦\U0010ffff¦\ue000¦...¦!?¦ -¦--¦_a"
).split("¦")


@settings(max_examples=1500)
@given(st.lists(st.one_of(st.sampled_from(FRAGMENTS), st.text(max_size=3)), max_size=12).map("".join))
def test_what_texts_are_made_of(ours, tik, hugging, text):
    same(ours, tik, hugging, text)


LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
# Digits of Unicode 17, which the pre-tokenizer Digits knows and every other part of the library does not
NEW_DIGITS = {chr(c) for c in (*range(0x11DE0, 0x11DEA), *range(0x16FF4, 0x16FF7))}


@pytest.fixture(scope="module", params=bpe.PATTERNS)
def splits(request):
    """One of our patterns, and what tokenizer.json has for it -> (ours, theirs) of a text."""
    split = tokenizers.pre_tokenizers.Split

    def regex(pattern):
        return split(tokenizers.Regex(pattern), "isolated")

    theirs = {
        "gpt-2": regex(PATTERN),
        "smollm": tokenizers.pre_tokenizers.Sequence(
            [tokenizers.pre_tokenizers.Digits(individual_digits=True), regex(PATTERN)]
        ),
        "llama-bpe": regex(LLAMA3),
        "qwen2": regex(LLAMA3.replace("{1,3}", "")),
    }[request.param]

    def both(text):
        return [piece.decode() for piece in bpe.split(text.encode(), request.param)], [
            piece for piece, _ in theirs.pre_tokenize_str(text)
        ]

    return both


@settings(max_examples=800)
@given(st.lists(st.one_of(st.sampled_from(FRAGMENTS), st.text(max_size=3)), max_size=12).map("".join))
def test_pieces_of_what_texts_are_made_of(splits, text):
    ours, theirs = splits(text)
    assert ours == theirs


def test_pieces_of_every_code_point(splits):
    for block in BLOCKS:
        text = "".join(f"a{c}b {c}1{c}{c} .{c}\n" for c in block if c not in NEW_DIGITS)
        ours, theirs = splits(text)
        assert ours == theirs


def test_pieces_of_the_real_data(splits, data_dir):
    for path in sorted(data_dir.rglob("*.txt")):
        ours, theirs = splits(path.read_bytes()[:200_000].decode("utf-8", "ignore"))
        assert ours == theirs, path


def test_runs_and_mixtures(ours, tik, hugging):
    draw = random.Random(1)
    sizes = (1, 2, 3, 7, 23, 24, 25, 255, 256, 257, 1000)  # about where the code changes its way
    for n in sizes:
        for unit in ("a", " ", "\n", "é", "😀", "'", "1", "ab", " a", "\u3000", "=", "the"):
            same(ours, tik, hugging, unit * n)
            same(ours, tik, hugging, f"x {unit * n} y")
    for size in (10, 1000, 100_000):
        same(ours, tik, hugging, "".join(draw.choice(FRAGMENTS) for _ in range(size // 3)))


def test_random_bytes(ours, tik, hugging):
    """Valid UTF-8 has the peers' ids whoever asks; what is not comes back all the same, as tiktoken's own."""
    generator = np.random.default_rng(7)
    for size in (1, 10, 1000, 100_000):
        data = generator.integers(0, 256, size, np.uint8).tobytes()
        ids = ours.encode(data).tolist()
        assert ours.decode_bytes(ids) == data == tik.decode_bytes(tik._encode_bytes(data))
        wide = data[: size // 2 * 2].decode("utf-16", "replace")
        for text in (data.decode("latin-1"), data.decode("utf-8", "replace"), wide):
            same(ours, tik, hugging, text)
            assert ours.encode(text.encode()).tolist() == tik._encode_bytes(text.encode())


def test_megabytes_without_a_space(ours, tik):
    """benchmarks/tokenizers.py compares ten of them, for which tiktoken needs 12 s."""
    letters = np.random.default_rng(3).choice(np.frombuffer(b"etaoinshrdlu", np.uint8), 1_000_000)
    for text in (letters.tobytes().decode(), "=" * 1_000_000):
        assert ours.encode(text).tolist() == tik.encode_ordinary(text)


def test_decoding_is_theirs(ours, tik, hugging):
    ids = np.random.default_rng(5).integers(0, 50256, 20_000)
    assert ours.decode_bytes(ids) == tik.decode_bytes(ids.tolist())
    assert ours.decode(ids) == hugging.decode(ids.tolist())


@pytest.mark.parametrize("count", [100, 4096])
def test_training_learns_the_same_merges(data_dir, count):
    """Same rules, ties included: of equally frequent pairs the smaller pair of ids is merged first."""
    paths = sorted((data_dir / "machado").glob("*.txt"))
    documents = [path.read_text(encoding="utf-8") for path in paths]
    documents += ["aaaa aaaaaa aaa aaaaaaa", "tie eti iet tie eti iet"] * 3
    hugging = tokenizers.ByteLevelBPETokenizer()
    size = 257 + count
    rules = {"min_frequency": 2, "special_tokens": [END_OF_TEXT], "show_progress": False}
    hugging.train_from_iterator(documents, size, **rules)
    ours = BPETokenizer.train([document.encode() for document in documents], size)
    model = tokenizers.Tokenizer.to_str(hugging._tokenizer)
    theirs = [tuple(pair) for pair in json.loads(model)["model"]["merges"]]
    assert ours.vocabulary.merges == theirs and len(theirs) == count
    shifted = hugging.encode(documents[0]).ids  # theirs have the special token first, ours last
    assert (ours.encode(documents[0]) + 1).tolist() == shifted


CASES = [
    "",
    "Hi  thé\n\t're 😀 123",
    f"um{END_OF_TEXT}dois {END_OF_TEXT}",
    "Olá!  \n\n x",
    "a\u3000b\u0301 🇧🇷",
]


@pytest.fixture(scope="module", params=["bytes", "trained", "gpt2"])
def written(request, ours, data_dir):
    if request.param == "trained":
        return BPETokenizer.train([(data_dir / "tinyshakespeare" / "input.txt").read_bytes()], 1000)
    return ByteTokenizer() if request.param == "bytes" else ours


def test_what_we_write_they_read(written, tmp_path):
    written.save(tmp_path, 128)
    theirs = tokenizers.Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    auto = transformers.AutoTokenizer.from_pretrained(tmp_path)
    assert len(auto) == written.vocab_size == theirs.get_vocab_size() and auto.model_max_length == 128
    assert auto.eos_token_id == auto.bos_token_id == written.end_of_text
    (tmp_path / "tokenizer.json").unlink()
    older = transformers.AutoTokenizer.from_pretrained(tmp_path)  # vocab.json and merges.txt
    for text in CASES:
        ids = written.encode(text, special_tokens=True).tolist()
        assert ids == theirs.encode(text).ids == auto(text)["input_ids"] == older(text)["input_ids"]
        assert theirs.decode(ids) == written.decode(ids)
        assert auto.decode(ids) == text == written.decode(ids, skip_special_tokens=False)


MESSY = st.text(
    st.sampled_from("ab \t\r\n\n\x00\x85\x1fé\u0301\u0327\ufeff\u00a0\u3000\u2028語😀각\u11a8"), max_size=60
)


@pytest.mark.parametrize("how", CLEANINGS)
@given(parts=st.lists(MESSY, min_size=1, max_size=3))
@settings(max_examples=300)
def test_they_clean_text_as_we_do(how, parts, tmp_path_factory):
    """Also between special tokens, where each part is cleaned by itself."""
    ours = _bpe().normalizing(how)
    folder = tmp_path_factory.getbasetemp() / f"cleaning-{how}"
    if not folder.exists():
        npgpt.GPT(TINY, tokenizer=ours).save_pretrained(folder)
    text = END_OF_TEXT.join(parts)
    ids = ours.encode(text, special_tokens=True).tolist()
    assert _theirs(folder)[0].encode(text).ids == ids
    assert _theirs(folder)[1](text)["input_ids"] == ids


def test_a_folder_that_cleans_is_a_tokenizer_like_the_others(tmp_path):
    """GPT2Tokenizer of Transformers would drop the normalizer; the general class is told what a GPT takes."""
    folders = {how: tmp_path / how for how in ("none", "light")}
    for how, folder in folders.items():
        npgpt.GPT(TINY, tokenizer=_bpe().normalizing(how)).save_pretrained(folder)
    plain, light = map(transformers.AutoTokenizer.from_pretrained, folders.values())
    assert plain("O mar").keys() == light("O mar").keys() == {"input_ids", "attention_mask"}
    assert plain.special_tokens_map == light.special_tokens_map and len(plain) == len(light)
    assert plain.model_max_length == light.model_max_length
    ids = light("O mar , é n't").input_ids
    assert (
        plain("O mar , é n't").input_ids == ids and plain.decode(ids) == light.decode(ids) == "O mar , é n't"
    )
    light.save_pretrained(tmp_path / "again")
    assert load_tokenizer(tmp_path / "again") == _bpe().normalizing("light")


@functools.cache
def _bpe():
    return BPETokenizer.train(["A canção é do mar.\n\nO coração \n".encode() * 4], 274)


@functools.cache
def _theirs(folder):
    file = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
    return file, transformers.AutoTokenizer.from_pretrained(folder)


def test_what_they_write_we_read(hugging, ours, data_dir, tmp_path):
    hugging.save(str(tmp_path / "tokenizer.json"))
    assert load_tokenizer(tmp_path) == ours  # which never told it that <|endoftext|> is special
    auto = transformers.AutoTokenizer.from_pretrained(_gpt2_folder(data_dir, tmp_path / "gpt2"))
    auto.save_pretrained(tmp_path / "auto")
    assert load_tokenizer(tmp_path / "auto") == ours
    other = tokenizers.ByteLevelBPETokenizer()
    texts = ["um dois três um dois três", "e mais um"]
    rules = {"min_frequency": 1, "special_tokens": ["</s>", "<pad>"], "show_progress": False}
    other.train_from_iterator(texts, 300, **rules)
    folder = tmp_path / "other"
    transformers.PreTrainedTokenizerFast(tokenizer_object=other._tokenizer, eos_token="</s>").save_pretrained(
        folder
    )
    mine = load_tokenizer(folder)
    assert mine.end_of_text == 0 and mine.vocabulary.special == {"</s>": 0, "<pad>": 1}
    for text in [*CASES, "<pad>um</s>"]:
        assert mine.encode(text, special_tokens=True).tolist() == other.encode(text).ids


def _gpt2_folder(data_dir, folder):
    folder.mkdir()
    for old, new in (("encoder.json", "vocab.json"), ("vocab.bpe", "merges.txt")):
        (folder / new).write_bytes((data_dir / "gpt2-vocab" / old).read_bytes())
    (folder / "tokenizer_config.json").write_text('{"tokenizer_class": "GPT2Tokenizer"}')
    return folder


@pytest.fixture(scope="module")
def gpt1s(data_dir):
    files = [str(data_dir / "gpt1-vocab" / name) for name in ("encoder_bpe_40000.json", "vocab_40000.bpe")]
    theirs = transformers.OpenAIGPTTokenizer(vocab=files[0], merges=files[1])
    return load_tokenizer(data_dir / "gpt1-vocab"), theirs


def test_gpt1_on_real_text(gpt1s, data_dir, tmp_path):
    ours, theirs = gpt1s
    paths = [data_dir / "tinyshakespeare" / "input.txt", data_dir / "pira-qa" / "pira_qa_pt_en.jsonl"]
    texts = [path.read_text(encoding="utf-8")[:300_000] for path in paths] + FRAGMENTS + CASES[3:]
    ours.save(tmp_path, 512)
    again = transformers.AutoTokenizer.from_pretrained(tmp_path)
    for text in texts:
        ids = ours.encode(text).tolist()
        assert ids == theirs(text)["input_ids"] == again(text)["input_ids"]
        assert ours.decode(ids) == theirs.decode(ids, skip_special_tokens=True)


def test_gpt1_splits_every_old_code_point_as_bert_does(gpt1s):
    """Those of the same class ever since Unicode 3.2: of others the two tables differ."""
    theirs = gpt1s[1]._tokenizer
    for c in CODE_POINTS:
        if unicodedata.category(c) == unicodedata.ucd_3_2_0.category(c) != "Cn":
            text = f"a{c}b {c} {c}C"
            words = theirs.pre_tokenizer.pre_tokenize_str(theirs.normalizer.normalize_str(text))
            assert gpt1.split(text) == [word for word, _ in words], hex(ord(c))
