"""Files of a run that grow line by line: metrics.csv, samples.jsonl.

Lines wait in memory until flush(), which writes all of them. Where the disk is full it writes none: the file
is cut back and the lines go on waiting. A resumed run drops the lines past its checkpoint.
"""

import os
from collections.abc import Callable
from pathlib import Path

from npgpt.training.checkpoint import write_atomically


class Journal:
    """A text file that grows by lines, each of which belongs to a step."""

    def __init__(self, path: Path, step_of: Callable[[str], int], header: str = "") -> None:
        """Take the path; step_of(line) returns the step of a line and raises ValueError for half a line."""
        self.path, self._step_of = path, step_of
        self._header = header + "\n" if header else ""
        self._waiting: list[str] = []

    def start(self, step: int) -> list[str]:
        """Cut the file back to the lines up to `step` and return these; begin a file that is missing."""
        try:
            text = self.path.read_text(encoding="utf-8").removeprefix(self._header)
            lines = text.split("\n")[:-1]  # a line without its end is half a line, even where it has a step
        except (OSError, ValueError):  # it is missing, or another program's
            lines = []
        kept = []
        for line in lines:
            try:
                if self._step_of(line) > step:
                    break
            except (ValueError, KeyError, TypeError):
                break
            kept.append(line)
        write_atomically(self.path, self._header + "".join(line + "\n" for line in kept))
        return kept

    def add(self, line: str) -> None:
        """Keep a line for the next flush()."""
        self._waiting.append(line + "\n")

    def flush(self, sync: bool = False) -> None:
        """Write all lines that wait; with sync=True the disk has them on return.

        After an OSError none is written, and all go on waiting.
        """
        if not self._waiting:
            return
        flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | getattr(os, "O_BINARY", 0)
        descriptor = os.open(self.path, flags, 0o666)
        size = os.fstat(descriptor).st_size
        data = (("" if size else self._header) + "".join(self._waiting)).encode("utf-8", "replace")
        try:
            while data:
                data = data[os.write(descriptor, data) :]
            if sync:
                os.fsync(descriptor)
        except OSError as error:
            os.ftruncate(descriptor, size)
            error.filename = str(self.path)
            raise
        finally:
            os.close(descriptor)
        self._waiting.clear()
