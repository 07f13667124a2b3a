"""One call of every op of ops.py, for the tests that ask the same of all of them.

arguments(op, rng, sizes) -> {name: value}, in the order in which the op takes them.
run(ops, op, arguments) -> {name: array}: everything that the call returned or could have written.
"""

from types import SimpleNamespace

import numpy as np

# Odd, and smaller than any vector or tile.
SMALL = SimpleNamespace(B=2, T=3, C=6, H=2, K=1, V=7, N=5)
# Work for three threads in every op: more elements, rows and blocks of rows than one of them takes at a time,
# a K beyond one block, and nothing a multiple of a tile.
LARGE = SimpleNamespace(B=5, T=67, C=99, H=3, K=1, V=331, N=397)

IN_PLACE = {"dw", "db", "dwte", "dwpe"}  # parameter gradients: added to by every backward


def _normal(rng, *shape):
    return rng.standard_normal(shape).astype(np.float32)


def _ids(rng, limit, *shape):
    return rng.integers(0, limit, shape).astype(np.int32)


def _first_key(rng, B, T):
    return rng.integers(0, np.arange(T) + 1, (B, T)).astype(np.int32)


def _embedding(rng, s):
    return {"ids": _ids(rng, s.V, s.B, s.T), "positions": _ids(rng, s.T, s.B, s.T)}


def embedding_forward(rng, s):
    return _embedding(rng, s) | {"wte": _normal(rng, s.V, s.C), "wpe": _normal(rng, s.T, s.C)}


def embedding_backward(rng, s):
    dx = {"dx": _normal(rng, s.B, s.T, s.C)}
    return dx | _embedding(rng, s) | {"dwte": _normal(rng, s.V, s.C), "dwpe": _normal(rng, s.T, s.C)}


def layernorm_forward(rng, s):
    x, w, b = _normal(rng, s.B, s.T, s.C), _normal(rng, s.C), _normal(rng, s.C)
    return {"x": x, "w": w, "b": b, "eps": 1e-5}


def layernorm_apply(rng, s):
    x, w, b = _normal(rng, s.B, s.T, s.C), _normal(rng, s.C), _normal(rng, s.C)
    return {"x": x, "mean": x.mean(axis=-1), "rstd": 1 / x.std(axis=-1), "w": w, "b": b}


def layernorm_backward(rng, s):
    x = _normal(rng, s.B, s.T, s.C)
    return {
        "dy": _normal(rng, s.B, s.T, s.C),
        "x": x,
        "mean": x.mean(axis=-1),
        "rstd": 1 / x.std(axis=-1),
        "w": _normal(rng, s.C),
        "dw": _normal(rng, s.C),
        "db": _normal(rng, s.C),
        "residual": _normal(rng, s.B, s.T, s.C),
    }


def rmsnorm_forward(rng, s):
    return {"x": _normal(rng, s.B, s.T, s.C), "w": _normal(rng, s.C), "eps": 1e-5}


def rmsnorm_apply(rng, s):
    x = _normal(rng, s.B, s.T, s.C)
    return {"x": x, "rstd": np.mean(x * x, axis=-1) ** -0.5, "w": _normal(rng, s.C)}


def rmsnorm_backward(rng, s):
    dy = _normal(rng, s.B, s.T, s.C)
    dw, residual = _normal(rng, s.C), _normal(rng, s.B, s.T, s.C)
    return {"dy": dy} | rmsnorm_apply(rng, s) | {"dw": dw, "residual": residual}


def matmul(rng, s):
    a, b, out = _normal(rng, s.B * s.T, s.N), _normal(rng, s.N, s.V), _normal(rng, s.B * s.T, s.V)
    return {"a": a, "b": b, "out": out, "trans_a": False, "trans_b": False, "accumulate": True}


def linear_forward(rng, s):
    return {
        "x": _normal(rng, s.B, s.T, s.C),
        "w": _normal(rng, s.C, s.N),
        "b": _normal(rng, s.N),
        "residual": _normal(rng, s.B, s.T, s.N),
    }


def linear_gelu_forward(rng, s):
    return {"x": _normal(rng, s.B, s.T, s.C), "w": _normal(rng, s.C, s.N), "b": _normal(rng, s.N)}


def linear_backward(rng, s):
    return {
        "dy": _normal(rng, s.B, s.T, s.N),
        "x": _normal(rng, s.B, s.T, s.C),
        "w": _normal(rng, s.C, s.N),
        "dw": _normal(rng, s.C, s.N),
        "db": _normal(rng, s.N),
    }


def gelu_linear_backward(rng, s):
    x = linear_backward(rng, s)
    return {"dz": x["dy"], "h": x["x"], "w": x["w"], "dw": x["dw"], "db": x["db"]}


def gelu_forward(rng, s):
    return {"x": _normal(rng, s.B, s.T, s.N)}


def gelu_backward(rng, s):
    return {"dy": _normal(rng, s.B, s.T, s.N), "x": _normal(rng, s.B, s.T, s.N)}


def erf_gelu_forward(rng, s):
    return gelu_forward(rng, s)


def erf_gelu_backward(rng, s):
    return gelu_backward(rng, s)


def swiglu_forward(rng, s):
    return {"h": _normal(rng, s.B, s.T, 2 * s.N)}


def swiglu_backward(rng, s):
    return {"dy": _normal(rng, s.B, s.T, s.N), "h": _normal(rng, s.B, s.T, 2 * s.N)}


def _rope(rng, s, name):
    D = 2 * (s.C // s.H)
    angles = _normal(rng, s.T + 2, D // 2)
    x, positions = _normal(rng, s.B, s.T, (s.H + 2 * s.K) * D), _ids(rng, s.T + 2, s.B, s.T)
    return {
        name: x,
        "positions": positions,
        "cos": np.cos(angles),
        "sin": np.sin(angles),
        "n_rotated": s.H + s.K,
    }


def rope_forward(rng, s):
    return _rope(rng, s, "qkv")


def rope_backward(rng, s):
    return _rope(rng, s, "dqkv")


def softmax_forward(rng, s):
    return {"x": _normal(rng, s.B, s.T, s.N)}


def softmax_backward(rng, s):
    x = np.exp(_normal(rng, s.B, s.T, s.N))
    return {"dy": _normal(rng, s.B, s.T, s.N), "y": x / x.sum(axis=-1, keepdims=True)}


def cross_entropy(rng, s):
    targets = rng.integers(-1, s.N, s.B).astype(np.int32)
    return {"logits": _normal(rng, s.B, s.N), "targets": targets, "scale": 0.5}


def attention_forward(rng, s):
    qkv, first_key = _normal(rng, s.B, s.T, (s.H + 2 * s.K) * s.C // s.H), _first_key(rng, s.B, s.T)
    return {"qkv": qkv, "n_head": s.H, "scale": 0.3, "first_key": first_key, "n_kv_head": s.K}


def attention_backward(rng, s):
    from npgpt.engine import ops

    forward = attention_forward(rng, s)
    out, lse = ops.attention_forward(*forward.values())
    qkv = forward.pop("qkv")
    return {"dout": _normal(rng, s.B, s.T, s.C), "qkv": qkv, "out": out, "lse": lse} | forward


def head_cross_entropy(rng, s):
    targets = _ids(rng, s.V, s.B, s.T)
    targets[:, 1] = -1
    return {
        "x": _normal(rng, s.B, s.T, s.C),
        "wte": _normal(rng, s.V, s.C),
        "targets": targets,
        "dwte": _normal(rng, s.V, s.C),
        "shift": _normal(rng, s.V),
    }


def dropout_forward(rng, s):
    return {"x": _normal(rng, s.B, s.T, s.N), "p": 0.3, "key": (1, 2, 3, 0), "first_sample": 4}


def dropout_backward(rng, s):
    return {"dy": _normal(rng, s.B, s.T, s.N), "p": 0.3, "key": (1, 2, 3, 0), "first_sample": 4}


def global_norm(rng, s):
    return {"g": _normal(rng, s.V * s.N)}


def adamw_step(rng, s):
    p, g, m, v = (_normal(rng, s.V * s.N) for _ in range(4))
    scalars = {"n_decay": s.V * 3, "lr": 0.01, "beta1": 0.9, "beta2": 0.95, "eps": 1e-8}
    scalars |= {"weight_decay": 0.1, "step": 3, "grad_scale": 0.5}
    return {"p": p, "g": g, "m": m, "v": v * v} | scalars


def muon_step(rng, s):
    """A wide, a high and a square matrix, one in three parts side by side, and numbers of none."""
    C, N = s.C, s.N
    parts = [(0, C, C), (C, C, C), (2 * C, C, C)]
    blocks = [(start, rows, columns, 3 * C) for start, rows, columns in parts]
    at = 3 * C * C + 5
    for rows, columns in ((C, N), (N, C), (C, C)):
        blocks.append((at, rows, columns, columns))
        at += rows * columns
    p, g, m = (_normal(rng, at + 3) for _ in range(3))
    scalars = {"lr": 0.02, "momentum": 0.95, "weight_decay": 0.1, "grad_scale": 0.5}
    return {"p": p, "g": g, "m": m, "matrices": np.array(blocks, np.int64)} | scalars


OPS = {
    f.__name__: f
    for f in (
        embedding_forward, embedding_backward, layernorm_forward, layernorm_apply, layernorm_backward,
        rmsnorm_forward, rmsnorm_apply, rmsnorm_backward, matmul, linear_forward, linear_gelu_forward,
        linear_backward, gelu_linear_backward, gelu_forward, gelu_backward, erf_gelu_forward,
        erf_gelu_backward, swiglu_forward, swiglu_backward, rope_forward, rope_backward, softmax_forward,
        softmax_backward, attention_forward, attention_backward, cross_entropy, head_cross_entropy,
        dropout_forward, dropout_backward, global_norm, adamw_step, muon_step,
    )
}  # fmt: skip


def arguments(op, rng, sizes):
    return OPS[op](rng, sizes)


def may_write(op, argument):
    """Whether the op's contract lets it write this argument."""
    return argument in IN_PLACE or (op, argument) in (
        {("matmul", "out"), ("rope_forward", "qkv"), ("rope_backward", "dqkv"), ("cross_entropy", "logits")}
        | {("adamw_step", name) for name in "pgmv"}
        | {("muon_step", name) for name in "pgm"}
    )


def off_by_one_float(array):
    """A copy that starts 4 bytes after an address that is a multiple of 64, where items have 4 bytes."""
    if array.itemsize != 4:
        return np.copy(array)
    room = np.empty(array.size + 32, array.dtype)
    start = -(room.ctypes.data // 4) % 16 + 1
    view = room[start : start + array.size].reshape(array.shape)
    view[...] = array
    assert view.ctypes.data % 64 == 4 and view.flags.c_contiguous
    return view


def run(ops, op, arguments, place=np.copy):
    """Calls the op on copies (made by `place`) -> {"result 0": ..., and each array argument afterwards}."""
    given = {k: place(v) if isinstance(v, np.ndarray) else v for k, v in arguments.items()}
    returned = getattr(ops, op)(*given.values())
    returned = returned if isinstance(returned, tuple) else (returned,)
    results = {f"result {i}": np.asarray(r) for i, r in enumerate(returned) if r is not None}
    return results | {k: v for k, v in given.items() if isinstance(v, np.ndarray)}
