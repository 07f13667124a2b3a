"""The suffix array of a text: the positions of its suffixes, the smallest suffix first."""

import numpy as np

from npgpt.engine import kernels
from npgpt.engine.types import Integers

SYMBOLS = 257  # the end of a document, which is 0, and the bytes, each one higher
AT_ONCE = 7  # symbols of 9 bits that an int64 holds


def sort_suffixes(symbols: Integers) -> Integers:
    """Return the positions (n,) int32 of the suffixes of symbols (n,) uint16, in order.

    Of two suffixes one of which begins the other, the shorter is the smaller. ValueError for symbols that
    are not below SYMBOLS.
    """
    if compiled := kernels.compiled("sort_suffixes"):
        return np.asarray(compiled(symbols, SYMBOLS))
    return reference(symbols)


def reference(symbols: Integers) -> Integers:
    """Sort by the first symbols, then by twice as many, and so on, where several suffixes are equal so far.

    Manber and Myers, "Suffix arrays: a new method for on-line string searches" (1993).
    """
    n = len(symbols)
    if n and symbols.max() >= SYMBOLS:
        raise ValueError(f"sort_suffixes: symbols must be below {SYMBOLS}, got {symbols.max()}")
    padded = np.append(symbols, np.zeros(AT_ONCE, np.uint16)).astype(np.int64)
    padded[:n] += 1  # above what is behind the end
    keys = np.zeros(n, np.int64)
    for i in range(AT_ONCE):
        keys = keys << 9 | padded[i : i + n]
    order = np.argsort(keys, kind="stable")
    rank = np.zeros(n + 1, np.int64)  # the first place that a suffix can have, from 1; of the empty one 0
    places, found, depth = np.arange(n), order, AT_ONCE
    keys = keys[order]
    while len(places):
        first = np.flatnonzero(np.diff(keys, prepend=-1))
        sizes = np.diff(first, append=len(keys))
        order[places], rank[found] = found, np.repeat(places[first], sizes) + 1
        open_ = np.repeat(sizes, sizes) > 1
        places, found = places[open_], found[open_]
        keys = rank[found] * (n + 1) + rank[np.minimum(found + depth, n)]
        by_key = np.argsort(keys, kind="stable")
        found, keys, depth = found[by_key], keys[by_key], 2 * depth
    return order.astype(np.int32)
