"""Cleaning: bytes that only look like text are taken out of it, in a corpus and then in each prompt.

STEPS is the one table of what is done. A corpus is cleaned document by document. The tokenizer of a model
that learnt such text cleans what it encodes, and its tokenizer.json tells other programs the same steps. So
the patterns are those that Python and the `tokenizers` library (Oniguruma) read alike: no escapes, no flags.
"""

import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from npgpt.engine.types import Buffer


class Step(NamedTuple):
    """One step of a cleaning."""

    what: str  # as reports count it
    pattern: str  # a regular expression of what is replaced; "" composes characters (NFC)
    instead: str = ""
    needs: str = ""  # a text without it has no match, which is seen sooner this way


BYTE_ORDER_MARK = Step("byte-order marks removed", "\\A\ufeff", needs="\ufeff")
COMPOSE = Step("characters composed (NFC)", "")
BLANKS = "[\t \xa0\u1680\u2000-\u200a\u2028\u2029\u202f\u205f\u3000]+"
LINE_ENDS = Step("line ends made \\n", "\r\n?", "\n", needs="\r")
LIGHT = (BYTE_ORDER_MARK, LINE_ENDS, COMPOSE)
BLANK_ENDS = Step("line ends stripped of blanks", f"{BLANKS}(?=\n)")
FULL = (
    *LIGHT,
    Step("control characters removed", "[\0-\x08\x0b-\x1f\x7f-\x9f]"),  # all of Cc but tab and newline
    BLANK_ENDS,
    Step("runs of blank lines shortened", "\n{3,}", "\n\n"),
)
CLEANINGS = ("none", "light", "full")
STEPS: dict[str, tuple[Step, ...]] = {"none": (), "light": LIGHT, "full": FULL}
STEPS["nfc"] = (COMPOSE,)  # as tokenizers of others do it
# Blanks at the end of a prompt stay, as its line may go on; a document has ended.
DOCUMENT_ENDS = BLANK_ENDS._replace(pattern=f"{BLANKS}(?=\n|\\Z)")


def normalize(text: Buffer, how: str, changed: Counter[str] | None = None) -> Buffer:
    r"""Return `text` (bytes, the beginning of one) cleaned; one that is not valid UTF-8 as it is.

    `changed` counts what was done.

    >>> normalize(b"a \r\nb ", "full")
    b'a\nb '
    """
    return _done(STEPS[how], text, changed)


def normalize_part(text: str, how: str) -> str:
    """Return a part of a text, such as a stop string, as it is spelt in a text cleaned by `how`."""
    steps = [step for step in STEPS[how] if step in (LINE_ENDS, COMPOSE)]  # the others need what is around it
    return bytes(_done(steps, text.encode("utf-8", "surrogatepass"), None)).decode("utf-8", "surrogatepass")


def clean_document(
    document: bytes, how: str = "light", changed: Counter[str] | None = None, first: bool = True
) -> bytes:
    r"""Return `document` without bytes that only look like text.

    light  byte-order mark, line ends, Unicode NFC: changes nothing in text that is clean
    full   also control characters, blanks at line ends, runs of blank lines
    A document that is not valid UTF-8 is returned as it is. `changed` counts what was done; `first` is False
    for a chunk that is not the first of its document. ValueError for another `how`.

    >>> clean_document(b"a\r\nb")
    b'a\nb'
    """
    check_cleaning(how, "clean_document: how")
    steps = [DOCUMENT_ENDS if step is BLANK_ENDS else step for step in STEPS[how]]
    return bytes(_done([s for s in steps if first or s is not BYTE_ORDER_MARK], document, changed))


def check_cleaning(how: str, where: str, known: Iterable[str] = CLEANINGS) -> None:
    """Raise ValueError, which begins with `where`, unless `how` is known: none, light or full."""
    if how not in known:
        raise ValueError(f"{where} must be one of {', '.join(known)}, got {how!r}")


def _done(steps: Sequence[Step], data: Buffer, changed: Counter[str] | None) -> Buffer:
    """Return the data after these steps."""
    if not steps:
        return data
    try:
        text = bytes(data).decode("utf-8")
    except UnicodeDecodeError:
        return data
    for step in steps:
        if step is COMPOSE:
            composed = unicodedata.normalize("NFC", text)
            n = max(1, len(text) - len(composed)) if composed != text else 0
            text = composed
        else:
            text, n = re.subn(step.pattern, step.instead, text) if step.needs in text else (text, 0)
        if n and changed is not None:
            changed[step.what] += n
    return text.encode("utf-8")
