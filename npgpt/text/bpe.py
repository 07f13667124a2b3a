"""Byte-level BPE in plain Python: the reference of the compiled Bpe and PieceCounts, and their fallback.

A text is split into pretokens by a pattern, GPT-2's unless another is named; a pretoken, which the kernels
call a piece, is a word with the blank before it, a number, or a run of signs or blanks. In each pretoken the
two neighbours that were merged first in training are merged first, until no merge applies. The patterns need
characters: a byte that is part of no valid UTF-8 character counts as one that is neither letter, number nor
space, and comes back as it was.
"""

import heapq
import re
from collections import Counter, defaultdict
from collections.abc import Sequence
from functools import cache
from itertools import accumulate, pairwise

import numpy as np
from numpy.typing import ArrayLike

from npgpt.engine.types import Buffer, Integers
from npgpt.text.unicode import LETTERS, NUMBERS

WHITE_SPACE = "\t-\r \x85\xa0\u1680\u2000-\u200a\u2028\u2029\u202f\u205f\u3000"  # not Python's \s


def _ranges(steps: Sequence[int]) -> str:
    """Return the inside of a regular expression's character class, from gaps and lengths of its ranges."""
    edges = list(accumulate(steps))
    pairs = zip(edges[::2], edges[1::2], strict=True)
    return "".join(f"{re.escape(chr(a))}-{re.escape(chr(b - 1))}" for a, b in pairs)


_L, _N, _S = _ranges(LETTERS), _ranges(NUMBERS), WHITE_SPACE
_CONTRACTIONS = "'s|'t|'re|'ve|'m|'ll|'d"
_GPT2 = f"{_CONTRACTIONS}| ?[{_L}]+| ?[{_N}]+| ?[^{_S}{_L}{_N}]+|[{_S}]+(?![^{_S}])|[{_S}]+"
_LLAMA3 = (
    f"(?i:{_CONTRACTIONS})|[^\r\n{_L}{_N}]?[{_L}]+|[{_N}]{{1,3}}"
    f"| ?[^{_S}{_L}{_N}]+[\r\n]*|[{_S}]*[\r\n]+|[{_S}]+(?![^{_S}])|[{_S}]+"
)
PATTERNS = {  # by the names of GGUF's tokenizer.ggml.pre
    "gpt-2": _GPT2,
    # a number is a pretoken alone, and its neighbours do not see it
    "smollm": f"[{_N}]|" + _GPT2.replace(f"| ?[{_N}]+", "").replace(f"(?![^{_S}])", f"(?![^{_S}{_N}])"),
    "llama-bpe": _LLAMA3,
    "qwen2": _LLAMA3.replace("{1,3}", ""),
}


@cache
def _compiled(pattern: str) -> re.Pattern[str]:
    """Return one of PATTERNS, compiled when a text is first split by it: that takes a tenth of a second."""
    return re.compile(PATTERNS[pattern])


def split(text: Buffer, pattern: str = "gpt-2") -> list[bytes]:
    """Return the pretokens of text (bytes) by one of PATTERNS; joined they are the text again.

    >>> split(b"o mar, 12 vezes")
    [b'o', b' mar', b',', b' 12', b' vezes']
    >>> split(b"o mar, 12 vezes", "smollm")
    [b'o', b' mar', b',', b' ', b'1', b'2', b' vezes']
    """
    characters = bytes(text).decode("utf-8", "surrogateescape")
    pretokens: list[str] = _compiled(pattern).findall(characters)
    return [pretoken.encode("utf-8", "surrogateescape") for pretoken in pretokens]


def merge(ids: list[int], merges: dict[tuple[int, int], tuple[int, int]]) -> list[int]:
    """Return `ids` after all merges, and overwrite the list; merges: pair -> (rank, id of the merged pair).

    It takes time n log n: possible merges wait in a heap, by rank and then by position.
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
        if ids[i] < 0 or [entry] != candidate(i):  # another merge has changed the pair
            continue
        ids[i], ids[after[i]] = token, -1
        after[i] = after[after[i]]
        if after[i] < n:
            before[after[i]] = i
        for position in (before[i], i):
            for new in candidate(position) if position >= 0 else ():
                heapq.heappush(heap, new)
    return [token for token in ids if token >= 0]


NO_ID = 0xFFFFFFFF  # of a byte that has no token


class ReferenceBpe:
    """Encodes text to ids and decodes ids to bytes.

    byte_ids: (256,) the id of each byte; one of NO_ID is left out, and its neighbours meet. merges: (n, 3)
    left id, right id, merged id, the highest priority first; tokens: the bytes of each id; split: one of
    PATTERNS. A pretoken that is one of the tokens whole_pieces (ids) becomes it, whatever merges make of it.
    """

    def __init__(
        self,
        byte_ids: ArrayLike,
        merges: ArrayLike,
        tokens: Sequence[bytes],
        split: str = "gpt-2",
        whole_pieces: ArrayLike = (),
    ) -> None:
        if split not in PATTERNS:
            raise ValueError(f"Bpe: split must be one of {', '.join(PATTERNS)}, got {split}")
        self._pattern = split
        self._whole: dict[bytes, int] = {}
        for i in np.asarray(whole_pieces).ravel().tolist():
            self._whole.setdefault(tokens[int(i)], int(i))
        self._byte_ids = np.asarray(byte_ids).tolist()
        table = np.asarray(merges).tolist()
        self._merges = {(left, right): (rank, token) for rank, (left, right, token) in enumerate(table)}
        self._tokens = list(tokens)
        self._dtype = np.uint16 if len(tokens) <= 65536 else np.uint32
        self._known: dict[bytes, list[int]] = {}  # pretoken -> its ids

    def encode(self, text: Buffer) -> Integers:
        """Return the ids of text (N,), uint16 where they fit, else uint32."""
        ids: list[int] = []
        for pretoken in split(text, self._pattern):
            if pretoken not in self._known:
                if len(self._known) > 100_000:
                    self._known.clear()
                ids_of_bytes = [i for i in map(self._byte_ids.__getitem__, pretoken) if i != NO_ID]
                merged = merge(ids_of_bytes, self._merges)
                self._known[pretoken] = [self._whole[pretoken]] if pretoken in self._whole else merged
            ids += self._known[pretoken]
        return np.array(ids, self._dtype)

    def decode(self, ids: ArrayLike) -> bytes:
        """Return the bytes of ids (N,)."""
        return b"".join(self._tokens[i] for i in np.asarray(ids).tolist())


class ReferenceCounts:
    """The distinct pretokens of a text and how often each occurs: all that training needs of it."""

    def __init__(self) -> None:
        self._counts: Counter[bytes] = Counter()

    def __len__(self) -> int:
        return len(self._counts)

    def add(self, text: Buffer) -> None:
        """Add the pretokens of text to the counts."""
        self._counts.update(split(text))

    def table(self) -> tuple[Integers, Integers, Integers]:
        """Return the pretokens' bytes one after the other (uint8), their lengths and counts (uint64)."""
        lengths = np.array([len(pretoken) for pretoken in self._counts], np.uint64)
        times = np.array(list(self._counts.values()), np.uint64)
        return np.frombuffer(b"".join(self._counts), np.uint8), lengths, times

    def add_table(self, text: Integers, lengths: Integers, times: Integers) -> None:
        """Add the counts that another's table() returned."""
        ends = np.cumsum(lengths).tolist()
        for start, end, n in zip([0, *ends], ends, times.tolist(), strict=False):
            self._counts[bytes(text[start:end])] += n

    def train(self, byte_ids: ArrayLike, count: int, min_count: int) -> Integers:
        """Return up to `count` merges (n, 3), each of the most frequent pair, of equals the smallest ids.

        New ids are 256, 257, ... Training ends before a pair that occurs less than min_count times.
        """
        id_of = np.asarray(byte_ids).tolist()
        words = [[id_of[byte] for byte in pretoken] for pretoken in self._counts]
        times = list(self._counts.values())
        pairs: Counter[tuple[int, int]] = Counter()  # how often
        where = defaultdict(set)  # the words that have or had the pair
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
            pairs = +pairs if token % 256 == 0 else pairs  # drop pairs that no longer occur
        return np.array(merges, np.uint32).reshape(-1, 3)


def _merge_pair(word: list[int], pair: tuple[int, int], token: int) -> list[int]:
    """Return `word` with `pair` merged from left to right: [1, 2, 3, 1, 2] with (1, 2) -> 4 is [4, 3, 4]."""
    merged, i = [], 0
    while i < len(word):
        hit = (word[i], word[i + 1]) == pair if i + 1 < len(word) else False
        merged.append(token if hit else word[i])
        i += 2 if hit else 1
    return merged
