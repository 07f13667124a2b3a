"""Which files are read, what cleaning does to them, and that a large text is read as a small one."""

import io
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from npgpt.console.messages import corpus_report
from npgpt.text import corpus as corpora
from npgpt.text import dataset
from npgpt.text.cleaning import CLEANINGS, clean_document
from npgpt.text.corpus import Corpus
from npgpt.text.tokenizer import BPETokenizer, ByteTokenizer

END = 256


def test_light_cleaning():
    assert clean_document("\ufeffcafe\u0301\r\nb\rc\n".encode()) == "café\nb\nc\n".encode()


def test_full_cleaning():
    assert clean_document(b"a\x00b \t\n\n\n\n\nc\td\x1f \n", "full") == b"ab\n\nc\td\n"


def test_the_sample_text_is_clean():
    text = "O céu de verão.\nA praia.".encode()
    assert clean_document(text, "light") == clean_document(text, "full") == text


@pytest.mark.parametrize("how", CLEANINGS)
@pytest.mark.parametrize(
    "document", ["ação\r\n".encode("latin-1"), "\ufeffção\r\n".encode("utf-16"), b"\xff\x00 \r"]
)
def test_what_is_not_utf8_is_never_touched(document, how):
    assert clean_document(document, how) == document


def test_unknown_cleaning_is_refused(tmp_path):
    with pytest.raises(ValueError, match="how must be one of none, light, full, got 'hard'"):
        clean_document(b"a", "hard")
    with pytest.raises(ValueError, match="clean must be one of none, light, full, got 'hard'"):
        Corpus(tmp_path, "hard")


@pytest.fixture
def pipe(monkeypatch):
    """pipe(bytes): what the next reader of stdin finds there."""

    def pipe(content):
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(content)))

    return pipe


def whole(corpus):
    documents = [b""] * len(corpus.documents)
    for number, piece in corpus.chunks():
        documents[number] += piece
    return documents


def test_files_folders_and_stdin(tmp_path, pipe):
    (tmp_path / "b").mkdir()
    for name, content in {"z.txt": b"1\r\n", "b/y.txt": b"2", "b/x.md": b"3", "a.txt": b"4"}.items():
        (tmp_path / name).write_bytes(content)
    pipe(b"5")
    corpus = Corpus([tmp_path, tmp_path / "b" / "x.md", "-"])
    assert whole(corpus) == [b"4", b"3", b"2", b"1\n", b"3", b"5"]
    assert corpus.n_bytes == 8 and corpus.n_clean == 7
    corpus.keep_stdin(tmp_path)
    assert corpus.names(tmp_path)[-1] == str(tmp_path / "stdin.txt")
    assert Corpus(corpus.names(tmp_path)).sha256 == corpus.sha256
    with pytest.raises(ValueError, match="-: stdin can be read only once"):
        Corpus(["-", "-"])


def test_what_holds_no_text_is_refused(tmp_path, pipe):
    for content, what in ((b"", "an empty file"), (b" \n\t", "only whitespace")):
        (tmp_path / "t").write_bytes(content)
        with pytest.raises(ValueError, match=f"must hold text, got {what}"):
            Corpus(tmp_path / "t")
        pipe(content)
        with pytest.raises(ValueError, match=f"-: must hold text, got {what}"):
            Corpus("-")
    with pytest.raises(ValueError, match=r"must be a file or a folder with \.txt, \.jsonl, .* files in it"):
        Corpus(tmp_path)


def test_the_hash_tells_documents_apart(tmp_path):
    found = set()
    for number, documents in enumerate([("ab",), ("a", "b"), ("b", "a"), ("ab", "c")]):
        (tmp_path / str(number)).mkdir()
        for name, text in enumerate(documents):
            (tmp_path / str(number) / f"{name}.txt").write_text(text)
        found.add(Corpus(tmp_path / str(number)).sha256)
    assert len(found) == 4


def test_the_report_says_what_was_read_and_changed(tmp_path):
    (tmp_path / "a.txt").write_bytes("\ufeffcafe\u0301\r\n \n\n\n\nb\x07".encode())
    (tmp_path / "b.txt").write_bytes("ação".encode("latin-1"))
    with pytest.warns(
        UserWarning, match=r"b\.txt: kept byte for byte, as it is not UTF-8, likely ISO-8859-1"
    ):
        corpus = Corpus(tmp_path, "full", "utf-8")
    whole(corpus)
    assert corpus_report(corpus) == [
        "text: 22 bytes in 2 files; cleaning (full) 1 byte-order marks removed, 1 line ends made \\n, "
        "1 characters composed (NFC), 1 control characters removed, 1 line ends stripped of blanks, "
        f"1 runs of blank lines shortened; {corpus.n_clean} bytes are left",
    ]
    (tmp_path / "b.txt").write_text("twice")
    (tmp_path / "c.txt").write_text("twice")
    corpus = Corpus([tmp_path / "b.txt", tmp_path / "c.txt"])
    whole(corpus)
    text, twice = corpus_report(corpus)
    assert text == "text: 10 bytes in 2 files; cleaning (light) changed nothing"
    assert "the same text several times" in twice and "c.txt" in twice


MESSY = st.text(st.sampled_from("ab \t\r\n\n\x00é\u0301\ufeff\u00a0\u3000語"), max_size=200)


@given(MESSY, st.sampled_from(CLEANINGS), st.integers(1, 40))
def test_chunks_clean_as_the_whole(tmp_path_factory, text, how, size):
    path = tmp_path_factory.getbasetemp() / "messy.txt"
    path.write_bytes(text.encode() + b"!")
    chunks = Corpus(path, how, encoding=None).documents[0]  # whatever zeros there are
    chunks.content = None
    before = corpora.CHUNK
    corpora.CHUNK = size
    try:
        found = list(chunks.chunks(how))
    finally:
        corpora.CHUNK = before
    assert b"".join(found) == clean_document(text.encode() + b"!", how)


@pytest.fixture
def tiny_memory(tmp_path, monkeypatch):
    """Ten bytes are a large text; the cache is a folder of the test's."""
    monkeypatch.setattr(corpora, "IN_MEMORY", 10)
    monkeypatch.setattr(corpora, "CHUNK", 7)
    monkeypatch.setenv("NPGPT_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def test_a_large_text_is_a_memory_mapped_file_found_again_by_its_content(tmp_path, tiny_memory, pipe):
    (tmp_path / "a.txt").write_bytes(b"one line\r\nand another line\r\n")
    (tmp_path / "b.txt").write_bytes("e a última\n".encode())
    expected = [*b"one line\nand another line\n", END, *"e a última\n".encode(), END]
    paths = [tmp_path / "a.txt", tmp_path / "b.txt"]

    def encode(paths, clean="light"):
        corpus = Corpus(paths, clean)
        return dataset.encode(corpus, ByteTokenizer()), corpus

    ids, corpus = encode(paths)
    assert (
        isinstance(ids, np.memmap) and ids.tolist() == expected and "2 line ends" in corpus_report(corpus)[0]
    )
    (file,) = tiny_memory.iterdir()
    made = file.stat().st_mtime_ns
    again, corpus = encode(paths)
    assert again.tolist() == expected and file.stat().st_mtime_ns == made
    assert corpus_report(corpus)[0].endswith("cleaning (light) done before")
    pipe((tmp_path / "a.txt").read_bytes())
    assert encode("-")[0].tolist() == expected[:27]
    assert encode(paths, "none")[0].tolist() != expected
    (tmp_path / "b.txt").write_bytes(b"changed, though")
    assert encode(paths)[0].tolist()[27:] == [*b"changed, though", END]
    assert len(list(tiny_memory.iterdir())) == 4 and not list(tiny_memory.glob("tmp*"))


def test_a_large_text_from_stdin_can_be_kept(tmp_path, tiny_memory, pipe):
    pipe(b"more than ten bytes\n" * 3)
    corpus = Corpus("-")
    assert not corpus.in_memory
    corpus.keep_stdin(tmp_path)
    assert (tmp_path / "stdin.txt").read_bytes() == b"more than ten bytes\n" * 3


def test_a_large_text_that_changes_while_it_is_read_is_refused(tmp_path, tiny_memory):
    (tmp_path / "a.txt").write_bytes(b"one line\nand another line\n")
    corpus = Corpus(tmp_path / "a.txt")
    (tmp_path / "a.txt").write_bytes(b"one line\nand another lime\n")
    with pytest.raises(ValueError, match=r"a\.txt: must not change while it is read"):
        dataset.encode(corpus, ByteTokenizer())
    assert not list(tiny_memory.iterdir())


def test_chunks_of_a_large_text_have_the_ids_of_the_whole(tmp_path, monkeypatch):
    text = ("Um dia \n\nDois dias  \n  três,\n\n\n quatro's dias \n" * 200).encode()
    tokenizer = BPETokenizer.train([text], 280)
    for name in ("a.txt", "b.txt"):
        (tmp_path / name).write_bytes(text)
    monkeypatch.setattr(corpora, "CHUNK", 61)
    monkeypatch.setattr(dataset, "TAIL", 20)
    corpus = Corpus([tmp_path / "a.txt", tmp_path / "b.txt"])
    for document in corpus.documents:
        document.content = None  # as where it is too large to be kept
    assert len(list(corpus.chunks())) > 100
    ids = np.concatenate(list(dataset._encode_chunks(corpus, tokenizer)))
    whole = np.append(tokenizer.encode(text), tokenizer.end_of_text)
    np.testing.assert_array_equal(ids, np.tile(whole, 2))
