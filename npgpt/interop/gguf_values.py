"""The values of a GGUF file's keys, each of the type that its reader asks for."""

from typing import TypeVar

from npgpt.engine.types import Fields

T = TypeVar("T")


def value_of(values: Fields, key: str, kind: type[T], where: str, default: T | None = None) -> T:
    """Return the value of a key; ValueError for one of another type, and without a default for none."""
    if key not in values and default is None:
        raise ValueError(f"{where}: there is no {key}")
    found = values.get(key, default)
    if not isinstance(found, kind) or (kind is int and isinstance(found, bool)):
        raise ValueError(f"{where}: {key} must be of type {kind.__name__}, got {found!r:.60}")
    return found


def array_of(values: Fields, key: str, kind: type[T], where: str, default: list[T] | None = None) -> list[T]:
    """Return the array of a key, all of one type; ValueError for another."""
    found = value_of(values, key, list, where, default)
    if not all(isinstance(value, kind) for value in found):
        raise ValueError(f"{where}: {key} must be an array of type {kind.__name__}")
    return found
