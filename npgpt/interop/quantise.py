"""Float32 to the block types of ggml that npgpt writes, and which tensor of a file is of which type.

Q8_0, Q4_0, Q4_1 and Q5_0 are those of ggml's reference functions to the bit. In the K types a scale is chosen
by least squares: several near the one that spans the group are tried, each refitted to the numbers that it
rounds to. Errors count by magnitude: a large weight moves an output more. The idea is ggml's, and so are the
layouts (src/ggml-common.h).
"""

from concurrent.futures import ThreadPoolExecutor
from itertools import product

import numpy as np

from npgpt.engine import kernels
from npgpt.engine.finite import is_finite
from npgpt.engine.types import Array, Floats, Shape
from npgpt.interop.blocks import TILE, TYPES

PLAIN = {"f32": "<f4", "f16": "<f2"}


def quantise(x: Floats, type: str) -> Array:
    """Return x (rows, n) float32 as bytes (rows, ...) of `type`; n must be a multiple of its block.

    OverflowError for a number, or the scale of a block, beyond what float16 holds.

    >>> x = np.arange(32, dtype=np.float32)[None]
    >>> quantise(x, "q8_0").shape
    (1, 34)
    """
    if type in PLAIN:
        return _cast(x, type, x).view(np.uint8)
    of = TYPES[type]
    blocks = np.ascontiguousarray(x, np.float32).reshape(-1, of.n)
    out = np.empty((len(blocks), of.size), np.uint8)
    step = TILE // of.n

    def one(first: int) -> None:
        with np.errstate(over="ignore", invalid="ignore"):  # what overflows is refused
            QUANTISERS[type](blocks[first : first + step], out[first : first + step])

    firsts = range(0, len(blocks), step)
    with ThreadPoolExecutor(kernels.get_num_threads()) as pool:  # NumPy lets others work
        for _ in pool.map(one, firsts):
            pass
    return out.reshape(len(x), -1)


def _cast(x: Floats, plain: str, stored: Floats, type: str = "") -> Array:
    """Return x, what is `stored` or the scales of its blocks of `type`, as a plain type."""
    with np.errstate(over="ignore"):
        cast = np.ascontiguousarray(x, PLAIN[plain])
    if not is_finite(cast):
        largest = stored.ravel()[np.abs(stored).argmax()]
        raise OverflowError(f"holds {largest:.6g}, which {type or plain} cannot; choose --type f32")
    return cast


def _put_half(out: Array, at: int, x: Floats, stored: Floats, type: str) -> Floats:
    """Write x (count, 1) as float16 at byte `at` of each block; return it as rounded."""
    half = _cast(x, "f16", stored, type)
    out[:, at : at + 2] = half.view(np.uint8)
    return half.astype(np.float32)


def _inverse(x: Floats) -> Floats:
    """Return 1 / x, but 0 for 0."""
    with np.errstate(divide="ignore"):
        out: Floats = np.where(x == 0, np.float32(0), np.float32(1) / x)
    return out


def _largest(x: Floats) -> Floats:
    """Return of each row of x the number of the largest magnitude, with its sign: (rows, 1)."""
    out: Floats = np.take_along_axis(x, np.abs(x).argmax(-1, keepdims=True), -1)
    return out


def type_in_file(name: str, shape: Shape, type: str, n_layer: int, head: str) -> str:
    """Return the type of a tensor in a file of `type`; head is the name of that with the head's weights.

    The rules are those of llama.cpp's quantizer (src/llama-quant.cpp), q4_k being its Q4_K_M. But in q4_0 the
    head is Q4_0, too.
    """
    if len(shape) < 2 or name == "position_embd.weight":
        return "f32"
    if type in ("q4_1", "q4_k", "q6_k") and name == head:
        type = "q6_k"
    if type == "q4_k" and name.startswith("blk."):
        _, layer, part, _ = name.split(".")
        i, eighth = int(layer), n_layer // 8
        more = i < eighth or i >= 7 * n_layer // 8 or (i - eighth) % 3 == 2
        if more and part in ("attn_v", "attn_qkv", "ffn_down"):
            type = "q6_k"
    while shape[-1] % TYPES[type].n:  # no whole blocks in a row
        type = {"q4_k": "q5_0", "q6_k": "q8_0"}.get(type, "f16")
    return type


# ---------------------------------------------------------------------------- blocks of 32


def _q8_0(x: Floats, out: Array) -> None:
    d = np.abs(_largest(x)) / np.float32(127)
    scaled = x * _inverse(d)  # halves away from zero, as in ggml
    q = np.trunc(np.abs(scaled) + np.float32(0.5)) * np.sign(scaled)
    _put_half(out, 0, d, x, "q8_0")
    out[:, 2:] = q.astype(np.int8).view(np.uint8)


def _put_nibbles(out: Array, q: Array) -> None:
    np.bitwise_or(q[:, :16] & 15, q[:, 16:] << 4, out=out)


def _q4_0(x: Floats, out: Array) -> None:
    d = _largest(x) / np.float32(-8)
    q = np.trunc(np.clip(x * _inverse(d) + np.float32(8.5), 0, 15)).astype(np.uint8)
    _put_half(out, 0, d, x, "q4_0")
    _put_nibbles(out[:, 2:], q)


def _q4_1(x: Floats, out: Array) -> None:
    least = x.min(-1, keepdims=True)
    d = (x.max(-1, keepdims=True) - least) / np.float32(15)
    q = np.trunc(np.clip((x - least) * _inverse(d) + np.float32(0.5), 0, 15)).astype(np.uint8)
    _put_half(out, 0, d, x, "q4_1")
    _put_half(out, 2, least, x, "q4_1")
    _put_nibbles(out[:, 4:], q)


def _q5_0(x: Floats, out: Array) -> None:
    d = _largest(x) / np.float32(-16)
    q = np.trunc(np.clip(x * _inverse(d) + np.float32(16.5), 0, 31)).astype(np.uint8)
    _put_half(out, 0, d, x, "q5_0")
    out[:, 2:6] = np.packbits(q >> 4, axis=-1, bitorder="little")
    _put_nibbles(out[:, 6:], q)


# ---------------------------------------------------------------------------- blocks of 256


def _weights(x: Floats) -> Floats:
    """Return how much the errors of groups x (count, n) count: the more, the larger a number is."""
    out: Floats = np.abs(x) + np.sqrt(np.square(x).mean(-1, keepdims=True))
    return out


def _rounded(x: Floats, low: int, high: int) -> Floats:
    np.rint(x, out=x)
    return np.clip(x, low, high, out=x)


def _sums(*factors: Floats) -> Floats:
    """Return the sums over groups (count, n) of products: (count, 1)."""
    letters = ",".join(["gn"] * len(factors))
    out: Floats = np.einsum(f"{letters}->g", *factors)[:, None]
    return out


class _Best:
    """The best candidates so far of groups: arrays (count, n), replaced where a higher score comes."""

    def __init__(self, count: int) -> None:
        self.score: Floats = np.full((count, 1), -np.inf, np.float32)
        self.kept: list[Floats] = []

    def offer(self, score: Floats, *candidates: Floats) -> None:
        """Keep these candidates where their score (count, 1) is higher."""
        if not self.kept:
            self.score, self.kept = score, list(candidates)
            return
        better = score > self.score
        for kept, new in zip((self.score, *self.kept), (score, *candidates), strict=True):
            np.copyto(kept, new, where=better)


def _q6_k(x: Floats, out: Array) -> None:
    groups = x.reshape(-1, 16)
    w = _weights(groups)
    scale = _fitted_scales(groups, w).reshape(-1, 16)
    d = _put_half(out, 208, _largest(scale) / np.float32(-128), x, "q6_k")
    near = _rounded(scale * _inverse(d), -128, 127).reshape(-1, 1)
    d = np.repeat(d, 16, axis=0)
    best = _Best(len(groups))
    for step in (0, -1, 1):  # the scales are rounded, too: which of their neighbours fits?
        s = np.clip(near + np.float32(step), -128, 127)
        rounded = _rounded(groups * _inverse(d * s), -32, 31)
        error = groups - d * s * rounded
        best.offer(-_sums(w, error, error), s, rounded)
    s, rounded = best.kept
    q = (rounded + 32).astype(np.uint8).reshape(-1, 2, 4, 32)  # halves, quarters of them
    out[:, :128] = (q[:, :, :2] & 15 | q[:, :, 2:] << 4).reshape(-1, 128)
    high = q >> 4 << np.arange(0, 8, 2, dtype=np.uint8)[:, None]
    out[:, 128:192] = np.bitwise_or.reduce(high, axis=2).reshape(-1, 64)
    out[:, 192:208] = s.astype(np.int8).reshape(-1, 16).view(np.uint8)


def _fitted_scales(groups: Floats, w: Floats) -> Floats:
    """Return scales (count, 1) by which groups are near to integers from -32 to 31; errors are weighted."""
    wx, inverse, fits = w * groups, _inverse(_largest(groups)), _Best(len(groups))
    for levels in np.arange(-32.9, -31, 0.1, dtype=np.float32):  # onto which the largest number is scaled
        q = _rounded(groups * (levels * inverse), -32, 31)
        xq = _sums(wx, q)
        scale = xq * _inverse(_sums(w, q, q))
        fits.offer(xq * scale, scale)  # by what the squares of the errors fall
    return fits.kept[0]


def _q4_k(x: Floats, out: Array) -> None:
    groups = x.reshape(-1, 32)
    w = _weights(groups)
    scale, least = (fit.reshape(-1, 8) for fit in _fitted_lines(groups, w))
    d = _put_half(out, 0, scale.max(-1, keepdims=True) / np.float32(63), x, "q4_k")
    m = _put_half(out, 2, least.min(-1, keepdims=True) / np.float32(-63), x, "q4_k")
    near = _rounded(scale * _inverse(d), 0, 63).reshape(-1, 1)
    near_m = _rounded(least * -_inverse(m), 0, 63).reshape(-1, 1)
    d, m = np.repeat(d, 8, axis=0), np.repeat(m, 8, axis=0)
    best = _Best(len(groups))
    for step, step_m in product((0, -1, 1), (0, -1, 1)):
        s, t = (np.clip(a + np.float32(b), 0, 63) for a, b in ((near, step), (near_m, step_m)))
        rounded = _rounded((groups + m * t) * _inverse(d * s), 0, 15)
        error = groups - (d * s * rounded - m * t)
        best.offer(-_sums(w, error, error), s, t, rounded)
    s, t, q = (kept.astype(np.uint8) for kept in best.kept)
    s, t = s.reshape(-1, 2, 4), t.reshape(-1, 2, 4)  # the second four are in two parts
    out[:, 4:8] = s[:, 0] | s[:, 1] >> 4 << 6
    out[:, 8:12] = t[:, 0] | t[:, 1] >> 4 << 6
    out[:, 12:16] = s[:, 1] & 15 | t[:, 1] << 4
    q = q.reshape(-1, 4, 2, 32)
    out[:, 16:] = (q[:, :, 0] | q[:, :, 1] << 4).reshape(-1, 128)


def _fitted_lines(groups: Floats, w: Floats) -> list[Floats]:
    """Return scales and minima (count, 1) by which groups are near to integers from 0 to 15.

    A minimum is at most 0, as none above it can be stored.
    """
    low = np.minimum(groups.min(-1, keepdims=True), np.float32(0))
    inverse, fits = _inverse(groups.max(-1, keepdims=True) - low), _Best(len(groups))
    wx = w * groups
    W, X = _sums(w), _sums(wx)
    for levels in np.arange(14, 16.6, 0.1, dtype=np.float32):  # between the smallest number and the largest
        low = fits.kept[1] if fits.kept else low  # the best minimum so far
        q = _rounded((groups - low) * (levels * inverse), 0, 15)
        Q, QQ, XQ = _sums(w, q), _sums(w, q, q), _sums(wx, q)
        spread = W * QQ - Q * Q
        spread[spread < 1e-5 * W * QQ] = 0  # all are rounded alike
        over = _inverse(spread)
        scale, least = (W * XQ - Q * X) * over, (QQ * X - Q * XQ) * over
        alone = (least >= 0) | (spread == 0)
        lowest = np.where(QQ == 0, np.minimum(X * _inverse(W), 0), 0)
        scale, least = np.where(alone, XQ * _inverse(QQ), scale), np.where(alone, lowest, least)
        fits.offer(scale * XQ + least * X, scale, least)  # by what the squares of the errors fall
    return fits.kept


QUANTISERS = {"q8_0": _q8_0, "q4_0": _q4_0, "q4_1": _q4_1, "q5_0": _q5_0, "q4_k": _q4_k, "q6_k": _q6_k}
