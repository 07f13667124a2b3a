"""GPT-1's tokenizer on a small vocabulary of its kind; tests/parity has the real one beside transformers'."""

import json

import pytest

from npgpt.server.tokens import CountingDecoder
from npgpt.text import gpt1
from npgpt.text.load import load_tokenizer

MERGES = [("s", "o"), ("so", "l</w>"), ("m", "a"), ("ma", "r</w>")]


@pytest.fixture
def folder(tmp_path):
    letters = [c + end for end in ("", "</w>") for c in "aeslmor.'"]
    names = ["<unk>", *letters, *(left + right for left, right in MERGES), "\n</w>"]
    vocab = {name: i for i, name in enumerate(names)}
    (tmp_path / "encoder_bpe_40000.json").write_text(json.dumps(vocab), encoding="utf-8")
    lines = ["#version: 0.2", *(" ".join(pair) for pair in MERGES), ""]
    (tmp_path / "vocab_40000.bpe").write_text("\n".join(lines), encoding="utf-8")
    return tmp_path


def test_words(folder):
    tokenizer = load_tokenizer(folder)
    names = list(tokenizer.vocabulary.tokens)
    ids = tokenizer.encode("O Sol,\n\tmár! sols")
    assert [names[i] for i in ids] == ["o</w>", "sol</w>", "<unk>", "mar</w>", "<unk>", "so", "l", "s</w>"]
    assert tokenizer.decode(ids) == "o sol mar sols"
    assert tokenizer.decode(ids, skip_special_tokens=False) == "o sol <unk>mar <unk>sols"
    assert tokenizer.name == "gpt1" and names[tokenizer.end_of_text] == "\n</w>"
    assert tokenizer.end_of_text not in tokenizer.encode("a\n\nb")


def test_a_stream_is_the_whole(folder):
    tokenizer = load_tokenizer(folder)
    ids = tokenizer.encode("o sol e o mar, sols.").tolist()
    decoder = tokenizer.stream()
    pieces = [decoder.push(i) for i in ids]
    assert "".join([*pieces, decoder.close()]) == tokenizer.decode(ids)
    assert pieces[:2] == ["o", " sol"]
    decoder = CountingDecoder(tokenizer)  # of the server
    whole = "".join([*map(decoder.push, [*ids, tokenizer.vocab_size + 1]), decoder.close()])
    assert whole == tokenizer.decode(ids) and decoder.characters == len(whole)


def test_splitting():
    assert gpt1.split("Ação, D'ÁGUA\x00 日本\u200b") == ["acao", ",", "d", "'", "agua", "日", "本"]
    assert gpt1.split("\x0b ΔΣ $5") == ["δ\u03c3", "$", "5"]


def test_files(folder, tmp_path):
    tokenizer = load_tokenizer(folder)
    saved = tmp_path / "saved"
    saved.mkdir()
    tokenizer.save(saved, 512)
    assert load_tokenizer(saved) == tokenizer
    (saved / "tokenizer.json").unlink()
    assert load_tokenizer(saved) == tokenizer


@pytest.mark.parametrize(
    "old, new, message",
    [
        ("s o\n", "", "no merge makes the token 'so'"),
        ("s o\n", "s o\ns o\n", "is there twice"),
        ("s o\n", "s q\n", "needs 'q', which is no token"),
        ("s o\n", "s\n", r"line 2 must be two tokens, got \['s'\]"),
    ],
)
def test_faulty_merges_are_refused(folder, old, new, message):
    path = folder / "vocab_40000.bpe"
    path.write_text(path.read_text(encoding="utf-8").replace(old, new), encoding="utf-8")
    with pytest.raises(ValueError, match=message):
        load_tokenizer(folder)


def test_a_vocabulary_with_holes_is_refused(folder):
    path = folder / "encoder_bpe_40000.json"
    vocab = json.loads(path.read_text(encoding="utf-8"))
    path.write_text(json.dumps(vocab | {"a": 500}), encoding="utf-8")
    with pytest.raises(ValueError, match=r"ids must be 0\.\.23 without holes"):
        load_tokenizer(folder)
