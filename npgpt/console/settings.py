"""Settings of a command, and the sources of their values.

The first source that has a value counts: flag > NPGPT_* variable > --config file.toml > default.
"""

from __future__ import annotations

import argparse
import contextlib
import math
import os
import sys
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any, NamedTuple, NoReturn, TypeAlias, TypeVar

from npgpt.console.language import _, set_language
from npgpt.engine.names import hint, meant

if TYPE_CHECKING:
    from argparse import Namespace

    from npgpt.engine.types import Fields, PathLike


T = TypeVar("T", int, float)
FLOATS, INT32 = (1e-30, 1e30), 2**31 - 1
Kind: TypeAlias = Callable[[str], Any]  # converts a text, or raises ArgumentTypeError


class Setting(NamedTuple):
    """A setting of a command, with its type and its --help text."""

    name: str  # n_layer: the flag --n-layer, the variable NPGPT_N_LAYER, the key n_layer of a config file
    kind: Kind
    help: str


class Parser(argparse.ArgumentParser):
    """argparse with help in the locale's language and errors of one line, in English.

    An argument without a type is text that must not be empty; type=str lets it be.
    """

    def __init__(self, **more: Any) -> None:
        super().__init__(**more)
        self.register("type", None, not_empty)

    def add_argument(self, *names: str, help: str | None = None, **more: Any) -> argparse.Action:
        """Add an argument as argparse does, with its help translated."""
        return super().add_argument(*names, help=help and _(help), **more)

    def parse_intermixed_args(self, args: Any = None, namespace: Any = None) -> Any:
        """Parse as argparse does, which expects the usage to begin with the English "usage: "."""
        self.usage = self.format_usage().removeprefix(_("usage: "))
        return super().parse_intermixed_args(args, namespace)

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """Parse as argparse does, but name the flag that is meant by one that this command does not have."""
        args = sys.argv[1:] if args is None else list(args)
        for word in args[: args.index("--")] if "--" in args else args:
            given = word.partition("=")[0]
            if word.startswith("--") and " " not in given and given not in self._option_string_actions:
                known = [name[2:].replace("-", "_") for name in self._option_string_actions]
                ours = meant(given[2:].replace("-", "_"), known)
                self.error(f"there is no flag {given}" + (f"; did you mean {flag(ours)}?" if ours else ""))
        return super().parse_known_args(args, namespace)

    def error(self, message: str) -> NoReturn:
        """Print the message on one line and exit with code 2."""
        self.exit(2, f"{self.prog}: {message} (--help lists the flags)\n")


def make_parser(name: str, description: str) -> Parser:
    """Set the locale's language and return the parser of a command."""
    set_language()
    return Parser(prog=f"npgpt {name}", description=_(description), allow_abbrev=False)


def add_settings(parser: Parser, settings: Iterable[Setting]) -> None:
    """Add a flag for each setting; a flag has no default, as resolve() finds the value."""
    for setting in settings:
        unit = setting.name.upper()
        parser.add_argument(
            flag(setting.name), type=setting.kind, default=None, help=setting.help, metavar=unit
        )


def add_adapter(parser: Parser) -> None:
    """Add the flag --adapter, of commands that open a model."""
    parser.add_argument(
        "--adapter",
        metavar="FOLDER",
        help="LoRA adapters over the model, written by PEFT or npgpt (default: none)",
    )


def flag(name: str) -> str:
    """Return the flag of a setting, for n_layer: --n-layer."""
    return "--" + name.replace("_", "-")


def number(kind: Callable[[str], T], what: str, holds: Callable[[T], bool]) -> Callable[[str], T]:
    """Return a type for argparse that converts by `kind` and refuses a value for which holds() is false.

    So are numbers that float32, in which training computes, cannot hold and multiply.

    >>> count("12")
    12
    """
    low, high = FLOATS

    def convert(text: str) -> T:
        also = ""
        with contextlib.suppress(ValueError):
            value = kind(text)
            if math.isfinite(value) and holds(value):
                if kind is int or not value or low <= abs(value) <= high:
                    return value
                also = f", in {low:g}..{high:g}"
        raise argparse.ArgumentTypeError(f"must be {what}{also}, got {text}")

    return convert


def count(text: str) -> int:
    """Return a whole number from 1 to what an int32 holds; it is a type for argparse."""
    value = _count(text)
    if value > INT32:
        raise argparse.ArgumentTypeError(f"must be a whole number in 1..{INT32}, got {text}")
    return value


_count = number(int, "a whole number, at least 1", lambda v: v >= 1)
minutes = number(float, "a number above 0, at most a million", lambda v: 0 < v <= 1e6)
thread_count = number(int, "a whole number in 1..1024", lambda v: 1 <= v <= 1024)
count_or_zero = number(int, "a whole number, at least 0", lambda v: v >= 0)
positive = number(float, "a number above 0", lambda v: v > 0)
not_negative = number(float, "a number, at least 0", lambda v: v >= 0)
share = number(float, "a number in 0..1, 1 excluded", lambda v: 0 <= v < 1)


def truth(text: str) -> bool:
    """Return what true or false says; it is the kind of a key of a file."""
    if text.lower() not in ("true", "false"):
        raise argparse.ArgumentTypeError(f"must be true or false, got {text}")
    return text.lower() == "true"


def not_empty(text: str) -> str:
    """Return the text, a type for argparse: an empty one is a variable of a shell that was not set."""
    if not text:
        raise argparse.ArgumentTypeError("must not be empty")
    return text


def one_of(*choices: str) -> Callable[[str], str]:
    """Return a type for argparse that accepts one of these words."""

    def convert(text: str) -> str:
        if text not in choices:
            raise argparse.ArgumentTypeError(f"must be {' or '.join(choices)}, got {text}")
        return text

    return convert


def resolve(settings: Iterable[Setting], args: Namespace, from_file: Fields) -> Fields:
    """Return the value of every setting by name, None where no source has one.

    `from_file` is what config_values() found, {} without a file.
    """
    values = {}
    for name, kind in (setting[:2] for setting in settings):
        values[name] = getattr(args, name)
        variable = f"NPGPT_{name.upper()}"
        if values[name] is None and variable in os.environ:
            values[name] = _convert(kind, os.environ[variable], variable)
        elif values[name] is None:
            values[name] = from_file.get(name)
    return values


def config_values(settings: Iterable[Setting], path: PathLike | None, derived: Iterable[str] = ()) -> Fields:
    """Return the settings in a TOML file by name, {} without a file; "text" has the paths of its data.

    A run writes such a file, with facts below [about], which are no settings; neither are the `derived` keys
    of a run's own file. ValueError names every key that is no setting.
    """
    from npgpt.training.run import read_table
    from npgpt.training.source import names_of

    if path is None:
        return {}
    table = read_table(path)
    about = table.pop("about", {})
    by_run = isinstance(about, dict) and "npgpt" in about
    kinds = {setting.name: setting.kind for setting in settings}
    table = {key: value for key, value in table.items() if not (by_run and key in derived)}
    _refuse_unknown(table, kinds, path)
    values: Fields = {}
    for key, value in table.items():
        if key == "text":
            texts = [value] if isinstance(value, str) else value
            if not (isinstance(texts, list) and texts and all(isinstance(t, str) and t for t in texts)):
                raise ValueError(f"{path}: text must be a path or a list of paths, got {value!r}")
            values[key] = names_of(table | {"about": about if by_run else {}}, key)
            continue
        text = ",".join(map(str, value)) if isinstance(value, list) else str(value)
        values[key] = _convert(kinds[key], text, f"{path}: {key}")
    return values


def _refuse_unknown(table: Fields, kinds: Fields, path: PathLike) -> None:
    """Raise ValueError, naming all of them, for keys and tables that are no settings."""
    known = [*kinds, "text"]
    names = {key: f"[{key}]" if isinstance(value, dict) else key for key, value in table.items()}
    unknown = [key for key in table if key not in known or isinstance(table[key], dict)]
    if len(unknown) == 1:
        raise ValueError(f"{path}: {names[unknown[0]]} is not a setting{hint(unknown[0], known)}")
    if unknown:
        told = [names[key] + (f" ({ours}?)" if (ours := meant(key, known)) else "") for key in unknown]
        raise ValueError(f"{path}: {', '.join(told[:-1])} and {told[-1]} are not settings")


def _convert(kind: Kind, text: str, where: str) -> Any:
    try:
        return kind(text)
    except (argparse.ArgumentTypeError, ValueError) as error:
        raise ValueError(f"{where} {error}") from None


def encoding(text: str) -> str:
    """Return auto, utf-8, bytes, or the name of an encoding that Python knows; it is a type for argparse."""
    from npgpt.text.forms.encodings import text_codec

    if text not in ("auto", "utf-8", "bytes") and text_codec(text) is None:
        raise argparse.ArgumentTypeError(f"must be auto, bytes, or an encoding as windows-1252, got {text}")
    return text


FORMS = [  # how TEXT is read
    Setting(
        "encoding",
        encoding,
        "auto (default: recognised, and converted to UTF-8), one such as windows-1252, or bytes: any file as "
        "it is, uncleaned",
    ),
    Setting(
        "field",
        not_empty,
        "field of JSON records, or column of a table, that holds the text (default: text, or the only one "
        "with text)",
    ),
    Setting(
        "dedupe",
        one_of("records", "all", "none"),
        "what is left out where a document before it is the same, or nearly: records (default: of JSON and "
        "tables), all documents, or none",
    ),
]
DOCUMENTS = Setting(
    "documents",
    one_of("apart", "joined"),
    "apart (default: a token of a window sees its own document alone, and parts begin with documents where "
    "they can), or joined, as one text",
)
