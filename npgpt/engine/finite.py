"""The one place that refuses numbers that are not finite: in weights read or written, in what is measured."""

import sys
from typing import Any

import numpy as np

from npgpt.engine.types import Array, Tensors

LOGITS = "the model's logits must be finite (its weights are not, or are too large)"


def is_finite_number(value: Any) -> bool:
    """Return whether a number is finite, and no whole number that is too large for a float."""
    return bool(abs(value) <= sys.float_info.max)


def is_finite(array: Array) -> bool:
    """Return whether all numbers of an array are finite, without an array beside it."""
    return not array.size or bool(np.isfinite([array.min(), array.max()]).all())


def check_tensor(where: str, name: str, array: Array) -> None:
    """Raise ValueError, `where` first, for a tensor with a number that is not finite."""
    if not is_finite(array):
        wrong = ~np.isfinite(array)
        found = f"{array[wrong][0]} in {wrong.sum()} of its {array.size} numbers"
        raise ValueError(f"{where}: {name} must be finite, got {found}")


def check_measured(function: str, array: Array, params: Tensors) -> None:
    """Raise ValueError for logits or states that are not finite; it names the first such weight."""
    if not is_finite(array):
        for name, w in params.items():
            if isinstance(w, np.ndarray):  # what stays in a file was checked when that was opened
                check_tensor(function, name, w)
        raise ValueError(
            f"{function}: the model's numbers must be finite, but its weights are not, or are too large"
        )
