"""From files to clean documents: finding, reading, hashing and cleaning them.

A text up to IN_MEMORY bytes is held in memory; a larger one is read again, chunk by chunk, each time it is
needed. Chunks end where no cleaning reaches across, so that cleaning them is cleaning the document.
"""

import hashlib
import os
import re
import sys
import tempfile
import warnings
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from npgpt.engine.types import PathLike
from npgpt.text import kinds
from npgpt.text.cleaning import check_cleaning, clean_document

ENCODINGS = ("utf-8", "bytes")
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
    spooled: IO[bytes] | None = None  # the temporary file that holds what came from stdin

    def chunks(self, clean: str, changed: Counter[str] | None = None) -> Iterator[bytes]:
        """Yield the cleaned document, as one chunk if it is in memory. ValueError if the file has changed."""
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
        again = self.name if self.spooled is None else os.dup(self.spooled.fileno())
        with open(again, "rb") as file:
            file.seek(0)
            while block := file.read(CHUNK):
                yield block


class Corpus:
    """The documents of some files and folders, and how they are cleaned."""

    def __init__(
        self,
        paths: PathLike | Iterable[PathLike],
        clean: str | None = None,
        encoding: str | None = "utf-8",
    ) -> None:
        """Read all files once.

        paths: one or several; a folder stands for the .txt files in it and below, by name; "-" is stdin.
        clean: none, light or full (default light). encoding: "utf-8" refuses files that are no text, and
        warns of those in another encoding, which are kept byte for byte; "bytes" takes any file, uncleaned;
        None does what npgpt 0.1.0 did, for its runs: any file, cleaned where it is UTF-8.
        ValueError for a file without text, OSError for one that cannot be read.
        """
        if encoding not in (*ENCODINGS, None):
            raise ValueError(f"encoding must be {' or '.join(ENCODINGS)}, got {encoding!r}")
        clean = clean or ("none" if encoding == "bytes" else "light")
        check_cleaning(clean, "clean")
        if encoding == "bytes" and clean != "none":
            raise ValueError(f"clean must be none where the encoding is bytes, got {clean}")
        paths = [paths] if isinstance(paths, (str, os.PathLike)) else list(paths)
        if "" in paths:
            raise ValueError("the path of a text must not be empty")
        files = [file for path in paths for file in _files(str(path))]
        if files.count("-") > 1:
            raise ValueError("-: stdin can be read only once")
        self.clean, self.encoding = clean, encoding
        free = IN_MEMORY
        self.documents = []
        for file in files:
            self.documents.append(_read(file, free, encoding))
            free -= self.documents[-1].n_bytes
        if encoding == "utf-8":
            self._warn_of_encodings()
        self.n_bytes = sum(document.n_bytes for document in self.documents)
        # set once chunks() has ended: {what cleaning did: how often}, and the number of bytes that it left
        self.changed: Counter[str] = Counter()
        self.n_clean: int | None = None

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
        for number, document in enumerate(self.documents):
            for chunk in document.chunks(self.clean, changed):
                n_clean += len(chunk)
                yield number, chunk
        self.changed, self.n_clean = changed, n_clean

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
        where = [str(run / STDIN) if d.name == "-" else d.name for d in self.documents]
        return [os.path.abspath(path) for path in where]

    def keep_stdin(self, run: Path) -> None:
        """Write the text from stdin, if there is any, into the folder `run`: stdin cannot be read again."""
        for document in self.documents:
            if document.name == "-":
                with open(run / STDIN, "wb") as file:
                    file.writelines(document.blocks())
                    file.flush()
                    os.fsync(file.fileno())


def _files(path: str) -> list[str]:
    if path == "-" or not Path(path).is_dir():
        return [path]
    root = Path(path)
    runs = {lock.parent for lock in root.rglob("lock") if (lock.parent / "config.toml").exists()}
    found = sorted(str(f) for f in root.rglob("*.txt") if f.is_file() and runs.isdisjoint(f.parents))
    if not found:
        raise ValueError(f"{path}: must be a file or a folder with .txt files in it")
    return found


def _read(path: str, free: int, encoding: str | None) -> Document:
    """Read a file once; keep its content if it is at most `free` bytes."""
    kept: list[bytes] | None = []
    digest, n, blank = hashlib.sha256(), 0, encoding != "bytes"
    form = kinds.Form(path, checked=encoding == "utf-8")
    file = sys.stdin.buffer if path == "-" else open(path, "rb")
    spooled = None
    try:
        while block := file.read(CHUNK):
            digest.update(block)
            form.add(block)
            n, blank = n + len(block), blank and not block.strip()
            if kept is not None:
                kept.append(block)
                if n > free:
                    if path == "-":
                        spooled = tempfile.TemporaryFile()
                        spooled.writelines(kept)
                    kept = None
            elif spooled:
                spooled.write(block)
    except OSError as error:
        error.filename = path  # a failed read, unlike a failed open, does not set it
        raise
    finally:
        if path != "-":
            file.close()
    if blank or not n:
        raise ValueError(f"{path}: must hold text, got {'only whitespace' if n else 'an empty file'}")
    if spooled:
        spooled.flush()
    content = None if kept is None else b"".join(kept)
    is_utf8 = form.is_utf8()
    return Document(path, n, digest.hexdigest(), is_utf8, form.likely(), content, spooled)


def _chunk_end(block: bytes) -> int:
    """Return the last position of `block` where a chunk may end; 0 where there is none."""
    for pattern in (_CHUNK_END, _OTHER_CHUNK_END):
        for start in (max(0, len(block) - 65536), 0):
            if ends := [match.end() for match in pattern.finditer(block, start)]:
                return ends[-1]
    return 0
