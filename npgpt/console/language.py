"""The language of the commands: the locale's where there is a catalogue for it (Portuguese), else English.

Help, progress and results are translated where they are printed: _("..."). Errors and warnings are
English, as programs read them too. Everything is English until a command calls set_language().
"""

import gettext
import os
import sys
from pathlib import Path

CATALOGUES = Path(__file__).parent / "locale"  # LANGUAGE/LC_MESSAGES/npgpt.mo, built from npgpt.po


def set_language() -> None:
    """Set the language, argparse's too, from LANGUAGE, LC_ALL, LC_MESSAGES or LANG."""
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
