"""How well counting alone predicts a text: an n-gram model of bytes with modified Kneser-Ney smoothing.

Chen, Goodman 1999, An empirical study of smoothing techniques for language modeling, section 4.1.7: the
highest order has the counts of a text, each lower one counts how many different bytes stand before an n-gram.
A discount for counts of 1, of 2 and of more goes to the next lower order, the last of which is uniform.
"""

import time
from typing import Any, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

from npgpt.engine.types import Floats

ORDER = 6  # bytes before the next one: of 3 to 7, the best on tinyshakespeare and next to it on machado
COUNTED = 1 << 23  # bytes of a text that are counted, its last ones: what bounds the memory
AT_ONCE = 1 << 20  # bytes that are predicted at a time

Keys: TypeAlias = NDArray[np.uint64]  # n-grams, the first byte highest
Numbers: TypeAlias = NDArray[Any]


class Grams(NamedTuple):
    """The n-grams of one length: N of them, with M different contexts, the bytes before the last one."""

    grams: Keys  # (N,), ascending
    kept: Floats  # (N,): the count less the discount
    contexts: Keys  # (M,), ascending
    total: Floats  # (M,): the sum of the counts
    given: Floats  # (M,): the sum of the discounts, which the lower order shares out


class KneserNey:
    """The probabilities of the next byte after up to ORDER others, as a text has them."""

    def __init__(self, text: bytes, order: int = ORDER, most: int = COUNTED) -> None:
        """Count the last `most` bytes of a text, at about 50 bytes of memory each; order is at most 7."""
        began, data = time.perf_counter(), np.frombuffer(text, np.uint8)[-most:]
        self.orders: list[Grams] = []  # the longest first
        grams, counts = np.unique(_keys(data, order + 1), return_counts=True)
        for n in range(order + 1, 0, -1):
            self.orders.append(_grams(grams, counts))
            grams, counts = np.unique(grams & _mask(n - 1), return_counts=True)
        self.seconds = time.perf_counter() - began  # that counting took

    def bits(self, text: bytes, before: bytes = b"") -> float:
        """Return the bits that a text costs: the sum of -log2 p of its bytes, each after those before it.

        `before` is what is known to stand before the text, and costs nothing.
        """
        seen, total, text = len(self.orders) - 1, 0.0, before + text
        for begin in range(len(before), len(text), AT_ONCE):
            first = max(0, begin - seen)
            probabilities = self._probabilities(np.frombuffer(text[first : begin + AT_ONCE], np.uint8))
            total -= float(np.log2(probabilities[begin - first :]).sum())
        return total

    def _probabilities(self, data: NDArray[np.uint8]) -> Floats:
        """Return the probability of each byte (L,) after those of `data` before it."""
        p, left = np.zeros(len(data)), np.ones(len(data))  # what the orders so far left to the lower ones
        for n, order in zip(range(len(self.orders), 0, -1), self.orders, strict=True):
            if not len(order.grams):  # the text is shorter
                continue
            grams = _keys(data, n)
            here = slice(n - 1, None)  # there are fewer bytes before the others
            found = _find(order.contexts, grams >> np.uint64(8))
            seen = found >= 0
            total = np.where(seen, order.total[found], 1)
            place = _find(order.grams, grams)
            kept = np.where(place >= 0, order.kept[place], 0)
            p[here] += left[here] * kept / total
            left[here] *= np.where(seen, order.given[found] / total, 1)
        return p + left / 256


def _mask(n: int) -> np.uint64:
    """Return the bits of the last n bytes of a key."""
    return np.uint64((1 << 8 * n) - 1)


def _keys(data: NDArray[np.uint8], n: int) -> Keys:
    """Return the n-grams that end at bytes n - 1, n, ... of data."""
    count = max(0, len(data) - n + 1)
    keys = np.zeros(count, np.uint64)
    for i in range(n):
        keys <<= np.uint64(8)
        keys |= data[i : i + count]
    return keys


def _find(sorted_keys: Keys, keys: Keys) -> Numbers:
    """Return where each key stands, -1 where it does not."""
    at = np.minimum(np.searchsorted(sorted_keys, keys), len(sorted_keys) - 1)
    return np.where(sorted_keys[at] == keys, at, -1)


def _grams(grams: Keys, counts: Numbers) -> Grams:
    """Return the n-grams that have these counts."""
    taken = _discounts(counts)[np.minimum(counts, 3)]
    contexts, first = np.unique(grams >> np.uint64(8), return_index=True)
    total, given = (np.add.reduceat(x, first) if len(first) else x for x in (counts.astype(float), taken))
    return Grams(grams, counts - taken, contexts, total, given)


def _discounts(counts: Numbers) -> Floats:
    """Return what is taken off counts of 0 (nothing), 1, 2 and more."""
    n = np.bincount(np.minimum(counts, 5), minlength=6)[:5].astype(float)  # how many n-grams have which count
    share = n[1] / max(1.0, n[1] + 2 * n[2])
    found = [k - (k + 1) * share * n[k + 1] / n[k] if n[k] else k / 2 for k in (1, 2, 3)]
    # between a tenth, so that nothing is impossible, and all: a short text has odd counts of counts
    return np.array([0.0, *(min(max(d, 0.1), k) for k, d in enumerate(found, 1))])
