"""The choice between the compiled kernels and the NumPy reference; the only importer of _kernels.

It is made once, at import. describe() names it, and NPGPT_KERNELS, one of available(), forces it. A forced
choice that this machine lacks is an error; only `auto` may fall back, with a warning. _kernels has the
functions of ops.py for float32; float64 exists in the reference alone.
"""

import os
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, cast

import numpy as np
from numpy.typing import DTypeLike

from npgpt.engine import ops as reference
from npgpt.engine.types import Floats

_import_error: ImportError | None = None
try:
    from npgpt import _kernels
except ImportError as error:
    _kernels, _import_error = None, error  # type: ignore[assignment]
_compiled = False  # True while _kernels is in use


class Ops:
    """The functions of ops.py, compiled or not: the type of both modules for type checkers."""

    embedding_forward = staticmethod(reference.embedding_forward)
    embedding_backward = staticmethod(reference.embedding_backward)
    layernorm_forward = staticmethod(reference.layernorm_forward)
    layernorm_apply = staticmethod(reference.layernorm_apply)
    layernorm_backward = staticmethod(reference.layernorm_backward)
    rmsnorm_forward = staticmethod(reference.rmsnorm_forward)
    rmsnorm_apply = staticmethod(reference.rmsnorm_apply)
    rmsnorm_backward = staticmethod(reference.rmsnorm_backward)
    matmul = staticmethod(reference.matmul)
    linear_forward = staticmethod(reference.linear_forward)
    linear_backward = staticmethod(reference.linear_backward)
    linear_gelu_forward = staticmethod(reference.linear_gelu_forward)
    gelu_linear_backward = staticmethod(reference.gelu_linear_backward)
    gelu_forward = staticmethod(reference.gelu_forward)
    gelu_backward = staticmethod(reference.gelu_backward)
    erf_gelu_forward = staticmethod(reference.erf_gelu_forward)
    erf_gelu_backward = staticmethod(reference.erf_gelu_backward)
    swiglu_forward = staticmethod(reference.swiglu_forward)
    swiglu_backward = staticmethod(reference.swiglu_backward)
    rope_forward = staticmethod(reference.rope_forward)
    rope_backward = staticmethod(reference.rope_backward)
    softmax_forward = staticmethod(reference.softmax_forward)
    attention_forward = staticmethod(reference.attention_forward)
    attention_backward = staticmethod(reference.attention_backward)
    cross_entropy = staticmethod(reference.cross_entropy)
    head_cross_entropy = staticmethod(reference.head_cross_entropy)
    dropout_forward = staticmethod(reference.dropout_forward)
    global_norm = staticmethod(reference.global_norm)
    adamw_step = staticmethod(reference.adamw_step)
    muon_step = staticmethod(reference.muon_step)


# Floats of logits that training holds at a time; the reference holds all of them.
LOGITS = _kernels.LOGITS if _kernels else sys.maxsize

HOW_TO_BUILD = "pip install -e . in the source tree, with g++ installed"


# ---------------------------------------------------------------------------- the choice


def available() -> list[str]:
    """Return the names that use() takes on this machine, slowest first."""
    return ["numpy", *(_kernels.available() if _kernels else [])]


def name() -> str:
    """Return the implementation in use, one of available()."""
    return _kernels.name() if _compiled else "numpy"


def describe() -> str:
    """Return one line for people: "avx2 kernels, 2 threads"; without kernels, how to build them."""
    if _compiled:
        threads = get_num_threads()
        return f"{name()} kernels, {threads} thread{'s' if threads > 1 else ''}"
    if _kernels:
        return "NumPy alone (NPGPT_KERNELS=numpy)"
    return f"NumPy alone, slowly; build the kernels with {HOW_TO_BUILD}"


@contextmanager
def use(choice: str) -> Iterator[None]:
    """Run the ops of the block on `choice`, one of available() or "auto". For tests and benchmarks."""
    previous = name()
    _choose(choice)
    try:
        yield
    finally:
        _choose(previous)


def _choose(choice: str) -> None:
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


def ops_for(dtype: DTypeLike) -> Ops:
    """Return the ops for a dtype: the compiled kernels for float32 where they are in use.

    TypeError unless it is float32 or float64.
    """
    dtype = np.dtype(dtype)
    if dtype not in (np.float32, np.float64):
        raise TypeError(f"ops_for: dtype must be float32 or float64, got {dtype}")
    return cast(Ops, _kernels if _compiled and dtype == np.float32 else reference)


def compiled(name: str) -> Any:
    """Return the compiled function or class of this name where the kernels are in use, else None."""
    return getattr(_kernels, name) if _compiled else None


def library() -> str | None:
    """Return the path of the compiled kernels, which bring libnpgpt with them; None where unused."""
    return _kernels.__file__ if _compiled else None


# ---------------------------------------------------------------------------- threads and memory


def set_num_threads(n: int) -> None:
    """Set how many threads the kernels use, at least 1; the caller's thread is one of them.

    The default is the number of CPUs that this process may use.
    """
    if not isinstance(n, int | np.integer) or isinstance(n, bool):
        raise TypeError(f"set_num_threads: n must be an integer, got {type(n).__name__}")
    if n < 1:
        raise ValueError(f"set_num_threads: n must be at least 1, got {n}")
    if _kernels:
        _kernels.set_num_threads(int(n))


def get_num_threads() -> int:
    """Return how many threads the kernels use; 1 without kernels (NumPy's BLAS keeps its own count)."""
    return _kernels.num_threads() if _kernels else 1


def empty(n: int, dtype: DTypeLike = np.float32) -> Floats:
    """Return n numbers (n,) that are not set, on huge pages where there are compiled kernels."""
    return _kernels.empty((n,)) if _kernels and dtype == np.float32 else np.empty(n, dtype)


def zeros(n: int, dtype: DTypeLike = np.float32) -> Floats:
    """Return n zeros (n,), on huge pages where there are compiled kernels."""
    array = empty(n, dtype)
    array[...] = 0
    return array


def limits(seconds: float = 0.3) -> tuple[float, float]:
    """Measure this machine now, on all threads in use: GFLOP/s of multiply-adds, GB/s read from memory.

    RuntimeError without compiled kernels: NumPy cannot reach them.
    """
    if not _compiled:
        raise RuntimeError("limits: the compiled kernels must be in use, got NumPy alone")
    return _kernels.peak_gflops(seconds), _kernels.read_bandwidth(seconds)


def peak_gflops(seconds: float = 0.1) -> float:
    """Measure the GFLOP/s of limits() alone: between timed runs, as machines drift. NaN without kernels."""
    return _kernels.peak_gflops(seconds) if _compiled else float("nan")


def release_memory() -> None:
    """Give the memory that is kept for the next step back to the system."""
    if _kernels:
        _kernels.release_blocks()


_choose(os.environ.get("NPGPT_KERNELS") or "auto")
if _kernels is None and os.environ.get("NPGPT_REQUIRE_KERNELS", "0") not in ("", "0"):
    raise ImportError(f"NPGPT_REQUIRE_KERNELS is set and the kernels are not built ({_import_error})")
if _kernels is None and not os.environ.get("NPGPT_KERNELS"):
    warnings.warn(
        f"WARNING: npgpt has no compiled kernels here; build them with {HOW_TO_BUILD}", stacklevel=2
    )
