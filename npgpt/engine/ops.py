"""Every operation of a GPT in plain NumPy, forward and hand-written backward side by side.

This file is the specification of the compiled kernels (csrc/), their fallback and their oracle.
It works in float32 and float64; it is written to be read, not to be fast.

Dimensions: B batch, T time, C channels, V vocabulary, H heads, K heads of keys and values, D head size,
            F width of an MLP, P positions; M N K in matmul.
Rules:      y is the forward result and dy the gradient of the loss with respect to it.
            Gradients of parameters (dw, db, dwte ...) are added to; gradients of activations are returned.
            What a backward needs from its forward is returned by the forward under its own name.
"""

import math
from collections.abc import Sequence
from typing import TypeAlias

import numpy as np
from numpy.typing import ArrayLike, NDArray

from npgpt.engine.types import Floats, Integers, Shape

# ---------------------------------------------------------------------------- embedding


def embedding_forward(ids: Integers, positions: Integers, wte: Floats, wpe: Floats | None) -> Floats:
    """x = wte[ids] + wpe[positions].  ids, positions (B,T); wte (V,C); wpe (P,C) or None -> x (B,T,C)."""
    return wte[ids] if wpe is None else wte[ids] + wpe[positions]


def embedding_backward(
    dx: Floats, ids: Integers, positions: Integers, dwte: Floats, dwpe: Floats | None
) -> None:
    """dx (B,T,C) -> adds to dwte (V,C), dwpe (P,C)."""
    # forward: x = wte[ids] + wpe[positions]; a row used twice receives both gradients
    np.add.at(dwte, ids, dx)
    if dwpe is not None:
        np.add.at(dwpe, positions, dx)


# ---------------------------------------------------------------------------- layernorm


def layernorm_forward(x: Floats, w: Floats, b: Floats | None, eps: float) -> tuple[Floats, Floats, Floats]:
    """y = (x - mean) * rstd * w + b over the last axis (Ba et al. 2016, arXiv:1607.06450).

    x (...,C); w, b (C,), b may be None -> y (...,C), mean (...,), rstd = 1 / sqrt(var + eps) (...,).

    >>> y, mean, rstd = layernorm_forward(np.array([[1.0, 3.0]]), np.ones(2), None, eps=0)
    >>> y.tolist(), mean.tolist(), rstd.tolist()
    ([[-1.0, 1.0]], [2.0], [1.0])
    """
    mean = x.mean(axis=-1)
    centred = x - mean[..., None]
    rstd = 1 / np.sqrt(np.mean(centred * centred, axis=-1) + x.dtype.type(eps))
    y = centred * rstd[..., None] * w
    return (y if b is None else y + b), mean, rstd


def layernorm_apply(x: Floats, mean: Floats, rstd: Floats, w: Floats, b: Floats | None) -> Floats:
    """y of layernorm_forward again, from the mean and rstd (...) that it returned."""
    y = (x - mean[..., None]) * rstd[..., None] * w
    return y if b is None else y + b


def layernorm_backward(
    dy: Floats, x: Floats, mean: Floats, rstd: Floats, w: Floats, dw: Floats,
    db: Floats | None = None, residual: Floats | None = None,
) -> Floats:  # fmt: skip
    """dy, x (...,C); mean, rstd (...,) -> dx (...,C); adds to dw, db (C,).

    residual (...,C): the gradient that reaches x past the norm; it is added to dx.
    """
    norm = (x - mean[..., None]) * rstd[..., None]  # (...,C), recomputed rather than stored
    rows = tuple(range(x.ndim - 1))
    # forward: y = norm * w + b
    dw += np.sum(dy * norm, axis=rows)
    if db is not None:
        db += np.sum(dy, axis=rows)
    dnorm = dy * w
    # forward: norm = (x - mean) * rstd, where both mean and rstd depend on x
    dx: Floats = dnorm - dnorm.mean(axis=-1, keepdims=True)
    dx -= norm * np.mean(dnorm * norm, axis=-1, keepdims=True)
    dx *= rstd[..., None]
    return dx if residual is None else dx + residual


# ---------------------------------------------------------------------------- rmsnorm


def rmsnorm_forward(x: Floats, w: Floats, eps: float) -> tuple[Floats, Floats]:
    """y = x * rstd * w over the last axis (Zhang, Sennrich 2019, arXiv:1910.07467).

    x (...,C); w (C,) -> y (...,C), rstd = 1 / sqrt(mean(x^2) + eps) (...,).

    >>> y, rstd = rmsnorm_forward(np.array([[3.0, 3.0]]), np.ones(2), eps=0)
    >>> y.round(6).tolist(), rstd.round(6).tolist()
    ([[1.0, 1.0]], [0.333333])
    """
    rstd = 1 / np.sqrt(np.mean(x * x, axis=-1) + x.dtype.type(eps))
    return rmsnorm_apply(x, rstd, w), rstd


def rmsnorm_apply(x: Floats, rstd: Floats, w: Floats) -> Floats:
    """y of rmsnorm_forward again, from the rstd (...) that it returned."""
    return x * rstd[..., None] * w


def rmsnorm_backward(
    dy: Floats, x: Floats, rstd: Floats, w: Floats, dw: Floats, residual: Floats | None = None
) -> Floats:
    """dy, x (...,C); rstd (...,) -> dx (...,C); adds to dw (C,).

    residual (...,C): the gradient that reaches x past the norm; it is added to dx.
    """
    norm = x * rstd[..., None]
    # forward: y = norm * w
    dw += np.sum(dy * norm, axis=tuple(range(x.ndim - 1)))
    dnorm = dy * w
    # forward: norm = x * rstd, where rstd depends on x
    dx: Floats = (dnorm - norm * np.mean(dnorm * norm, axis=-1, keepdims=True)) * rstd[..., None]
    return dx if residual is None else dx + residual


# ---------------------------------------------------------------------------- matmul, linear


def matmul(
    a: Floats, b: Floats, out: Floats | None = None,
    trans_a: bool = False, trans_b: bool = False, accumulate: bool = False,
) -> Floats:  # fmt: skip
    """out = op(a) @ op(b), or out += with accumulate.  op(a) (M,K), op(b) (K,N) -> out (M,N)."""
    product: Floats = (a.T if trans_a else a) @ (b.T if trans_b else b)
    if out is None:
        return product
    if accumulate:
        out += product
    else:
        out[...] = product
    return out


def linear_forward(x: Floats, w: Floats, b: Floats | None = None, residual: Floats | None = None) -> Floats:
    """y = x @ w + b + residual.  x (...,K); w (K,N); b (N,); residual (...,N) -> y (...,N)."""
    y: Floats = x @ w
    if b is not None:
        y += b
    if residual is not None:
        y += residual
    return y


def linear_backward(dy: Floats, x: Floats, w: Floats, dw: Floats, db: Floats | None = None) -> Floats:
    """dy (...,N), x (...,K) -> dx (...,K); adds to dw (K,N), db (N,). A residual's gradient is dy."""
    K, N = w.shape
    # forward: y = x @ w + b
    dw += x.reshape(-1, K).T @ dy.reshape(-1, N)
    if db is not None:
        db += dy.reshape(-1, N).sum(axis=0)
    return dy @ w.T


def linear_gelu_forward(x: Floats, w: Floats, b: Floats | None = None) -> tuple[Floats, Floats]:
    """h = x @ w + b, y = gelu(h).  x (...,K); w (K,N) -> y, h (...,N).

    Its backward is gelu_linear_backward of the linear that reads y, then its own linear_backward.
    """
    h = linear_forward(x, w, b)
    return gelu_forward(h), h


def gelu_linear_backward(dz: Floats, h: Floats, w: Floats, dw: Floats, db: Floats | None = None) -> Floats:
    """dz (...,N), h (...,K) of z = gelu(h) @ w + b -> dh (...,K); adds to dw (K,N), db (N,).

    gelu(h) is computed again, which costs less than keeping it since the forward pass.
    """
    # forward: z = gelu(h) @ w + b
    return gelu_backward(linear_backward(dz, gelu_forward(h), w, dw, db), h)


# ---------------------------------------------------------------------------- gelu

GELU_SCALE = 0.7978845608028654  # sqrt(2 / pi)
GELU_CUBE = 0.044715


def gelu_forward(x: Floats) -> Floats:
    """y = x/2 (1 + tanh(z)), z = sqrt(2/pi) (x + 0.044715 x^3): GPT-2's GELU (arXiv:1606.08415)."""
    s, _ = _gelu_gate(x)
    return x * s


def gelu_backward(dy: Floats, x: Floats) -> Floats:
    """dy, x of one shape -> dx."""
    s, z = _gelu_gate(x)
    # forward: y = x * s(2z), and ds/dx = 2 s (1 - s) dz/dx
    dz = GELU_SCALE * (1 + 3 * GELU_CUBE * x * x)
    with np.errstate(over="ignore", invalid="ignore"):  # far from zero s (1 - s) is 0 and z' is large
        slope = np.where(np.abs(z) > 40, 0, 2 * x * s * (1 - s) * dz)
    return dy * (s + slope)


def _gelu_gate(x: Floats) -> tuple[Floats, Floats]:
    """s = (1 + tanh z) / 2 = sigmoid(2z): one exponential instead of a tanh, and exact far out."""
    with np.errstate(over="ignore"):
        z = GELU_SCALE * (x + GELU_CUBE * x * x * x)
        return 1 / (1 + np.exp(-2 * z)), z


# ---------------------------------------------------------------------------- erf_gelu

_erf = np.frompyfunc(math.erf, 1, 1)  # NumPy has none


def erf_gelu_forward(x: Floats) -> Floats:
    """y = x Phi(x), Phi the normal distribution's: the exact GELU, as nanoGPT has it (arXiv:1606.08415)."""
    return x * _normal_distribution(x)


def erf_gelu_backward(dy: Floats, x: Floats) -> Floats:
    """dy, x of one shape -> dx."""
    # forward: y = x Phi(x), and Phi' is the density
    density = np.exp(-0.5 * np.minimum(x * x, 1e3)) / math.sqrt(2 * math.pi)
    return dy * (_normal_distribution(x) + x * density)


def _normal_distribution(x: Floats) -> Floats:
    erf: Floats = _erf(x / math.sqrt(2)).astype(x.dtype)
    return 0.5 * (1 + erf)


# ---------------------------------------------------------------------------- swiglu


def swiglu_forward(h: Floats) -> Floats:
    """y = u * sigmoid(u) * v, with h = [u, v] side by side (Shazeer 2020, arXiv:2002.05202).

    h (...,2F) -> y (...,F).
    """
    u, v = np.split(h, 2, axis=-1)
    return u * _sigmoid(u) * v


def swiglu_backward(dy: Floats, h: Floats) -> Floats:
    """dy (...,F), h (...,2F) -> dh (...,2F)."""
    u, v = np.split(h, 2, axis=-1)
    s = _sigmoid(u)
    # forward: y = u * s * v, and ds/du = s (1 - s)
    return np.concatenate([dy * v * s * (1 + u * (1 - s)), dy * u * s], axis=-1)


def _sigmoid(x: Floats) -> Floats:
    with np.errstate(over="ignore"):
        y: Floats = 1 / (1 + np.exp(-x))
    return y


# ---------------------------------------------------------------------------- rope


def rope_forward(qkv: Floats, positions: Integers, cos: Floats, sin: Floats, n_rotated: int) -> None:
    """Rotate queries and keys by their positions, in place (Su et al. 2021, arXiv:2104.09864).

    qkv (B,T,N) begins with n_rotated heads of D numbers each: its queries and its keys. positions (B,T) are
    rows of cos and sin (P, D/2): y1 = x1 cos - x2 sin, y2 = x2 cos + x1 sin, where x1 and x2 are the halves
    of a head.
    """
    _rotate(qkv, positions, cos, sin, n_rotated)


def rope_backward(dqkv: Floats, positions: Integers, cos: Floats, sin: Floats, n_rotated: int) -> None:
    """Rotate the gradients of queries and keys back, in place."""
    # forward: a rotation, whose transpose turns the other way
    _rotate(dqkv, positions, cos, -sin, n_rotated)


def _rotate(x: Floats, positions: Integers, cos: Floats, sin: Floats, n_rotated: int) -> None:
    B, T, half = *x.shape[:2], cos.shape[1]
    heads = x[..., : n_rotated * 2 * half].reshape(B, T, n_rotated, 2 * half)
    c, s = cos[positions][:, :, None], sin[positions][:, :, None]  # (B,T,1,D/2)
    x1, x2 = heads[..., :half], heads[..., half:]
    rotated = np.concatenate([x1 * c - x2 * s, x2 * c + x1 * s], axis=-1)
    x[..., : n_rotated * 2 * half] = rotated.reshape(B, T, -1)


# ---------------------------------------------------------------------------- softmax


def softmax_forward(x: Floats) -> Floats:
    """y = exp(x) / sum(exp(x)) over the last axis; a row of -inf alone gives NaN.

    >>> softmax_forward(np.log([[1.0, 1.0, 2.0]])).round(3).tolist()
    [[0.25, 0.25, 0.5]]
    """
    e: Floats = np.exp(x - x.max(axis=-1, keepdims=True))  # the shift changes nothing but the range
    y: Floats = e / e.sum(axis=-1, keepdims=True)
    return y


def softmax_backward(dy: Floats, y: Floats) -> Floats:
    """dy, y (...,N) -> dx = y * (dy - sum(dy * y))."""
    dx: Floats = y * (dy - np.sum(dy * y, axis=-1, keepdims=True))
    return dx


# ---------------------------------------------------------------------------- attention


def attention_forward(
    qkv: Floats, n_head: int, scale: float, first_key: Integers | None = None, n_kv_head: int | None = None
) -> tuple[Floats, Floats]:
    """Causal self-attention of all heads (Vaswani et al. 2017, arXiv:1706.03762).

    qkv (B,T,(H+2K)D): the heads of queries, keys and values side by side, K = n_kv_head or else H.
    H / K query heads in a row share a head of keys and values (Ainslie et al. 2023, arXiv:2305.13245).
    first_key (B,T) integers, None = 0: query t sees the keys first_key[b,t] .. t.
    scale multiplies the scores: 1/sqrt(D) in GPT-2.
    -> out (B,T,HD), lse (B,H,T): log of each softmax's denominator, all that the backward keeps.
    """
    B, T, _ = qkv.shape
    q, k, v = _split_heads(qkv, n_head, n_kv_head)  # (B,H,T,D), then (B,K,T,D) twice
    k, v = _for_each_query_head(n_head, k, v)
    scores = _masked_scores(q, k, scale, first_key)  # (B,H,T,T)
    top = scores.max(axis=-1)
    exps = np.exp(scores - top[..., None])
    total = exps.sum(axis=-1)  # (B,H,T)
    lse = top + np.log(total)
    att = exps / total[..., None]
    out = (att @ v).transpose(0, 2, 1, 3).reshape(B, T, -1)
    return out, lse


def attention_backward(
    dout: Floats, qkv: Floats, out: Floats, lse: Floats,
    n_head: int, scale: float, first_key: Integers | None = None, n_kv_head: int | None = None,
) -> Floats:  # fmt: skip
    """dout, out (B,T,HD), qkv (B,T,(H+2K)D), lse (B,H,T) -> dqkv (B,T,(H+2K)D).

    The attention matrix is recomputed from lse, so that no forward has to store (B,H,T,T)
    (Dao et al. 2022, arXiv:2205.14135).
    """
    B, T, _ = qkv.shape
    q, k, v = _split_heads(qkv, n_head, n_kv_head)
    K, D = k.shape[1], k.shape[3]
    k, v = _for_each_query_head(n_head, k, v)
    dout_h = dout.reshape(B, T, n_head, D).transpose(0, 2, 1, 3)  # (B,H,T,D)
    out_h = out.reshape(B, T, n_head, D).transpose(0, 2, 1, 3)
    att = np.exp(_masked_scores(q, k, scale, first_key) - lse[..., None])  # (B,H,T,T)
    # forward: out = att @ v
    dv = att.transpose(0, 1, 3, 2) @ dout_h
    datt = dout_h @ v.transpose(0, 1, 3, 2)
    # forward: att = softmax(scores); sum(datt * att) over keys is sum(dout * out) over channels
    dscores = att * (datt - np.sum(dout_h * out_h, axis=-1, keepdims=True))
    # forward: scores = scale * q @ k.T
    dq = scale * (dscores @ k)
    dk = scale * (dscores.transpose(0, 1, 3, 2) @ q)
    # forward: a head of keys and values served H / K heads of queries
    dk, dv = (d.reshape(B, K, n_head // K, T, D).sum(axis=2) for d in (dk, dv))
    dqkv = np.concatenate([dq, dk, dv], axis=1)  # (B,H+2K,T,D)
    return np.ascontiguousarray(dqkv.transpose(0, 2, 1, 3).reshape(qkv.shape))


def _split_heads(qkv: Floats, n_head: int, n_kv_head: int | None) -> tuple[Floats, Floats, Floats]:
    B, T, N = qkv.shape
    H, K = n_head, n_kv_head or n_head
    heads = qkv.reshape(B, T, H + 2 * K, N // (H + 2 * K)).transpose(0, 2, 1, 3)  # (B,H+2K,T,D)
    return heads[:, :H], heads[:, H : H + K], heads[:, H + K :]


def _for_each_query_head(n_head: int, *arrays: Floats) -> list[Floats]:
    """Repeat heads of keys or values (B,K,T,D) until there is one for each head of queries (B,H,T,D)."""
    return [a if a.shape[1] == n_head else np.repeat(a, n_head // a.shape[1], axis=1) for a in arrays]


def _masked_scores(q: Floats, k: Floats, scale: float, first_key: Integers | None) -> Floats:
    T = q.shape[2]
    t, s = np.arange(T)[:, None], np.arange(T)[None, :]
    seen = s <= t  # (T,T): query t, key s
    if first_key is not None:
        seen = (seen & (s >= first_key[:, :, None]))[:, None]  # (B,1,T,T)
    scores = q.dtype.type(scale) * (q @ k.transpose(0, 1, 3, 2))
    return np.where(seen, scores, -np.inf).astype(q.dtype, copy=False)


# ---------------------------------------------------------------------------- head and loss


def cross_entropy(logits: Floats, targets: Integers, scale: float) -> Floats:
    """losses = lse - logits[target] in nats; logits become their gradient, scale * (softmax - one-hot).

    logits (M,V); targets (M,), those below 0 do not count -> losses (M,), 0 where the target does not count.
    With a scale of 0 the losses alone are made, and what is left in logits is of no use.

    >>> logits = np.log([[1.0, 1.0, 2.0]])
    >>> cross_entropy(logits, np.array([2]), 1).round(3).tolist(), logits.round(3).tolist()
    ([0.693], [[0.25, 0.25, -0.5]])
    """
    rows, counted = np.arange(len(logits)), targets >= 0
    picked = np.maximum(targets, 0)  # any class will do where nothing counts
    top = logits.max(axis=-1)
    lse = top + np.log(np.sum(np.exp(logits - top[:, None]), axis=-1))
    losses: Floats = np.where(counted, lse - logits[rows, picked], 0)
    if scale == 0:
        return losses
    # d lse / d logits = softmax, d logits[target] / d logits = one-hot
    np.exp(logits - lse[:, None], out=logits)
    logits[rows, picked] -= 1
    logits *= (counted * scale).astype(logits.dtype)[:, None]
    return losses


def head_cross_entropy(
    x: Floats, wte: Floats, targets: Integers, dwte: Floats | None = None, shift: Floats | None = None
) -> tuple[float, Floats | None]:
    """Tied head and mean cross-entropy in nats, forward and backward at once.

    logits = x @ wte.T + shift, loss = mean(lse - logits[target]).
    x (B,T,C); wte (V,C); targets (B,T), those below 0 do not count; shift (V,), constant
    -> loss (float, 0 if none counts), dx (B,T,C); adds to dwte (V,C). Without dwte, dx is None.

    Forward and backward are one op, so that the logits (B*T,V), larger than all else in a small batch of a
    large vocabulary, are never all in memory: the kernels go through the rows in chunks.
    """
    C, targets = wte.shape[1], targets.reshape(-1)
    n = max(int((targets >= 0).sum()), 1)
    logits = x.reshape(-1, C) @ wte.T  # (B*T,V)
    if shift is not None:
        logits += shift
    losses = cross_entropy(logits, targets, 0 if dwte is None else 1 / n)
    loss = float(losses.sum(dtype=np.float64) / n)
    if dwte is None:
        return loss, None
    # forward: logits = x @ wte.T
    dwte += logits.T @ x.reshape(-1, C)
    return loss, (logits @ wte).reshape(x.shape)


# ---------------------------------------------------------------------------- dropout

Key: TypeAlias = tuple[int, int, int, int]  # seed, step, layer, place
Words: TypeAlias = NDArray[np.uint64]  # of 32 bits each


def dropout_forward(x: Floats, p: float, key: Key, first_sample: int = 0) -> Floats:
    """y = x * mask: zero with probability p, else 1 / (1 - p), for each element.

    key = (seed, step, layer, place).  The mask of element i of sample b depends on key, first_sample + b
    and i alone, not on threads, ranks or the order of calls.  x (B,...) -> y.
    """
    return x * _dropout_mask(x.shape, p, key, first_sample).astype(x.dtype)


def dropout_backward(dy: Floats, p: float, key: Key, first_sample: int = 0) -> Floats:
    """dy -> dx: the same mask again."""
    # forward: y = x * mask
    return dropout_forward(dy, p, key, first_sample)


def _dropout_mask(shape: Shape, p: float, key: Key, first_sample: int) -> Floats:
    seed, step, layer, place = key
    B, size = shape[0], int(np.prod(shape[1:], dtype=np.int64))
    group = np.arange((size + 3) // 4, dtype=np.uint64)[None, :]  # each call yields four words
    sample = np.arange(first_sample, first_sample + B, dtype=np.uint64)[:, None]
    drawn = philox4x32((group, sample, layer, place), (seed, step))  # 4 x (B, size/4)
    words = np.stack(np.broadcast_arrays(*drawn), axis=-1).reshape(B, -1)[:, :size]
    keep = words >= dropout_threshold(p)
    return (keep / (1 - p)).reshape(shape)


def dropout_threshold(p: float) -> int:
    """The 32-bit number below which a random word drops its element."""
    return int(p * 2.0**32)


def philox4x32(counter: Sequence[ArrayLike], key: Sequence[int]) -> tuple[Words, Words, Words, Words]:
    """Philox 4x32-10, a counter-based generator: 4 words and a key of 2 -> 4 random words.

    They are uint64 arrays of 32 bits. Salmon, Moraes, Dror, Shaw: Parallel random numbers: as easy as 1, 2, 3
    (SC 2011), whose first test vector is

    >>> [f"{word:08x}" for word in philox4x32((0, 0, 0, 0), (0, 0))]
    ['6627e8d5', 'e169c58d', 'bc57ac4c', '9b00dbd8']
    """
    low = np.uint64(0xFFFFFFFF)
    shift = np.uint64(32)
    c0, c1, c2, c3 = (np.asarray(c, dtype=np.uint64) & low for c in counter)
    k0, k1 = (int(k) & 0xFFFFFFFF for k in key)
    for _ in range(10):
        product0 = c0 * np.uint64(0xD2511F53)
        product1 = c2 * np.uint64(0xCD9E8D57)
        c0, c1, c2, c3 = (
            (product1 >> shift) ^ c1 ^ np.uint64(k0),
            product1 & low,
            (product0 >> shift) ^ c3 ^ np.uint64(k1),
            product0 & low,
        )
        k0, k1 = (k0 + 0x9E3779B9) & 0xFFFFFFFF, (k1 + 0xBB67AE85) & 0xFFFFFFFF
    return c0, c1, c2, c3


# ---------------------------------------------------------------------------- optimizer


def global_norm(g: Floats) -> float:
    """Euclidean norm of the 1-D array g, summed in float64."""
    return float(np.sqrt(np.sum(np.square(g, dtype=np.float64))))


def adamw_step(
    p: Floats, g: Floats, m: Floats, v: Floats, n_decay: int,
    lr: float, beta1: float, beta2: float, eps: float, weight_decay: float, step: int, grad_scale: float,
) -> None:  # fmt: skip
    """One AdamW update (Loshchilov, Hutter 2019, arXiv:1711.05101), in place; g is zeroed.

    p, g, m, v: 1-D, of one length.  The first n_decay parameters are decayed.  step counts from 1.
    g is multiplied by grad_scale first: that is where clipping happens.
    """
    g *= p.dtype.type(grad_scale)
    m += (1 - beta1) * (g - m)
    v += (1 - beta2) * (g * g - v)
    p[:n_decay] *= 1 - lr * weight_decay
    # bias correction: m / (1 - beta1^step) over sqrt(v / (1 - beta2^step))
    rate = lr / (1 - beta1**step)
    p -= rate * m / (np.sqrt(v) / np.sqrt(1 - beta2**step) + eps)
    g[...] = 0


# Odd polynomials a x + b x^3 + c x^5 that bring the singular values of a matrix near 1, each the best for
# what the one before leaves (Polar Express, Amsel et al. 2025, arXiv:2505.16932), with their margin of 1.01.
# Three bring whatever is above a 40th of the norm to between 0.15 and 1.9, which trains no worse than closer.
POLAR = tuple(
    (a / 1.01, b / 1.01**3, c / 1.01**5)
    for a, b, c in (
        (8.28721201814563, -23.595886519098837, 17.300387312530933),
        (4.107059111542203, -2.9478499167379106, 0.5448431082926601),
        (3.9486908534822946, -2.908902115962949, 0.5518191394370137),
    )
)


def orthogonalise(u: Floats) -> Floats:
    """u (R,S) -> the matrix of its singular vectors, all singular values brought near 1."""
    x = u / (1.02 * np.linalg.norm(u) + 1e-7)  # the largest singular value is at most 1
    x = x.T if len(u) > len(u.T) else x  # the smaller side first: the products are cheaper
    for a, b, c in POLAR:
        gram = x @ x.T
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x.T if len(u) > len(u.T) else x


def muon_step(
    p: Floats, g: Floats, m: Floats, matrices: Integers,
    lr: float, momentum: float, weight_decay: float, grad_scale: float,
) -> None:  # fmt: skip
    """One Muon update (Jordan 2024, kellerjordan.github.io/posts/muon), in place; g is zeroed there.

    p, g, m: 1-D, of one length.  matrices (n,4) int64, for each: where it starts, its rows, columns, and the
    distance of its rows; they may not overlap.  Nesterov momentum, orthogonalised, is subtracted: each
    direction moves by about lr, times sqrt(columns / rows) where there are more columns.
    """
    for start, rows, columns, distance in matrices.tolist():
        at = (slice(start, start + (rows - 1) * distance + columns), rows, columns, distance)
        w, dw, mean = (_matrix(a, *at) for a in (p, g, m))
        d = dw * p.dtype.type(grad_scale)
        mean += (1 - momentum) * (d - mean)
        u = d + momentum * (mean - d)
        w *= 1 - lr * weight_decay
        w -= lr * max(1, columns / rows) ** 0.5 * orthogonalise(u)
        dw[...] = 0


def _matrix(flat: Floats, where: slice, rows: int, columns: int, distance: int) -> Floats:
    """Return a (rows,columns) view into the 1-D array flat."""
    chunk, size = flat[where], flat.itemsize
    return np.lib.stride_tricks.as_strided(chunk, (rows, columns), (distance * size, size))
