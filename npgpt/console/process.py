"""The ends of a command: errors print one line, interrupts save a checkpoint, closed pipes are silent."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sys
import warnings
from collections.abc import Callable, Iterator
from typing import NoReturn

from npgpt.console.messages import log_warnings

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


@contextlib.contextmanager
def end_quietly_on_closed_pipe() -> Iterator[None]:
    """End with exit code 141 and no message where the reader of stdout has gone, as in `| head`."""
    try:
        yield
        sys.stdout.flush()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # what is left for the exit to flush
        raise SystemExit(141) from None  # 128 + SIGPIPE


@contextlib.contextmanager
def interruptible() -> Iterator[Callable[[], bool]]:
    """Yield a function that returns whether Ctrl-C or SIGTERM came; a second one is a KeyboardInterrupt."""
    came: list[int] = []
    usual = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

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
    """Print one line on stderr and exit with the code; as_json=True also prints an object on stdout."""
    line = " ".join(message.split())
    if as_json:
        print(json.dumps({"error": line, "exit_code": code}), flush=True)
    print(f"npgpt {name}: {line}", file=sys.stderr)
    raise SystemExit(code)
