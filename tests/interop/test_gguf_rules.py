"""One table of rules for GGUF files, to which Python's reader and libnpgpt are held."""

import re

import numpy as np
import pytest

import npgpt
from npgpt.interop.gguf import read_gguf, write_gguf
from npgpt.runtime import libnpgpt
from tests.conftest import COMPILED
from tests.gguf_files import READ, REFUSED

TEXTS = (
    *("a 1", " 1 1", "<|endoftext|><x>[PAD]", "ação\n\n 12 's", "", "I'LL 12345 go!\r\n  x", " ", "  a  "),
    *(
        "a<x> b<x><x>",
        "  <x>  1",
        "aZb",
        "aaaaaaa abc abcab",
        "\u65e5x \u65e5",
        "<s>a</s><0x41>",
        "\u2581a \u2581",
    ),
)


def named(case):
    return case.name


def readers():
    return [read_gguf, libnpgpt.Model.open] if COMPILED else [read_gguf]


@pytest.mark.filterwarnings("ignore:the model's vocabulary has no token for the bytes")
@pytest.mark.parametrize("case", READ, ids=named)
def test_what_both_read_is_the_same_model(case, tmp_path, measured):
    path = case.write(tmp_path)
    model = npgpt.GPT.of(read_gguf(path))
    ids = np.random.default_rng(4).integers(0, min(256, model.config.vocab_size), 16)
    logits = model.logits(ids[None])[0]
    assert np.isfinite(logits).all() and logits.std() > 0.5
    if COMPILED:
        runtime = libnpgpt.Model.open(path)
        error = libnpgpt.Session(runtime).feed(ids, every=True) - logits
        if case.in_blocks():  # it rounds what a layer reads to integers, a part in a hundred or two
            measured("libnpgpt on a file in blocks, of the deviation", error.std() / logits.std(), 0.05)
        else:
            measured("libnpgpt on a file", np.abs(error).max(), 1e-4)
        assert runtime.vocab_size == model.config.vocab_size
        for text in (*TEXTS, b"a\xf5\xff b", b"\xe6\x97") if model.tokenizer else ():
            data = text.encode() if isinstance(text, str) else text
            assert runtime.encode(data) == model.tokenizer.encode(data).tolist(), data
        if tokenizer := model.tokenizer:
            lib, begin = libnpgpt.library()[1], tokenizer.begin
            assert lib.npgpt_end_of_text(runtime.handle) == tokenizer.end_of_text in (2, 257)
            assert lib.npgpt_begin_of_text(runtime.handle) == (begin[0] if begin else -1)
            for i in range(tokenizer.vocab_size):
                assert runtime.token_bytes(i) == tokenizer.token_bytes(i, skip_special_tokens=False)


@pytest.mark.parametrize("case", REFUSED, ids=named)
def test_what_both_refuse_is_named_alike(case, tmp_path):
    path = case.write(tmp_path)
    for reader in readers():
        with pytest.raises(ValueError) as error:
            reader(path)
        assert re.search(case.refused, str(error.value)) and "\n" not in str(error.value)


def test_every_rule_is_for_a_file_of_its_own():
    names = [case.name for case in (*READ, *REFUSED)]
    assert len(set(names)) == len(names) > 200


def test_a_text_ends_at_each_end_of_the_file(tmp_path):
    """In Python and in C; written again, the file has the same ends."""
    plain, more = (next(case for case in READ if case.name == name) for name in ("plain", "more ends"))
    first, second = (npgpt.load(case.write(tmp_path)) for case in (plain, more))
    assert (first.tokenizer.ends, second.tokenizer.ends) == ((257,), (257, 65, 66))
    asked = {"prompt": "a 1", "max_new_tokens": 400, "temperature": 1.5, "return_ids": True}
    for seed in range(8):
        whole = first.generate(**asked, seed=seed)
        stop = min([i for i, id in enumerate(whole) if id in (65, 66)], default=len(whole))
        assert second.generate(**asked, seed=seed) == whole[:stop]
        if COMPILED:
            path = tmp_path / "more-ends.gguf"
            assert from_c(path, "a 1", seed) == second.tokenizer.decode_bytes(whole[:stop]).decode(
                "utf-8", "replace"
            )
    write_gguf(tmp_path / "again.gguf", second, second.tokenizer)
    assert npgpt.load(tmp_path / "again.gguf").tokenizer.ends == (257, 65, 66)


@pytest.mark.skipif(not COMPILED, reason="there is no compiled libnpgpt")
@pytest.mark.parametrize("name", ["a beginning", "sentencepiece", "sentencepiece, first", "a user's token"])
def test_a_text_begins_in_c_as_in_python(name, tmp_path):
    """With the token that the file asks for, and the blank."""
    path = next(case for case in READ if case.name == name).write(tmp_path)
    model, asked = npgpt.load(path), {"temperature": 1.5, "max_new_tokens": 400}
    for seed, prompt in enumerate(("a 1", "", "ab<x> a", " a")):
        assert from_c(path, prompt, seed) == model.generate(prompt, seed=seed, **asked)
    first = model.generate("a", seed=1, return_ids=True, **asked)
    ids = [*model.tokenizer.begin, *model.tokenizer.encode("a").tolist()]
    assert model.generate(ids, seed=1, return_ids=True, **asked) == first


def from_c(path, prompt, seed):
    """The text of npgpt_generate."""
    ffi, lib = libnpgpt.library()
    session, texts, how = libnpgpt.Session(libnpgpt.Model.open(path)), [], ffi.new("npgpt_generation *")
    lib.npgpt_default_generation(how)
    how.sampling.temperature, how.sampling.seed, how.max_new_tokens = 1.5, seed, 400

    @ffi.callback("int(void *, const char *, size_t)")
    def on_text(user, text, length):
        texts.append(ffi.buffer(text, length)[:])
        return 0

    data = prompt.encode()
    assert not lib.npgpt_generate(session.handle, data, len(data), how, on_text, ffi.NULL, ffi.NULL, ffi.NULL)
    return b"".join(texts).decode()
