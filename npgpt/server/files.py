"""The files that clients upload, under names of ours in a private folder that goes when the server does."""

import shutil
import tempfile
import time
from pathlib import Path
from typing import IO

from npgpt.engine.types import Fields
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

    def require_room(self) -> None:
        """Raise ApiError 400 if there are as many files as may be kept."""
        if sum(about["purpose"] == UPLOADED for about in self._files.values()) >= MAX_FILES:
            raise ApiError(400, f"there are {MAX_FILES} files; delete some", "file", "too_many_files")

    def add(self, name: str, upload: IO[bytes]) -> Fields:
        """Copy an upload, which is an open file; return OpenAI's file object."""
        self.require_room()
        id = new_id("file")
        with open(self.path(id), "wb") as file:
            shutil.copyfileobj(upload, file)
        return self._enter(id, Path(name or "file").name[:200], UPLOADED, int(time.time()))

    def add_result(self, id: str, name: str, data: bytes, created: int) -> Fields:
        """Keep what a job wrote under an id that is known already; return OpenAI's file object."""
        self.path(id).write_bytes(data)
        return self._enter(id, name, "fine-tune-results", created)

    def _enter(self, id: str, name: str, purpose: str, created: int) -> Fields:
        about = {
            "id": id,
            "object": "file",
            "bytes": self.path(id).stat().st_size,
            "created_at": created,
            "filename": name,
            "purpose": purpose,
            "status": "processed",
        }
        self._files[id] = about
        return about

    def get(self, id: str) -> Fields:
        """Return OpenAI's file object; raise ApiError 404 if there is none of this id."""
        if id not in self._files:
            raise ApiError(404, f"No such File object: {id[:100]}", "id", "not_found")
        return self._files[id]

    def path(self, id: str) -> Path:
        """Return where the file of an id is kept; only an id that get() knows makes a path."""
        return self.folder / id

    def delete(self, id: str) -> Fields:
        """Remove a file; return what the API answers."""
        self.get(id)
        del self._files[id]
        self.path(id).unlink(missing_ok=True)
        return {"id": id, "object": "file", "deleted": True}

    def all(self) -> list[Fields]:
        """Return all file objects, the newest first."""
        return list(self._files.values())[::-1]

    def close(self) -> None:
        """Remove all files and their folder."""
        self._temporary.cleanup()
