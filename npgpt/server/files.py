"""The files that clients upload, under names of ours in a private folder that goes when the server does."""

import shutil
import tempfile
import time
from pathlib import Path
from typing import IO

from npgpt.engine.types import Fields
from npgpt.server.guard import may_read
from npgpt.server.responses import new_id
from npgpt.server.schema import ApiError

MAX_FILES = 100  # that clients upload, kept at once
UPLOADED = "fine-tune"  # the purpose of these


class Files:
    """The uploaded files, by their ids."""

    def __init__(self) -> None:
        """Make the private folder; close() removes it, and so does the end of the process."""
        self._temporary = tempfile.TemporaryDirectory(prefix="npgpt-serve-", ignore_cleanup_errors=True)
        self.folder = Path(self._temporary.name)  # mode 0700
        self._files: dict[str, Fields] = {}
        self._owners: dict[str, str] = {}

    def require_room(self) -> None:
        """Raise ApiError 400 if there are as many files as may be kept."""
        if sum(about["purpose"] == UPLOADED for about in self._files.values()) >= MAX_FILES:
            raise ApiError(400, f"there are {MAX_FILES} files; delete some", "file", "too_many_files")

    def add(self, name: str, upload: IO[bytes], owner: str = "") -> Fields:
        """Copy an owner's upload, which is an open file; return OpenAI's file object."""
        self.require_room()
        id = new_id("file")
        with open(self.path(id), "wb") as file:
            shutil.copyfileobj(upload, file)
        return self._enter(id, Path(name or "file").name[:200], UPLOADED, int(time.time()), owner)

    def add_result(self, id: str, name: str, data: bytes, created: int, owner: str) -> Fields:
        """Keep what a job wrote under an id that is known already; return OpenAI's file object."""
        self.path(id).write_bytes(data)
        return self._enter(id, name, "fine-tune-results", created, owner)

    def _enter(self, id: str, name: str, purpose: str, created: int, owner: str) -> Fields:
        about = {
            "id": id,
            "object": "file",
            "bytes": self.path(id).stat().st_size,
            "created_at": created,
            "filename": name,
            "purpose": purpose,
            "status": "processed",
        }
        self._files[id], self._owners[id] = about, owner
        return about

    def get(self, id: str, asker: str | None = None) -> Fields:
        """Return OpenAI's file object; raise ApiError 404 if there is none of this id for who asks."""
        if id not in self._files or not may_read(asker, self._owners[id]):
            raise ApiError(404, f"No such File object: {id[:100]}", "id", "not_found")
        return self._files[id]

    def path(self, id: str) -> Path:
        """Return where the file of an id is kept; only an id that get() knows makes a path."""
        return self.folder / id

    def delete(self, id: str, asker: str | None = None) -> Fields:
        """Remove a file; return what the API answers."""
        self.get(id, asker)
        del self._files[id]
        self.path(id).unlink(missing_ok=True)
        return {"id": id, "object": "file", "deleted": True}

    def all(self, asker: str | None = None) -> list[Fields]:
        """Return all file objects that are there for who asks, the newest first."""
        return [file for id, file in self._files.items() if may_read(asker, self._owners[id])][::-1]

    def close(self) -> None:
        """Remove all files and their folder."""
        self._temporary.cleanup()
