"""Tokens that are cut out of a text before it is split, as the `tokenizers` library does it.

First those that match the text as it stands; then what lies between them is normalized, and the others are
looked for in it. Of several that begin at one place the longest counts.
"""

import re
import unicodedata
from collections.abc import Callable, Iterator, Mapping
from typing import NamedTuple

from npgpt.text.bpe import WHITE_SPACE


class Flags(NamedTuple):
    """How an added token is matched and shown."""

    special: bool = True  # looked for only where special tokens are asked for, and not shown in a text
    lstrip: bool = False  # the white space before it goes with it
    rstrip: bool = False  # the white space behind it, too
    single_word: bool = False  # it stands between no characters of words
    normalized: bool = False  # it is looked for in the normalized text


class Part(NamedTuple):
    """A part of a text: an added token, or what lies between two of them, normalized."""

    id: int | None
    text: str
    begins: bool  # the text begins here


class AddedTokens:
    """Cuts texts at added tokens."""

    def __init__(self, tokens: Mapping[str, tuple[int, Flags]], normalize: Callable[[str], str]) -> None:
        self._normalize = normalize
        self._raw = _Matcher({name: of for name, of in tokens.items() if not of[1].normalized})
        self._normal = _Matcher({normalize(name): of for name, of in tokens.items() if of[1].normalized})

    def parts(self, text: str) -> Iterator[Part]:
        """Yield the parts of a text; no part is empty."""
        for at, piece, id in self._raw.cut(text):
            if id is not None:
                yield Part(id, piece, False)
                continue
            for inner, part, inner_id in self._normal.cut(self._normalize(piece)):
                yield Part(inner_id, part, at == inner == 0 and inner_id is None)


class _Matcher:
    """Finds the tokens of a table, leftmost and longest."""

    def __init__(self, tokens: Mapping[str, tuple[int, Flags]]) -> None:
        self._tokens = tokens
        names = sorted(filter(None, tokens), key=len, reverse=True)
        self._pattern = re.compile("|".join(map(re.escape, names))) if names else None

    def cut(self, text: str) -> Iterator[tuple[int, str, int | None]]:
        """Yield (place, text, id of a token or None) of all parts."""
        done = 0
        for match in self._pattern.finditer(text) if self._pattern else ():
            id, flags = self._tokens[match[0]]
            start, end = match.span()
            if flags.single_word and (_ends_a_word(text[:start][-1:]) or _ends_a_word(text[end : end + 1])):
                continue
            if flags.lstrip:
                start = max(len(text[:start].rstrip(BLANKS)), done)
            if flags.rstrip:
                end = len(text) - len(text[end:].lstrip(BLANKS))
            if start > done:
                yield done, text[done:start], None
            yield start, text[start:end], id
            done = end
        if done < len(text):
            yield done, text[done:], None


BLANKS = "".join(c for c in map(chr, range(0x3001)) if re.match(f"[{WHITE_SPACE}]", c))
CIRCLED = ((0x24B6, 0x24E9), (0x1F130, 0x1F149), (0x1F150, 0x1F169), (0x1F170, 0x1F189))  # letters, as signs


def _ends_a_word(character: str) -> bool:
    r"""Return whether a character, or '', is one of Unicode's \w."""
    if not character:
        return False
    kind = unicodedata.category(character)
    return (
        kind[0] in "LM"
        or kind in ("Nd", "Nl", "Pc")
        or character in "\u200c\u200d"
        or any(first <= ord(character) <= last for first, last in CIRCLED)
    )
