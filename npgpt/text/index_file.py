"""Indexes on the disk: made once, found again by the content of the text, mapped into memory.

The file has the text, a zero behind each document, then the places of these zeros (int64), then the suffixes
of the blocks (int32), all little-endian and padded to 8 bytes. The trailer names what it was made of, and has
a checksum: a file that is cut, damaged or of something else is made again.
"""

import contextlib
import hashlib
import mmap
import os
import struct
import tempfile
import zlib
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import IO

import numpy as np

from npgpt.text.dataset import cache_folder
from npgpt.text.index import BLOCK, Block, Index, sorted_blocks

TRAILER = struct.Struct("<8s32sQQI4x")  # mark, hash of the key, bytes of text, documents, CRC-32 before this
MARK = b"npgptSA1"
Documents = Iterable[Iterable[bytes]]  # each in chunks


def open_index(key: str, documents: Callable[[], Documents]) -> Index:
    """Return the index that was made for this key, or of these documents, which are called for then.

    `key` must tell all that the documents depend on. The file is in cache_folder(), and may be deleted at any
    time. OSError where it can be neither read nor written.
    """
    digest = hashlib.sha256(key.encode()).digest()
    path = cache_folder() / f"{digest.hex()}.index"
    found = _read(path, digest) if path.exists() else None
    if found is None:
        _write(path, digest, documents())
        found = _read(path, digest)
    assert found, path
    return found


def _read(path: Path, digest: bytes) -> Index | None:
    """Return the index of a file, or None where it is broken or of another key."""
    with open(path, "rb") as file:
        size = os.fstat(file.fileno()).st_size
        if size < TRAILER.size:
            return None
        data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    mark, of, n_text, n_documents, checksum = TRAILER.unpack(data[size - TRAILER.size :])
    places = _padded(n_text)
    suffixes = places + 8 * n_documents
    with memoryview(data) as view:
        whole = (mark, of) == (MARK, digest) and size == suffixes + _padded(4 * n_text) + TRAILER.size
        if not whole or zlib.crc32(view[: size - TRAILER.size]) != checksum:
            return None
    ends = np.frombuffer(data, "<i8", n_documents, places).tolist()
    order = np.frombuffer(data, "<i4", n_text, suffixes).data
    return Index(data, ends, [Block(at, order[at : at + BLOCK]) for at in range(0, n_text, BLOCK)])


def _write(path: Path, digest: bytes, documents: Documents) -> None:
    """Write an index, atomically: what is read is the file before or the whole new one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with _replaced(path) as file:
        out, ends = _Checked(file), []
        for chunks in documents:
            for chunk in chunks:
                out.write(chunk)
            ends.append(out.size)
            out.write(b"\0")
        n_text = out.size
        out.pad()
        file.flush()
        text = memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))[:n_text]
        out.write(np.array(ends, "<i8").data)
        for block in sorted_blocks(text, ends):
            out.write(np.asarray(block.suffixes, "<i4").data)
        out.pad()
        file.write(TRAILER.pack(MARK, digest, n_text, len(ends), out.checksum))


class _Checked:
    """Writes to a file, and keeps the size and the checksum of what was written."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file, self.size, self.checksum = file, 0, 0

    def write(self, data: bytes | memoryview) -> None:
        self._file.write(data)
        self.size, self.checksum = self.size + memoryview(data).nbytes, zlib.crc32(data, self.checksum)

    def pad(self) -> None:
        self.write(bytes(_padded(self.size) - self.size))


@contextlib.contextmanager
def _replaced(path: Path) -> Iterator[IO[bytes]]:
    """Yield a file that becomes `path` when it is whole and on the disk; nothing is left where that fails."""
    file = tempfile.NamedTemporaryFile(dir=path.parent, delete=False)
    try:
        with file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(file.name, path)
    except BaseException as error:
        Path(file.name).unlink(missing_ok=True)
        if isinstance(error, OSError):
            error.filename = str(path)
        raise


def _padded(size: int) -> int:
    return -(-size // 8) * 8
