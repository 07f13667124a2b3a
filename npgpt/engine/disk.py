"""What makes files and names last through a power cut: syncs of files, and of the folders that name them."""

import contextlib
import os
from pathlib import Path


def sync(path: Path) -> None:
    """Flush a file, or a folder's list of names, to the disk."""
    windows = os.name == "nt"
    if windows and path.is_dir():  # Windows cannot sync a folder
        return
    descriptor = os.open(path, os.O_RDWR if windows else os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sync_names(folder: Path) -> None:
    """Flush the list of names of a folder that need not be ours, where it and its file system allow that."""
    with contextlib.suppress(OSError):
        sync(folder)


def make_folder(path: Path, mode: int = 0o777) -> None:
    """Make a folder, and those above it, where they are missing; their names are on the disk on return.

    The folder is there for all that is written into it: a file that is synced alone can lose the way to it.
    `mode` is that of the last folder. OSError where one cannot be made.
    """
    made = [folder for folder in (path, *path.parents) if not folder.exists()]
    path.mkdir(mode, parents=True, exist_ok=True)
    for folder in made or [path]:
        sync_names(folder.parent)
