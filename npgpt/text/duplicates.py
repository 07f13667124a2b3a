"""Duplicates among documents: the same text again, and texts that share most of their runs of words.

How near two documents are is their Jaccard index: of the runs of RUN words that either has, the share that
both have. Words are in small letters, without what stands between them. It is exact for documents of fewer
than SKETCH different runs. Of a longer one the SKETCH runs with the smallest hashes stand for all (Broder
1997). Documents are compared where they share one of their KEYS smallest ones, which two that are near by 0.8
fail to do once in 3,000 times. Hashes depend on the text alone, so each machine finds the same duplicates.

It takes 32 bytes of memory for each document, and about 100 MB; the sketches are in a temporary file.
"""

import hashlib
import tempfile
from collections.abc import Iterable, Iterator
from functools import cache
from itertools import groupby
from operator import itemgetter
from typing import IO, NamedTuple

import numpy as np
from tqdm import tqdm

from npgpt.engine.types import Floats, Integers

RUN = 5  # words
NEAR = 0.8  # the Jaccard index from which on a document is a near duplicate
SKETCH = 256
KEYS = 5
AT_MOST = 64  # documents of the same key that one is compared with: many may have the same boilerplate
CHARACTERS, DOCUMENTS = 1 << 19, 1 << 15  # that are looked at together
HASH = np.uint64((1 << 48) - 1)  # a hash has 48 bits, so that the number of a document fits above it
NONE = np.uint64((1 << 64) - 1)
ENTRIES = 1 << 20  # keys that are sorted together
PAIRS = 1 << 11  # documents that are compared together
# Scripts without blanks between words, of which each letter counts as one: Thai to Tibetan, Burmese, Khmer,
# kana, Chinese
LETTERS = (0xE00, 0xFFF), (0x1000, 0x109F), (0x1780, 0x17FF), (0x3040, 0x30FF), (0x3400, 0x9FFF)


class Duplicates(NamedTuple):
    """Which documents are duplicates of others."""

    of: Integers  #: (N,) int64: the first document that it repeats, else that it is near to, else -1
    exact: Integers  #: (N,) bool: it repeats that one, byte for byte


def find(chunks: Iterable[tuple[int, bytes]], n: int) -> Duplicates:
    """Return the duplicates among n documents: `chunks` gives (its number, a part of it) for each, in order.

    What takes long shows its progress.
    """
    with tempfile.TemporaryFile() as sketches, tempfile.TemporaryFile() as keys:
        digests, sizes = _write(_shown(chunks, n), sketches, keys)
        order = np.argsort(digests, kind="stable")
        first = np.flatnonzero(np.append(True, np.diff(digests[order]) != 0))
        of = np.empty(n, np.int64)
        of[order] = np.repeat(order[first], np.diff(first, append=n))
        exact = of != np.arange(n)
        of[~exact] = n  # which stands for none
        if sizes.any():
            _compare(of, exact, sizes, sketches, keys)
    of[of == n] = -1
    return Duplicates(of, exact)


def _shown(chunks: Iterable[tuple[int, bytes]], n: int) -> Iterator[tuple[int, bytes]]:
    with tqdm(total=n, desc="duplicates", unit="documents", delay=2, disable=None, leave=False) as bar:
        for number, chunk in chunks:
            bar.update(number - bar.n)
            yield number, chunk


# ---------------------------------------------------------------------------- sketches


def _write(
    chunks: Iterable[tuple[int, bytes]], sketches: IO[bytes], keys: IO[bytes]
) -> tuple[Integers, Integers]:
    """Write the sketches one behind another, and KEYS keys of each; return digests, sizes (N,)."""
    digests, sizes = list[Integers](), list[Integers]()
    for digest, size, values in _sketched(chunks):
        digests.append(digest)
        sizes.append(size)
        values.tofile(sketches)
        rows = np.full((len(size), KEYS), NONE)
        row = np.repeat(np.arange(len(size)), size)
        place = np.arange(len(values)) - np.repeat(np.cumsum(size) - size, size)
        smallest = place < KEYS
        rows[row[smallest], place[smallest]] = values[smallest]
        rows.tofile(keys)
    sketches.flush()
    keys.flush()
    return np.concatenate(digests), np.concatenate(sizes)


def _sketched(chunks: Iterable[tuple[int, bytes]]) -> Iterator[tuple[Integers, Integers, Integers]]:
    """Yield digests (n,), sizes (n,) and the sketches side by side, of n documents at a time."""
    digests, texts, characters = bytearray(), list[str](), 0
    for _number, parts in groupby(chunks, itemgetter(0)):
        digest, text, long = hashlib.blake2b(digest_size=8), "", None
        for _number, part in parts:
            if len(text) > CHARACTERS:  # of a long document the sketch is made part by part
                long, text = _smallest(long, text), ""
            digest.update(part)
            text += part.decode("utf-8", "replace").lower()
        if texts and (characters + len(text) > CHARACTERS or long is not None or len(texts) == DOCUMENTS):
            yield np.frombuffer(digests, "<u8"), *_sketches(texts)
            digests, texts, characters = bytearray(), [], 0
        if long is not None or len(text) > CHARACTERS:
            long = _smallest(long, text)
            yield np.frombuffer(digest.digest(), "<u8"), np.array([len(long)]), long
            continue
        digests += digest.digest()
        texts.append(text)
        characters += len(text)
    if texts:
        yield np.frombuffer(digests, "<u8"), *_sketches(texts)


def _smallest(sketch: Integers | None, text: str) -> Integers:
    """Return the sketch of what a sketch stands for, if anything, and of a text behind it."""
    sketch = np.zeros(0, np.uint64) if sketch is None else sketch
    for at in range(0, len(text), CHARACTERS):
        sketch = np.union1d(sketch, _sketches([text[at : at + CHARACTERS]])[1])[:SKETCH]
    return sketch


def _sketches(texts: list[str]) -> tuple[Integers, Integers]:
    """Return the sizes (n,) of the texts' sketches, and these side by side, each ascending."""
    hashes, document = _runs(texts)
    found = np.sort(document.astype(np.uint64) << np.uint64(48) | hashes)
    found = found[np.append(True, found[1:] != found[:-1])[: len(found)]]
    document = (found >> np.uint64(48)).astype(np.int64)
    counts = np.bincount(document, minlength=len(texts))
    place = np.arange(len(found)) - np.repeat(np.cumsum(counts) - counts, counts)
    return np.minimum(counts, SKETCH), found[place < SKETCH] & HASH


def _runs(texts: list[str]) -> tuple[Integers, Integers]:
    """Return the hash of each run of words of the texts, uint64, and which text it is of, in order.

    A text of fewer words is one run.
    """
    words, document = _words(texts)
    counts = np.bincount(document, minlength=len(texts))
    room = counts + RUN - 1  # each text is followed by words that are none, so that no run goes on
    row = np.zeros(int(room.sum()), np.uint64)
    row[np.arange(len(words)) + (RUN - 1) * document] = words
    runs = np.where(counts, np.maximum(1, counts - RUN + 1), 0)
    of = np.repeat(np.arange(len(texts)), runs)
    start = np.arange(len(of)) + np.repeat((np.cumsum(room) - room) - (np.cumsum(runs) - runs), runs)
    hashes = np.zeros(max(0, len(row) - RUN + 1), np.uint64)
    for place, factor in enumerate(_odd(RUN, "run")):
        hashes += row[place : place + len(hashes)] * factor
    return _mixed(hashes[start]) & HASH, of


def _words(texts: list[str]) -> tuple[Integers, Integers]:
    """Return the hash of each word of the texts, uint64, and which text it is of."""
    codes = np.frombuffer(" ".join(texts).encode("utf-32-le", "surrogatepass"), "<u4")
    kinds = _kinds()[np.minimum(codes, 0xFFFF)]
    inside = np.append(0, kinds)
    begins = (kinds > 0) & ((inside[:-1] == 0) | (kinds == 2) | (inside[:-1] == 2))
    ends = (kinds > 0) & (np.append(begins[1:], True) | (np.append(kinds[1:], 0) == 0))
    first, last = np.flatnonzero(begins), np.flatnonzero(ends) + 1
    up, down = _powers()
    assert len(codes) <= len(up)
    # the hash of letters a, b, ... is a + b p + ... modulo 2**64, of which the sums of a whole text are made
    letters = codes.astype(np.uint64)
    letters += np.uint64(1)
    letters *= _odd(1, "letter")[0]
    letters ^= letters >> np.uint64(29)
    letters *= up[: len(codes)]
    sums = np.zeros(len(codes) + 1, np.uint64)
    np.cumsum(letters, out=sums[1:])
    hashes = (sums[last] - sums[first]) * down[first]
    edges = np.cumsum([len(text) + 1 for text in texts])
    return _mixed(hashes), np.searchsorted(edges, first, "right")


@cache
def _kinds() -> Integers:
    """Return for each character below 0xFFFF 1 where it is in words, 2 where it is one; 1 for the rest."""
    kinds = np.array([chr(code).isalnum() for code in range(0xFFFF)] + [True], np.uint8)
    for first, last in LETTERS:
        kinds[first : last + 1] *= 2
    return kinds


@cache
def _powers() -> tuple[Integers, Integers]:
    """Return the powers of an odd number modulo 2**64, and those of its inverse."""
    base = int(_odd(1, "power")[0])
    rows = np.array([[base], [pow(base, -1, 1 << 64)]], np.uint64).repeat(CHARACTERS + DOCUMENTS, 1)
    rows[:, 0] = 1
    up, down = np.cumprod(rows, axis=1, dtype=np.uint64)
    return up, down


@cache
def _odd(n: int, name: str) -> Integers:
    """Return n odd numbers (n,) uint64, always the same ones for a name."""
    digest = hashlib.shake_256(name.encode()).digest(8 * n)
    return np.frombuffer(digest, "<u8").astype(np.uint64) | np.uint64(1)


def _mixed(hashes: Integers) -> Integers:
    """Return hashes of which each bit depends on all those of the given ones (Stafford's mix 13)."""
    hashes = (hashes ^ hashes >> np.uint64(30)) * np.uint64(0xBF58476D1CE4E5B9)
    hashes = (hashes ^ hashes >> np.uint64(27)) * np.uint64(0x94D049BB133111EB)
    return hashes ^ hashes >> np.uint64(31)


# ---------------------------------------------------------------------------- comparison


def _compare(of: Integers, exact: Integers, sizes: Integers, sketches: IO[bytes], keys: IO[bytes]) -> None:
    """Write into `of` (N,) the first document before each that is near to it, but for those of `exact`."""
    n = len(of)
    ends = np.cumsum(sizes, dtype=np.int64)
    values = np.memmap(sketches, np.uint64, "r", shape=(int(ends[-1]),))
    rows = np.memmap(keys, np.uint64, "r", shape=(n, KEYS))
    parts = np.uint64(-(-n * KEYS // ENTRIES))
    for part in range(int(parts)):
        found = [np.zeros((2, 0), np.uint64)]
        for at in range(0, n, ENTRIES // KEYS):
            block = rows[at : at + ENTRIES // KEYS]
            chosen = (block % parts == part) & (block != NONE) & ~exact[at : at + ENTRIES // KEYS, None]
            found.append(np.stack([block[chosen], np.nonzero(chosen)[0].astype(np.uint64) + np.uint64(at)]))
        key, document = np.concatenate(found, axis=1)
        order = np.argsort(key, kind="stable")
        key, document = key[order], document[order].astype(np.int64)
        first = np.flatnonzero(np.append(True, key[1:] != key[:-1])[: len(key)])
        counts = np.diff(first, append=len(key))
        first, place = np.repeat(first, counts), np.arange(len(key)) - np.repeat(first, counts)
        waiting = np.flatnonzero(place)
        for rank in range(AT_MOST):
            other = document[first[waiting] + rank]
            open = (place[waiting] > rank) & (other < of[document[waiting]])
            waiting = waiting[open]
            if not len(waiting):
                break
            pairs = np.unique(document[waiting] * n + other[open])
            for at in range(0, len(pairs), PAIRS):
                a, b = divmod(pairs[at : at + PAIRS], n)
                near = _jaccard(values, ends, sizes, a, b) >= NEAR
                np.minimum.at(of, a[near], b[near])


def _jaccard(values: Integers, ends: Integers, sizes: Integers, a: Integers, b: Integers) -> Floats:
    """Return the Jaccard index (P,) of documents a and b (P,), by their sketches; S is the larger size."""
    sides, place = [], np.arange(max(sizes[a].max(), sizes[b].max()))
    for documents in (a, b):
        inside = place < sizes[documents, None]
        at = np.minimum((ends - sizes)[documents, None] + place, len(values) - 1)
        sides.append(np.where(inside, values[at], NONE))
    both = np.sort(np.concatenate(sides, axis=1), axis=1)  # (P,2S)
    known = both != NONE
    again = known & (both == np.pad(both[:, :-1], ((0, 0), (1, 0)), constant_values=NONE))
    number = np.cumsum(known & ~again, axis=1)  # of each different run
    cut = (sizes[a] == SKETCH) | (sizes[b] == SKETCH)  # of these the smallest of both together are known
    most = np.where(cut, np.minimum(SKETCH, number[:, -1]), number[:, -1])
    shared = (again & (number <= most[:, None])).sum(axis=1)
    return np.asarray(shared / most)
