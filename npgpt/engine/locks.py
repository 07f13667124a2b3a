"""A lock on a file, of the system's: it ends with the process that has it, however that ends."""

import errno
import os
from pathlib import Path


def open_locked(path: Path) -> tuple[int, OSError | None]:
    """Open and lock a file, created where it is missing; return its descriptor, and why it is not locked."""
    os.close(os.open(path, os.O_RDWR | os.O_CREAT, 0o666))  # an error where nothing can be written
    # Held for reading, so that the disk can be made read-only meanwhile. NFS wants it open for writing.
    descriptor = os.open(path, os.O_RDONLY)
    error = _lock(descriptor)
    if error and error.errno == errno.EBADF:
        os.close(descriptor)
        descriptor = os.open(path, os.O_RDWR)
        error = _lock(descriptor)
    return descriptor, error


def _lock(descriptor: int) -> OSError | None:
    """Lock a file for this process; return why that failed."""
    try:
        try:
            import fcntl
        except ImportError:  # Windows
            import msvcrt

            msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)  # type: ignore[attr-defined]
        else:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        return error
    return None
