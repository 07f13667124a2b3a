"""The language of the commands: the locale's where there is a catalogue for it (Portuguese), else English.

Help, progress and results are translated where they are printed: _("..."), and their numbers have the
language's separators: fill(...), number(...). Errors and warnings are English, and so are the numbers in
files, JSON, settings and commands, as programs read them too. Everything is English until a command calls
set_language().
"""

import contextlib
import gettext
import os
import string
import sys
from collections.abc import Iterator
from numbers import Real
from pathlib import Path

CATALOGUES = Path(__file__).parent / "locale"  # LANGUAGE/LC_MESSAGES/npgpt.mo, built from npgpt.po


def set_language() -> None:
    """Set the language, argparse's too, from LANGUAGE, LC_ALL, LC_MESSAGES or LANG."""
    _choose_catalogue()
    for stream in (sys.stdout, sys.stderr):  # a character that the console lacks must not end the command
        if reconfigure := getattr(stream, "reconfigure", None):  # not in a notebook
            reconfigure(errors="replace")


@contextlib.contextmanager
def spoken() -> Iterator[None]:
    """Speak the locale's language for the block alone, for a function that programs call."""
    before = gettext.textdomain()
    _choose_catalogue()
    try:
        yield
    finally:
        gettext.textdomain(before)


def _choose_catalogue() -> None:
    locale = next(filter(None, map(os.environ.get, ("LC_ALL", "LC_MESSAGES", "LANG"))), "")
    english = locale in ("C", "POSIX")  # these ignore LANGUAGE, as GNU's gettext does
    gettext.bindtextdomain("npgpt", str(CATALOGUES))
    gettext.textdomain("messages" if english else "npgpt")
    for stream in (sys.stdout, sys.stderr):  # a character that the console lacks must not end the command
        if reconfigure := getattr(stream, "reconfigure", None):  # not in a notebook
            reconfigure(errors="replace")


def _(message: str) -> str:
    """Return the translation of a message."""
    return gettext.gettext(message)


def N_(message: str) -> str:
    """Return the message as it is, marked for the catalogues; `_` translates it where it is shown."""
    return message


def number(value: float, form: str = "") -> str:
    """Return a number in the format `form`, with the separators of the language.

    >>> number(446080, ",")
    '446,080'
    """
    example = _("1,234.5")  # whose translation shows the separators
    return format(value, form).translate({ord(","): example[1], ord("."): example[5]})


class _Filler(string.Formatter):
    def format_field(self, value: object, format_spec: str) -> str:
        return number(value, format_spec) if isinstance(value, Real) else format(value, format_spec)  # type: ignore[arg-type]


def fill(template: str, **values: object) -> str:
    """Return a template, translated before, with its values; numbers have the separators of the language."""
    return _Filler().format(template, **values)
