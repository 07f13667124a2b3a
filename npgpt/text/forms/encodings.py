"""The encoding of a text that is not UTF-8: one that is sure, or the candidates to ask for.

The encodings of western Europe with one byte a character are told apart by what the letters beyond ASCII
would be: in the right one they are those of one language. It is sure where SURE of the words with such
letters, of which there must be LEAST, are spelt so, in no other of these encodings CLEAR of them, and in none
of the RIVALS, which are never sure, as many. Anything less is a question, as a wrong guess would be learnt.
"""

import codecs
import io
import re
from collections import Counter
from collections.abc import Iterable, Mapping
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
OTHER_LETTERS = LETTERS + [  # of languages that a rival may be in
    set(letters)
    for letters in (
        "áéíóöőúüű",  # Hungarian
        "ąćęłńóśźż",  # Polish
        "áčďéěíňóřšťúůýž",  # Czech
        "áäčďéíĺľňóôŕšťúýž",  # Slovak
        "čćđšž",  # Croatian and Slovene
        "ăâîșşțţ",  # Romanian
        "çğ\u0131iöşüâîû",  # Turkish
        "əçğ\u0131iöşü",  # Azerbaijani
        "äëéèêöüïô",  # Luxembourgish
        "âêñôùûü",  # Breton
        "áðéíóúýþæö",  # Icelandic
        "áðíóúýæø",  # Faroese
        "äöüõšž",  # Estonian
        "āčēģīķļņšūž",  # Latvian
        "ąčęėįšųūž",  # Lithuanian
        "ëç",  # Albanian
        "áâéêëèíîïóôöúûü",  # Afrikaans
        "âêîôûŵŷáéëïö",  # Welsh
        "àèìòùáéíóú",  # Gaelic
        "ĉĝĥĵŝŭ",  # Esperanto
        "ċġħżàèìòù",  # Maltese
    )
]
RIVALS = (
    "windows-1252", "cp850", "mac-roman", "windows-1250", "windows-1254", "windows-1257", "windows-1258",
    "iso8859-2", "iso8859-3", "iso8859-4", "iso8859-13", "iso8859-14", "iso8859-15", "iso8859-16",
    "cp852", "cp857", "cp775", "cp860", "cp861", "cp863", "cp865", "mac-latin2", "mac-croatian",
    "mac-romanian", "mac-iceland", "mac-turkish",
)  # fmt: skip
MARKS = set(
    "“”«»—…„•ªº°§€£¿¡©®™·²³½¼\xa0\xad\xb4\u2013\u2018\u2019"
)  # that stand beside words in any of these languages
CJK_MARKS = set("\u3001\u3002\uff0c")
WORD = re.compile(rb"[A-Za-z]*[\x80-\xff][A-Za-z\x80-\xff]*")
LETTER = r"[^\W\d_ªº]"
MISPLACED = re.compile(f"{LETTER}[„¿¡€£§©½¼•]|{LETTER}[«»“ªº°²³™®]{LETTER}")  # marks no language writes there
BETWEEN = re.compile(f"[{''.join(MARKS)}]+")


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
    head, words = _sample(blocks)
    shares = {name: _share(words, name, LETTERS) for name in WESTERN}
    first, second = sorted(shares, key=lambda name: -shares[name])[:2]
    n_letters = sum(
        n for word, n in words.items() for char in word.decode(first, "replace") if _is_other_letter(char)
    )
    rivals = _rivals(words, first, max(SURE, shares[first]))
    if shares[first] >= SURE and shares[second] < CLEAR and n_letters >= LEAST and not rivals:
        return Guess(first, [])
    by_letters = {name: _letters(head, name) for name in (*OTHERS, *WESTERN)}
    likely = [name for name, share in by_letters.items() if share > 0.9]
    western = sorted((name for name in WESTERN if shares[name] > 0.5), key=lambda name: -shares[name])
    best = [first] if shares[first] >= SURE else []
    return Guess(None, list(dict.fromkeys([*best, *rivals, *western, *likely])))


def _sample(blocks: Iterable[bytes]) -> tuple[bytes, Counter[bytes]]:
    """Return the beginning of a text, and how often each of its first words beyond ASCII is there."""
    words, size, head = Counter[bytes](), 0, b""
    for block in blocks:
        head = head or block[:SAMPLE]
        for match in WORD.finditer(block):
            words[match[0]] += 1
            size += len(match[0])
            if size > SAMPLE:
                return head, words
    return head, words


def _share(words: Mapping[bytes, int], codec: str, languages: list[set[str]]) -> float:
    """Return which share of the words beyond ASCII one language spells so, in this encoding."""
    by_letters = Counter[frozenset[str]]()
    for word, n in words.items():
        by_letters[_spelling(word.decode(codec, "replace"))] += n
    spelt = (sum(n for word, n in by_letters.items() if letters >= word) for letters in languages)
    return max(spelt, default=0) / max(1, by_letters.total())


def _rivals(words: Counter[bytes], first: str, share: float) -> list[str]:
    """Return the encodings in which at least as many words are spelt in one language, but otherwise."""
    often, found = dict(words.most_common(200)), []
    for name in RIVALS:
        if _share(often, name, OTHER_LETTERS) > CLEAR and any(
            word.decode(name, "replace") != word.decode(first, "replace") for word in words
        ):
            if _share(words, name, OTHER_LETTERS) >= share:
                found.append(name)
    return found


def _spelling(text: str) -> frozenset[str]:
    """Return the letters beyond ASCII of a word, small; and what shows that it is none."""
    found = set(MISPLACED.findall(text))
    for part in BETWEEN.split(text):
        small = part.replace("İ", "i").lower()
        written = part.replace("ß", "")  # which capitals leave small
        if written not in (written.lower(), written.upper(), written.capitalize()):
            small = part + "\ufffd"
        found.update(char for char in small if char > "\x7f")
    return frozenset(found)


def _is_other_letter(char: str) -> bool:
    return char > "\x7f" and char.isalpha() and char not in MARKS


def _letters(data: bytes, codec: str) -> float:
    """Return which share of the characters beyond ASCII are letters or marks; 0 where it does not decode."""
    try:
        decoded = codecs.getincrementaldecoder(codec)().decode(data)  # its end may be inside a character
    except UnicodeDecodeError:
        return 0.0
    text = [char for char in decoded if char > "\x7f"]
    return sum(char.isalpha() or char in MARKS or char in CJK_MARKS for char in text) / max(1, len(text))
