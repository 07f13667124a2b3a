"""Sampled softmax (Jean et al. 2015, arXiv:1412.2007): a training loss over a part of the classes.

The softmax of a step goes over the classes of its own targets, and over some of the others, which are drawn.
The logit of a drawn class is raised by -log q, where q is the probability with which it was drawn, so that
the sum of exponentials is right in the mean. The classes depend on the targets of all rows of the step, on
its number and on the seed alone: not on threads, ranks or how many rows are in memory at a time.

Dimensions: V classes, the vocabulary; n of them in a step.
"""

import math
from typing import NamedTuple

import numpy as np

from npgpt.engine.kernels import Ops
from npgpt.engine.ops import Key
from npgpt.engine.types import Floats, Integers


class Classes(NamedTuple):
    """The classes that the softmax of a step goes over."""

    ids: Integers  # (n,), ascending
    shift: Floats  # (n,): what is added to the logits
    places: Integers  # (V,): where in ids a class stands, -1 if it is not there

    def targets(self, targets: Integers) -> Integers:
        """Return the places of targets, of any shape; -1 for those below 0, ValueError for one not there."""
        places = np.where(targets < 0, np.int32(-1), self.places[np.maximum(targets, 0)])
        if (places[targets >= 0] < 0).any():
            raise ValueError("classes must contain all targets")
        return places


def draw_classes(ops: Ops, targets: Integers, vocab_size: int, count: int, key: Key) -> Classes | None:
    """Return the classes of targets, and each other one with the same probability, `count` in the mean.

    None stands for all classes, where there are no more than that. key = (seed, step, layer, place), as
    dropout has it.
    """
    needed = np.zeros(vocab_size, bool)
    needed[targets[targets >= 0]] = True
    others = vocab_size - int(needed.sum())
    if others <= count:
        return None
    share = count / others
    drawn = ops.dropout_forward(np.ones((1, vocab_size), np.float32), 1 - share, key)[0] > 0
    ids = np.flatnonzero(needed | drawn)
    shift = np.where(needed[ids], 0, -math.log(share)).astype(np.float32)
    places = np.full(vocab_size, -1, np.int32)
    places[ids] = np.arange(len(ids))
    return Classes(ids, shift, places)
