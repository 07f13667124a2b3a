"""safetensors files, read and written without a copy in memory, and without the library, which is compiled.

The format (github.com/huggingface/safetensors#format): the header's length, 8 bytes little-endian; the
header, JSON padded with blanks to a multiple of 8; the arrays, one after the other, C order, little-endian.
What the library refuses is refused: headers of more than MAX_HEADER bytes, and arrays that leave a hole,
overlap, or do not end where the file ends.
"""

import json
import os
from collections.abc import Callable, Mapping
from functools import partial
from math import prod
from typing import Any, Protocol

import numpy as np

from npgpt.engine.types import Array, Fields, PathLike, Shape
from npgpt.interop.layout import StoredTensor


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


DTYPES = {  # by the format's names; BF16 is the upper half of a float32, which NumPy lacks
    "F64": "<f8", "F32": "<f4", "F16": "<f2", "BF16": "<u2", "BOOL": "?",
    "I64": "<i8", "I32": "<i4", "I16": "<i2", "I8": "i1",
    "U64": "<u8", "U32": "<u4", "U16": "<u2", "U8": "u1",
}  # fmt: skip
MAX_HEADER = 100_000_000  # bytes


def open_file(path: PathLike) -> tuple[dict[str, StoredTensor], dict[str, str]]:
    """Return ({name: tensor}, metadata) of a file, which stays mapped as long as its tensors are there.

    ValueError for a file that is none, and when a tensor of a type that NumPy lacks is read.
    """
    try:
        with open(path, "rb") as file:
            size = int.from_bytes(file.read(8).ljust(8, b"\xff"), "little")
            if size > min(MAX_HEADER, os.fstat(file.fileno()).st_size):
                raise ValueError(f"a header of {size:,} bytes")
            header = json.loads(file.read(size).decode("utf-8"), object_pairs_hook=_without_copies)
            data = np.memmap(path, np.uint8, "r")[8 + size :]
        return _tensors(path, header, data)
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise ValueError(f"{path} must be a safetensors file, got {error}") from None


def load_file(path: PathLike) -> dict[str, Array]:
    """Return {name: array} of a file. ValueError for a file that is none."""
    return {name: np.array(tensor.read()) for name, tensor in open_file(path)[0].items()}


def _without_copies(pairs: list[tuple[str, Any]]) -> Fields:
    fields = dict(pairs)
    if len(fields) != len(pairs):
        raise ValueError("a header that names something twice")
    return fields


def _tensors(path: PathLike, header: Any, data: Array) -> tuple[dict[str, StoredTensor], dict[str, str]]:
    if not isinstance(header, dict):
        raise ValueError("a header that is no object")
    metadata = header.pop("__metadata__", None) or {}
    if not (isinstance(metadata, dict) and all(isinstance(value, str) for value in metadata.values())):
        raise ValueError("__metadata__ that is no table of strings")
    places = {}
    for name, entry in header.items():
        dtype, shape, (begin, end) = entry["dtype"], entry["shape"], entry["data_offsets"]
        sizes = [*shape, begin, end]
        numbers = type(shape) is list and all(type(n) is int and 0 <= n < 1 << 62 for n in sizes)
        if not numbers or type(dtype) is not str:
            raise ValueError(f"{name} with {entry}")
        if dtype in DTYPES and end - begin != prod(shape) * np.dtype(DTYPES[dtype]).itemsize:
            raise ValueError(f"{name} of {end - begin} bytes, which are not {dtype} {shape}")
        places[name] = begin, end
    at = 0
    for name, (begin, end) in sorted(places.items(), key=lambda item: item[1]):
        if begin != at or end < begin:
            raise ValueError(f"{name} at {begin}, where {at} bytes are before it")
        at = end
    if at != len(data):
        raise ValueError(f"{len(data):,} bytes of tensors, where the header names {at:,}")
    stored = {}
    for name, entry in header.items():
        read = partial(_read, f"{path}: {name}", entry["dtype"], tuple(entry["shape"]), data, places[name])
        stored[name] = StoredTensor(tuple(entry["shape"]), entry["dtype"], read)
    return stored, metadata


def _read(name: str, dtype: str, shape: Shape, data: Array, place: tuple[int, int]) -> Array:
    """Return a tensor as it lies in the mapped file, bfloat16 as float32."""
    if dtype not in DTYPES:
        raise ValueError(f"{name}: must be of type {', '.join(DTYPES)}, got {dtype}")
    found = np.asarray(data[slice(*place)]).view(DTYPES[dtype]).reshape(shape)
    return (found.astype(np.uint32) << 16).view(np.float32) if dtype == "BF16" else found


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
