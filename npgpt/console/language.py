"""The language of the commands: the locale's where there is a catalogue for it (Portuguese), else English.

Help, progress and results are translated where they are printed: _("..."). Errors and warnings are
English, as programs read them too. Everything is English until a command calls set_language().
"""

import gettext
import os
from pathlib import Path

CATALOGUES = Path(__file__).parent / "locale"  # LANGUAGE/LC_MESSAGES/npgpt.mo, built from npgpt.po


def set_language() -> None:
    """Take the language that LANGUAGE, LC_ALL, LC_MESSAGES or LANG ask for, for argparse too."""
    locale = next(filter(None, map(os.environ.get, ("LC_ALL", "LC_MESSAGES", "LANG"))), "")
    english = locale in ("C", "POSIX")  # there LANGUAGE counts for nothing, as in GNU's gettext
    gettext.bindtextdomain("npgpt", str(CATALOGUES))
    gettext.textdomain("messages" if english else "npgpt")


def _(message: str) -> str:
    return gettext.gettext(message)
