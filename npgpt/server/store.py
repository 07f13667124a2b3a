"""Answers that are kept on disk, each client's for itself: bounded in size and age, whole or not there."""

import contextlib
import json
import os
import re
import tempfile
import threading
import time
from pathlib import Path
from typing import NamedTuple

from npgpt.engine.disk import make_folder, sync_names
from npgpt.engine.types import Fields

NAME = re.compile(r"(resp_[0-9a-f]{48})\.([0-9a-f]{16}|)\.json")  # id, owner


class _Kept(NamedTuple):
    path: Path
    owner: str
    size: int  # bytes
    time: float  # seconds since 1970


class Store:
    """JSON objects by their ids, for any thread; the oldest go first."""

    def __init__(self, folder: Path | None, most: int, seconds: float) -> None:
        """Keep at most so many bytes for so many seconds in `folder`, those that are there already too.

        None: in a private folder that goes when the server does. OSError for a folder that cannot be used.
        """
        self._temporary = None if folder else tempfile.TemporaryDirectory(prefix="npgpt-answers-")
        self.folder = folder or Path(self._temporary.name if self._temporary else "")
        make_folder(self.folder, 0o700)
        self.most, self.seconds, self.bytes = most, seconds, 0
        self._lock, self._kept = threading.Lock(), dict[str, _Kept]()  # the oldest first
        found = []
        for path in self.folder.iterdir():
            if name := NAME.fullmatch(path.name):
                status = path.stat()
                found.append((name[1], _Kept(path, name[2], status.st_size, status.st_mtime)))
            elif path.name.endswith(".json.new"):  # of a server that was killed
                path.unlink()
        for id, kept in sorted(found, key=lambda one: one[1].time):
            self._kept[id] = kept
            self.bytes += kept.size
        with self._lock:
            self._drop()

    def put(self, id: str, owner: str, value: Fields) -> None:
        """Keep a value for its owner; raise OSError where that cannot be, and then nothing is there."""
        data = json.dumps(value, allow_nan=False).encode()
        path = self.folder / f"{id}.{owner}.json"
        new = path.with_name(path.name + ".new")
        try:
            with open(new, "wb", opener=lambda name, flags: os.open(name, flags, 0o600)) as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            new.replace(path)
            sync_names(self.folder)  # else a power cut takes an answer that its client was told is kept
        except OSError:
            with contextlib.suppress(OSError):
                new.unlink(missing_ok=True)
            raise
        with self._lock:
            self._kept[id] = _Kept(path, owner, len(data), time.time())
            self.bytes += len(data)
            self._drop()

    def get(self, id: str, owner: str) -> Fields | None:
        """Return the value of an id, None if this owner has none; OSError or ValueError if it is broken."""
        with self._lock:
            self._drop()
            kept = self._kept.get(id)
        if not kept or kept.owner != owner:
            return None
        try:
            return dict(json.loads(kept.path.read_bytes()))
        except FileNotFoundError:  # it went in between
            return None

    def delete(self, id: str, owner: str) -> bool:
        """Remove the value of an id; return False if this owner has none."""
        with self._lock:
            if id not in self._kept or self._kept[id].owner != owner:
                return False
            self._remove(id)
            return True

    def close(self) -> None:
        """Remove the folder, if it is to go with the server."""
        if self._temporary:
            self._temporary.cleanup()

    def _drop(self) -> None:
        """Remove what is too old or too much (under the lock)."""
        oldest = time.time() - self.seconds
        while self._kept:
            id, kept = next(iter(self._kept.items()))
            if self.bytes <= self.most and kept.time >= oldest:
                break
            self._remove(id)

    def _remove(self, id: str) -> None:
        kept = self._kept.pop(id)
        self.bytes -= kept.size
        kept.path.unlink(missing_ok=True)
