"""The names that Transformers' users type: tokenizer and model from a folder, encode, generate, decode."""

import copy
import shutil

import numpy as np
import pytest

import npgpt
from npgpt.text.tokenizer import BPETokenizer, ByteTokenizer


@pytest.fixture
def folder(tmp_path):
    config = npgpt.GPTConfig(n_layer=2, n_head=2, n_embd=16, block_size=24, vocab_size=257)
    npgpt.GPT(config, seed=3).save_pretrained(tmp_path)
    return tmp_path


def test_the_snippet(folder):
    """Beyond the context of 24 as well: its newer half goes on."""
    from npgpt import GPT2LMHeadModel, GPT2Tokenizer

    tokenizer = GPT2Tokenizer.from_pretrained(folder)
    model = GPT2LMHeadModel.from_pretrained(folder)
    input_ids = tokenizer.encode("O sol", return_tensors="np")
    output = model.generate(input_ids=input_ids, max_length=60, do_sample=True, eos_token_id=-1, seed=1)
    assert output.shape == (1, 60)
    text = tokenizer.decode(output[0], skip_special_tokens=True)
    assert text.startswith("O sol")
    assert isinstance(model, npgpt.GPT) and model.tokenizer.name == "bytes"


def test_a_batch_of_texts(folder):
    tokenizer = npgpt.GPT2Tokenizer(ByteTokenizer())
    model = npgpt.GPT2LMHeadModel.from_pretrained(folder)
    inputs = tokenizer(["abc", "a"], padding=True, return_tensors="np")
    assert inputs.input_ids.tolist() == [[97, 98, 99], [97, 256, 256]]
    with pytest.raises(ValueError, match="padding stands on the left, as the tokenizer puts it with"):
        model.generate(**inputs)
    tokenizer.padding_side = "left"
    inputs = tokenizer(["abc", "a"], padding=True, return_tensors="np")
    assert inputs.input_ids.tolist() == [[97, 98, 99], [256, 256, 97]]
    assert inputs["attention_mask"].tolist() == [[1, 1, 1], [0, 0, 1]]
    rows = model.generate(**inputs, max_new_tokens=5)
    alone = model.generate(**tokenizer("a", return_tensors="np"), max_new_tokens=5)
    np.testing.assert_array_equal(rows[1, 2:], alone[0])
    assert tokenizer.batch_decode(inputs.input_ids, skip_special_tokens=True) == ["abc", "a"]
    assert tokenizer("ab") == {"input_ids": [97, 98], "attention_mask": [1, 1]}
    assert tokenizer(["ab", "c"])["input_ids"] == [[97, 98], [99]]


def test_an_encoding_is_a_mapping_like_others(folder):
    encoding = npgpt.GPT2Tokenizer.from_pretrained(folder)("a")
    assert not hasattr(encoding, "other") and copy.deepcopy(encoding) == encoding


def test_special_tokens_are_those_of_transformers(folder):
    tokenizer = npgpt.GPT2Tokenizer.from_pretrained(folder)
    ids = tokenizer.encode("a<|endoftext|>b")
    assert ids == [97, 256, 98] and len(tokenizer) == 257
    assert tokenizer.decode(ids) == "a<|endoftext|>b"
    assert tokenizer.decode(ids, skip_special_tokens=True) == "ab"
    assert tokenizer.eos_token_id == tokenizer.pad_token_id == 256


def test_what_is_refused(folder, tmp_path):
    tokenizer = npgpt.GPT2Tokenizer.from_pretrained(folder)
    with pytest.raises(ValueError, match="return_tensors must be None, 'np' or 'pt', got 'tf'"):
        tokenizer.encode("a", return_tensors="tf")
    with pytest.raises(ValueError, match="padding must be True for texts of unequal length"):
        tokenizer(["a", "bc"], return_tensors="np")
    for padding in ("max_length", "nonsense", None):
        with pytest.raises(ValueError, match=f"padding must be True, 'longest', .* got {padding!r}"):
            tokenizer(["a", "bc"], padding=padding)
    with pytest.raises(ValueError, match="pad_token must be a token of the vocabulary, got '<pad>'"):
        tokenizer.pad_token = "<pad>"
    with pytest.raises(AttributeError, match="truncation_side"):
        tokenizer.truncation_side = "left"
    tokenizer.padding_side = "middle"
    with pytest.raises(ValueError, match="padding_side must be 'left' or 'right', got 'middle'"):
        tokenizer(["a", "bc"], padding=True)
    with pytest.raises(FileNotFoundError):
        npgpt.GPT2Tokenizer.from_pretrained(tmp_path / "none")


def test_beside_transformers(data_dir, tmp_path):
    transformers, torch = pytest.importorskip("transformers"), pytest.importorskip("torch")
    shutil.copy(data_dir / "gpt2-vocab" / "encoder.json", tmp_path / "vocab.json")
    shutil.copy(data_dir / "gpt2-vocab" / "vocab.bpe", tmp_path / "merges.txt")
    files = tmp_path / "vocab.json", tmp_path / "merges.txt"
    theirs = transformers.GPT2Tokenizer.from_pretrained(tmp_path)
    theirs.pad_token, theirs.padding_side = theirs.eos_token, "left"
    for ours in (
        npgpt.GPT2Tokenizer.from_pretrained(tmp_path),
        npgpt.GPT2Tokenizer(BPETokenizer.from_files(*files)),
    ):
        ours.pad_token, ours.padding_side = ours.eos_token, "left"
        texts = ["O sol nasce<|endoftext|>", "naïve 日本語 123", "don't"]
        expected = theirs(texts, padding=True, return_tensors="pt")
        got = ours(texts, padding=True, return_tensors="pt")
        assert torch.equal(got.input_ids, expected.input_ids)
        assert torch.equal(got.attention_mask, expected.attention_mask)
        for skip in (False, True):
            assert ours.batch_decode(got.input_ids, skip) == theirs.batch_decode(
                expected.input_ids, skip_special_tokens=skip, clean_up_tokenization_spaces=False
            )
    config = npgpt.GPTConfig(n_layer=1, n_head=1, n_embd=8, block_size=32, vocab_size=50257)
    rows = npgpt.GPT2LMHeadModel(config).generate(got.input_ids, got.attention_mask, max_new_tokens=3)
    assert isinstance(rows, torch.Tensor) and rows.dtype == torch.int64
