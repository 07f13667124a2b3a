"""Files of a run that grow line by line: metrics.csv, samples.jsonl.

Lines wait in memory until flush(), which writes all of them. Where the disk is full it writes none: the file
is cut back and the lines go on waiting. A resumed run drops the lines past its checkpoint, which it will
write again, and nothing else: a line that somebody changed is an error, as it may be all that is left of it.
"""

import os
from collections.abc import Callable
from pathlib import Path

from npgpt.training.checkpoint import write_atomically

BOM = b"\xef\xbb\xbf"  # Excel and Windows' editors put it before the first line


class Journal:
    """A text file that grows by lines, each of which belongs to a step."""

    def __init__(self, path: Path, step_of: Callable[[str], int], header: str = "") -> None:
        """Take the path; step_of(line) returns the step of a line and raises ValueError for another line."""
        self.path, self._step_of, self.header = path, step_of, header
        self._waiting: list[str] = []
        self._synced = True  # whether the disk has all that was written

    def start(self, step: int) -> list[str]:
        """Cut the file back to the lines up to `step` and return these; begin a file that is missing."""
        kept = self.read(step)
        write_atomically(self.path, "".join(line + "\n" for line in [self.header, *kept] if line))
        return kept

    def read(self, step: int) -> list[str]:
        """Return the lines up to `step`, without the header; none where the file is missing.

        Half a line at the end is left out, as a crash leaves it. Other line ends and a byte-order mark are
        read. ValueError, with the number of the line, where one is not as a run writes it.
        """
        try:
            data = self.path.read_bytes()
        except FileNotFoundError:
            return []
        lines = data.removeprefix(BOM).replace(b"\r\n", b"\n").split(b"\n")
        if self.header and lines[0] != self.header.encode():
            if len(lines) == 1 and self.header.encode().startswith(lines[0]):  # half of it
                return []
            raise self._error(1, self.header, lines[0])
        kept, last = [], 0
        for number, line in enumerate(lines, 1):
            if not line or (self.header and number == 1):
                continue
            at, half = self._step(line), number == len(lines)
            if half and (at is None or at > step):
                break
            if at is None and last >= step and b"\0" in line:  # what a power cut may leave
                break
            if at is None or at <= last:
                raise self._error(number, f"what a run writes for a step after {last}", line)
            last = at
            if at <= step:
                kept.append(line.decode())
        return kept

    def _step(self, line: bytes) -> int | None:
        """Return the step of a line, None where it is none of a run's."""
        try:
            return self._step_of(line.decode())
        except (ValueError, KeyError, TypeError, RecursionError):
            return None

    def _error(self, number: int, what: str, line: bytes) -> ValueError:
        shown = line[:100].decode("utf-8", "replace")
        return ValueError(
            f"{self.path}: line {number} must be {what}, got {shown!r}; mend the file, or move it away"
        )

    def add(self, line: str) -> None:
        """Keep a line for the next flush()."""
        self._waiting.append(line + "\n")

    def flush(self, sync: bool = False) -> None:
        """Write all lines that wait; with sync=True the disk has them on return.

        After an OSError none is written, and all go on waiting.
        """
        if not self._waiting and (self._synced or not sync):
            return
        flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | getattr(os, "O_BINARY", 0)
        descriptor = os.open(self.path, flags, 0o666)
        size = os.fstat(descriptor).st_size
        header = self.header + "\n" if self.header and not size and self._waiting else ""
        data = (header + "".join(self._waiting)).encode("utf-8", "replace")
        try:
            while data:
                self._synced = False
                data = data[os.write(descriptor, data) :]
            if sync:
                os.fsync(descriptor)
                self._synced = True
        except OSError as error:
            os.ftruncate(descriptor, size)
            error.filename = str(self.path)
            raise
        finally:
            os.close(descriptor)
        self._waiting.clear()
