"""Any bytes go in and the same bytes come out; a stream never breaks a character."""

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from npgpt.text.load import load_tokenizer
from npgpt.text.tokenizer import END_OF_TEXT, ByteTokenizer

tokenizer = ByteTokenizer()


@given(st.binary())
def test_bytes_come_back(data):
    ids = tokenizer.encode(data)
    assert ids.dtype == np.uint16 and ids.tolist() == list(data)
    assert tokenizer.decode_bytes(ids) == data


@given(st.text())
def test_text_comes_back(text):
    assert tokenizer.decode(tokenizer.encode(text)) == text


def test_surrogates_are_no_unknown_characters():
    assert tokenizer.encode("a\udce7").tolist() == [97, 0xE7]  # an undecodable byte of sys.argv
    assert len(tokenizer.encode("\ud83d")) == 3  # half of an emoji in broken JSON


def test_a_typed_special_token_is_plain_text():
    ids = tokenizer.encode(END_OF_TEXT)
    assert len(ids) == 13 and ids.max() < 256
    assert tokenizer.decode([72, 256, 105]) == "Hi"


@given(st.binary(), st.data())
def test_stream_pieces_join_to_the_whole(data, draw):
    decoder, pieces = tokenizer.stream(), []
    rest = list(data)
    while rest:
        n = draw.draw(st.integers(1, len(rest)))
        pieces.append(decoder.push(*rest[:n]))
        rest = rest[n:]
    assert "".join([*pieces, decoder.close()]) == tokenizer.decode(list(data))


def test_stream_holds_a_character_back_until_it_is_whole():
    decoder = tokenizer.stream()
    assert [decoder.push(b) for b in "ç€😀".encode()] == ["", "ç", "", "", "€", "", "", "", "😀"]
    assert decoder.push(0xC3) == "" and decoder.close() == "\ufffd"


@pytest.mark.parametrize("ids", [[257], [-1], [3, 70000]])
def test_ids_outside_the_vocabulary_are_refused(ids):
    with pytest.raises(ValueError, match=r"decode: ids must be in 0\.\.256"):
        tokenizer.decode(ids)


def test_other_types_are_refused():
    with pytest.raises(TypeError, match="encode: text must be str or bytes, got int"):
        tokenizer.encode(3)


def test_files(tmp_path):
    tokenizer.save(tmp_path, 64)
    names = {"tokenizer.json", "vocab.json", "merges.txt", "tokenizer_config.json"}
    assert {path.name for path in tmp_path.iterdir()} == names
    vocab = json.loads((tmp_path / "vocab.json").read_text(encoding="utf-8"))
    assert len(vocab) == 257 and vocab["Ġ"] == 32 and vocab["Ċ"] == 10 and vocab["A"] == 65
    assert vocab["<|endoftext|>"] == 256
    assert json.loads((tmp_path / "tokenizer.json").read_text(encoding="utf-8"))["model"]["vocab"] == vocab
    assert json.loads((tmp_path / "tokenizer_config.json").read_text())["model_max_length"] == 64
    assert isinstance(load_tokenizer(tmp_path), ByteTokenizer)
    (tmp_path / "tokenizer.json").unlink()
    assert isinstance(load_tokenizer(tmp_path), ByteTokenizer)


def test_a_broken_file_is_refused(tmp_path):
    tokenizer.save(tmp_path, 64)
    path = tmp_path / "tokenizer.json"
    whole = json.loads(path.read_text(encoding="utf-8"))
    for added in (True, 5, {"id": 1}):
        path.write_text(json.dumps(whole | {"added_tokens": added}), encoding="utf-8")
        with pytest.raises(ValueError, match=r"merges and added_tokens must be lists"):
            load_tokenizer(tmp_path)
    path.write_bytes(b"\xff{")
    with pytest.raises(ValueError, match=r"tokenizer.json must be JSON"):
        load_tokenizer(tmp_path)
    path.unlink()
    for name in (None, 5):
        added = {"added_tokens_decoder": {"300": {"content": name, "special": True}}}
        (tmp_path / "tokenizer_config.json").write_text(json.dumps(added), encoding="utf-8")
        with pytest.raises(ValueError, match=r"added_tokens_decoder must map ids to tokens"):
            load_tokenizer(tmp_path)
