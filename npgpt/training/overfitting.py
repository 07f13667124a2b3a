"""Overfitting: validation loss rises while training loss falls, and samples repeat the training text."""

import math
from collections.abc import Iterable
from itertools import accumulate
from typing import NamedTuple

from npgpt.engine.types import Fields, Integers
from npgpt.text.index import LONGEST, longest_stretches
from npgpt.text.tokenizer import Tokenizer

LONGEST_TEXT = 32 << 20  # bytes of the training part in which samples are searched
FALLEN = 1.01  # a validation loss still falls where the last fifth of a run has divided it by this
RISEN = 1.01  # a validation loss has risen from this multiple of its minimum on


class Verdict(NamedTuple):
    """The evidence that a run is overfitting: two steps and the losses at them."""

    best_step: int
    step: int
    train: tuple[float, float]  # mean training loss at best_step and at step
    val: tuple[float, float]


class History:
    """The validation losses of a run, each with the mean training loss since the previous validation."""

    def __init__(self, rows: Iterable[str] = ()) -> None:
        """Begin with the losses in `rows`, the lines of metrics.csv of a run that is resumed."""
        self.points: list[tuple[int, float, float]] = []  # (step, train, val)
        self._total, self._count = 0.0, 0
        for row in rows:
            step, _, _, loss, val_loss = row.split(",")[:5]
            self.add(int(step), float(loss), float(val_loss) if val_loss else None)

    def add(self, step: int, loss: float, val_loss: float | None) -> None:
        """Add the losses of a step, in nats per token; val_loss is None where none was measured."""
        if math.isfinite(loss):  # the loss of a skipped step may not be
            self._total, self._count = self._total + loss, self._count + 1
        if val_loss is not None and self._count:
            self.points.append((step, self._total / self._count, val_loss))
            self._total, self._count = 0.0, 0

    def verdict(self) -> Verdict | None:
        """Return the evidence once validation loss rose twice in a row from its minimum, else None.

        The training loss must have fallen meanwhile.
        """
        if not self.points:
            return None
        best = min(range(len(self.points)), key=lambda i: self.points[i][2])
        later = self.points[best:]
        if len(later) < 3:
            return None
        (best_step, train_then, lowest), *_, before, (step, train_now, val_now) = later
        if not (lowest < before[2] < val_now and val_now > RISEN * lowest and train_now < train_then):
            return None
        return Verdict(best_step, step, (train_then, train_now), (lowest, val_now))

    def falling(self) -> tuple[float, float] | None:
        """Return the best validation loss before the last fifth of the steps and the one at their end.

        None unless the last is the best, and lower by FALLEN: the model still gets better.
        """
        if not self.points:
            return None
        step, _, now = self.points[-1]
        before = min((val for at, _, val in self.points if at <= 0.8 * step), default=-math.inf)
        best = min(val for _, _, val in self.points)
        return (before, now) if now == best and now < before / FALLEN else None


def overlap(samples: list[str], held_out: bytes, text: bytes) -> Fields:
    """Return how much of the training text the model's samples repeat, by name.

    n_samples; text and bytes, the longest stretch that they repeat and its size; held_out_bytes, the longest
    stretch in as much text that the model never saw, None where there is no such text.
    """
    written = [sample.encode() for sample in samples]
    ends = accumulate(map(len, written))
    chunks = [held_out[end - len(s) : end] for s, end in zip(written, ends, strict=True)]
    repeated = longest_stretches([stretch[:LONGEST] for stretch in (*written, *chunks)], text)
    found = max(repeated[: len(samples)], key=len)
    usual = max(map(len, repeated[len(samples) :]))
    return {
        "n_samples": len(samples),
        "bytes": len(found),
        "text": found.decode("utf-8", "ignore"),
        "held_out_bytes": usual if held_out else None,
    }


def longest_overlap(sample: bytes, text: bytes) -> bytes:
    """Return the longest stretch of `sample` that occurs in `text`.

    One sample is searched sooner than the suffixes of a text are sorted, as for several samples.

    >>> longest_overlap(b"ao mar alto", b"o mar, o vento")
    b'o mar'
    """
    start = length = 0
    for i in range(len(sample)):
        while i + length < len(sample) and sample[i : i + length + 1] in text:
            start, length = i, length + 1
    return sample[start : start + length]


def training_text(ids: Integers, tokenizer: Tokenizer) -> bytes:
    """Return the text of the training part's ids, cut to LONGEST_TEXT."""
    return tokenizer.decode_bytes(ids[:LONGEST_TEXT])[:LONGEST_TEXT]
