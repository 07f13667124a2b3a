"""Contenders, each in a process of its own: one works while the others wait for their turn in read()."""

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from typing import Any, NamedTuple, TypeAlias

from npgpt.engine.types import Fields

THREADS = "OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"  # NumPy's BLAS is asked so
Samples: TypeAlias = dict[
    str, list[float]
]  # measure -> numbers; the last word or two of a measure is the unit


def nothing() -> None:
    """Do nothing."""


class Work(NamedTuple):
    """What a contender does."""

    turn: Callable[[], Samples]
    digest: str | None = None  # of its result, which must be the same from all
    close: Callable[[], None] = nothing


class Contender:
    """A process that answers each line of its stdin with one of JSON, as answer() does."""

    def __init__(self, module: str, *words: object, threads: int | None = None) -> None:
        """Start `python -m module words...`; `threads` are for the libraries that take them from there."""
        command = [sys.executable, "-m", module, *map(str, words)]
        self.said = tempfile.TemporaryFile("w+")  # on stderr, which libraries talk on
        pipes: Fields = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": self.said}
        environment = os.environ | {name: str(threads) for name in THREADS if threads}
        self.process = subprocess.Popen(command, env=environment, text=True, **pipes)

    def ask(self, what: object) -> Any:
        """Return the answer to a line; RuntimeError, with its last words, where the process has ended."""
        assert self.process.stdin and self.process.stdout
        try:
            self.process.stdin.write(f"{what}\n")
            self.process.stdin.flush()
            said = self.process.stdout.readline()
        except BrokenPipeError:
            said = ""
        if not said:
            code = self.process.wait()
            self.said.seek(0)
            last = self.said.read().strip().rpartition("\n")[2]
            raise RuntimeError(f"ended with exit code {code}: {last}")
        return json.loads(said)

    def close(self) -> None:
        """End the process."""
        assert self.process.stdin and self.process.stdout
        self.process.stdin.close()
        self.process.wait()
        self.process.stdout.close()
        self.said.close()


def answer(reply: Callable[[str], object]) -> None:
    """Answer each line of stdin with what reply(line) returns; what libraries print goes to stderr."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    sys.stdout.reconfigure(line_buffering=True)  # type: ignore[union-attr]
    for line in sys.stdin:
        print(json.dumps(reply(line.strip()), allow_nan=False), file=answers, flush=True)
