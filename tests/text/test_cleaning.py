"""The normalizer of a tokenizer: it cleans prompts as the corpus was, and stays with the files."""

import pickle
import unicodedata
from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import npgpt
from npgpt.interop.gguf import read_gguf, write_gguf
from npgpt.runtime.sampling import text_chunks
from npgpt.text import examples
from npgpt.text.cleaning import CLEANINGS, clean_document, normalize
from npgpt.text.load import load_tokenizer
from npgpt.text.tokenizer import BPETokenizer, ByteTokenizer

CLEAN = "A canção é do mar.\nE o coração?"
SPELLINGS = {
    "nfd": unicodedata.normalize("NFD", CLEAN),
    "crlf": CLEAN.replace("\n", "\r\n"),
    "cr": CLEAN.replace("\n", "\r"),
    "byte-order mark": "\ufeff" + CLEAN,
}
MESSY = st.text(st.sampled_from("ab \t\r\n\n\x00\x85é\u0301\ufeff\u00a0\u3000語"), max_size=60)


@pytest.fixture(params=["bytes", "bpe"])
def plain(request):
    return ByteTokenizer() if request.param == "bytes" else BPETokenizer.train([CLEAN.encode() * 4], 270)


@pytest.mark.parametrize("spelling", SPELLINGS)
def test_another_spelling_has_the_same_ids(plain, spelling):
    text, expected = SPELLINGS[spelling], plain.encode(CLEAN).tolist()
    assert plain.encode(text).tolist() != expected
    for how in ("light", "full"):
        tokenizer = plain.normalizing(how)
        assert tokenizer.encode(text).tolist() == tokenizer.encode(text.encode()).tolist() == expected
        assert tokenizer.encode(text, special_tokens=True).tolist() == expected
        assert tokenizer.encode(np.frombuffer(text.encode(), np.uint8)).tolist() == expected
    changed = Counter()
    plain.normalizing("light").normalize(text, changed)
    assert len(changed) == 1


def test_what_is_not_utf8_is_left_as_it_is(plain):
    for data in ("ação\r\n".encode("latin-1"), b"\xff\r"):
        assert plain.normalizing("full").encode(data).tolist() == plain.encode(data).tolist()
    half = "a\r\n\ud83d"  # half a JSON escape
    assert plain.normalizing("light").encode(half).tolist() == plain.encode(half).tolist()


@given(MESSY, st.sampled_from(CLEANINGS))
def test_a_prompt_is_cleaned_as_a_document_but_for_blanks_at_its_end(text, how):
    """The next word may follow such a blank on its line; nothing follows those of a document."""
    data = text.encode()
    assert clean_document(data + b"!", how) == normalize(data + b"!", how)
    assert normalize(data, "light") == clean_document(data, "light")
    assert normalize("O mar é ".encode(), how) == "O mar é ".encode()


def test_a_stop_string_in_another_spelling_stops(plain):
    ids = plain.encode(CLEAN).tolist()
    for stop, before in ((unicodedata.normalize("NFD", "ção"), "A can"), ("\r\nE", "A canção é do mar.")):
        light = plain.normalizing("light")
        assert "".join(text_chunks(ids, light, [stop])) == before
        assert "".join(text_chunks(ids, plain, [stop])) == CLEAN
    for stop in (
        "\t",
        " ",
        "\ufeff",
        "\n\n\n",
        "\ud83d",
    ):  # what cleaning would empty or shorten at a text's end
        assert plain.normalizing("full").normalize_part(stop) == stop


def test_tokenizers_of_other_normalizers_differ_and_those_of_one_are_equal(plain):
    light, full = plain.normalizing("light"), plain.normalizing("full")
    assert len({t.fingerprint for t in (plain, light, full)}) == 3 and plain.normalizer == "none"
    assert light.normalizing("none") == plain and light == plain.normalizing("light") != plain
    assert pickle.loads(pickle.dumps(full)) == full
    roles = examples.add_roles(light)
    assert (
        roles.normalizer == "light"
        and roles.encode(SPELLINGS["nfd"]).tolist() == light.encode(CLEAN).tolist()
    )
    with pytest.raises(ValueError, match="must be one of none, light, full, got 'hard'"):
        plain.normalizing("hard")


def test_the_fingerprint_without_a_normalizer_is_that_of_0_1_0():
    """Checkpoints hold it, and the cache of encoded texts is found by it."""
    assert ByteTokenizer().fingerprint.startswith("cd0868fbeb0b2d963f448957")


@pytest.mark.parametrize("how", CLEANINGS)
def test_the_normalizer_travels_with_the_files(plain, how, tmp_path):
    for tokenizer in (plain.normalizing(how), examples.add_roles(plain).normalizing(how)):
        tokenizer.save(tmp_path, 64)
        assert load_tokenizer(tmp_path) == tokenizer
        config = npgpt.GPTConfig(n_layer=1, n_head=1, n_embd=4, block_size=8, vocab_size=tokenizer.vocab_size)
        write_gguf(tmp_path / "m.gguf", npgpt.GPT(config), tokenizer)
        assert read_gguf(tmp_path / "m.gguf").tokenizer == tokenizer


def test_another_normalizer_is_refused_by_name(plain, tmp_path):
    plain.normalizing("light").save(tmp_path, 64)
    path = tmp_path / "tokenizer.json"
    path.write_text(path.read_text().replace('"NFC"', '"NFKC"'))
    with pytest.raises(ValueError, match=r"tokenizer\.json: .*but for normalizer"):
        load_tokenizer(tmp_path)
