"""An index of texts: how often, and where, they hold what another text says.

It is a suffix array, cut into blocks so that making it takes bounded memory: a block's suffixes are sorted
by LONGEST symbols at least, so nothing longer can be looked up. A stretch never reaches across the end of a
document. On the disk it takes five bytes for each byte of text (index_file.py).
"""

import heapq
import mmap
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import NamedTuple, TypeAlias

import numpy as np

from npgpt.engine.types import Integers
from npgpt.text.suffixes import sort_suffixes

BLOCK = 1 << 24  # bytes of text whose suffixes are sorted together, in about nine times as much memory
LONGEST = 1 << 16  # bytes of what is looked up
AT_FIRST = 64  # bytes of a suffix that are compared, before twice as many are


Mapped: TypeAlias = bytes | mmap.mmap  # a part of it is bytes


@dataclass(frozen=True)
class Stretch:
    """A stretch of a text that documents of an index hold, too."""

    start: int  #: where it begins in the text: characters of a str, bytes of bytes
    length: int  #: in the same unit
    count: int  #: how often the documents hold it; these places may overlap
    document: int  #: number of the first document that holds it, from 0
    offset: int  #: the byte of that document at which it begins


class Block(NamedTuple):
    """The sorted suffixes of a part of the text."""

    begin: int  # of the part
    suffixes: memoryview  # where they begin, in bytes from `begin`


class Index:
    """Finds stretches of other texts in the documents that it was made of."""

    def __init__(self, text: Mapped, ends: Sequence[int], blocks: Sequence[Block]) -> None:
        """Take what joined() and sorted_blocks() made, or what a file holds of it."""
        self.text, self.ends, self._blocks = text, ends, blocks

    @classmethod
    def of(cls, documents: Iterable[bytes]) -> "Index":
        """Return the index of documents, in memory: five bytes for each of theirs."""
        text, ends = joined(documents)
        return cls(text, ends, list(sorted_blocks(text, ends)))

    def longest(self, text: bytes) -> bytes:
        """Return the longest stretch of `text` that a document holds, the first of equally long ones.

        ValueError for a text of more than LONGEST bytes.
        """
        lengths = self._lengths(text, range(len(text)))
        start = max(range(len(text)), key=lengths.__getitem__, default=0)
        return text[start : start + lengths[start]] if lengths else b""

    def stretches(self, text: str | bytes, shortest: int = 1) -> list[Stretch]:
        """Return the stretches of `text` that documents hold, longest first; no two of them overlap.

        Each is the longest of what the ones before have left, and the first of equally long ones, down to
        the length `shortest`. Those of a str are whole characters, and lengths count these; bytes are
        counted in bytes. ValueError for a text of more than LONGEST bytes.
        """
        size = [1] * len(text)  # of what a stretch has as a whole, in bytes
        if isinstance(text, str):
            characters = [character.encode("utf-8", "surrogateescape") for character in text]
            text, size = b"".join(characters), list(map(len, characters))
        edges = np.cumsum([0, *size])
        starts = edges[:-1].tolist()
        reached = np.array(starts, np.int64) + np.array(self._lengths(text, starts), np.int64)
        stops = np.searchsorted(edges, reached, "right") - 1
        found = []
        for start, stop in _apart(stops, max(1, shortest)):
            count, at = self.find(text[edges[start] : edges[stop]])
            document = bisect_left(self.ends, at)
            offset = at - (self.ends[document - 1] + 1 if document else 0)
            found.append(Stretch(start, stop - start, count, document, offset))
        return found

    def find(self, stretch: bytes) -> tuple[int, int]:
        """Return how often documents hold `stretch`, and the first byte of the text at which they do, or -1.

        ValueError for a stretch that is empty or longer than LONGEST.
        """
        if not 0 < len(stretch) <= LONGEST:
            raise ValueError(f"find: stretch must be of 1 to {LONGEST} bytes, got {len(stretch)}")
        count, first = 0, -1
        for block in self._blocks:
            key = self._suffixes_of(block, len(stretch))
            low = bisect_left(block.suffixes, stretch, key=key)
            high = bisect_right(block.suffixes, stretch, low, key=key)
            count += high - low
            if first < 0 and high > low:
                first = block.begin + int(np.asarray(block.suffixes[low:high]).min())
        return count, first

    def lines(self, document: int, offsets: Sequence[int]) -> list[int]:
        """Return in which line of a document, from 1, the bytes at these offsets, ascending, are."""
        begin = at = self.ends[document - 1] + 1 if document else 0
        line, lines = 1, []
        for offset in offsets:
            while at < (stop := begin + offset):
                part = self.text[at : min(at + BLOCK, stop)]
                line, at = line + part.count(b"\n"), at + len(part)
            lines.append(line)
        return lines

    def _lengths(self, text: bytes, starts: Sequence[int]) -> list[int]:
        """Return for each start how many bytes from there on some document holds."""
        if len(text) > LONGEST:
            raise ValueError(f"text must be of at most {LONGEST:,} bytes to be looked up, got {len(text):,}")
        longest = [0] * len(starts)
        for block in self._blocks:
            length, before = 0, 0
            for n, start in enumerate(starts):
                length = max(0, length - (start - before))  # of what was found before, at least
                if start + length < len(text):
                    length = self._length(block, text, start, length)
                longest[n], before = max(longest[n], length), start
        return longest

    def _length(self, block: Block, text: bytes, start: int, known: int) -> int:
        """Return how many bytes of the text from `start` on some suffix of the block begins with."""
        depth = max(AT_FIRST, 2 * known)
        while True:
            wanted, key = text[start : start + depth], self._suffixes_of(block, depth)
            at = bisect_left(block.suffixes, wanted, key=key)
            beside = block.suffixes[max(0, at - 1) : at + 1]
            length = max((_shared(wanted, key(suffix)) for suffix in beside), default=0)
            if length < depth or start + depth >= len(text):
                return length
            depth *= 2

    def _suffixes_of(self, block: Block, depth: int) -> Callable[[int], bytes]:
        """Return a function from a block's suffix to its first `depth` bytes, up to its document's end."""
        text, ends, begin = self.text, self.ends, block.begin

        def suffix_of(suffix: int) -> bytes:
            at = begin + suffix
            return text[at : min(at + depth, ends[bisect_left(ends, at)])]

        return suffix_of


def longest_stretches(texts: Sequence[bytes], document: bytes) -> list[bytes]:
    """Return for each text what Index.of([document]).longest() gives, in the memory that one block takes."""
    joint, ends = joined([document])
    longest = [b""] * len(texts)
    for block in sorted_blocks(joint, ends):
        part = Index(joint, ends, [block])
        for n, text in enumerate(texts):
            longest[n] = max(
                longest[n], part.longest(text), key=lambda found: (len(found), -text.find(found))
            )
    return longest


def joined(documents: Iterable[bytes]) -> tuple[bytes, list[int]]:
    """Return the documents as one text, a zero behind each, and where these zeros are."""
    documents = list(documents)
    ends = [end - 1 for end in accumulate(len(document) + 1 for document in documents)]
    return b"".join(part for document in documents for part in (document, b"\0")), ends


def sorted_blocks(text: bytes | memoryview, ends: Sequence[int]) -> Iterator[Block]:
    """Yield the blocks of a text whose documents end at these places."""
    data, stops = np.frombuffer(text, np.uint8), np.array(ends, np.int64)
    for begin in range(0, len(data), BLOCK):
        symbols = data[begin : begin + BLOCK + LONGEST].astype(np.uint16)
        symbols += 1
        low, high = np.searchsorted(stops, (begin, begin + len(symbols)))
        symbols[stops[low:high] - begin] = 0
        suffixes = sort_suffixes(symbols)
        if len(symbols) > BLOCK:
            suffixes = suffixes[suffixes < BLOCK]
        yield Block(begin, np.ascontiguousarray(suffixes).data)


def _apart(stops: Integers, shortest: int) -> Iterator[tuple[int, int]]:
    """Yield stretches (start, stop) apart from each other, longest first, of those from n to stops[n]."""
    before = np.maximum.accumulate(np.append(0, stops))[:-1]
    starts = np.flatnonzero(stops > before)  # the others are parts of those
    waiting = [
        (start - stop, start) for start, stop in zip(starts.tolist(), stops[starts].tolist(), strict=True)
    ]
    heapq.heapify(waiting)
    taken = np.zeros(len(stops), bool)
    while waiting and -waiting[0][0] >= shortest:
        negative, start = heapq.heappop(waiting)
        # the stretches that were taken are as long at least, so what they leave of this one is one piece
        free = start + np.flatnonzero(~taken[start : start - negative])
        if len(free) == -negative:
            taken[free] = True
            yield start, start - negative
        elif len(free):
            heapq.heappush(waiting, (-len(free), int(free[0])))


def _shared(a: bytes, b: bytes) -> int:
    """Return how many bytes at their beginning two texts share."""
    n = min(len(a), len(b))
    differs = int.from_bytes(a[:n], "little") ^ int.from_bytes(b[:n], "little")
    return ((differs & -differs).bit_length() - 1) // 8 if differs else n
