"""Writing safetensors files without a copy in memory (the library first copies all arrays to bytes).

The format (github.com/huggingface/safetensors#format): the header's length, 8 bytes little-endian; the
header, JSON padded with blanks to a multiple of 8; the arrays, one after the other, C order, little-endian.
"""

import json
from collections.abc import Callable, Mapping
from math import prod
from typing import Protocol

import numpy as np

from npgpt.engine.types import Array, Fields, PathLike, Shape


class Lazy(Protocol):
    """A tensor that is read when it is written."""

    @property
    def shape(self) -> Shape:
        """Return the shape of what read() returns."""

    @property
    def dtype(self) -> str:
        """Return "F32"."""

    @property
    def read(self) -> Callable[[], Array]:
        """Return the function that makes the float32 array."""


def save_file(
    tensors: Mapping[str, Array | Lazy], path: PathLike, metadata: dict[str, str] | None = None
) -> None:
    """Write float32 arrays to `path`, those that are Lazy one at a time.

    TypeError for other arrays, OSError where the disk is full.
    """
    header: Fields = {"__metadata__": metadata} if metadata else {}
    start = 0
    for name, array in tensors.items():
        if str(array.dtype) not in ("float32", "F32"):
            raise TypeError(f"save_file: {name} must be float32, got {array.dtype}")
        header[name] = {
            "dtype": "F32",
            "shape": list(array.shape),
            "data_offsets": [start, start := start + 4 * prod(array.shape)],
        }
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with open(path, "wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for array in tensors.values():
            array = array if isinstance(array, np.ndarray) else array.read()
            file.write(np.ascontiguousarray(array, "<f4").data)
