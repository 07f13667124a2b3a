"""Kneser-Ney's probabilities are those of the formula, and of a real text those that are known."""

from collections import Counter

import numpy as np
import pytest

from npgpt.text import kneser_ney
from npgpt.text.kneser_ney import KneserNey

TEXT = b"the cat sat on the mat, the rat ate the hat, and the cat ate the rat that sat on the mat. "


def by_hand(text: bytes, order: int, before: bytes, byte: int) -> float:
    """The formula, one n-gram after another."""
    grams = Counter(text[i : i + order + 1] for i in range(len(text) - order))
    levels = [grams]
    while len(levels) <= order:
        levels.append(Counter(gram[1:] for gram in levels[-1]))  # how many bytes stand before

    def probability(n: int, before: bytes) -> float:
        if n == 0:
            return 1 / 256
        counts = levels[order + 1 - n]
        of = Counter(counts.values())
        share = of[1] / max(1, of[1] + 2 * of[2])
        discounts = {k: k - (k + 1) * share * of[k + 1] / of[k] if of[k] else k / 2 for k in (1, 2, 3)}
        discounts = {k: min(max(d, 0.1), k) for k, d in discounts.items()}
        context = before[len(before) - n + 1 :]
        after = {gram[-1]: count for gram, count in counts.items() if gram[:-1] == context}
        if len(before) < n - 1 or not after:
            return probability(n - 1, before)
        taken = {b: discounts[min(count, 3)] for b, count in after.items()}
        kept = after[byte] - taken[byte] if byte in after else 0.0
        return (kept + sum(taken.values()) * probability(n - 1, before)) / sum(after.values())

    return probability(order + 1, before)


def test_probabilities_are_those_of_the_formula(rng):
    syllables = ["".join(rng.choice(list("abcdefghij"), 2)) for _ in range(40)]  # so that all counts occur
    counted, text = " ".join(rng.choice(syllables, 300)).encode(), b"abc def zz ghij bb  ca"
    model, text = KneserNey(counted, order=3), text + counted[50:70]
    expected = [by_hand(counted, 3, text[:i], byte) for i, byte in enumerate(text)]
    found = model._probabilities(np.frombuffer(text, np.uint8))
    np.testing.assert_allclose(found, expected, rtol=1e-12)
    assert model.bits(text) == pytest.approx(-np.log2(expected).sum())


@pytest.mark.parametrize("text", [b"", b"a", b"ab" * 30, TEXT, bytes(range(256)) * 3, TEXT * 40])
def test_all_bytes_add_up_to_one(text):
    model = KneserNey(text)
    for before in b"", b"e", b"the cat", b"\xff\x00":
        data = [np.frombuffer(before + bytes([byte]), np.uint8) for byte in range(256)]
        p = np.array([model._probabilities(some)[-1] for some in data])
        assert p.sum() == pytest.approx(1) and p.min() > 0


def test_pieces_cost_what_the_whole_does(monkeypatch):
    model, text = KneserNey(TEXT), b"the mat sat on the cat. "
    whole = model.bits(text)
    for length in 1, 5, 23:
        monkeypatch.setattr(kneser_ney, "AT_ONCE", length)
        assert model.bits(text) == pytest.approx(whole, rel=1e-12)
    assert model.bits(b"") == 0


def test_the_end_of_a_long_text_is_counted():
    text = b"something else " * 100 + TEXT
    end = KneserNey(TEXT).bits(TEXT)
    assert KneserNey(text, most=len(TEXT)).bits(TEXT) == end != KneserNey(text).bits(TEXT)


def test_what_counting_reaches_on_tinyshakespeare(data_dir):
    text = (data_dir / "tinyshakespeare" / "input.txt").read_bytes()
    cut = int(0.9 * len(text))
    bits = KneserNey(text[:cut]).bits(text[cut:]) / len(text[cut:])
    assert bits == pytest.approx(2.1888, abs=1e-4)  # 1.5171 nats, as other counters have it
