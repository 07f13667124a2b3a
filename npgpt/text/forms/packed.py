"""Compressed files and archives: what is in them, in bounded memory, and never without end."""

import bz2
import errno
import gzip
import hashlib
import io
import lzma
import os
import stat
import struct
import tarfile
import tempfile
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import PurePosixPath
from typing import IO, Any, NamedTuple

BLOCK = 8 << 20  # bytes
FREE = 64 << 20  # bytes that any file may unpack to
RATIO = 200  # bytes that a byte of a larger one may unpack to; text is packed about ten times as small
COMPRESSED: dict[str, Callable[[IO[bytes]], Any]] = {
    ".gz": lambda file: gzip.GzipFile(fileobj=file),
    ".bz2": bz2.BZ2File,
    ".xz": lzma.LZMAFile,
}
ARCHIVES = (".zip", ".tar", ".tgz", ".tbz2", ".txz", ".tar.gz", ".tar.bz2", ".tar.xz")
DAMAGED = (
    EOFError,
    zlib.error,
    lzma.LZMAError,
    zipfile.BadZipFile,
    tarfile.TarError,
    struct.error,
    RuntimeError,
)


class Held(NamedTuple):
    """Bytes that were made and are read again: in memory, or in a temporary file."""

    content: bytes | None
    spooled: IO[bytes] | None
    size: int
    sha256: str

    def blocks(self) -> Iterator[bytes]:
        """Yield them block by block."""
        return blocks_of(self.open())

    def open(self) -> IO[bytes]:
        """Return them as a file."""
        return io.BytesIO(self.content or b"") if self.spooled is None else again(self.spooled)


def again(spooled: IO[bytes]) -> IO[bytes]:
    """Return a temporary file as one of its own, at its beginning."""
    file = open(os.dup(spooled.fileno()), "rb")
    file.seek(0)
    return file


def blocks_of(file: IO[bytes], size: int = BLOCK) -> Iterator[bytes]:
    """Yield a file in blocks of `size` bytes, and close it."""
    with file:
        while block := file.read(size):
            yield block


def hold(blocks: Iterator[bytes], free: int) -> Held:
    """Return the bytes of these blocks, which are in memory up to `free` bytes."""
    kept, size, spooled, digest = list[bytes](), 0, None, hashlib.sha256()
    for block in blocks:
        digest.update(block)
        size += len(block)
        if spooled is None and size > free:
            spooled = tempfile.TemporaryFile()
            spooled.writelines(kept)
            kept = []
        spooled.write(block) if spooled else kept.append(block)
    if spooled:
        spooled.flush()
    return Held(None if spooled else b"".join(kept), spooled, size, digest.hexdigest())


def is_archive(path: str) -> bool:
    """Return True for the name of an archive that members() reads."""
    return path.lower().endswith(ARCHIVES)


def compression(path: str) -> str:
    """Return the ending of a compressed file, "" for another."""
    return next((ending for ending in COMPRESSED if path.lower().endswith(ending)), "")


def unpacked(path: str) -> Iterator[bytes]:
    """Yield what a compressed file holds; ValueError where it is damaged or grows without end."""
    with _sound(path), open(path, "rb") as file, COMPRESSED[compression(path)](file) as inner:
        yield from _bounded(path, inner, os.path.getsize(path))


def unpacked_inside(name: str, blocks: Iterable[bytes], size: int) -> Iterator[bytes]:
    """Yield what a compressed file in an archive of `size` bytes holds; ValueError as of unpacked()."""
    with _sound(name), open_blocks(blocks) as file, COMPRESSED[compression(name)](file) as inner:
        yield from _bounded(name, inner, size)


def open_blocks(blocks: Iterable[bytes]) -> IO[bytes]:
    """Return blocks as a file that is read once, from the beginning to the end."""

    class Blocks(io.RawIOBase):
        left, rest = memoryview(b""), iter(blocks)  # a view: a large block is not copied for each read

        def readable(self) -> bool:
            return True

        def readinto(self, into: memoryview) -> int:  # type: ignore[override]
            while not self.left:
                block = next(self.rest, None)
                if block is None:
                    return 0
                self.left = memoryview(block)
            n = min(len(into), len(self.left))
            into[:n], self.left = self.left[:n], self.left[n:]
            return n

    return io.BufferedReader(Blocks(), 1 << 20)


def members(path: str) -> Iterator[tuple[str, Iterator[bytes]]]:
    """Yield (name, blocks) of the files of an archive, those of a zip by name; compressed ones are unpacked.

    ValueError for one that is damaged, encrypted, or has a name that leaves the folder.
    """
    size = os.path.getsize(path)
    with _sound(path):
        for name, blocks in _of_zip(path) if path.lower().endswith(".zip") else _of_tar(path):
            yield name, unpacked_inside(name, blocks, size) if compression(name) else blocks


@contextmanager
def _sound(path: str) -> Iterator[None]:
    """Raise ValueError within the block where what is read of a packed file is damaged."""
    try:
        yield
    except (*DAMAGED, OSError) as error:
        if isinstance(error, OSError) and error.errno not in (
            None,
            errno.EINVAL,
        ):  # it seeks before the beginning
            raise
        raise ValueError(f"{path}: is cut off or damaged: {error}") from None


def _of_zip(path: str) -> Iterator[tuple[str, Iterator[bytes]]]:
    size = os.path.getsize(path)
    with zipfile.ZipFile(path) as archive:
        for member in sorted(archive.infolist(), key=lambda member: member.filename):
            if member.filename.endswith("/") or stat.S_ISLNK(member.external_attr >> 16):
                continue
            name = _checked(path, member.filename)
            if member.flag_bits & 1:
                raise ValueError(f"{name}: is encrypted; unpack the archive first")
            try:
                with archive.open(member) as file:
                    yield name, _bounded(name, file, size)
            except NotImplementedError as error:  # another way of compression
                raise ValueError(f"{name}: {error}; unpack the archive first") from None


def _of_tar(path: str) -> Iterator[tuple[str, Iterator[bytes]]]:
    size = os.path.getsize(path)
    with tarfile.open(path, "r|*") as archive:
        for member in archive:
            if member.isfile() and (file := archive.extractfile(member)):
                name = _checked(path, member.name)
                yield name, _bounded(name, file, size)


def _checked(path: str, member: str) -> str:
    inner = PurePosixPath(member.replace("\\", "/"))
    if inner.is_absolute() or ".." in inner.parts:
        raise ValueError(f"{path}: must not have a file outside its folder, got {member!r}")
    if is_archive(member):
        raise ValueError(f"{path}/{member}: is an archive inside an archive; unpack the outer one first")
    return f"{path}/{inner}"


def _bounded(name: str, file: IO[bytes], size: int) -> Iterator[bytes]:
    done = 0
    while True:
        with _sound(name):
            block = file.read(BLOCK)
        if not block:
            return
        done += len(block)
        if done > max(FREE, RATIO * size):
            raise ValueError(
                f"{name}: unpacks to more than {RATIO} times its {size:,} bytes, which no text does"
            )
        yield block
