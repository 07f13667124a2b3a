"""The encoding of a text that is not UTF-8: one that is sure, or the candidates to ask for.

The encodings of western Europe with one byte a character are told apart by what the letters beyond ASCII
would be: in the right one they are those of one language. It is sure where SURE of the words with such
letters, of which there must be LEAST, are spelt so, and in no other encoding CLEAR of them. Anything less is
a question, as a wrong guess would be learnt.
"""

import codecs
import io
import re
from collections.abc import Iterable
from typing import NamedTuple

SURE, LEAST, CLEAR = 0.98, 8, 0.8
SAMPLE = 1 << 20  # bytes with other letters in them that are looked at
WESTERN = ("windows-1252", "cp850", "mac-roman")  # Latin-1 is in Windows-1252, but for controls
OTHERS = (
    "gb18030", "big5", "shift_jis", "euc-kr", "windows-1251", "koi8-r", "windows-1250", "windows-1253",
    "windows-1254", "windows-1255", "windows-1256", "iso8859-2", "iso8859-15",
)  # fmt: skip
LETTERS = [  # beyond ASCII, by language
    set(letters)
    for letters in (
        "áàâãçéêíóôõúü",  # Portuguese
        "áéíñóúü",  # Spanish
        "àâçéèêëîïôùûüœ",  # French
        "àèéìíòóùú",  # Italian
        "äöüß",  # German
        "åäöé",  # Swedish and Finnish
        "åæøé",  # Danish and Norwegian
        "àçèéíïòóúü",  # Catalan
        "ëïéèöü",  # Dutch
    )
]
MARKS = set(
    "“”«»—…„•ªº°§€£¿¡©®™·²³½¼\xa0\xad\xb4\u2013\u2018\u2019"
)  # that stand beside words in any of these languages
CJK_MARKS = set("\u3001\u3002\uff0c")
WORD = re.compile(rb"[A-Za-z]*[\x80-\xff][A-Za-z\x80-\xff]*")


class Guess(NamedTuple):
    """What the encoding of a text is."""

    sure: str | None  # as Python's codecs call it
    candidates: list[str]  # the likeliest first, where none is sure


def text_codec(name: str) -> str | None:
    """Return the usual name of an encoding of text that Python knows, None for another name."""
    try:
        io.TextIOWrapper(io.BytesIO(), encoding=name).detach()
    except LookupError:  # unknown, or no encoding of text, as base64
        return None
    return codecs.lookup(name).name


def guess(blocks: Iterable[bytes]) -> Guess:
    """Return the encoding of a text of one or two bytes a character that is not UTF-8."""
    words, size, head = list[bytes](), 0, b""
    for block in blocks:
        head = head or block[:SAMPLE]
        for match in WORD.finditer(block):
            words.append(match[0])
            size += len(match[0])
            if size > SAMPLE:
                break
    shares = {name: _western(words, name) for name in WESTERN}
    first, second = sorted(shares, key=lambda name: -shares[name])[:2]
    n_letters = sum(
        char.isalpha() for word in words for char in word.decode(first, "replace") if char > "\x7f"
    )
    if shares[first] >= SURE and shares[second] < CLEAR and n_letters >= LEAST:
        return Guess(first, [])
    by_letters = {name: _letters(head, name) for name in (*OTHERS, *WESTERN)}
    likely = [name for name, share in by_letters.items() if share > 0.9]
    western = [name for name in WESTERN if shares[name] > 0.5]
    return Guess(
        None, sorted(western, key=lambda name: -shares[name]) + [n for n in likely if n not in western]
    )


def _western(words: list[bytes], codec: str) -> float:
    """Return which share of the words beyond ASCII one language spells so, in this encoding."""
    spelt = [_spelling(word.decode(codec, "replace")) for word in words]
    return max((sum(letters >= word for word in spelt) / len(spelt) for letters in LETTERS), default=0.0)


def _spelling(word: str) -> set[str]:
    """Return the letters beyond ASCII of a word in small letters; a capital inside a word stays one."""
    core = "".join(char for char in word if char not in MARKS)
    if core[1:] == core[1:].lower() or core == core.upper():
        core = core.lower()
    return {char for char in core if char > "\x7f"}


def _letters(data: bytes, codec: str) -> float:
    """Return which share of the characters beyond ASCII are letters or marks; 0 where it does not decode."""
    try:
        decoded = codecs.getincrementaldecoder(codec)().decode(data)  # its end may be inside a character
    except UnicodeDecodeError:
        return 0.0
    text = [char for char in decoded if char > "\x7f"]
    return sum(char.isalpha() or char in MARKS or char in CJK_MARKS for char in text) / max(1, len(text))
