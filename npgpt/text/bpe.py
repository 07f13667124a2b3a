"""Byte-level BPE in plain Python: what the compiled Bpe and PieceCounts must do, and what runs without them.

A text is split into pieces by GPT-2's pattern; in each piece the two neighbours that were merged first in
training are merged first, until no merge applies. The pattern needs characters: a byte that is part of no
valid UTF-8 character counts as one that is neither letter, number nor space, and comes back as it was.
"""

import heapq
import re
from collections import Counter, defaultdict
from collections.abc import Sequence
from itertools import accumulate, pairwise

import numpy as np
from numpy.typing import ArrayLike

from npgpt.engine.types import Buffer, Integers
from npgpt.text.unicode import LETTERS, NUMBERS

WHITE_SPACE = "\t-\r \x85\xa0\u1680\u2000-\u200a\u2028\u2029\u202f\u205f\u3000"  # not Python's \s


def _ranges(steps: Sequence[int]) -> str:
    """The inside of a character class from gaps and lengths."""
    edges = list(accumulate(steps))
    pairs = zip(edges[::2], edges[1::2], strict=True)
    return "".join(f"{re.escape(chr(a))}-{re.escape(chr(b - 1))}" for a, b in pairs)


_L, _N, _S = _ranges(LETTERS), _ranges(NUMBERS), WHITE_SPACE
PATTERN = re.compile(
    f"'s|'t|'re|'ve|'m|'ll|'d| ?[{_L}]+| ?[{_N}]+| ?[^{_S}{_L}{_N}]+|[{_S}]+(?![^{_S}])|[{_S}]+"
)


def split(text: Buffer) -> list[bytes]:
    """The pieces of text (bytes), which joined are the text again.

    >>> split(b"o mar, 2 vezes")
    [b'o', b' mar', b',', b' 2', b' vezes']
    """
    characters = bytes(text).decode("utf-8", "surrogateescape")
    return [piece.encode("utf-8", "surrogateescape") for piece in PATTERN.findall(characters)]


def merge(ids: list[int], merges: dict[tuple[int, int], tuple[int, int]]) -> list[int]:
    """`ids` (which it takes over) with all merges done; merges: pair -> (rank, the id that takes its place).

    In time n log n: possible merges wait in a heap by rank, then by place.
    """
    n = len(ids)
    before, after = list(range(-1, n - 1)), list(range(1, n + 1))

    def candidate(i: int) -> list[tuple[int, int, int]]:
        found = merges.get((ids[i], ids[after[i]])) if after[i] < n else None
        return [(found[0], i, found[1])] if found else []

    heap = [entry for i in range(n) for entry in candidate(i)]
    heapq.heapify(heap)
    while heap:
        entry = heapq.heappop(heap)
        _, i, token = entry
        if ids[i] < 0 or [entry] != candidate(i):  # another merge was there first
            continue
        ids[i], ids[after[i]] = token, -1
        after[i] = after[after[i]]
        if after[i] < n:
            before[after[i]] = i
        for place in (before[i], i):
            for new in candidate(place) if place >= 0 else ():
                heapq.heappush(heap, new)
    return [token for token in ids if token >= 0]


class ReferenceBpe:
    """Encodes and decodes.

    byte_ids: (256,) the id of each byte; merges: (n, 3) left id, right id, the id that takes their place, the
    first in the table going first; tokens: the bytes of each id.
    """

    def __init__(self, byte_ids: ArrayLike, merges: ArrayLike, tokens: Sequence[bytes]) -> None:
        self._byte_ids = np.asarray(byte_ids).tolist()
        table = np.asarray(merges).tolist()
        self._merges = {(left, right): (rank, token) for rank, (left, right, token) in enumerate(table)}
        self._tokens = list(tokens)
        self._dtype = np.uint16 if len(tokens) <= 65536 else np.uint32
        self._known: dict[bytes, list[int]] = {}  # piece -> its ids

    def encode(self, text: Buffer) -> Integers:
        """The ids of text (N,), uint16 where they fit."""
        ids: list[int] = []
        for piece in split(text):
            if piece not in self._known:
                if len(self._known) > 100_000:
                    self._known.clear()
                self._known[piece] = merge([self._byte_ids[byte] for byte in piece], self._merges)
            ids += self._known[piece]
        return np.array(ids, self._dtype)

    def decode(self, ids: ArrayLike) -> bytes:
        """The bytes of ids (N,)."""
        return b"".join(self._tokens[i] for i in np.asarray(ids).tolist())


class ReferenceCounts:
    """The distinct pieces of a text and how often each occurs: all that training needs of it."""

    def __init__(self) -> None:
        self._counts: Counter[bytes] = Counter()

    def __len__(self) -> int:
        return len(self._counts)

    def add(self, text: Buffer) -> None:
        """Count the pieces of text too."""
        self._counts.update(split(text))

    def table(self) -> tuple[Integers, Integers, Integers]:
        """The pieces' bytes one behind the other (uint8), their lengths, how often each occurs (uint64)."""
        lengths = np.array([len(piece) for piece in self._counts], np.uint64)
        times = np.array(list(self._counts.values()), np.uint64)
        return np.frombuffer(b"".join(self._counts), np.uint8), lengths, times

    def add_table(self, text: Integers, lengths: Integers, times: Integers) -> None:
        """Add what another's table() tells."""
        ends = np.cumsum(lengths).tolist()
        for start, end, n in zip([0, *ends], ends, times.tolist(), strict=False):
            self._counts[bytes(text[start:end])] += n

    def train(self, byte_ids: ArrayLike, count: int, min_count: int) -> Integers:
        """Up to `count` merges (n, 3): always of the most frequent pair, of equals the smallest pair of ids.

        New ids are 256, 257, ... It ends before a pair that occurs less than min_count times.
        """
        id_of = np.asarray(byte_ids).tolist()
        words = [[id_of[byte] for byte in piece] for piece in self._counts]
        times = list(self._counts.values())
        pairs: Counter[tuple[int, int]] = Counter()  # how often
        where = defaultdict(set)  # in which words, now or formerly
        for w, word in enumerate(words):
            for pair in pairwise(word):
                pairs[pair] += times[w]
                where[pair].add(w)
        merges: list[tuple[int, int, int]] = []
        while len(merges) < count and pairs:
            left, right = best = min(pairs, key=lambda pair: (-pairs[pair], pair))
            if pairs[best] < min_count:
                break
            token = 256 + len(merges)
            merges.append((left, right, token))
            for w in where.pop(best):
                old = words[w]
                for pair in pairwise(old):
                    pairs[pair] -= times[w]
                new = words[w] = _merge_pair(old, best, token)
                for pair in pairwise(new):
                    pairs[pair] += times[w]
                    where[pair].add(w)
            del pairs[best]
            pairs = +pairs if token % 256 == 0 else pairs  # forget pairs that are gone
        return np.array(merges, np.uint32).reshape(-1, 3)


def _merge_pair(word: list[int], pair: tuple[int, int], token: int) -> list[int]:
    """[1, 2, 3, 1, 2] with (1, 2) -> 4 is [4, 3, 4]; from left to right."""
    merged, i = [], 0
    while i < len(word):
        hit = (word[i], word[i + 1]) == pair if i + 1 < len(word) else False
        merged.append(token if hit else word[i])
        i += 2 if hit else 1
    return merged
