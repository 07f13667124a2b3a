"""Which implementation runs each op, the compiled kernels or the NumPy reference: the one importer of _kernels.

The choice is made once, at import; describe() shows it and NPGPT_KERNELS=auto|numpy|baseline|avx2 forces
it. A forced choice that this machine lacks is an error; only `auto` may fall back, and says so in one line
on stderr. `CompiledOps` has the functions of ops.py for float32; float64 exists in the reference alone.
"""

import os
import sys
from contextlib import contextmanager
from types import SimpleNamespace

import numpy as np

from npgpt.engine import ops as reference

try:
    from npgpt import _kernels
except ImportError as error:
    _kernels, _import_error = None, error
else:
    _import_error = None

HOW_TO_BUILD = "pip install -e . (needs g++)"


# ---------------------------------------------------------------------------- the choice


def available():
    """Names that use() takes here, slowest first."""
    return ["numpy", *(_kernels.available() if _kernels else [])]


def name():
    """The implementation in use: "numpy", "baseline", "avx2"."""
    return _kernels.name() if _compiled else "numpy"


def describe():
    """One line for people: "avx2 kernels, 2 threads"; without kernels, how to build them."""
    if _compiled:
        threads = get_num_threads()
        return f"{name()} kernels, {threads} thread{'s' if threads > 1 else ''}"
    if _kernels:
        return "NumPy alone (NPGPT_KERNELS=numpy)"
    return f"NumPy alone: no compiled kernels here; build them with {HOW_TO_BUILD}"


@contextmanager
def use(choice):
    """Within the block ops run on `choice`, one of available() or "auto". For tests and benchmarks."""
    previous = name()
    _choose(choice)
    try:
        yield
    finally:
        _choose(previous)


def _choose(choice):
    global _compiled
    if choice == "auto":
        _compiled = _kernels is not None
        if _compiled:
            _kernels.use("auto")
    elif choice in available():
        _compiled = choice != "numpy"
        if _compiled:
            _kernels.use(choice)
    else:
        why = f"; the kernels are not built ({_import_error})" if _kernels is None else ""
        known = ", ".join(["auto", *available()])
        raise ValueError(f"NPGPT_KERNELS: value must be one of {known}, got {choice!r}{why}")


def ops_for(dtype):
    """The ops for arrays of this dtype: the compiled kernels for float32 where they are in use."""
    dtype = np.dtype(dtype)
    if dtype not in (np.float32, np.float64):
        raise TypeError(f"ops_for: dtype must be float32 or float64, got {dtype}")
    return CompiledOps if _compiled and dtype == np.float32 else reference


# ---------------------------------------------------------------------------- threads and memory


def set_num_threads(n):
    """Threads that the kernels use, this one included; at least 1. Default: the CPUs this process may use."""
    if not isinstance(n, int | np.integer) or isinstance(n, bool):
        raise TypeError(f"set_num_threads: n must be an integer, got {type(n).__name__}")
    if n < 1:
        raise ValueError(f"set_num_threads: n must be at least 1, got {n}")
    if _kernels:
        _kernels.set_num_threads(int(n))


def get_num_threads():
    """Threads in use by the kernels; 1 where there are none (NumPy's BLAS keeps its own count)."""
    return _kernels.num_threads() if _kernels else 1


def zeros(n, dtype=np.float32):
    """A 1-D array of zeros, on huge pages where the kernels are there."""
    array = _empty((n,)) if dtype == np.float32 else np.empty(n, dtype)
    array[...] = 0
    return array


def release_memory():
    """Hands memory that was kept for the next step back to the system."""
    if _kernels:
        _kernels.release_blocks()


_empty = _kernels.empty if _kernels else lambda shape: np.empty(shape, np.float32)


# ---------------------------------------------------------------------------- the compiled ops
# The kernels write into arrays that they are given; here those are made. ops.py says what each op computes.


def _embedding_forward(ids, positions, wte, wpe):
    x = _empty((*ids.shape, wte.shape[1]))
    _kernels.embedding_forward(x, ids, positions, wte, wpe)
    return x


def _layernorm_forward(x, w, b, eps):
    y, mean, rstd = _empty(x.shape), _empty(x.shape[:-1]), _empty(x.shape[:-1])
    _kernels.layernorm_forward(y, mean, rstd, x, w, b, eps)
    return y, mean, rstd


def _layernorm_backward(dy, x, mean, rstd, w, dw, db=None, residual=None):
    dx = _empty(x.shape)
    _kernels.layernorm_backward(dx, dy, x, mean, rstd, w, dw, db, residual)
    return dx


def _matmul(a, b, out=None, trans_a=False, trans_b=False, accumulate=False):
    if out is None:
        out = _empty((a.shape[1 if trans_a else 0], b.shape[0 if trans_b else 1]))
    _kernels.matmul(out, a, b, trans_a, trans_b, accumulate)
    return out


def _linear_forward(x, w, b=None, residual=None):
    y = _empty((*x.shape[:-1], w.shape[-1]))
    _kernels.linear_forward(y, None, x, w, b, residual)
    return y


def _linear_gelu_forward(x, w, b=None):
    shape = (*x.shape[:-1], w.shape[-1])
    y, h = _empty(shape), _empty(shape)
    _kernels.linear_forward(y, h, x, w, b, None)
    return y, h


def _linear_backward(dy, x, w, dw, db=None, gelu_input=None):
    dx = _empty(x.shape)
    _kernels.linear_backward(dx, dy, x, w, dw, db, gelu_input)
    return dx


def _gelu_forward(x):
    y = _empty(x.shape)
    _kernels.gelu_forward(y, x)
    return y


def _gelu_backward(dy, x):
    dx = _empty(x.shape)
    _kernels.gelu_backward(dx, dy, x)
    return dx


def _softmax_forward(x):
    y = _empty(x.shape)
    _kernels.softmax_forward(y, x)
    return y


def _softmax_backward(dy, y):
    dx = _empty(y.shape)
    _kernels.softmax_backward(dx, dy, y)
    return dx


def _attention_forward(qkv, n_head, scale, first_key=None):
    B, T, C3 = qkv.shape
    out, lse = _empty((B, T, C3 // 3)), _empty((B, n_head, T))
    _kernels.attention_forward(out, lse, qkv, n_head, scale, first_key)
    return out, lse


def _attention_backward(dout, qkv, out, lse, n_head, scale, first_key=None):
    dqkv = _empty(qkv.shape)
    _kernels.attention_backward(dqkv, dout, qkv, out, lse, n_head, scale, first_key)
    return dqkv


def _head_cross_entropy_forward(x, wte, targets):
    dlogits = _empty((targets.size, wte.shape[0]))
    loss = _kernels.head_cross_entropy_forward(dlogits, x, wte, targets)
    return loss, dlogits


def _head_cross_entropy_backward(dlogits, x, wte, dwte):
    rows = x.reshape(-1, x.shape[-1])
    # forward: logits = x @ wte.T
    _kernels.matmul(dwte, dlogits, rows, True, False, True)
    return _matmul(dlogits, wte).reshape(x.shape)


def _dropout_forward(x, p, key, first_sample=0):
    y = _empty(x.shape)
    _kernels.dropout(y, x, p, key, first_sample)
    return y


if _kernels:
    CompiledOps = SimpleNamespace(
        empty=_empty,
        embedding_forward=_embedding_forward,
        embedding_backward=_kernels.embedding_backward,
        layernorm_forward=_layernorm_forward,
        layernorm_backward=_layernorm_backward,
        matmul=_matmul,
        linear_forward=_linear_forward,
        linear_backward=_linear_backward,
        linear_gelu_forward=_linear_gelu_forward,
        gelu_forward=_gelu_forward,
        gelu_backward=_gelu_backward,
        softmax_forward=_softmax_forward,
        softmax_backward=_softmax_backward,
        attention_forward=_attention_forward,
        attention_backward=_attention_backward,
        head_cross_entropy_forward=_head_cross_entropy_forward,
        head_cross_entropy_backward=_head_cross_entropy_backward,
        dropout_forward=_dropout_forward,
        dropout_backward=_dropout_forward,  # the same mask again
        global_norm=_kernels.global_norm,
        adamw_step=_kernels.adamw_step,
    )

_choose(os.environ.get("NPGPT_KERNELS") or "auto")
if _kernels is None and not os.environ.get("NPGPT_KERNELS"):
    print(
        f"npgpt: WARNING: running on NumPy alone, without compiled kernels ({_import_error}); "
        f"build them with {HOW_TO_BUILD}",
        file=sys.stderr,
    )
