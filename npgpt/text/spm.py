"""SentencePiece's BPE in plain Python: the reference of the compiled Spm, and its fallback.

A blank is written U+2581. A text is taken as one whole, character by character, and the two neighbours that
come first in the vocabulary's order become one token, until none do. A character that is no token becomes
the tokens of its bytes, <0x00> to <0xFF>, where the vocabulary has them, else the unknown token.
"""

import re
from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from npgpt.engine.types import Buffer, Integers
from npgpt.text.bpe import NO_ID, merge

BLANK = "\u2581"
BYTE_NAMES = [f"<0x{byte:02X}>" for byte in range(256)]
BYTE_TOKENS = frozenset(BYTE_NAMES)
# What stands before a text, as its files say it. "prepend": a blank, always; the others are Metaspace's: a
# blank before each part of a text, or its first, that begins with none, or never one.
PREFIXES = ("prepend", "always", "first", "never")


LONGEST = 1024  # bytes of a token, which all its halves are looked up of
MANY = 256  # characters that stand in tokens and are none


@dataclass(frozen=True)
class Pieces:
    """What a vocabulary of SentencePiece's kind has beside tokens and merges."""

    prefix: str = "prepend"  # one of PREFIXES
    words: bool = False  # no token reaches over the beginning of a word
    scores: tuple[float, ...] = ()  # of each id, the highest first; () where merges say the order
    fuse_unknown: bool = True  # neighbours that have no tokens become one unknown token
    bytes: bool = True  # a character that is no token becomes the tokens of its bytes

    def of_size(self, n: int) -> "Pieces":
        """Return these pieces for n tokens: with fewer scores, or with some that do nothing."""
        return replace(self, scores=(self.scores + (0.0,) * n)[:n]) if self.scores else self


class Merges(NamedTuple):
    """The pairs that become one token, and the texts of all ids that they name."""

    table: Integers  # (n, 4): left, right, token, rank; of equal ranks the leftmost in a text comes first
    symbols: list[str]  # of each id; from V on characters that stand in tokens and are none


def merges_of_scores(names: Sequence[str], scores: Sequence[float]) -> Merges:
    """Return the merges of a vocabulary that has scores: of any two neighbours that make a token.

    names: the text of each id, '' for one that merges do not make. ValueError for names of no tokenizer.
    """
    symbols = list(names)
    ids = {name: i for i, name in enumerate(names) if name}
    if long := next((name for name in names if len(name.encode()) > LONGEST), None):
        raise ValueError(f"a token must have at most {LONGEST} bytes, got {len(long.encode())}")
    for name in names:
        for character in name if len(name) > 1 else ():
            if character not in ids:
                ids[character] = len(symbols)
                symbols.append(character)
    if (rare := len(symbols) - len(names)) > MANY:
        raise ValueError(f"at most {MANY} characters of tokens may be no tokens, got {rare}")
    ranks = {score: rank for rank, score in enumerate(sorted(set(scores), reverse=True))}
    table = [
        (ids[name[:cut]], ids[name[cut:]], token, ranks[scores[token]])
        for token, name in enumerate(names)
        for cut in range(1, len(name))
        if name[:cut] in ids and name[cut:] in ids
    ]
    return Merges(np.array(table, np.uint32).reshape(-1, 4), symbols)


def merges_by_score(
    tokens: Mapping[str, int], apart: Container[str], scores: Sequence[float]
) -> list[tuple[str, str]]:
    """Return the merges of tokens (name -> id) that have scores, in their order.

    apart: those that merges do not make. Of the pairs that make one token the smaller ids come first, as in
    Transformers, and not the leftmost in a text: in rare texts that is another order.
    """
    names = sorted(tokens, key=tokens.__getitem__)
    made = ["" if name in apart or name in BYTE_TOKENS else name for name in names]
    table, symbols = merges_of_scores(made, scores)
    rows = sorted(table.tolist(), key=lambda row: (row[3], row[2], row[0], row[1]))
    known = len(names)
    return [(symbols[row[0]], symbols[row[1]]) for row in rows if max(row[:2]) < known]


class ReferenceSpm:
    """Encodes text to ids.

    symbols: the text of each id in UTF-8, b'' for one that no text spells; from n_tokens on they are
    characters that are no tokens. merges: (n, 4) as in Merges. byte_ids: (256,) the ids of bytes, or NO_ID.
    unknown: the id of what has no token, or NO_ID, by which it is left out; fuse: neighbours share one.
    words: each blank begins a piece that no merge reaches over.
    """

    def __init__(
        self,
        symbols: Sequence[bytes],
        n_tokens: int,
        merges: ArrayLike,
        byte_ids: ArrayLike,
        unknown: int = NO_ID,
        fuse: bool = True,
        words: bool = False,
    ) -> None:
        texts = [symbol.decode("utf-8", "surrogateescape") for symbol in symbols]
        self._characters = {text: i for i, text in enumerate(texts) if len(text) == 1}
        self._texts, self._n_tokens = texts, n_tokens
        table = np.asarray(merges).tolist()
        self._merges = {(left, right): (rank, token) for left, right, token, rank in table}
        self._byte_ids = np.asarray(byte_ids).tolist()
        self._unknown, self._fuse = unknown, fuse
        self._pattern = re.compile(f"{BLANK}?[^{BLANK}]+|{BLANK}") if words else None
        self._dtype = np.uint16 if n_tokens <= 65536 else np.uint32

    def encode(self, text: Buffer, prefix: bool = False) -> Integers:
        """Return the ids of text (N,), uint16 where they fit, else uint32; prefix: with a blank before it."""
        characters = BLANK * prefix + bytes(text).decode("utf-8", "surrogateescape").replace(" ", BLANK)
        ids: list[int] = []
        for piece in self._pattern.findall(characters) if self._pattern else [characters]:
            for i in merge(self._symbols(piece), self._merges):
                ids += [i] if i < self._n_tokens else self._without_token(self._texts[i])
        return np.array(ids, self._dtype)

    def _symbols(self, piece: str) -> list[int]:
        ids: list[int] = []
        known = True
        for character in piece:
            i = self._characters.get(character)
            found = self._without_token(character) if i is None else [i]
            if found == [self._unknown] and not known and self._fuse:
                continue
            known = found != [self._unknown]
            ids += found
        return ids

    def _without_token(self, character: str) -> list[int]:
        """Return the ids that stand for a character that is no token."""
        ids = [self._byte_ids[byte] for byte in character.encode("utf-8", "surrogateescape")]
        if NO_ID not in ids:
            return ids
        return [] if self._unknown == NO_ID else [self._unknown]
