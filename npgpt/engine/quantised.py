"""Weights that stay in the blocks of a file, and the ops of a model that has them.

Where kernels are compiled, a product unpacks what it is about to multiply. Elsewhere a matrix is unpacked a
strip of rows at a time, into memory that the next strip takes. So the weights of a model are never float32 as
a whole. They do not change: what is trained stands beside them, a low-rank product, or rows at the end of an
embedding.

Dimensions: M rows of activations, N outputs, K inputs, R rank; V vocabulary, C channels; B batch, T time.
"""

import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple, TypeAlias

import numpy as np

from npgpt.engine import kernels
from npgpt.engine.kernels import Ops
from npgpt.engine.types import Array, Fields, Floats, Integers

STRIP = 1 << 20  # numbers unpacked at a time: 4 MB
LOGITS = 1 << 25  # floats of them at a time, 128 MB: the head is unpacked twice for each part of the rows
_MEMORY = threading.local()  # of the present strip: one for each thread of Python, as it is used at once

Unpack: TypeAlias = "Callable[[str, Array, Floats], None]"  # type, blocks (n,bytes), numbers (n,K) to write


class Rows(NamedTuple):
    """Rows of a matrix, as a file holds them."""

    blocks: Array  # (n,bytes) uint8
    type: str  # ggml's name in small letters
    unpack: Unpack


class LowRank(NamedTuple):
    """A product that is added to a matrix: x @ w.T + scale * (x @ a) @ b."""

    a: Floats  # (K,R)
    b: Floats  # (R,N)
    scale: float


class Quantised:
    """A matrix (N,K), a row for each output of a linear layer or each token, in parts one below the other."""

    def __init__(self, parts: Sequence[Rows], K: int, dtype: Any = np.float32) -> None:
        """Take the parts, which have K numbers in a row; what is computed is of the dtype."""
        self.parts, self.K, self.dtype = list(parts), K, np.dtype(dtype)
        self.stored = sum(len(part.blocks) for part in parts)
        self.tail: Floats = np.zeros((0, K), dtype)  # rows that take the place of those from `begin` on
        self.begin = self.stored
        self._arrays: list[tuple[Array, str]] | None = None  # the rows in use, each part with its type
        self.low_rank: LowRank | None = None

    def replace_from(self, begin: int, tail: Floats) -> None:
        """Let the rows of `tail` (n,K) take the place of those stored from `begin` on, which may be fewer."""
        self.begin, self.tail, self._arrays = begin, tail, None

    def __getstate__(self) -> Fields:
        """Return the state for copies and pickles, whose arrays are others."""
        return vars(self) | {"_arrays": None}

    @property
    def N(self) -> int:
        """The number of rows."""
        return self.begin + len(self.tail)

    @property
    def shape(self) -> tuple[int, int]:
        """The shape (K,N) of the weight of a linear layer, y = x @ w."""
        return self.K, self.N

    @property
    def nbytes(self) -> int:
        """The bytes of the blocks."""
        return sum(part.blocks.nbytes for part in self.parts)

    def strips(self) -> Iterator[tuple[slice, Floats]]:
        """Yield all rows, some at a time: which they are, and their numbers, until the next are asked for.

        The memory is that of all matrices, so that no two of them can be gone through together.
        """
        many, memory = max(1, STRIP // self.K), _memory(max(STRIP, self.K))
        for at, part in self._stored():
            for first in range(0, len(part.blocks), many):
                blocks = part.blocks[first : first + many]
                rows = memory[: len(blocks) * self.K].reshape(-1, self.K)
                part.unpack(part.type, blocks, rows)
                yield slice(at + first, at + first + len(rows)), rows.astype(self.dtype, copy=False)
        if len(self.tail):
            yield slice(self.begin, self.N), self.tail

    def _stored(self) -> Iterator[tuple[int, Rows]]:
        """Yield the parts whose rows are in use, each with the number of its first row."""
        at = 0
        for part in self.parts:
            count = min(len(part.blocks), self.begin - at)
            if count > 0:
                yield at, part._replace(blocks=part.blocks[:count])
            at += count

    def _compiled_parts(self) -> list[tuple[Array, str]] | None:
        """Return the parts as matmul_blocks takes them, where it is compiled and knows all their types."""
        if self.dtype != np.float32 or not kernels.compiled("matmul_blocks"):
            return None
        if self._arrays is None:
            self._arrays = [(part.blocks, part.type) for _, part in self._stored()]
            if len(self.tail):  # a view, which sees what is trained
                self._arrays.append((self.tail.view(np.uint8), "f32"))
        return self._arrays if all(type in kernels.compiled("UNPACKED") for _, type in self._arrays) else None

    def rows(self, ids: Integers) -> Floats:
        """Return the rows of ids (n,), which may occur several times: (n,K)."""
        out = np.empty((len(ids), self.K), self.dtype)
        for at, part in self._stored():
            chosen = np.flatnonzero((ids >= at) & (ids < at + len(part.blocks)))
            if len(chosen):
                found = np.empty((len(chosen), self.K), np.float32)
                part.unpack(part.type, np.ascontiguousarray(part.blocks[ids[chosen] - at]), found)
                out[chosen] = found
        chosen = np.flatnonzero(ids >= self.begin)
        out[chosen] = self.tail[ids[chosen] - self.begin]
        return out

    def forward(self, ops: Ops, x: Floats, b: Floats | None = None, residual: Floats | None = None) -> Floats:
        """y = x @ w.T + b + residual, with the low-rank product.  x (...,K) -> y (...,N)."""
        x_2d = np.ascontiguousarray(x.reshape(-1, self.K))
        y = _new((len(x_2d), self.N), x.dtype)
        residual_2d = None if residual is None else residual.reshape(-1, self.N)
        low_rank = None
        if self.low_rank:
            a, b_, scale = self.low_rank
            low_rank = ops.matmul(x_2d, a) * x.dtype.type(scale), b_
        if parts := self._compiled_parts():
            kernels.compiled("matmul_blocks")(x_2d, parts, y, b, residual_2d, low_rank, trans_b=True)
        else:
            for rows, w in self.strips():
                ops.matmul(x_2d, w, out=y[:, rows], trans_b=True)
            if low_rank:
                ops.matmul(*low_rank, out=y, accumulate=True)
            for added in (b, residual_2d):
                if added is not None:
                    y += added
        return y.reshape(*x.shape[:-1], self.N)

    def backward(self, ops: Ops, dy: Floats, low_rank: tuple[Floats, Floats] | None = None) -> Floats:
        """dy (...,N) -> dx (...,K): dy @ w, and p @ q.T where low_rank is p (M,R), q (K,R)."""
        # forward: y = x @ w.T
        dy_2d = dy.reshape(-1, self.N)
        dx = _new((len(dy_2d), self.K), dy.dtype)
        if parts := self._compiled_parts():
            kernels.compiled("matmul_blocks")(dy_2d, parts, dx, low_rank=low_rank)
        else:
            for rows, w in self.strips():
                ops.matmul(dy_2d[:, rows], w, out=dx, accumulate=rows.start > 0)
            if low_rank:
                ops.matmul(*low_rank, out=dx, trans_b=True, accumulate=True)
        return dx.reshape(*dy.shape[:-1], self.K)


def _memory(n: int) -> Floats:
    """Return the memory of a strip of n numbers."""
    found: Floats | None = getattr(_MEMORY, "strip", None)
    if found is None or len(found) < n:
        found = _MEMORY.strip = kernels.zeros(n)
    return found


def _new(shape: tuple[int, int], dtype: Any) -> Floats:
    """Return an array of any numbers."""
    empty = kernels.compiled("empty")
    out: Floats = empty(shape) if empty and dtype == np.float32 else np.empty(shape, dtype)
    return out


class QuantisedOps:
    """The ops of a model whose matrices are Quantised: those of `ops`, with matrices read by strips."""

    def __init__(self, ops: Ops, wte: Quantised) -> None:
        self._ops, self._wte = ops, wte

    def __getattr__(self, name: str) -> Any:
        return getattr(self._ops, name)

    def embedding_forward(
        self, ids: Integers, positions: Integers, wte: Quantised, wpe: Floats | None
    ) -> Floats:
        """x = wte[ids] + wpe[positions], as ops.embedding_forward."""
        x = wte.rows(ids.reshape(-1)).reshape(*ids.shape, wte.K)
        return x if wpe is None else x + wpe[positions]

    def linear_forward(
        self, x: Floats, w: Quantised, b: Floats | None = None, residual: Floats | None = None
    ) -> Floats:
        """y = x @ w + b + residual, as ops.linear_forward."""
        return w.forward(self._ops, x, b, residual)

    def linear_gelu_forward(self, x: Floats, w: Quantised, b: Floats | None = None) -> tuple[Floats, Floats]:
        """h = x @ w + b, y = gelu(h), as ops.linear_gelu_forward."""
        h = w.forward(self._ops, x, b)
        return self._ops.gelu_forward(h), h

    def head_cross_entropy(
        self, x: Floats, wte: Quantised, targets: Integers, dtail: Floats | None = None
    ) -> tuple[float, Floats | None]:
        """ops.head_cross_entropy, which adds to dtail (n,C), the gradient of the last rows, instead of dwte.

        The logits of so many rows of x are made at a time as LOGITS allows.
        """
        ops, V = self._ops, wte.N
        x_2d, flat = x.reshape(-1, wte.K), targets.reshape(-1)
        n, loss = max(int((flat >= 0).sum()), 1), 0.0
        dx = None if dtail is None else _new(x_2d.shape, x.dtype)
        many = max(1, LOGITS // V)
        for first in range(0, len(x_2d), many):
            here = slice(first, first + many)
            logits = wte.forward(ops, x_2d[here])
            losses = ops.cross_entropy(logits, flat[here], 0 if dtail is None else 1 / n)
            loss += float(losses.sum(dtype=np.float64))
            if dx is None or dtail is None:
                continue
            # forward: logits = x @ wte.T, and they are their gradient by now
            dx[here] = wte.backward(ops, logits)
            if len(dtail):
                dtail += logits[:, V - len(dtail) :].T @ x_2d[here]
        return loss / n, None if dx is None else dx.reshape(x.shape)

    def embedding_backward(
        self, dx: Floats, ids: Integers, positions: Integers, dtail: Floats, dwpe: Floats | None = None
    ) -> None:
        """dx (B,T,C) -> adds to dtail (n,C), the gradient of the last rows; all others are as they were."""
        # forward: x = wte[ids] + wpe[positions]
        trained = ids >= self._wte.begin
        np.add.at(dtail, ids[trained] - self._wte.begin, dx[trained])
