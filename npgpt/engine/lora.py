"""LoRA (Hu et al. 2021, arXiv:2106.09685): a low-rank product beside each frozen matrix of the layers.

W = base + scale * A @ B is kept merged in the model, so forward, generation and files need not know of it.
Over a base that stays in the blocks of a file, the product stands beside each matrix instead (quantised.py).
An optimizer is given the LoRA instead of its model: flat_params, flat_grads and the moments are those of the
adapters alone, and of the last rows of wte, where tokens were added.

K inputs, N outputs, R rank, M rows of activations.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from math import prod

import numpy as np

from npgpt.engine import kernels
from npgpt.engine.config import (
    GPTConfig,
    count_parameters,
    frozen_shapes,
    parameter_shapes,
    size_of,
    training_floats,
)
from npgpt.engine.kernels import Ops
from npgpt.engine.model import GPT, read_only_views, views_of, writable
from npgpt.engine.quantised import LOGITS, STRIP, LowRank, Quantised
from npgpt.engine.types import Fields, Floats, Shapes, Tensors

ROWS = "wte.rows"


def lora_forward(base: Floats, a: Floats, b: Floats, scale: float) -> Floats:
    """w = base + scale * a @ b.  base (K,N); a (K,R); b (R,N) -> w (K,N)."""
    return base + base.dtype.type(scale) * (a @ b)


def lora_backward(
    ops: Ops,
    dy: Floats,
    x: Floats,
    w: Floats | Quantised,
    a: Floats,
    b: Floats,
    da: Floats,
    db: Floats,
    scale: float,
) -> Floats:
    """dy (M,N), x (M,K), w (K,N) -> dx (M,K); adds to da (K,R), db (R,N), never making dw (K,N).

    An array w is merged, a Quantised one the base alone.
    """
    # forward: y = x @ (base + scale * a @ b)
    dy_b, x_a = ops.matmul(dy, b, trans_b=True), ops.matmul(x, a)  # (M,R)
    dy_b *= dy.dtype.type(scale)
    x_a *= x.dtype.type(scale)
    ops.matmul(x, dy_b, out=da, trans_a=True, accumulate=True)
    ops.matmul(x_a, dy, out=db, trans_a=True, accumulate=True)
    if isinstance(w, Quantised):
        return w.backward(ops, dy, low_rank=(dy_b, a))
    return ops.matmul(dy, w, trans_b=True)


class LoRA:
    """The adapters of a model, which become its model.adapters. edit() alone changes them, as its weights."""

    def __init__(self, model: GPT, rank: int, rows: int = 0, seed: int = 0) -> None:
        """Draw A as N(0, 1 / K) by seed and set B to 0; the last `rows` rows of wte are trained too.

        ValueError for rows where the head has weights of its own, which would never learn them.
        """
        if rows and not model.config.tied:
            raise ValueError(f"LoRA: the head must be tied to wte to train {rows} rows of added tokens")
        self.model, self.config, self.dtype, self.rank = model, model.config, model.dtype, rank
        self.alpha, self.scale = 2 * rank, 2.0  # scale = alpha / rank
        self._shapes = shapes = adapter_shapes(model.config, rank, rows)
        self.num_params = self.n_decay = size_of(shapes)
        self._weights = kernels.zeros(self.num_params, self.dtype)
        self.flat_grads = kernels.zeros(self.num_params, self.dtype)
        adapted = {name: w for name, w in model.params.items() if f"{name}.A" in shapes}
        self.base = {name: w.copy() for name, w in adapted.items()} if model.is_float else {}
        before = _last_rows(model.params["wte.weight"], rows)
        self._make_views()
        rng = np.random.default_rng(seed)
        with writable(self.flat_params, self.params):  # B stays 0: training begins at the model as it is
            for name in adapted:
                a = self.params[f"{name}.A"]
                a[...] = rng.standard_normal(a.shape, dtype=np.float32) / np.sqrt(len(a))
            if rows:
                self.params[ROWS][...] = before
        model.attach(self)

    def _make_views(self) -> None:
        self.flat_params, self.params = read_only_views(self._weights, self._shapes)
        self.grads = views_of(self.flat_grads, self._shapes)
        if self.model.is_float:
            return
        for name, w in self.model.params.items():  # which see each change of the adapters
            if isinstance(w, Quantised) and f"{name}.A" in self.params:
                w.low_rank = LowRank(self.params[f"{name}.A"], self.params[f"{name}.B"], self.scale)
            elif isinstance(w, Quantised) and name == "wte.weight" and ROWS in self.params:
                w.replace_from(w.N - len(self.params[ROWS]), self.params[ROWS])

    def __getstate__(self) -> Fields:
        """Return the state for copies and pickles, without the views, which are made again of the copy."""
        views = "flat_params", "params", "grads"
        return {name: value for name, value in vars(self).items() if name not in views}

    def __setstate__(self, state: Fields) -> None:
        vars(self).update(state)
        self._make_views()

    @contextmanager
    def edit(self) -> Iterator[Tensors]:
        """Make the adapters writable for the block, and yield params; then merge them into the model."""
        with self.update(), writable(self.flat_params, self.params):
            yield self.params

    @contextmanager
    def update(self) -> Iterator[Floats]:
        """Yield the adapters, 1-D and writable, to an optimizer; then merge them into the model."""
        try:
            yield self._weights
        finally:
            self._merge()

    def _merge(self) -> None:
        with self.model.update() as weights:
            if not self.model.is_float:
                return
            merged = views_of(weights, parameter_shapes(self.config))
            for name, base in self.base.items():
                a, b = self.params[f"{name}.A"], self.params[f"{name}.B"]
                merged[name][...] = lora_forward(base, a, b, self.scale)
            if ROWS in self.params:
                merged["wte.weight"][-len(self.params[ROWS]) :] = self.params[ROWS]

    def unmerged(self) -> GPT:
        """Return the model without the low-rank products, a copy; rows of wte stay as they were trained.

        A base in blocks is returned itself, as its arrays are those of the file.
        """
        if not self.model.is_float:
            return self.model
        model = GPT(self.config, seed=None, dtype=self.dtype)
        with model.edit() as params:
            for name, w in self.model.params.items():
                params[name][...] = self.base.get(name, w)
            if ROWS in self.params:
                params["wte.weight"][-len(self.params[ROWS]) :] = self.params[ROWS]
        return model

    def zero_grads(self) -> None:
        """Zero the gradients of the model and of the adapters."""
        self.model.zero_grads()

    def linear_backward(self, ops: Ops, dy: Floats, x: Floats, w: Floats, name: str) -> Floats:
        """Return dx (...,K) of the linear `name` with weight w as in lora_backward: dy (...,N), x (...,K)."""
        (K, N), key = w.shape, f"{name}.weight"
        dy_2d, x_2d = dy.reshape(-1, N), x.reshape(-1, K)
        a, b, da, db = (tensors[f"{key}.{m}"] for tensors in (self.params, self.grads) for m in "AB")
        return lora_backward(ops, dy_2d, x_2d, w, a, b, da, db, self.scale).reshape(x.shape)

    def take_rows(self, grads: Tensors) -> None:
        """Take the gradient of wte's trained rows after a backward pass, and zero the model's gradients."""
        if ROWS in self.params:
            self.grads[ROWS] += grads["wte.weight"][-len(self.params[ROWS]) :]
        self.model.flat_grads[...] = 0


def _last_rows(wte: Floats | Quantised, rows: int) -> Floats:
    """Return the last rows of an embedding (rows,C)."""
    if isinstance(wte, Quantised):
        return wte.rows(np.arange(wte.N - rows, wte.N))
    return wte[len(wte) - rows :]


def adapter_shapes(config: GPTConfig, rank: int, rows: int) -> Shapes:
    """Return {name: shape} of the tensors that are trained."""
    shapes: Shapes = {ROWS: (rows, config.n_embd)} if rows else {}
    for name, shape in parameter_shapes(config).items():
        if name.startswith("h.") and len(shape) == 2:
            shapes |= {f"{name}.A": (shape[0], rank), f"{name}.B": (rank, shape[1])}
    return shapes


def lora_floats(config: GPTConfig, batch: int, time: int, rank: int, rows: int) -> int:
    """Return how many numbers a training step with adapters holds, as training_floats() does without them."""
    # Not gradients and two moments of all weights: gradients of all but the layers' matrices, and a copy of
    # these matrices as they were.
    trained = 4 * size_of(adapter_shapes(config, rank, rows))
    return training_floats(config, batch, time) - 2 * count_parameters(config) + trained


def floats_over_blocks(config: GPTConfig, batch: int, time: int, rank: int, rows: int) -> int:
    """Return the same over a base that stays in blocks, which are not counted."""
    # No numbers for the matrices, but a strip of them; the logits in other parts than training_floats() has.
    trained = 4 * size_of(adapter_shapes(config, rank, rows))
    others = 2 * sum(
        prod(shape) for shape in frozen_shapes(parameter_shapes(config)).values() if len(shape) == 1
    )
    logits = min(batch * time * config.vocab_size, LOGITS)
    step = training_floats(config, batch, time) - 4 * count_parameters(config)
    return step + trained + others + STRIP + logits
