"""ggml's block types, by which GGUF files hold matrices: from bytes to float32.

Numbers of a row stand in blocks that share scales. In the K types, blocks of 256 hold groups of 16 or 32,
whose scales are small integers times a float16. Layouts: ggml's src/ggml-common.h. The products are in ggml's
order, so that the numbers are those of its own functions, to the bit.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from npgpt.engine import kernels
from npgpt.engine.types import Array, Floats

# The sixteen values of IQ4_NL and IQ4_XS
NONLINEAR = np.array(
    [-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113], np.float32
)  # fmt: skip


TILE = 1 << 16  # numbers at a time, so that what is computed of them stays in a cache


class BlockType(NamedTuple):
    """A type of numbers in a GGUF file."""

    number: int  # ggml's
    file_type: int  # general.file_type of a file that holds mostly this
    n: int  # numbers in a block
    size: int  # bytes of a block
    dequantise: Callable[[Array], Floats]  # blocks (count, size) uint8 -> (count, n)


def _half(blocks: Array, at: int) -> Floats:
    """Return the float16 at byte `at` of each block, as float32 (count, 1)."""
    out: Floats = blocks[:, at : at + 2].copy().view("<f2").astype(np.float32)
    return out


def _nibbles(q: Array) -> Array:
    """Return the low halves of bytes (..., n), then the high ones: (..., 2n)."""
    out: Array = np.concatenate([q & 15, q >> 4], axis=-1)
    return out


def _five_bits(q: Array) -> Array:
    """Return numbers (count, 32) of four bytes of highest bits, then sixteen of lower halves."""
    out: Array = _nibbles(q[:, 4:]) | np.unpackbits(q[:, :4], axis=-1, bitorder="little") << 4
    return out


def _pairs(q: Array, shifts: tuple[int, ...]) -> Array:
    """Return (count, 256) of bytes (count, n): parts of 32 of them, read once at each of the shifts."""
    parts = q.reshape(len(q), -1, 1, 32) >> np.array(shifts, np.uint8).reshape(-1, 1)
    out: Array = parts.reshape(len(q), -1)
    return out


def _grouped(scales: Floats, q: Array) -> Floats:
    """Return scales (count, groups) * q (count, 256), a scale for each group."""
    products: Floats = scales[..., None] * q.reshape(len(q), scales.shape[1], -1)
    out: Floats = products.reshape(q.shape)
    return out


def _q2_k(blocks: Array) -> Floats:
    scales, q = blocks[:, :16], _pairs(blocks[:, 16:80], (0, 2, 4, 6)) & 3
    d, least = _half(blocks, 80), _half(blocks, 82)
    out: Floats = _grouped(d * (scales & 15), q) - np.repeat(least * (scales >> 4), 16, axis=1)
    return out


def _q3_k(blocks: Array) -> Floats:
    high, low, packed = blocks[:, :32], blocks[:, 32:96], blocks[:, 96:108]
    # sixteen scales of six bits: four low ones in eight bytes, two high ones in four
    scales = _nibbles(packed[:, :8]) | (packed[:, None, 8:] >> _column(0, 2, 4, 6) & 3).reshape(-1, 16) << 4
    q = (_pairs(low, (0, 2, 4, 6)) & 3).astype(np.int8)
    q -= ((_pairs(high, tuple(range(8))) & 1) ^ 1).astype(np.int8) << 2  # four less where the bit is not set
    out: Floats = _grouped(_half(blocks, 108) * (scales.astype(np.int8) - 32), q)
    return out


def _column(*shifts: int) -> Array:
    out: Array = np.array(shifts, np.uint8)[:, None]
    return out


def _scales_and_mins(packed: Array) -> tuple[Array, Array]:
    """Return eight scales and eight minima of six bits each, from the twelve bytes of Q4_K and Q5_K."""
    first, second, third = packed[:, :4], packed[:, 4:8], packed[:, 8:]
    scales = np.concatenate([first & 63, third & 15 | first >> 6 << 4], axis=1)
    minima = np.concatenate([second & 63, third >> 4 | second >> 6 << 4], axis=1)
    return scales, minima


def _q4_k(blocks: Array) -> Floats:
    scales, minima = _scales_and_mins(blocks[:, 4:16])
    q = _pairs(blocks[:, 16:], (0, 4)) & 15
    out: Floats = _grouped(_half(blocks, 0) * scales, q) - np.repeat(_half(blocks, 2) * minima, 32, axis=1)
    return out


def _q5_k(blocks: Array) -> Floats:
    scales, minima = _scales_and_mins(blocks[:, 4:16])
    q = _pairs(blocks[:, 48:], (0, 4)) & 15 | (_pairs(blocks[:, 16:48], tuple(range(8))) & 1) << 4
    out: Floats = _grouped(_half(blocks, 0) * scales, q) - np.repeat(_half(blocks, 2) * minima, 32, axis=1)
    return out


def _q6_k(blocks: Array) -> Floats:
    # each half of 128 numbers: 64 bytes of low nibbles, 32 of pairs of high bits
    low = blocks[:, :128].reshape(-1, 2, 1, 64) >> _column(0, 4) & 15  # (count, 2, 2, 64)
    high = blocks[:, 128:192].reshape(-1, 2, 1, 32) >> _column(0, 2, 4, 6) & 3  # (count, 2, 4, 32)
    q = low.reshape(-1, 256) | high.reshape(-1, 256) << 4
    scales = _half(blocks, 208) * blocks[:, 192:208].view(np.int8)
    out: Floats = _grouped(scales, q.astype(np.int8) - 32)
    return out


def _iq4_xs(blocks: Array) -> Floats:
    high = blocks[:, 2:4].copy().view("<u2") >> np.arange(0, 16, 2, dtype=np.uint16) & 3  # (count, 8)
    low = (blocks[:, 4:8, None] >> np.array([0, 4], np.uint8) & 15).reshape(-1, 8)
    scales = _half(blocks, 0) * ((low | high << 4).astype(np.int8) - 32)
    q = _nibbles(blocks[:, 8:].reshape(-1, 8, 16)).reshape(-1, 256)
    out: Floats = _grouped(scales, NONLINEAR[q])
    return out


TYPES = {
    "f32": BlockType(0, 0, 1, 4, lambda b: b.view("<f4").astype(np.float32, copy=False)),
    "f16": BlockType(1, 1, 1, 2, lambda b: b.view("<f2").astype(np.float32)),
    "bf16": BlockType(30, 32, 1, 2, lambda b: (b.view("<u2").astype(np.uint32) << 16).view(np.float32)),
    "q8_0": BlockType(8, 7, 32, 34, lambda b: _half(b, 0) * b[:, 2:].view(np.int8)),
    "q4_0": BlockType(2, 2, 32, 18, lambda b: _half(b, 0) * (_nibbles(b[:, 2:]).astype(np.int8) - 8)),
    "q4_1": BlockType(3, 3, 32, 20, lambda b: _half(b, 0) * _nibbles(b[:, 4:]) + _half(b, 2)),
    "q5_0": BlockType(6, 8, 32, 22, lambda b: _half(b, 0) * (_five_bits(b[:, 2:]).astype(np.int8) - 16)),
    "q5_1": BlockType(7, 9, 32, 24, lambda b: _half(b, 0) * _five_bits(b[:, 4:]) + _half(b, 2)),
    "q2_k": BlockType(10, 10, 256, 84, _q2_k),
    "q3_k": BlockType(11, 12, 256, 110, _q3_k),
    "q4_k": BlockType(12, 15, 256, 144, _q4_k),
    "q5_k": BlockType(13, 17, 256, 176, _q5_k),
    "q6_k": BlockType(14, 18, 256, 210, _q6_k),
    "iq4_nl": BlockType(20, 25, 32, 18, lambda b: _half(b, 0) * NONLINEAR[_nibbles(b[:, 2:])]),
    "iq4_xs": BlockType(23, 30, 256, 136, _iq4_xs),
}

# ggml's other types, some of which it has given up: none is read here, so they are refused by name
_OTHERS = {
    4: "q4_2", 5: "q4_3", 9: "q8_1", 15: "q8_k", 16: "iq2_xxs", 17: "iq2_xs", 18: "iq3_xxs", 19: "iq1_s",
    21: "iq3_s", 22: "iq2_s", 24: "i8", 25: "i16", 26: "i32", 27: "i64", 28: "f64", 29: "iq1_m",
    31: "q4_0_4_4", 32: "q4_0_4_8", 33: "q4_0_8_8", 34: "tq1_0", 35: "tq2_0",
    36: "iq4_nl_4_4", 37: "iq4_nl_4_8", 38: "iq4_nl_8_8", 39: "mxfp4", 40: "nvfp4", 41: "q1_0", 42: "q2_0",
}  # fmt: skip
NAMES = {of.number: name for name, of in TYPES.items()} | _OTHERS  # ggml's number -> the type's name


def unpack(type: str, blocks: Array, out: Floats) -> None:
    """Write the numbers of rows of blocks (n,bytes) to out (n,K), compiled where kernels know the type."""
    compiled = kernels.compiled("unpack_rows")
    if compiled and type in kernels.compiled("UNPACKED"):
        compiled(blocks, type, out)
    else:
        out[...] = dequantise(blocks, type).reshape(out.shape)


def dequantise(data: Array, type: str) -> Floats:
    """Return the numbers (n,) float32 of whole blocks of a type, from their bytes."""
    of = TYPES[type]
    blocks = data.reshape(-1, of.size)
    out, step = np.empty((len(blocks), of.n), np.float32), TILE // of.n
    with np.errstate(over="ignore", invalid="ignore"):  # whoever reads weights refuses what is not finite
        for first in range(0, len(blocks), step):
            out[first : first + step] = of.dequantise(blocks[first : first + step])
    return out.reshape(-1)
