"""What is no text is refused with the command that makes text of it; another encoding is named and kept."""

# ruff: noqa: RUF001

import gzip
import io
import shutil
import subprocess
import tarfile
import zipfile
import zlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from npgpt.text import kinds
from npgpt.text.corpus import Corpus

WORDS = "Não há ação sem paixão, à beira do mar. É o coração que dança.\n"


def archive(*names, **contents):
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as zipped:
        for name in names:
            zipped.writestr(name, contents.get(name, "x" * 99))
    return file.getvalue()


def packed():
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as tar:
        info = tarfile.TarInfo("a.txt")
        info.size = 3
        tar.addfile(info, io.BytesIO(b"abc"))
    return file.getvalue()


PNG = b"\x89PNG\r\n\x1a\n" + zlib.compress(b"picture" * 99)
DOCX = archive("[Content_Types].xml", "_rels/.rels", "word/document.xml")
FILES = [
    ("a.pdf", b"%PDF-1.7\n%\xe2\xe3", "a PDF; first: pdftotext a.pdf a.txt"),
    (
        "my book.epub",
        archive("mimetype", mimetype="application/epub+zip"),
        "an EPUB; first: pandoc -t plain 'my book.epub' -o 'my book'.txt",
    ),
    (
        "a.odt",
        archive("mimetype", mimetype="application/vnd.oasis.opendocument.text"),
        "an OpenDocument text; first: pandoc",
    ),
    (
        "a.ods",
        archive("mimetype", mimetype="application/vnd.oasis.opendocument.spreadsheet"),
        "an OpenDocument file; first: libreoffice",
    ),
    ("a.docx", DOCX, "a Word document; first: pandoc -t plain a.docx -o a.txt"),
    (
        "a.xlsx",
        archive("[Content_Types].xml", "xl/workbook.xml"),
        "an Excel workbook; first: libreoffice --headless --convert-to csv a.xlsx",
    ),
    (
        "a.pptx",
        archive("[Content_Types].xml", "ppt/presentation.xml"),
        "a PowerPoint presentation; first: libreoffice",
    ),
    ("a.zip", archive("a.txt", "xl.txt"), "a zip archive; first: unzip a.zip -d a"),
    ("a.txt.gz", gzip.compress(b"text"), "compressed by gzip; first: gunzip -c a.txt.gz > a.txt"),
    ("a.tar", packed(), "a tar archive; first: tar -xf a.tar"),
    ("a.png", PNG, "a PNG picture; first: tesseract a.png a"),
    ("a.jpg", b"\xff\xd8\xff\xe0\0\x10JFIF", "a JPEG picture"),
    ("a.db", b"SQLite format 3\0\x10\0", "an SQLite database; first: sqlite3 a.db .dump > a.txt"),
    ("a.wav", b"RIFF\x24\0\0\0WAVEfmt ", "sound or video"),
    ("a", b"\x7fELF\2\1\1\0", "a program"),
    # no command writes over the file itself
    ("a.txt", b"%PDF-1.7", "a PDF; first: pdftotext a.txt a-text.txt"),
    ("a", gzip.compress(b"text"), "compressed by gzip; first: gunzip -c a > a-text"),
]


@pytest.mark.parametrize(
    "name, content, says", FILES, ids=lambda value: value if isinstance(value, str) else ""
)
def test_what_is_no_text_is_refused_with_the_way_out(name, content, says, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError) as error:
        Corpus(name, encoding="utf-8")
    assert str(error.value).startswith(f"{name}: must be text, got {says}")
    assert str(error.value).endswith(" (--encoding bytes takes any file as it is)")
    for encoding in ("bytes", None):  # None: a run of 0.1.0 goes on
        corpus = Corpus(name, encoding=encoding)
        assert b"".join(chunk for _, chunk in corpus.chunks()) == content or encoding is None


@pytest.mark.parametrize(
    "beginning", ["PK", "BZh", "GIF", "%PDF", "MZ", "RIFF", "ID3", "Rar!", "{", "II*", "PAR1", "7z"]
)
def test_text_that_begins_like_a_kind_is_text(beginning):
    kinds.check_text("a", (beginning + WORDS * 9).encode())


ENCODED = [
    ("utf-8", None), ("utf-8-sig", None), ("utf-16", "UTF-16"), ("utf-16-le", "UTF-16LE"),
    ("utf-16-be", "UTF-16BE"), ("utf-32", "UTF-32"), ("utf-32-le", "UTF-32LE"), ("utf-32-be", "UTF-32BE"),
    ("latin-1", "ISO-8859-1"), ("cp1252", "WINDOWS-1252"),
]  # fmt: skip


@pytest.mark.parametrize("codec, encoding", ENCODED)
def test_encodings_are_told_and_the_command_converts(codec, encoding, tmp_path, monkeypatch, recwarn):
    monkeypatch.chdir(tmp_path)
    text = WORDS * 3 + ("“Não” – disse… €\n" if codec != "latin-1" else "")
    (tmp_path / "a.txt").write_bytes(text.encode(codec))
    (document,) = Corpus("a.txt", encoding="utf-8").documents
    assert document.encoding == encoding and document.is_utf8 == (encoding is None)
    assert len(recwarn) == (encoding is not None)
    for warning in recwarn:
        line = str(warning.message)
        assert line.startswith(
            f"a.txt: kept byte for byte, as it is not UTF-8, likely {encoding}; iconv -f {encoding} "
        )
        assert b"".join(document.chunks("light")) == text.encode(codec)
        if shutil.which("iconv"):
            command = line.split("; ")[1].removesuffix(" converts")
            subprocess.run(command, shell=True, check=True)
            assert (tmp_path / "a-text-utf8.txt").read_text(encoding="utf-8") == text
    recwarn.clear()
    Corpus("a.txt", encoding="bytes")
    assert not recwarn


def test_damaged_and_unknown_bytes(tmp_path):
    for content, says in (
        (
            WORDS.encode() * 9 + b"\xff" + WORDS.encode(),
            "UTF-8 with faulty bytes; iconv -c -f UTF-8 -t UTF-8 ",
        ),
        (WORDS.encode() + "ã".encode()[:1], "UTF-8 with faulty bytes"),
        (bytes(range(256)), "not UTF-8, and no encoding is likely"),
        (WORDS.encode("latin-1") + b"\x81", "not UTF-8, and no encoding is likely"),  # none of Windows-1252
    ):
        (tmp_path / "a.txt").write_bytes(content)
        with pytest.warns(UserWarning, match=f"a.txt: kept byte for byte, as it is {says}"):
            Corpus(tmp_path / "a.txt", encoding="utf-8")


def test_a_large_file_is_judged_by_all_of_it(tmp_path, monkeypatch):
    monkeypatch.setattr("npgpt.text.corpus.CHUNK", 100)
    (tmp_path / "a.txt").write_bytes(b"plain\n" * 40 + WORDS.encode("latin-1") * 9 + "–".encode("cp1252"))
    with pytest.warns(UserWarning, match="likely WINDOWS-1252"):
        Corpus(tmp_path / "a.txt", encoding="utf-8")


def test_many_files_of_an_encoding_are_one_warning(tmp_path):
    for n in range(5):
        (tmp_path / f"{n}.txt").write_bytes(WORDS.encode("latin-1"))
    with pytest.warns(UserWarning, match=r"0\.txt and 4 more: kept byte for byte") as found:
        Corpus(tmp_path, encoding="utf-8")
    assert len(found) == 1


@given(st.text(min_size=1))
def test_utf8_is_utf8(text):
    if "\0" not in text:
        assert kinds.wide_encoding(text.encode()) is None


def test_what_bytes_and_cleaning_mean_together(tmp_path):
    (tmp_path / "a.txt").write_bytes(b"\xef\xbb\xbf \r\n")
    corpus = Corpus(tmp_path / "a.txt", encoding="bytes")
    assert corpus.clean == "none" and [chunk for _, chunk in corpus.chunks()] == [b"\xef\xbb\xbf \r\n"]
    with pytest.raises(ValueError, match="clean must be none where the encoding is bytes, got light"):
        Corpus(tmp_path / "a.txt", "light", "bytes")
    with pytest.raises(
        ValueError, match="encoding must be auto, bytes or one that Python knows, got 'base64'"
    ):
        Corpus(tmp_path / "a.txt", encoding="base64")
    (tmp_path / "a.txt").write_bytes(b"")
    with pytest.raises(ValueError, match="must hold text, got an empty file"):
        Corpus(tmp_path / "a.txt", encoding="bytes")
