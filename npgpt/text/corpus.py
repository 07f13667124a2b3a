"""From files to clean documents: finding, reading, hashing and cleaning them.

A text up to IN_MEMORY bytes is held in memory; a larger one is read again, chunk by chunk, each time it is
needed. Chunks end where no cleaning reaches across, so that cleaning them is cleaning the document. A file of
another form than plain text is read as forms/reading.py says, and may hold many documents.
"""

import hashlib
import os
import re
import sys
import warnings
from bisect import bisect_right
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import IO, Any

from npgpt.engine.types import PathLike
from npgpt.text import kinds
from npgpt.text.cleaning import check_cleaning, clean_document
from npgpt.text.forms import packed
from npgpt.text.forms.encodings import text_codec
from npgpt.text.forms.notes import Notes
from npgpt.text.forms.reading import BINARY, SEPARATOR, How, Places, Source, is_known, said

ENCODINGS = ("utf-8", "bytes")  # as files are taken as they are; any other one is converted
IN_MEMORY = 64 << 20  # bytes
CHUNK = 8 << 20  # bytes
STDIN = "stdin.txt"  # the file of a run that holds the text from stdin

# A chunk ends after a newline or between two letters: nothing composes across these (NFC), no line end, run
# of blanks or blank lines is cut. Not before bytes that may begin a blank, a control or a combining mark.
_CHUNK_END = re.compile(rb"\n(?=[!-~\xc3-\xdf\xe4-\xee\xf0-\xf4])")
_OTHER_CHUNK_END = re.compile(rb"[!-~](?=[!-~])")
_LINE_END = re.compile(rb"\r\n|\n|\r(?!\Z)")  # behind a last \r the next block may have its \n


@dataclass
class Document:
    """One file, or stdin, that has been read and hashed but not cleaned."""

    name: str
    n_bytes: int
    sha256: str
    is_utf8: bool  # else it is kept byte for byte
    encoding: str | None  # the likely one of a text that is not UTF-8, where there is one
    content: bytes | None  # None: too large for memory, read again when needed
    spooled: IO[bytes] | None = None  # the temporary file that holds what came from stdin, or was converted
    starts: Sequence[int] = (1,)  # of each of its documents: the line of the file at which it begins
    inner_lines: bool = True  # the lines inside a document are those of the file
    notes: Notes | None = None  # how it was read, where it was converted
    places: Places | None = None  # of its lines in the file, where they are others
    original: "Document | None" = None  # what was converted of stdin, which cannot be read again

    def parts(self, clean: str, changed: Counter[str] | None = None) -> Iterator[tuple[int, bytes]]:
        """Yield (number, chunk) of the documents in the file, cleaned."""
        if len(self.starts) == 1:
            for chunk in self.chunks(clean, changed):
                yield 0, chunk
            return
        number, held = 0, b""
        for block in self.blocks():
            *whole, held = (held + block).split(SEPARATOR)
            for document in whole:
                yield number, self._clean(document, clean, changed)
                number += 1
        yield number, self._clean(held, clean, changed)

    def chunks(self, clean: str, changed: Counter[str] | None = None) -> Iterator[bytes]:
        """Yield the cleaned file, as one chunk if it is in memory. ValueError if the file has changed."""
        if self.content is not None:
            yield self._clean(self.content, clean, changed)
            return
        digest, left, first = hashlib.sha256(), b"", True
        for block in self.blocks():
            digest.update(block)
            left += block
            end = _chunk_end(left)
            if end:
                yield self._clean(left[:end], clean, changed, first)
                left, first = left[end:], False
        if left:
            yield self._clean(left, clean, changed, first)
        if digest.hexdigest() != self.sha256:
            raise ValueError(f"{self.name}: must not change while it is read")

    def lines_of(self, clean: str, lines: Sequence[int]) -> list[int]:
        """Return the lines of the file, from 1, that are `lines`, ascending, of the cleaned document.

        They differ where cleaning shortened runs of blank lines before them.
        """
        if clean != "full" or not self.is_utf8:
            return list(lines)
        found: list[int] = []
        kept, run = 0, 0  # lines that cleaning leaves, and line ends side by side
        for number, content in enumerate(self._lines(), 1):
            blank = not (b"!" <= content[:1] <= b"~" or clean_document(content, clean, first=number == 1))
            run = run + 1 if blank else 1
            kept += run <= 2
            while len(found) < len(lines) and kept >= lines[len(found)]:
                found.append(number)
            if len(found) == len(lines):
                break
        return found

    def _lines(self) -> Iterator[bytes]:
        """Yield the lines of the file without their ends."""
        left = b""
        for block in self.blocks():
            *lines, left = _LINE_END.split(left + block)
            yield from lines
        yield left

    def __del__(self) -> None:
        if self.spooled:
            self.spooled.close()

    def _clean(self, chunk: bytes, *how: Any) -> bytes:
        return clean_document(chunk, *how) if self.is_utf8 else chunk

    def blocks(self) -> Iterator[bytes]:
        """Yield the bytes of the document, uncleaned, block by block."""
        if self.content is not None:
            yield self.content
            return
        yield from packed.blocks_of(
            packed.again(self.spooled) if self.spooled else open(self.name, "rb"), CHUNK
        )


class Corpus:
    """The documents of some files and folders, and how they are cleaned."""

    def __init__(
        self,
        paths: PathLike | Iterable[PathLike],
        clean: str | None = None,
        encoding: str | None = "auto",
        field: str | None = None,
        skip_bad: bool = False,
        as_chat: bool = False,
        me: str | None = None,
    ) -> None:
        """Read all files once.

        paths: one or several; "-" is stdin; a folder or an archive stands for the files of known forms in it
        and below, by name.
        clean: none, light or full (default light). encoding: "auto" converts what is no plain text in UTF-8;
        another name does so from this encoding, as Python calls it. The rest takes files as they are, and
        of a folder those called .txt: "utf-8" refuses what is no text, and warns of other encodings; "bytes"
        takes any file, uncleaned; None does what npgpt 0.1.0 did, for its runs: any file, cleaned where it
        is UTF-8.
        field: the field of JSON's records, or the column of tables, that holds the text (default: text, or
        the only one with text). skip_bad leaves out records that do not have it, and of several files those
        that are damaged or have no text; `skipped` says why.
        as_chat: its documents are conversations, each the JSON of a list of (role, text), of WhatsApp exports
        in which `me` is the assistant, and of subtitles.
        ValueError for a file without text, OSError for one that cannot be read.
        """
        self.converts = encoding not in (*ENCODINGS, None)
        if self.converts and encoding != "auto" and text_codec(encoding or "") is None:
            raise ValueError(f"encoding must be auto, bytes or one that Python knows, got {encoding!r}")
        clean = clean or ("none" if encoding == "bytes" else "light")
        check_cleaning(clean, "clean")
        if encoding == "bytes" and clean != "none":
            raise ValueError(f"clean must be none where the encoding is bytes, got {clean}")
        paths = [paths] if isinstance(paths, (str, os.PathLike)) else list(paths)
        if "" in paths:
            raise ValueError("the path of a text must not be empty")
        files = [file for path in paths for file in _files(str(path), self.converts)]
        if files.count("-") > 1:
            raise ValueError("-: stdin can be read only once")
        self.clean, self.encoding, self.field = clean, encoding, field
        how = How(encoding or "", field, skip_bad, as_chat, me)
        self._files = files
        self.skipped = list[str]()  # what is wrong with each file that was left out
        self.documents = list(self._read_all(how))
        if not self.documents:
            raise ValueError(f"no file is left; {self.skipped[0]}")
        if encoding in ("utf-8", "auto"):
            self._warn_of_encodings()
        self.n_bytes = self.n_kept = sum(document.n_bytes for document in self.documents)
        # changed by distinct.py, where it leaves documents out: what tells which, and how many of which kind
        self.selection, self.n_left_out = "", {"exact": 0, "near": 0}
        # the number of the first document of each file
        self._first = list(accumulate((len(document.starts) for document in self.documents), initial=0))
        # set once chunks() has ended: {what cleaning did: how often}, and the number of bytes that it left
        self.changed: Counter[str] = Counter()
        self.n_clean: int | None = None

    def _read_all(self, how: How) -> Iterator[Document]:
        free, skipped = IN_MEMORY, self.skipped if len(self._files) > 1 else None
        for file in self._files:
            found: list[Document] = []
            with _skipping(file, how, skipped):
                if self.converts:
                    found = list(_converted(file, how, free, self.skipped))
                else:
                    found = [_read(file, free, self.encoding)]
            free -= sum(document.n_bytes for document in found)
            yield from found

    @property
    def in_memory(self) -> bool:
        """True where all documents are held in memory."""
        return all(document.content is not None for document in self.documents)

    @property
    def sha256(self) -> str:
        """The hash of the uncleaned documents in order: it shows that a text changed after a run used it."""
        digest = hashlib.sha256()
        for document in self.documents:
            digest.update(bytes.fromhex(document.sha256))
        return digest.hexdigest()

    def chunks(self) -> Iterator[tuple[int, bytes]]:
        """Yield (number of the document, chunk of the cleaned document), in order."""
        n_clean = 0
        changed: Counter[str] = Counter()
        for first, document in zip(self._first, self.documents, strict=False):
            for number, chunk in document.parts(self.clean, changed):
                n_clean += len(chunk)
                yield first + number, chunk
        self.changed, self.n_clean = changed, n_clean

    def places(self, number: int, lines: Sequence[int]) -> tuple[str, list[int]]:
        """Return the file of a document, by its number in chunks(), and where these lines of it are there.

        unit() says what that counts.
        """
        at = bisect_right(self._first, number) - 1
        document, begin = self.documents[at], self.documents[at].starts[number - self._first[at]]
        if not (document.inner_lines or document.places):
            return document.name, [begin] * len(lines)
        found = document.lines_of(self.clean, lines) if len(document.starts) == 1 else lines
        if document.places:
            return document.name, [document.places.of(line) for line in found]
        return document.name, [begin - 1 + line for line in found]

    def unit(self, file: str) -> str:
        """Return what places() counts in a file: line, page, paragraph or record."""
        notes = next(document.notes for document in self.documents if document.name == file)
        return notes.unit if notes else "line"

    def _warn_of_encodings(self) -> None:
        """Warn once for each encoding that is not UTF-8, naming the command that converts."""
        odd: dict[str | None, list[str]] = {}
        for document in self.documents:
            if not document.is_utf8:
                odd.setdefault(document.encoding, []).append(document.name)
        for encoding, names in odd.items():
            more = f" and {len(names) - 1} more" if len(names) > 1 else ""
            line = f"{names[0]}{more}: kept byte for byte, as it is {kinds.conversion(names[0], encoding)}"
            warnings.warn(f"{line}; --encoding bytes takes it without a warning", stacklevel=3)

    def names(self, run: Path) -> list[str]:
        """Return the absolute paths of the files; for stdin that of the file that keep_stdin() writes."""
        return [os.path.abspath(run / STDIN if path == "-" else path) for path in self._files]

    def keep_stdin(self, run: Path) -> None:
        """Write the text from stdin, if there is any, into the folder `run`: stdin cannot be read again."""
        for document in self.documents:
            if document.name == "-":
                with open(run / STDIN, "wb") as file:
                    file.writelines((document.original or document).blocks())
                    file.flush()
                    os.fsync(file.fileno())


FORMS = ".txt, .jsonl, .csv, .html, .docx, .pdf, .srt, ..."


def _files(path: str, converts: bool) -> list[str]:
    if path == "-" or not Path(path).is_dir():
        return [path]
    root = Path(path)
    runs = {lock.parent for lock in root.rglob("lock") if (lock.parent / "config.toml").exists()}
    files = (f for f in root.rglob("*") if f.is_file() and runs.isdisjoint(f.parents))
    found = sorted(str(f) for f in files if (_is_form(f.name) if converts else f.suffix == ".txt"))
    if not found:
        raise ValueError(
            f"{path}: must be a file or a folder with {FORMS if converts else '.txt'} files in it"
        )
    return found


def _is_form(name: str) -> bool:
    return packed.is_archive(name) or is_known(name.removesuffix(packed.compression(name)))


@contextmanager
def _skipping(file: str, how: How, skipped: list[str] | None) -> Iterator[None]:
    """Note in `skipped` a file that is refused within the block, where --skip-bad leaves such files out.

    Without it, and without --skip-bad, it is refused; the error names the way out where there is one.
    """
    try:
        yield
    except ValueError as error:
        if skipped is None:
            raise
        if how.skip_bad:
            skipped.append(str(error))
            return
        if "--skip-bad" in str(error):
            raise
        raise ValueError(f"{error} (npgpt.prepare --skip-bad leaves such files out)") from None


def _converted(path: str, how: How, free: int, skipped: list[str]) -> Iterator[Document]:
    """Yield the files that a file is or holds, as text in UTF-8."""
    inside: Iterable[tuple[str, Iterator[bytes]]]
    if packed.is_archive(path):
        inside = packed.members(path)
    elif packed.compression(path):
        inside = [(path, packed.unpacked(path))]
    else:
        yield _as_text(_read(path, free, "auto"), how, free)
        return
    n = 0
    for name, blocks in inside:
        if not is_known(name.removesuffix(packed.compression(name))):
            continue
        n += 1
        document = None
        with _skipping(name, how, skipped if packed.is_archive(path) else None):
            document = _as_text(_held(name, blocks, free, "auto"), how, free)
        if document:
            free -= document.n_bytes
            yield document
    if not n:
        raise ValueError(f"{path}: must hold {FORMS} files")


def _as_text(document: Document, how: How, free: int) -> Document:
    name = document.name.removesuffix(packed.compression(document.name))
    source = Source(name, document.blocks, document.is_utf8, document.encoding)
    found = said(source, how, free)
    if found is None:
        return document
    held, (starts, inner, notes, places) = found.held, found[1:]
    return Document(
        document.name,
        held.size,
        held.sha256,
        True,
        None,
        held.content,
        held.spooled,
        starts=starts,
        inner_lines=inner,
        notes=notes,
        places=places,
        original=document if document.name == "-" else None,
    )


def _form(path: str, encoding: str | None) -> kinds.Form:
    return kinds.Form(path, checked=encoding in ("utf-8", "auto"), but=BINARY if encoding == "auto" else ())


def _read(path: str, free: int, encoding: str | None) -> Document:
    """Read a file once; keep its content if it is at most `free` bytes."""
    if path == "-":
        return _held("-", _stdin(), free, encoding)
    kept: list[bytes] | None = []
    digest, n, blank = hashlib.sha256(), 0, encoding != "bytes"
    form = _form(path, encoding)
    try:
        with open(path, "rb") as file:
            while block := file.read(CHUNK):
                digest.update(block)
                form.add(block)
                n, blank = n + len(block), blank and not block.strip()
                if kept is not None:
                    kept.append(block)
                    kept = kept if n <= free else None
    except OSError as error:
        error.filename = path  # a failed read, unlike a failed open, does not set it
        raise
    _check_some(path, n, blank)
    content = None if kept is None else b"".join(kept)
    is_utf8 = form.is_utf8()
    return Document(path, n, digest.hexdigest(), is_utf8, form.likely(), content)


def _held(name: str, blocks: Iterator[bytes], free: int, encoding: str | None) -> Document:
    """Return what is there once, from stdin or an archive: in memory, or beyond `free` bytes in a file."""
    form, blank = _form(name, encoding), encoding != "bytes"

    def seen() -> Iterator[bytes]:
        nonlocal blank
        for block in blocks:
            form.add(block)
            blank = blank and not block.strip()
            yield block

    held = packed.hold(seen(), free)
    _check_some(name, held.size, blank)
    is_utf8 = form.is_utf8()
    return Document(name, held.size, held.sha256, is_utf8, form.likely(), held.content, held.spooled)


def _stdin() -> Iterator[bytes]:
    try:
        yield from iter(lambda: sys.stdin.buffer.read(CHUNK), b"")
    except OSError as error:
        error.filename = "-"
        raise


def _check_some(path: str, n: int, blank: bool) -> None:
    if blank or not n:
        raise ValueError(f"{path}: must hold text, got {'only whitespace' if n else 'an empty file'}")


def _chunk_end(block: bytes) -> int:
    """Return the last position of `block` where a chunk may end; 0 where there is none."""
    for pattern in (_CHUNK_END, _OTHER_CHUNK_END):
        for start in (max(0, len(block) - 65536), 0):
            if ends := [match.end() for match in pattern.finditer(block, start)]:
                return ends[-1]
    return 0
