"""What the doors share: flags and where their values come from, what they say, the first line of a run.

A setting is a flag that may also come from elsewhere: flag > NPGPT_* variable > --config file.toml > default.
"""

from __future__ import annotations

import argparse
import contextlib
import difflib
import io
import math
import os
import signal
import sys
import tomllib
import warnings
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, NoReturn, TextIO, TypeAlias, TypeVar

from npgpt.language import _, speak, told

if TYPE_CHECKING:
    from argparse import Namespace

    from npgpt.engine.types import Fields, PathLike
    from npgpt.training.trainer import Trainer


T = TypeVar("T", int, float)
Kind: TypeAlias = Callable[[str], Any]  # from a text; ArgumentTypeError when it cannot be


class Setting(NamedTuple):
    """A setting of a door, and what --help says of it."""

    name: str  # n_layer: the flag --n-layer, the variable NPGPT_N_LAYER, the key n_layer of a config file
    kind: Kind
    help: str


class Parser(argparse.ArgumentParser):
    """argparse whose errors are one line, in the language of its helps."""

    def add_argument(self, *names: str, help: str | None = None, **more: Any) -> argparse.Action:
        """As argparse's; the help is said in the locale's language."""
        return super().add_argument(*names, help=help and _(help), **more)

    def error(self, message: str) -> NoReturn:
        """End with exit code 2 and one line."""
        self.exit(2, f"{self.prog}: {told(message)} {_('(--help lists the flags)')}\n")


def parser(name: str, description: str) -> Parser:
    """The parser of a door, which speaks the locale's language from here on."""
    speak()
    for stream in (sys.stdout, sys.stderr):  # a console that cannot show a character is no reason to die
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")
    return Parser(prog=f"npgpt {name}", description=_(description), allow_abbrev=False)


def say(message: str, to: Any = None, **values: object) -> None:
    """Print a message of the catalogue with its values, to stdout or another stream."""
    print(_(message).format(**values), file=to, flush=True)


def add_settings(parser: Parser, settings: Iterable[Setting]) -> None:
    """Each as a flag without a default: resolve() finds its value."""
    for setting in settings:
        unit = setting.name.upper()
        parser.add_argument(
            flag(setting.name), type=setting.kind, default=None, help=setting.help, metavar=unit
        )


def flag(name: str) -> str:
    """The flag of a setting: n_layer -> --n-layer."""
    return "--" + name.replace("_", "-")


def number(kind: Callable[[str], T], what: str, holds: Callable[[T], bool]) -> Callable[[str], T]:
    """A type for argparse: text -> kind(text), refused unless it holds().

    >>> count("12")
    12
    """

    def convert(text: str) -> T:
        with contextlib.suppress(ValueError):
            value = kind(text)
            if math.isfinite(value) and holds(value):
                return value
        raise argparse.ArgumentTypeError(f"must be {what}, got {text}")

    return convert


count = number(int, "a whole number, at least 1", lambda v: v >= 1)
threads = number(int, "a whole number in 1..1024", lambda v: 1 <= v <= 1024)
count_or_zero = number(int, "a whole number, at least 0", lambda v: v >= 0)
positive = number(float, "a number above 0", lambda v: v > 0)
not_negative = number(float, "a number, at least 0", lambda v: v >= 0)
share = number(float, "a number in 0..1, 1 excluded", lambda v: 0 <= v < 1)


def one_of(*choices: str) -> Callable[[str], str]:
    """A type for argparse: one of these words."""

    def convert(text: str) -> str:
        if text not in choices:
            raise argparse.ArgumentTypeError(f"must be {_(' or ').join(choices)}, got {text}")
        return text

    return convert


def resolve(settings: Iterable[Setting], args: Namespace, config_file: str | None) -> Fields:
    """name -> value of every setting, None where nobody gave one."""
    from_file = config_values(settings, config_file) if config_file else {}
    values = {}
    for name, kind in (setting[:2] for setting in settings):
        values[name] = getattr(args, name)
        variable = f"NPGPT_{name.upper()}"
        if values[name] is None and variable in os.environ:
            values[name] = _convert(kind, os.environ[variable], variable)
        elif values[name] is None:
            values[name] = from_file.get(name)
    return values


def config_values(settings: Iterable[Setting], path: PathLike) -> Fields:
    """name -> value of the settings that a TOML file has; tables in it are notes, not settings."""
    try:
        table = tomllib.loads(Path(path).read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path}: must be TOML, got {error}") from None
    kinds = {setting.name: setting.kind for setting in settings}
    values = {}
    for key, value in table.items():
        if isinstance(value, dict) or key == "text":
            continue
        if key not in kinds:
            near = difflib.get_close_matches(key, kinds, n=1)
            hint = f"; did you mean {near[0]}?" if near else ""
            raise ValueError(f"{path}: {key} is not a setting{hint}")
        text = ",".join(map(str, value)) if isinstance(value, list) else str(value)
        values[key] = _convert(kinds[key], text, f"{path}: {key}")
    return values


def _convert(kind: Kind, text: str, where: str) -> Any:
    try:
        return kind(text)
    except (argparse.ArgumentTypeError, ValueError) as error:
        raise ValueError(f"{where} {told(str(error))}") from None


def tell_finished(folder: PathLike, trainer: Trainer) -> None:
    """That a run which was to be resumed has ended already."""
    say(
        "{run} is finished: {how} after {steps} steps",
        run=folder,
        how=told(trainer.ended or ""),
        steps=trainer.step,
    )


def tell_end(result: Fields, losses: str) -> None:
    """How a training ended; `losses` may name fields of the result."""
    how, losses = told(result["ended"]), losses.format(**result)
    say("{how} after {steps} steps, {seconds:.1f} s: {losses}", **result | {"how": how, "losses": losses})


def tell_saved(folder: PathLike) -> None:
    """Where a run is."""
    say("saved to {run}, drawn in {run}/report.html", run=folder)


def tell_next(*commands: str) -> None:
    """What to run next, a command a line."""
    word = _("next:")
    for command in commands:
        print(word, command, flush=True)
        word = " " * len(word)


BAD_INPUT = (OSError, MemoryError, ValueError, TypeError)


@contextlib.contextmanager
def errors_as_lines(
    name: str, code: int = 2, kinds: tuple[type[Exception], ...] = BAD_INPUT
) -> Iterator[None]:
    """Errors of these kinds become one line on stderr and an exit code, warnings a line; bugs stay bugs."""
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        warnings.showwarning = lambda message, *rest, **more: warn([str(message)])
        try:
            yield
        except kinds as error:
            message = str(error)
            if isinstance(error, OSError) and error.filename:
                message = f"{error.filename}: {error.strerror}"
            elif isinstance(error, MemoryError):
                message = _("not enough memory; a smaller model, batch or block size needs less ({error})")
                message = message.format(error=error)
            fail(name, message, code)
        except KeyboardInterrupt:
            fail(name, "stopped at once", 130)


@contextlib.contextmanager
def while_read() -> Iterator[None]:
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


def warn(lines: Iterable[str]) -> None:
    """Each line on stderr, as a warning."""
    for line in lines:
        print(_("warning: {line}").format(line=told(line)), file=sys.stderr)


def fail(name: str, message: str, code: int) -> NoReturn:
    """One line on stderr, and the end with this exit code."""
    print(f"npgpt {name}: {' '.join(told(message).split())}", file=sys.stderr)
    raise SystemExit(code)


def begin(threads: int | None, out: TextIO | None = None) -> None:
    """Set the threads and print the first line of every run: the kernels in use, or how to get them."""
    from npgpt.engine import kernels

    if threads:
        kernels.set_num_threads(threads)
    say("running on {kernels}", to=out, kernels=told(kernels.describe()))
