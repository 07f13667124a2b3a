"""Where the hour of everything happens: a disk that fills, a limit of memory, a clock that jumps."""

import glob
import os
import resource
import subprocess
import time
from pathlib import Path


class Disk:
    """A tmpfs of so many MB on `path`, or a folder that never fills where none can be mounted."""

    def __init__(self, path: Path, megabytes: int):
        self.path, self.megabytes = path, megabytes
        self._full: list[list[float]] = []  # [from, to], of time.monotonic()

    def __enter__(self):
        self.path.mkdir()
        mount = ["mount", "-t", "tmpfs", "-o", f"size={self.megabytes}m", "tmpfs", self.path]
        self.mounted = not subprocess.run(mount, stderr=subprocess.DEVNULL).returncode
        return self

    def __exit__(self, *_):
        if self.mounted:
            subprocess.run(["umount", "--lazy", self.path], check=True)

    def __str__(self):
        return f"{self.megabytes} MB that fill" if self.mounted else "a folder, which does not fill"

    def fill(self) -> None:
        """Leave no room; writes fail until empty()."""
        self._full.append([time.monotonic(), float("inf")])
        if self.mounted:
            with open(self.path / "neighbour", "wb", buffering=0) as file:
                try:
                    while True:
                        file.write(bytes(1 << 16))
                except OSError:
                    pass

    def empty(self) -> None:
        """Give the room back."""
        (self.path / "neighbour").unlink(missing_ok=True)
        if self._full:
            self._full[-1][1] = min(self._full[-1][1], time.monotonic())

    def was_full(self, since: float) -> bool:
        """Whether there was a moment without room after `since`."""
        return self.mounted and any(end >= since for _, end in self._full)


class Memory:
    """A cgroup (of either version) with a limit for all processes together, else one for each."""

    def __init__(self, megabytes: int):
        self.limit = megabytes << 20
        self.group: Path | None = None

    def __enter__(self):
        for root, limit, used in (
            ("/sys/fs/cgroup/memory", "memory.limit_in_bytes", "memory.max_usage_in_bytes"),
            ("/sys/fs/cgroup", "memory.max", "memory.peak"),
        ):
            group = Path(root, f"npgpt-everything-{os.getpid()}")
            try:
                group.mkdir()
            except OSError:
                continue
            try:
                (group / limit).write_text(str(self.limit))
            except OSError:
                group.rmdir()
                continue
            self.group, self._used = group, group / used
            break
        return self

    def __exit__(self, *_):
        if self.group:
            self.group.rmdir()

    def __str__(self):
        return f"{self.limit >> 20} MB for " + ("all processes together" if self.group else "each process")

    def join(self) -> None:
        """Set the limit, in a new process before its program starts."""
        if self.group:
            (self.group / "cgroup.procs").write_text(str(os.getpid()))
        else:
            resource.setrlimit(resource.RLIMIT_DATA, (self.limit, self.limit))

    def used_mb(self) -> float:
        """The most that was used so far, 0 where nobody counts it."""
        return int(self._used.read_text()) / 1e6 if self.group and self._used.exists() else 0.0

    def processes(self) -> list[str]:
        """The ids of the processes that are there still."""
        return (self.group / "cgroup.procs").read_text().split() if self.group else []


class Clock:
    """A clock that jumps for the processes with these variables, by libfaketime where it is installed."""

    def __init__(self, path: Path):
        libraries = glob.glob("/usr/lib/*/faketime/libfaketimeMT.so.1")
        self.path, self.variables = path, {}
        if libraries:
            self.jump(0)
            self.variables = {
                "LD_PRELOAD": libraries[0],
                "FAKETIME_TIMESTAMP_FILE": str(path),
                "FAKETIME_CACHE_DURATION": "1",
                "FAKETIME_DONT_FAKE_MONOTONIC": "1",
                "NO_FAKE_STAT": "1",
            }

    def __str__(self):
        return "it jumps" if self.variables else "real: libfaketime is not installed"

    def jump(self, seconds: int) -> None:
        """Let the clocks of all these processes stand so far from the real one, within a second."""
        new = self.path.with_suffix(".new")
        new.write_text(f"{seconds:+d}\n")
        new.replace(self.path)
