"""The values of a GGUF file's keys, each of the type that its reader asks for."""

from typing import TypeVar

import numpy as np

from npgpt.engine.types import Fields

T = TypeVar("T")


def is_of(value: object, kind: type) -> bool:
    """Return whether a value is of a type; true and false are no integers."""
    return isinstance(value, kind) and (kind is not int or not isinstance(value, bool))


def value_of(values: Fields, key: str, kind: type[T], where: str, default: T | None = None) -> T:
    """Return the value of a key; ValueError for one of another type, and without a default for none."""
    if key not in values and default is None:
        raise ValueError(f"{where}: there is no {key}")
    found = values.get(key, default)
    if isinstance(found, kind) and is_of(found, kind):
        return found
    raise ValueError(f"{where}: {key} must be of type {kind.__name__}, got {found!r:.60}")


def array_of(values: Fields, key: str, kind: type[T], where: str, default: list[T] | None = None) -> list[T]:
    """Return the array of a key, all of one type; ValueError for another."""
    found = value_of(values, key, list, where, default)
    if not all(isinstance(value, kind) for value in found):
        raise ValueError(f"{where}: {key} must be an array of type {kind.__name__}")
    return found


def shortest(value: float) -> float:
    """Return the shortest decimal that float32, in which files hold it, rounds to this: 1e-5 comes back."""
    return float(str(np.float32(value)))
