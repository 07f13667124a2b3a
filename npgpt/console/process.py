"""How a command ends: errors as one line, interrupts with a checkpoint, closed pipes in silence."""

from __future__ import annotations

import contextlib
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
    name: str, code: int = 2, kinds: tuple[type[Exception], ...] = BAD_INPUT
) -> Iterator[None]:
    """Errors of these kinds become one line on stderr and an exit code, warnings a line; bugs stay bugs."""
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
            exit_with_error(name, message, code)
        except KeyboardInterrupt:
            exit_with_error(name, "stopped at once", 130)


@contextlib.contextmanager
def end_quietly_on_closed_pipe() -> Iterator[None]:
    """Where nobody reads stdout any more (`| head`), the command ends in silence, as others do."""
    try:
        yield
        sys.stdout.flush()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # what is left for the exit to flush
        raise SystemExit(141) from None  # 128 + SIGPIPE


@contextlib.contextmanager
def interruptible() -> Iterator[Callable[[], bool]]:
    """Gives a function that tells whether Ctrl-C or SIGTERM came; a second one is a KeyboardInterrupt."""
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


def exit_with_error(name: str, message: str, code: int) -> NoReturn:
    """One line on stderr, and the end with this exit code."""
    print(f"npgpt {name}: {' '.join(message.split())}", file=sys.stderr)
    raise SystemExit(code)
