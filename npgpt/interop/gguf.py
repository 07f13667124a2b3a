"""GGUF, the one-file format that llama.cpp and libnpgpt read: written and read as F32, F16, Q8_0 and Q4_0.

The architecture is gpt2 wherever the mathematics is GPT-2's, else npgpt, which libnpgpt alone reads. Matrices
are (out, in) there, and blocks of 32 numbers of a row share a scale. Format: ggml's docs/gguf.md.
"""

import functools
import os
import struct
from dataclasses import replace
from math import isfinite, prod, sqrt
from pathlib import Path
from typing import Any

import numpy as np

from npgpt.engine.config import GPTConfig
from npgpt.engine.finite import check_tensor, is_finite
from npgpt.engine.model import GPT
from npgpt.engine.types import Array, Fields, Floats, PathLike, Shape
from npgpt.interop.blocks import TYPES as BLOCK_TYPES
from npgpt.interop.gguf_tokenizer import OWN_KEYS as TOKENIZER_KEYS
from npgpt.interop.gguf_tokenizer import tokenizer_from, tokenizer_values
from npgpt.interop.gguf_values import value_of
from npgpt.interop.layout import Pretrained, StoredTensor, TensorSpec, config_of, read_weights, tensor_specs
from npgpt.text.tokenizer import Tokenizer

SHARED, OWN = "gpt2", "npgpt"  # general.architecture
TYPES = {name: BLOCK_TYPES[name] for name in ("f32", "f16", "q8_0", "q4_0")}  # that libnpgpt computes with
TYPE_NAMES = {of.number: name for name, of in TYPES.items()}
PLAIN = {"f32": "<f4", "f16": "<f2"}
ALIGNMENT = 32
# the number of a value's type -> struct's letter; 8 is a string, 9 an array
SCALARS = dict(enumerate("BbHhIif?")) | {10: "Q", 11: "q", 12: "d"}


# ---------------------------------------------------------------------------- blocks


def quantise(x: Floats, type: str) -> Array:
    """Return x (rows, n) float32 as bytes (rows, ...) of `type`; q8_0 and q4_0 need n a multiple of 32.

    OverflowError for a number, or the scale of a block, beyond what float16 holds.

    >>> x = np.arange(32, dtype=np.float32)[None]
    >>> quantise(x, "q8_0").shape
    (1, 34)
    """
    if type in PLAIN:
        return _cast(x, type, x).view(np.uint8)
    blocks = np.ascontiguousarray(x, np.float32).reshape(len(x), -1, 32)
    largest = np.take_along_axis(blocks, np.abs(blocks).argmax(-1, keepdims=True), -1)  # with its sign
    d = np.abs(largest) / np.float32(127) if type == "q8_0" else largest / np.float32(-8)
    with np.errstate(divide="ignore", over="ignore"):
        scaled = blocks * np.where(d == 0, np.float32(0), np.float32(1) / d)
    if type == "q8_0":  # halves away from zero, as in ggml
        q = (np.trunc(np.abs(scaled) + np.float32(0.5)) * np.sign(scaled)).astype(np.int8).view(np.uint8)
    else:
        q = np.trunc(np.clip(scaled + np.float32(8.5), 0, 15)).astype(np.uint8)
        q = q[..., :16] | q[..., 16:] << 4
    return np.concatenate([_cast(d, "f16", blocks, type).view(np.uint8), q], -1).reshape(len(x), -1)


def _cast(x: Floats, plain: str, stored: Floats, type: str = "") -> Array:
    """Return x, what is `stored` or the scales of its blocks of `type`, as a plain type."""
    with np.errstate(over="ignore"):
        cast = np.ascontiguousarray(x, PLAIN[plain])
    if not is_finite(cast):
        largest = stored.ravel()[np.abs(stored).argmax()]
        raise OverflowError(f"holds {largest:.6g}, which {type or plain} cannot; choose --type f32")
    return cast


def dequantise(data: Array, type: str, shape: Shape) -> Array:
    """Return the float32 array of this shape, (rows, n), from the bytes of quantise()."""
    of = TYPES[type]
    return of.dequantise(data.reshape(-1, of.size)).reshape(shape)


def _bytes_of(shape: Shape, type: str) -> int:
    of = TYPES[type]
    return prod(shape) // of.n * of.size


# ---------------------------------------------------------------------------- writing


def write_gguf(
    path: PathLike, model: GPT, tokenizer: Tokenizer | None = None, type: str = "f32", name: str = "npgpt"
) -> None:
    """Write model and tokenizer to the file `path`, atomically.

    type: of the matrices, but for the positions, which stay F32 as vectors do. Rows whose length is no
    multiple of 32 are F16 instead of q8_0 or q4_0. ValueError for a tokenizer that GGUF cannot hold, for
    weights that are not finite, and for those that the type cannot hold.
    """
    if type not in TYPES:
        raise ValueError(f"write_gguf: type must be one of {', '.join(TYPES)}, got {type!r}")
    config, path = model.config, Path(path)
    arch = architecture_of(config)
    values = _metadata(config, arch, type, name) | tokenizer_values(tokenizer, arch, config.vocab_size)

    infos, offset = [], 0
    layout_config = config if arch == "npgpt" else replace(config, window=None)
    for theirs, spec in tensor_specs("gguf", layout_config).items():
        of = type if len(spec.shape) == 2 and spec.name != "wpe.weight" else "f32"
        of = "f16" if of.startswith("q") and spec.shape[-1] % 32 else of
        infos.append((theirs, spec, of, offset))
        offset += -(-_bytes_of(spec.shape, of) // ALIGNMENT) * ALIGNMENT

    head = [b"GGUF", struct.pack("<IQQ", 3, len(infos), len(values))]
    head += [_string(key) + _value(value) for key, value in values.items()]
    for theirs, spec, of, begin in infos:
        head.append(_string(theirs) + struct.pack("<I", len(spec.shape)))
        head.append(struct.pack(f"<{len(spec.shape)}QIQ", *spec.shape[::-1], TYPES[of].number, begin))
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with open(temporary, "wb") as file:
            file.write(b"".join(head))
            for _, spec, of, _ in infos:
                file.write(bytes(-file.tell() % ALIGNMENT))
                rows = np.atleast_2d(_tensor(model, spec, arch))
                check_tensor("write_gguf", spec.name, rows)
                for first in range(0, len(rows), 4096):  # no copy of a large matrix
                    try:
                        file.write(quantise(rows[first : first + 4096], of).tobytes())
                    except OverflowError as error:
                        raise ValueError(f"write_gguf: {spec.name} {error}") from None
            file.write(bytes(-file.tell() % ALIGNMENT))
            file.flush()
            os.fsync(file.fileno())
            if hasattr(os, "posix_fadvise"):  # a later mmap reads it again, into huge pages
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def architecture_of(config: GPTConfig) -> str:
    """Return GGUF's architecture of a config: gpt2, or npgpt, which libnpgpt alone reads."""
    if config.rope:
        raise ValueError("write_gguf: engine must be gpt, gpt-2 or gpt-3, got llama, which --to hf holds")
    windows = (config.window or config.block_size) < config.block_size
    return "npgpt" if config.post_norm or config.activation == "gelu" or windows else "gpt2"


def _tensor(model: GPT, spec: TensorSpec, arch: str) -> Array:
    config = model.config
    if spec.name not in model.params:  # a bias of zeros
        return np.zeros(spec.shape, np.float32)
    w = spec.view(model.params)
    factor = np.float32(config.scale * sqrt(config.n_embd // config.n_head))
    if arch == "gpt2" and "c_attn" in spec.name and factor != 1:  # the scale that llama.cpp does not apply
        w = w.copy()
        w[: config.n_embd] *= factor
    return w


def _metadata(config: GPTConfig, arch: str, type: str, name: str) -> Fields:
    values = {
        "general.architecture": arch,
        "general.name": name,
        "general.file_type": TYPES[type].file_type,
        "general.quantization_version": 2,
        f"{arch}.context_length": config.block_size,
        f"{arch}.embedding_length": config.n_embd,
        f"{arch}.block_count": config.n_layer,
        f"{arch}.feed_forward_length": 4 * config.n_embd,
        f"{arch}.attention.head_count": config.n_head,
        f"{arch}.attention.layer_norm_epsilon": float(config.layer_norm_epsilon),
        "npgpt.bias": config.bias,
    }
    if arch == "npgpt":
        values |= {"npgpt.post_norm": config.post_norm, "npgpt.attention.scale": float(config.scale)}
        values["npgpt.exact_gelu"] = config.activation == "gelu"
        if config.window is not None:
            values["npgpt.attention.sliding_window"] = config.window
    return values


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
    if isinstance(value[0], float):
        return struct.pack(f"<IIQ{len(value)}f", 9, 6, len(value), *value)
    return struct.pack(f"<IIQ{len(value)}i", 9, 5, len(value), *value)


# ---------------------------------------------------------------------------- reading

# The rules of docs/formats.md, which model.cpp and vocabulary.cpp of libnpgpt hold too.
# Keys behind "gpt2." or "npgpt." -> the type of the value. Any other may change what is computed.
KEYS: dict[str, type] = {
    **dict.fromkeys(("block_count", "embedding_length", "context_length", "vocab_size"), int),
    **dict.fromkeys(("attention.head_count", "attention.head_count_kv"), int),
    **dict.fromkeys(("attention.key_length", "attention.value_length"), int),
    **dict.fromkeys(("feed_forward_length", "embedding_length_out", "expert_count"), int),
    "attention.layer_norm_epsilon": float,
    "attention.causal": bool,
}
OWN_KEYS = {"post_norm": bool, "exact_gelu": bool, "attention.sliding_window": int, "attention.scale": float}


def read_gguf(path: PathLike) -> Pretrained:
    """Read the model of a GGUF file, its weights as float32; the tokenizer is None where it has none.

    ValueError, with what is wrong, for a file that is malformed or not of a GPT as we compute it.
    """
    where = f"read_gguf: {path}"
    values, tensors = _parse(path, where)
    arch = value_of(values, "general.architecture", str, where)
    if arch not in (SHARED, OWN):
        raise ValueError(f"{where}: general.architecture must be {SHARED} or {OWN}, got {arch!r}")
    _check_keys(values, arch, where)
    tokenizer = tokenizer_from(values, where)
    config = _read_config(values, arch, len(values["tokenizer.ggml.tokens"]) if tokenizer else None, where)
    pretrained = Pretrained(config, read_weights("gguf", config, tensors, where), tokenizer)
    factor = value_of(values, "npgpt.attention.scale", float, where, config.scale) / config.scale
    if abs(factor - 1) > 1e-6:
        for name, w in pretrained.tensors.items():
            if "c_attn" in name:
                w[..., : config.n_embd] *= factor
    return pretrained


def _check_keys(values: Fields, arch: str, where: str) -> None:
    """Raise ValueError for a key of the architecture that is not known, or of another type."""
    known = {f"{arch}.{name}": kind for name, kind in KEYS.items()}
    known |= {"npgpt.bias": bool} | TOKENIZER_KEYS
    known |= {f"{OWN}.{name}": kind for name, kind in OWN_KEYS.items()} if arch == OWN else {}
    for key in values:
        if key in known:
            value_of(values, key, known[key], where)
        elif key.startswith((f"{SHARED}.", f"{OWN}.")):
            raise ValueError(f"{where}: {key!r:.80} is no key of {arch} that npgpt computes with")


def _read_config(values: Fields, arch: str, n_tokens: int | None, where: str) -> GPTConfig:
    def size(name: str) -> int:
        return value_of(values, f"{arch}.{name}", int, where)

    n_embd, n_head = size("embedding_length"), size("attention.head_count")
    for key in (f"{arch}.attention.layer_norm_epsilon", "npgpt.attention.scale"):
        if not (0 < values.get(key, 1) and isfinite(values.get(key, 1))):
            raise ValueError(f"{where}: {key} must be positive and finite, got {values[key]}")
    window = value_of(values, "npgpt.attention.sliding_window", int, where, 0)
    if window < 1 and "npgpt.attention.sliding_window" in values:
        raise ValueError(f"{where}: npgpt.attention.sliding_window must be at least 1, got {window}")
    epsilon = value_of(values, f"{arch}.attention.layer_norm_epsilon", float, where)
    config = config_of(
        where,
        n_layer=size("block_count"),
        n_head=n_head,
        n_embd=n_embd,
        block_size=size("context_length"),
        vocab_size=size("vocab_size") if n_tokens is None else n_tokens,
        bias=value_of(values, "npgpt.bias", bool, where, True),
        layer_norm_epsilon=float(f"{epsilon:.7g}"),  # stored as float32: 1e-5 comes back as 1e-5
        post_norm=value_of(values, "npgpt.post_norm", bool, where, False),
        activation="gelu" if values.get("npgpt.exact_gelu", False) else "gelu_new",
        window=window or None,
    )
    only = {"feed_forward_length": 4 * n_embd, "embedding_length_out": n_embd, "expert_count": 0}
    only |= {"attention.head_count_kv": n_head, "attention.causal": True}
    only |= dict.fromkeys(("attention.key_length", "attention.value_length"), n_embd // n_head)
    for name, value in only.items():
        if values.get(f"{arch}.{name}", value) != value:
            raise ValueError(f"{where}: {arch}.{name} must be {value}, got {values[f'{arch}.{name}']}")
    return config


def read_tokenizer(path: PathLike) -> Tokenizer | None:
    """Return the tokenizer of a GGUF file, None where it has none; the errors are read_gguf's."""
    where = f"read_tokenizer: {path}"
    return tokenizer_from(_parse(path, where)[0], where)


def _parse(path: PathLike, where: str) -> tuple[Fields, dict[str, StoredTensor]]:
    """Return {key: value} and {name: tensor}, all within the file; ValueError where anything is not."""
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
    tensors: dict[str, StoredTensor] = {}
    for name, shape, type, offset in infos:
        start, size = begin + offset, _bytes_of(shape, type)
        if start + size > len(data) or offset % alignment:
            what = f"inside the file's {len(data)}, aligned to {alignment}"
            raise ValueError(f"{where}: {name!r:.60} needs {size} bytes at {start}, which must be {what}")
        if name in tensors:
            raise ValueError(f"{where}: the tensor {name!r:.60} is there twice")
        chunk = data[start : start + size]
        tensors[name] = StoredTensor(shape, type.upper(), functools.partial(dequantise, chunk, type, shape))
    return values, tensors


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
            return [self.string() for _ in range(count)]
        if kind not in SCALARS or count > self.left // struct.calcsize(SCALARS[kind]):
            raise ValueError(
                f"{self.where}: the array at byte {self.at} is malformed or goes beyond the file"
            )
        return list(self.take(f"{count}{SCALARS[kind]}"))

    def tensor_info(self) -> tuple[str, Shape, str, int]:
        """Return name, shape, type and offset of a tensor."""
        name, (dimensions,) = self.string(), self.take("I")
        if not 1 <= dimensions <= 4:
            raise ValueError(f"{self.where}: {name!r:.60} must have 1 to 4 dimensions, got {dimensions}")
        *sizes, number, offset = self.take(f"{dimensions}QIQ")
        if number not in TYPE_NAMES:
            raise ValueError(f"{self.where}: {name!r:.60} must be F32, F16, Q8_0 or Q4_0, got type {number}")
        type = TYPE_NAMES[number]
        if type.startswith("q") and sizes[0] % 32:
            raise ValueError(f"{self.where}: {name!r:.60} must have rows of a multiple of 32, got {sizes[0]}")
        return name, tuple(sizes[::-1]), type, offset
