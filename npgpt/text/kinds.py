"""What a file that was given as text is, by its bytes: UTF-8, text in another encoding, or no text at all.

What is no text is refused with the command that makes text of it. Text in another encoding gets a likely
name, for the command that converts it:

- a byte-order mark names UTF-16 or UTF-32; without one, zeros at every other place are UTF-16, and so is
  what has blanks and line ends as often as a text in it
- bytes that are UTF-8 but for a few are UTF-8 that was damaged
- bytes 0x80-0x9F are quotes and dashes in Windows-1252, and nothing that a text has in Latin-1 (ISO-8859-1)
"""

import codecs
import re
import shlex
import unicodedata
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from npgpt.engine.types import PathLike

HEAD = 1 << 16  # bytes at the beginning of a file that show what it is


class Kind(NamedTuple):
    """A kind of file that is no text."""

    name: str
    pattern: bytes  # a regular expression of its beginning
    command: str  # makes text of {file}, or unpacks it; {stem} is its path without the ending


PANDOC = "pandoc -t plain {file} -o {stem}.txt"
OFFICE = "libreoffice --headless --convert-to pdf {file}"  # and of the PDF the next line
PICTURE = "tesseract {file} {stem}"  # reads what is printed there, into STEM.txt
KINDS = (
    Kind("a PDF", rb"%PDF-", "pdftotext {file} {stem}.txt"),
    Kind("an EPUB", rb"PK\x03\x04.{26}mimetypeapplication/epub", PANDOC),
    Kind(
        "an OpenDocument text", rb"PK\x03\x04.{26}mimetypeapplication/vnd\.oasis\.opendocument\.text", PANDOC
    ),
    Kind("an OpenDocument file", rb"PK\x03\x04.{26}mimetypeapplication/vnd\.oasis", OFFICE),
    Kind("a Word document", rb"PK\x03\x04.*?word/(_rels|document)", PANDOC),
    Kind(
        "an Excel workbook",
        rb"PK\x03\x04.*?xl/(_rels|work)",
        "libreoffice --headless --convert-to csv {file}",
    ),
    Kind("a PowerPoint presentation", rb"PK\x03\x04.*?ppt/(_rels|pres|slide)", OFFICE),
    Kind("a zip archive", rb"PK(\x03\x04|\x05\x06)", "unzip {file} -d {stem}"),
    Kind("an old Office file", rb"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1", OFFICE),
    Kind("an RTF document", rb"\{\\rtf", PANDOC),
    Kind("compressed by gzip", rb"\x1f\x8b", "gunzip -c {file} > {stem}"),
    Kind("compressed by bzip2", rb"BZh[1-9]1AY&SY", "bunzip2 -c {file} > {stem}"),
    Kind("compressed by xz", rb"\xfd7zXZ\x00", "unxz -c {file} > {stem}"),
    Kind("compressed by zstd", rb"\x28\xb5\x2f\xfd", "unzstd -c {file} > {stem}"),
    Kind("a 7z archive", rb"7z\xbc\xaf\x27\x1c", "7z x {file}"),
    Kind("a RAR archive", rb"Rar!\x1a\x07", "unrar x {file}"),
    Kind("a tar archive", rb".{257}ustar", "tar -xf {file}"),
    Kind("a PNG picture", rb"\x89PNG\r\n\x1a\n", PICTURE),
    Kind("a JPEG picture", rb"\xff\xd8\xff", PICTURE),
    Kind("a GIF picture", rb"GIF8[79]a", PICTURE),
    Kind("a WebP picture", rb"RIFF.{4}WEBP", PICTURE),
    Kind("a TIFF picture", rb"II\*\x00|MM\x00\*", PICTURE),
    Kind(
        "sound or video",
        rb"RIFF.{4}(WAVE|AVI )|ID3[\x02-\x04]\x00|OggS\x00|fLaC\x00|\x00\x00..ftyp|\x1aE\xdf\xa3",
        "",
    ),
    Kind("an SQLite database", rb"SQLite format 3\x00", "sqlite3 {file} .dump > {stem}.txt"),
    Kind("a program", rb"\x7fELF|MZ.*?PE\x00\x00|\xcf\xfa\xed\xfe|\0asm\x01\x00\x00\x00", ""),
    Kind("a model or an array", rb"GGUF[\x02\x03]\x00\x00\x00|\x93NUMPY|\x89HDF\r\n\x1a\n|PAR1\x15", ""),
)
MARKS = {b"\xff\xfe\0\0": "UTF-32", b"\0\0\xfe\xff": "UTF-32", b"\xff\xfe": "UTF-16", b"\xfe\xff": "UTF-16"}
COMMON = re.compile("[ \r\n\u3001\u3002\uff0c\u0964]")  # blanks, line ends, full stops
CONTROLS = bytes([0, *range(0x80, 0xA0)])  # bytes that tell encodings of one byte a character apart
ORDINARY = bytes(set(range(256)).difference(CONTROLS))
UNDEFINED = set(b"\x81\x8d\x8f\x90\x9d")  # in Windows-1252


class Form:
    """What the blocks of a file, added one by one, show of its form."""

    def __init__(self, path: str, checked: bool = True, but: Sequence[str] = ()) -> None:
        """With checked=False any file is taken, and only UTF-8 is told from other bytes.

        but: the names of kinds that are no text and are taken nevertheless.
        """
        self._path, self._checked, self._but = path, checked, but
        self._decoder = codecs.getincrementaldecoder("utf-8")()
        self._first, self._last, self._faulty = True, b"", b""  # the block that is not UTF-8
        self._wide: str | None = None
        self._controls: set[int] = set()

    def add(self, block: bytes) -> None:
        """Look at the next block, which is not empty; ValueError where the first one is no text."""
        if self._first and self._checked:
            check_text(self._path, block, " (--encoding bytes takes any file as it is)", self._but)
            self._wide = wide_encoding(block)
        self._first, self._last = False, block
        self._decode(block, final=False)
        if self._faulty:
            self._controls |= controls(block)

    def _decode(self, block: bytes, final: bool) -> None:
        if not (self._faulty or self._wide):
            try:
                self._decoder.decode(block, final)
            except UnicodeDecodeError:
                self._faulty = block or self._last

    def is_utf8(self) -> bool:
        """Return True where all blocks together are UTF-8."""
        self._decode(b"", final=True)
        return not (self._faulty or self._wide)

    def likely(self) -> str | None:
        """Return the likely encoding of a text that is not UTF-8; None where nothing is likely."""
        return likely_encoding(self._faulty, self._controls) if self._faulty else self._wide


def check_text(path: str, data: bytes, more: str = "", but: Sequence[str] = ()) -> None:
    """Raise ValueError where `data`, the beginning of a file, is no text, and no kind of these names.

    It names the kind, and the command that makes text of it; `more` ends the line.
    """
    for name, pattern, command in KINDS:
        if re.match(pattern, data[:HEAD], re.DOTALL):
            if name in but:
                return
            first = f"; first: {_fill(command, path)}" if command else ""
            raise ValueError(f"{path}: must be text, got {name}{first}{more}")


def check_utf8(path: str, data: bytes) -> None:
    """Raise ValueError where `data`, a whole file, is not text in UTF-8.

    It names the kind or the likely encoding, and the command that converts.
    """
    check_text(path, data)
    line, encoding = 1, wide_encoding(data)
    if encoding is None:
        try:
            data.decode("utf-8")
        except UnicodeDecodeError as error:
            line, encoding = data.count(b"\n", 0, error.start) + 1, likely_encoding(data, controls(data))
        else:
            return
    raise ValueError(f"{path}: must be UTF-8: line {line} is {conversion(path, encoding)}")


def read_utf8(path: PathLike) -> str:
    """Return the text of a small file in UTF-8, without a byte-order mark; ValueError where it is none."""
    data = Path(path).read_bytes()
    check_utf8(str(path), data)
    return data.decode("utf-8-sig")


def wide_encoding(data: bytes) -> str | None:
    """Return UTF-16 or UTF-32, followed by LE or BE where no mark says it, if `data` begins like that."""
    for mark, name in MARKS.items():
        if data.startswith(mark):
            return name
    n = min(len(data), HEAD) // 4
    zeros = [data[i : 4 * n : 4].count(0) / n for i in range(4)] if n >= 4 else [0.0] * 4
    for order, (a, b, c, d) in (("LE", zeros), ("BE", zeros[::-1])):
        if a < 0.1 and min(c, d) > 0.9:
            return f"UTF-32{order}"
        if max(a, c) < 0.1 and min(b, d) > 0.5:
            return f"UTF-16{order}"
    return _wide_order(data[:HEAD]) if b"\0" in data[:HEAD] else None


def _wide_order(data: bytes) -> str | None:
    """Return which UTF-16 `data` is in a writing without zeros, by its blanks, line ends and full stops."""
    data = data[: len(data) // 2 * 2]
    texts = {f"UTF-16{order}": data.decode(f"utf-16-{order}", "replace") for order in ("le", "be")}
    found = {name: len(COMMON.findall(text)) for name, text in texts.items()}
    likely, other = sorted(found, key=lambda name: -found[name])
    text = texts[likely]
    odd = sum(unicodedata.category(char) in ("Cc", "Cn", "Co") or char == "\ufffd" for char in text)
    odd -= len(re.findall("[\t\r\n\f]", text))
    sure = len(text) >= 8 and found[likely] * 50 >= len(text) and found[likely] > 4 * found[other]
    return likely.upper() if sure and odd * 100 <= len(text) else None


def controls(data: bytes) -> set[int]:
    """Return which CONTROLS occur in `data`."""
    return set(data.translate(None, ORDINARY))


def likely_encoding(data: bytes, found: set[int]) -> str | None:
    """Return the likely encoding of `data`, which is not UTF-8; `found` is controls() of the whole text.

    UTF-8 for one that was damaged; None where nothing is likely.
    """
    try:
        data.decode("utf-8")
    except UnicodeDecodeError as error:
        data = data[max(0, error.start - HEAD) :][: 2 * HEAD]
    text = data.decode("utf-8", "replace")
    if len(re.findall("[^\0-\x7f\ufffd]", text)) > text.count("\ufffd"):
        return "UTF-8"
    if 0 in found or found & UNDEFINED:
        return None
    return "WINDOWS-1252" if found else "ISO-8859-1"


def conversion(path: str, encoding: str | None) -> str:
    """Return what a warning says of a file's likely encoding, and the command that makes it UTF-8."""
    if encoding is None:
        return "not UTF-8, and no encoding is likely; iconv -f ENCODING -t UTF-8 converts (iconv -l)"
    if encoding == "UTF-8":
        command = "iconv -c -f UTF-8 -t UTF-8 {file} > {stem}-utf8{ending}"
        return f"UTF-8 with faulty bytes; {_fill(command, path)} leaves them out"
    command = f"iconv -f {encoding} -t UTF-8 {{file}} > {{stem}}-utf8{{ending}}"
    return f"not UTF-8, likely {encoding}; {_fill(command, path)} converts"


def _fill(command: str, path: str) -> str:
    """Return a command with a file's name in it."""
    stem, ending = ("stdin", "") if path == "-" else (str(Path(path).with_suffix("")), Path(path).suffix)
    if ending in ("", ".txt"):  # no command may write over the file
        stem = f"{stem}-text"
    return command.format(file=shlex.quote(path), stem=shlex.quote(stem), ending=ending)
