"""The language of the doors: that of the locale where npgpt speaks it (Portuguese), English otherwise.

What is printed is looked up where it is printed: _("..."). What is raised is raised in English, as programs
read it too, and told by the door that catches it: told(message) finds what the message was made from.
Nothing here speaks anything but English until a door calls speak().
"""

import functools
import gettext
import os
import re
from pathlib import Path

CATALOGUES = Path(__file__).parent / "locale"  # LANGUAGE/LC_MESSAGES/npgpt.mo; make.py there writes them
SYSTEM = (  # what the system says of files, in errors that are told
    "No such file or directory",
    "Permission denied",
    "Is a directory",
    "Not a directory",
    "File exists",
    "File too large",
    "No space left on device",
    "Input/output error",
    "Read-only file system",
    "Address already in use",
)


def speak() -> None:
    """From now on speak as LANGUAGE, LC_ALL, LC_MESSAGES or LANG ask for, argparse with us."""
    locale = next(filter(None, map(os.environ.get, ("LC_ALL", "LC_MESSAGES", "LANG"))), "")
    english = locale in ("C", "POSIX")  # there LANGUAGE counts for nothing, as in GNU's gettext
    gettext.bindtextdomain("npgpt", str(CATALOGUES))
    gettext.textdomain("messages" if english else "npgpt")


def _(message: str) -> str:
    return gettext.gettext(message)


def told(message: str) -> str:
    """An English message, made from one of the catalogue's and values for {0}, {1}, ..., as a door says it.

    Values that are messages themselves are told too; what no message fits stays as it is.
    """
    if gettext.textdomain() != "npgpt" or not message:
        return message
    return _told(message)[1] if " " in message else _(message)


def _told(message: str, depth: int = 4) -> tuple[int, str]:
    """How many characters of a message are the catalogue's, at best, and the message told by these.

    A message may be a value in another, to that depth: what is deeper, quoted, or one word is a value alone.
    """
    if " " not in message or message[0] in "'\"" or not depth:
        return 0, message
    if (exact := _(message)) != message:
        return len(message), exact
    head, colon, rest = message.partition(": ")
    ways: list[tuple[str, tuple[str, ...], str]] = [(": ", (head, rest), "{0}: {1}")] if colon else []
    for pattern, words, translation in _templates():
        if found := pattern.fullmatch(message):
            ways.append((words, found.groups(), translation))
    best = 0, message
    for words, values, translation in ways:
        known = [_told(value, depth - 1) for value in values]
        whole = len(words) + sum(count for count, _ in known)
        if whole > best[0]:
            best = whole, translation.format(*(text for _, text in known))
    return best


@functools.cache
def _templates() -> list[tuple[re.Pattern[str], str, str]]:
    """What messages with values look like, the words of their own, their translation."""
    catalogue = gettext.translation("npgpt", CATALOGUES, fallback=True)
    found = []
    for message, translation in getattr(catalogue, "_catalog", {}).items():
        words = [part.replace("{{", "{").replace("}}", "}") for part in re.split(r"\{\d\}", message)]
        if len(words) > 1:
            pattern = re.compile("(.*?)".join(map(re.escape, words)), re.DOTALL)
            found.append((pattern, "".join(words), translation))
    return found
