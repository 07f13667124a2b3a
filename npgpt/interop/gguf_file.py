"""The form of a GGUF file: keys with values, then tensors of ggml's types; written and read.

It knows of no model. What it reads is inside the file, whatever the file says. Format: ggml's docs/gguf.md.
"""

import os
import struct
from collections import defaultdict
from collections.abc import Callable, Iterable
from functools import partial
from math import prod
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from npgpt.engine.disk import sync_names
from npgpt.engine.types import Array, Fields, Floats, PathLike, Shape
from npgpt.interop.blocks import NAMES, TYPES, dequantise
from npgpt.interop.layout import StoredTensor, raise_all

ALIGNMENT = 32
# the number of a value's type -> struct's letter; 8 is a string, 9 an array
SCALARS = dict(enumerate("BbHhIif?")) | {10: "Q", 11: "q", 12: "d"}


class Outgoing(NamedTuple):
    """A tensor to be written."""

    shape: Shape
    type: str  # of blocks.TYPES
    chunks: Callable[[], Iterable[Array]]  # of its bytes, in turn


def write_file(path: Path, values: Fields, tensors: dict[str, Outgoing]) -> None:
    """Write keys and tensors to the file `path`, atomically."""
    head = [b"GGUF", struct.pack("<IQQ", 3, len(tensors), len(values))]
    head += [_string(key) + _value(value) for key, value in values.items()]
    offset = 0
    for name, tensor in tensors.items():
        head.append(_string(name) + struct.pack("<I", len(tensor.shape)))
        number = TYPES[tensor.type].number
        head.append(struct.pack(f"<{len(tensor.shape)}QIQ", *tensor.shape[::-1], number, offset))
        offset += -(-_bytes_of(tensor.shape, tensor.type) // ALIGNMENT) * ALIGNMENT
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with open(temporary, "wb") as file:
            file.write(b"".join(head))
            for tensor in tensors.values():
                file.write(bytes(-file.tell() % ALIGNMENT))
                for chunk in tensor.chunks():
                    file.write(chunk.tobytes())
            file.write(bytes(-file.tell() % ALIGNMENT))
            file.flush()
            os.fsync(file.fileno())
            if hasattr(os, "posix_fadvise"):  # a later mmap reads it again, into huge pages
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        os.replace(temporary, path)
        sync_names(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


def _bytes_of(shape: Shape, type: str) -> int:
    of = TYPES[type]
    return prod(shape) // of.n * of.size


def _string(text: str) -> bytes:
    data = text.encode()
    return struct.pack("<Q", len(data)) + data


def _value(value: Any) -> bytes:
    for number, kind in ((7, bool), (4, int), (6, float)):  # a bool is an int, too
        if isinstance(value, kind):
            return struct.pack(f"<I{SCALARS[number]}", number, value)
    if isinstance(value, str):
        return struct.pack("<I", 8) + _string(value)
    if not value or isinstance(value[0], str):  # the merges of bytes are none
        return struct.pack("<IIQ", 9, 8, len(value)) + b"".join(map(_string, value))
    number = 6 if isinstance(value[0], float) else 5
    return struct.pack(f"<IIQ{len(value)}{SCALARS[number]}", 9, number, len(value), *value)


def read_file(path: PathLike, where: str) -> tuple[Fields, dict[str, StoredTensor]]:
    """Return {key: value} and {name: tensor}, all within the file; ValueError where anything is not.

    No tensor is read before it is asked for.
    """
    data = np.memmap(path, np.uint8, "r") if os.path.getsize(path) else np.zeros(0, np.uint8)
    file = _Cursor(data, where)
    magic, version, n_tensors, n_values = file.take("4sIQQ")
    if magic != b"GGUF" or version not in (2, 3):
        raise ValueError(f"{where}: must be GGUF, version 2 or 3, got {magic!r}, version {version}")
    values: Fields = {}
    for _ in range(n_values):
        key = file.string()
        if not key:
            raise ValueError(f"{where}: the key before byte {file.at} is empty")
        if key in values:
            raise ValueError(f"{where}: the key {key!r:.60} is there twice")
        values[key] = file.value(file.take("I")[0])
    infos = [file.tensor_info() for _ in range(n_tensors)]
    alignment = values.get("general.alignment", ALIGNMENT)
    if isinstance(alignment, bool) or alignment not in (2**n for n in range(3, 21)):
        raise ValueError(
            f"{where}: general.alignment must be a power of two from 8 on, got {alignment!r:.60}"
        )
    begin = -(-file.at // alignment) * alignment
    _check_infos(infos, alignment, begin, len(data), where)
    tensors: dict[str, StoredTensor] = {}
    for name, shape, type, offset in infos:
        raw = data[begin + offset :][: _bytes_of(shape, type)]
        tensors[name] = StoredTensor(shape, type.upper(), partial(_read, raw, type, shape), raw)
    return values, tensors


def _read(raw: Array, type: str, shape: Shape) -> Floats:
    return dequantise(raw, type).reshape(shape)


Info = tuple[str, Shape, str, int]  # of a tensor: name, shape, type, offset


def _check_infos(infos: list[Info], alignment: int, begin: int, size: int, where: str) -> None:
    """Raise ValueError for tensors that cannot be read, or do not lie in a file of this size: all at once."""
    wrong, of_type, names = [], defaultdict(list), set()
    for name, shape, type, offset in infos:
        shown = f"{name!r:.60}"
        if name in names:
            wrong.append(f"the tensor {shown} is there twice")
        names.add(name)
        if type not in TYPES:
            of_type[type].append(shown)
        elif shape[-1] % TYPES[type].n:
            what = f"rows of a multiple of {TYPES[type].n} for {type.upper()}"
            wrong.append(f"{shown} must have {what}, got {shape[-1]}")
        elif begin + offset + _bytes_of(shape, type) > size or offset % alignment:
            what = f"inside the file's {size}, aligned to {alignment}"
            wrong.append(
                f"{shown} needs {_bytes_of(shape, type)} bytes at {begin + offset}, which must be {what}"
            )
    for type, found in of_type.items():
        more = f" (and {len(found) - 1} more)" if len(found) > 1 else ""
        got = type.upper() if type in NAMES.values() else type
        wrong.append(f"{found[0]}{more} must be {', '.join(TYPES).upper()}, got {got}")
    raise_all(where, wrong)


class _Cursor:
    """A position in the bytes of a GGUF file, which moves past what is read and never beyond the end."""

    def __init__(self, data: Array, where: str) -> None:
        self.data, self.where, self.at = data, where, 0

    @property
    def left(self) -> int:
        """The number of bytes up to the end of the file."""
        return len(self.data) - self.at

    def take(self, letters: str) -> tuple[Any, ...]:
        """Return the numbers, little-endian, that these letters of struct name."""
        size = struct.calcsize(f"<{letters}")
        if size > self.left:
            raise ValueError(
                f"{self.where}: the file ends at byte {len(self.data)} inside what begins at {self.at}"
            )
        found = struct.unpack_from(f"<{letters}", self.data.data, self.at)
        self.at += size
        return found

    def string(self) -> str:
        """Return a string: its length, then its bytes."""
        (length,) = self.take("Q")
        if length > self.left:
            raise ValueError(
                f"{self.where}: the string at byte {self.at} of {length} bytes goes beyond the file"
            )
        text: bytes = self.take(f"{length}s")[0]
        return text.decode("utf-8", "replace")

    def value(self, kind: int) -> Any:
        """Return a value of the type with this number: a scalar, a string, an array of either."""
        if kind == 8:
            return self.string()
        if kind == 9:
            return self._array()
        if kind not in SCALARS:
            raise ValueError(f"{self.where}: the value at byte {self.at} is of the unknown type {kind}")
        return self.take(SCALARS[kind])[0]

    def _array(self) -> list[Any]:
        kind, count = self.take("IQ")
        if kind == 8:
            if count > self.left // 8:
                raise ValueError(
                    f"{self.where}: the array at byte {self.at} of {count} strings goes beyond the file"
                )
            return self._strings(count)
        if kind not in SCALARS or count > self.left // struct.calcsize(SCALARS[kind]):
            raise ValueError(
                f"{self.where}: the array at byte {self.at} is malformed or goes beyond the file"
            )
        return list(self.take(f"{count}{SCALARS[kind]}"))

    def _strings(self, count: int) -> list[str]:
        """Return that many strings: a vocabulary has a hundred thousand."""
        view, end, found = self.data.data, len(self.data), []
        for _ in range(count):
            begin = self.at + 8
            stop = begin + int.from_bytes(view[self.at : begin], "little")
            if max(begin, stop) > end:
                self.string()  # says what is wrong
            found.append(str(view[begin:stop], "utf-8", "replace"))
            self.at = stop
        return found

    def tensor_info(self) -> Info:
        """Return name, shape, type and offset of a tensor."""
        name, (dimensions,) = self.string(), self.take("I")
        if not 1 <= dimensions <= 4:
            raise ValueError(f"{self.where}: {name!r:.60} must have 1 to 4 dimensions, got {dimensions}")
        *sizes, number, offset = self.take(f"{dimensions}QIQ")
        type = NAMES.get(number, f"type {number}, which ggml does not have")
        return name, tuple(sizes[::-1]), type, offset
