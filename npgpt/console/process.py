"""The ends of a command: errors print one line, interrupts save a checkpoint, output that fails is told."""

from __future__ import annotations

import contextlib
import functools
import json
import os
import signal
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NoReturn, TypeVar, cast

from npgpt.console.messages import log_warnings

Main = TypeVar("Main", bound=Callable[..., int])
BAD_INPUT = (OSError, MemoryError, ValueError, TypeError)


@contextlib.contextmanager
def errors_as_lines(
    name: str, code: int = 2, kinds: tuple[type[Exception], ...] = BAD_INPUT, as_json: bool = False
) -> Iterator[None]:
    """Turn errors of these kinds into one line on stderr, and end the command `name` with the exit code.

    Warnings become lines on stderr too; other exceptions pass through. exit_with_error describes `as_json`.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        warnings.showwarning = lambda message, *rest, **more: log_warnings([str(message)])
        try:
            yield
        except kinds as error:
            message = str(error)
            if isinstance(error, OSError) and error.filename:
                message = f"{error.filename}: {error.strerror}"
            elif isinstance(error, MemoryError):
                message = f"not enough memory; a smaller model, batch or block size needs less ({error})"
            exit_with_error(name, message, code, as_json)
        except KeyboardInterrupt:
            exit_with_error(name, "stopped at once", 130, as_json)


class Output:
    """A text stream like the one it stands for, but that it keeps an OSError, and drops what follows."""

    def __init__(self, stream: Any, stop: bool) -> None:
        """`stream` is sys.stdout or sys.stderr; with stop=True a failed write is a SystemExit."""
        self._stream, self._stop = stream, stop
        self.failed: OSError | None = None

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        """Write `text` and return how many characters that was."""
        self._try(self._stream.write, text)
        return len(text)

    def flush(self) -> None:
        """Write what is buffered."""
        self._try(self._stream.flush)

    def _try(self, do: Callable[..., object], *arguments: str) -> None:
        try:
            do(*arguments)
        except OSError as error:
            self.failed = error
            # what the stream still holds would fail again, in the interpreter's last flush
            with contextlib.suppress(OSError):  # it has no descriptor
                nowhere = os.open(os.devnull, os.O_WRONLY)
                os.dup2(nowhere, self._stream.fileno())
                os.close(nowhere)
            if self._stop:
                raise SystemExit(1) from None


def command(name: str, goes_on: bool = False) -> Callable[[Main], Main]:
    """Return a decorator of a command's main(): its exit code says whether what it printed was written.

    Where stdout is full or closed, one line on stderr says so and the exit code is 1; where its reader has
    gone, as in `| head`, the code is 141, without a line. The command ends there at once, or does all its
    work first with goes_on=True, if that is more than printing. What stderr does not take is lost.
    """

    def decorate(main: Main) -> Main:
        @functools.wraps(main)
        def guarded(argv: Sequence[str] | None = None, **more: Any) -> int:
            _open_closed_streams()
            before = sys.stdout, sys.stderr
            out, err = Output(sys.stdout, not goes_on), Output(sys.stderr, False)
            sys.stdout, sys.stderr = out, err
            code: Any = 1
            ended = False
            try:
                code = main(argv, **more)
            except SystemExit as end:
                code, ended = end.code or 0, True
            finally:
                with contextlib.suppress(SystemExit):
                    out.flush()
                if out.failed and not isinstance(out.failed, BrokenPipeError):
                    reason = out.failed.strerror or out.failed
                    print(f"npgpt {name}: stdout: {reason}; not all was printed", file=err)
                err.flush()
                sys.stdout, sys.stderr = before
            if out.failed and code in (0, 1):
                code = 141 if isinstance(out.failed, BrokenPipeError) else 1  # 128 + SIGPIPE
            if ended:
                raise SystemExit(code)
            return int(code)

        return cast(Main, guarded)

    return decorate


def _open_closed_streams() -> None:
    """Open the standard streams that are closed, as a file would get their numbers else.

    What is read from stdin or written to stdout then fails with EBADF; stderr takes everything.
    """
    modes = {"stdin": os.O_WRONLY, "stdout": os.O_RDONLY, "stderr": os.O_WRONLY}
    for name, mode in modes.items():
        if getattr(sys, name) is None:
            number = os.open(os.devnull, mode)  # the lowest that is free, which is the stream's own
            os.set_inheritable(number, True)
            setattr(sys, name, open(number, "r" if name == "stdin" else "w", closefd=False, errors="replace"))


@contextlib.contextmanager
def interruptible() -> Iterator[Callable[[], bool]]:
    """Yield a function that returns whether Ctrl-C, SIGTERM or SIGUSR1 came; a second is a KeyboardInterrupt.

    SIGUSR1 is what Slurm can send before a job's time ends, and what Open MPI's mpiexec passes on: after a
    SIGTERM it kills the ranks in a quarter of a second.
    """
    came: list[int] = []
    numbers = [signal.SIGINT, signal.SIGTERM]
    if hasattr(signal, "SIGUSR1"):  # not on Windows
        numbers.append(signal.SIGUSR1)
    usual = {number: signal.getsignal(number) for number in numbers}

    def remember(number: int, frame: object) -> None:
        if came:
            raise KeyboardInterrupt
        came.append(number)

    for number in usual:
        signal.signal(number, remember)
    try:
        yield lambda: bool(came)
    finally:
        for number, handler in usual.items():
            signal.signal(number, handler)


def exit_with_error(name: str, message: str, code: int, as_json: bool = False) -> NoReturn:
    """Print one line on stderr and exit with the code; as_json=True also prints an object on stdout.

    A message that begins with the name, as those of the function behind the command do, has it once.
    """
    line = " ".join(message.split()).removeprefix(f"{name}: ")
    try:
        if as_json:
            print(json.dumps({"error": line, "exit_code": code}), flush=True)
    finally:  # also where stdout takes nothing
        print(f"npgpt {name}: {line}", file=sys.stderr)
        raise SystemExit(code)
