"""Optimizers over a model's flat arrays: clip, update and zero the gradients in one pass."""

import itertools
import math
from abc import ABC, abstractmethod
from contextlib import AbstractContextManager
from typing import Protocol

import numpy as np

from npgpt.engine import kernels
from npgpt.engine.config import GPTConfig, embedding_size, parameter_shapes
from npgpt.engine.finite import is_finite_number
from npgpt.engine.kernels import Ops
from npgpt.engine.names import names_checked
from npgpt.engine.types import Floats, Integers, Tensors


class Trainable(Protocol):
    """The interface of a model to its optimizer: a GPT's, or that of a LoRA, which stands for its model."""

    config: GPTConfig
    dtype: np.dtype
    num_params: int
    n_decay: int  # the first so many parameters decay
    flat_params: Floats  # read-only

    @property
    def flat_grads(self) -> Floats:
        """The gradients of flat_params, 1-D, in its order."""

    def zero_grads(self) -> None:
        """Discard the gradients gathered so far."""

    def update(self) -> AbstractContextManager[Floats]:
        """Yield the parameters, 1-D and writable, and take note that they have changed."""


class Optimizer(ABC):
    """The base of AdamW and Muon: it checks settings, clips gradients, keeps the moments and their state."""

    lr: float
    eps: float
    weight_decay: float

    def __init__(self, model: Trainable, betas: tuple[float, float], **settings: float) -> None:
        for name, value in settings.items():
            if not (is_finite_number(value) and value >= 0):
                what = "finite and at least 0"
                raise ValueError(f"{type(self).__name__}: {name} must be {what}, got {value!s:.60}")
        if not all(0 <= beta < 1 for beta in betas):
            raise ValueError(f"{type(self).__name__}: betas must be in [0, 1), got {betas}")
        self.model, self.betas = model, betas
        vars(self).update(settings)
        self.steps = 0  # the number of updates so far
        self.owned = 0, model.num_params
        self._moments: tuple[Floats, Floats] | None = None

    def own(self, start: int, stop: int) -> None:
        """Update flat_params[start:stop] alone, and keep their moments alone; call it before any step.

        No cut may go through a matrix of a layer: Muon needs all of it.
        """
        self.owned, self._moments = (start, stop), None

    @property
    def moments(self) -> tuple[Floats, Floats]:
        """The moments (m, v), 1-D: running means of the gradient, and of its square where Adam needs that."""
        if self._moments is None:
            m, v = (kernels.zeros(r.stop - r.start, self.model.dtype) for r in self._ranges().values())
            self._moments = m, v
        return self._moments

    def _ranges(self) -> dict[str, slice]:
        """Return the slices that the owned moments are of those of all parameters."""
        return {"m": slice(*self.owned), "v": slice(*map(self._with_v, self.owned))}

    def _with_v(self, n: int) -> int:
        """Return how many of the first n parameters have a v."""
        return n

    @abstractmethod
    def _update(self, ops: Ops, p: Floats, g: Floats, m: Floats, v: Floats, grad_scale: float) -> None:
        """Update the parameters p from the gradients g, which are multiplied by grad_scale and zeroed."""

    def step(self, max_grad_norm: float | None = None) -> float:
        """Update the weights, zero the gradients, and return the gradients' norm before clipping.

        Where the norm exceeds max_grad_norm, the gradients are scaled down to it. A norm that is not finite
        changes nothing but the gradients: they are zeroed, the weights and moments stay as they were.
        """
        ops, model = kernels.ops_for(self.model.dtype), self.model
        norm = ops.global_norm(model.flat_grads)
        if not math.isfinite(norm):
            model.zero_grads()
            return norm
        grad_scale = 1.0
        if max_grad_norm is not None:
            grad_scale = min(1.0, max_grad_norm / (norm + 1e-6))  # torch's clip_grad_norm_
        self.steps += 1
        with model.update() as params:
            self._update(ops, params, model.flat_grads, *self.moments, grad_scale)
        for others in (slice(0, self.owned[0]), slice(self.owned[1], None)):
            model.flat_grads[others] = 0
        return norm

    def state(self) -> Tensors:
        """Return what a checkpoint keeps beside `steps`: {"m": 1-D, "v": 1-D}, of the owned parameters."""
        return dict(zip(("m", "v"), self.moments, strict=True))

    def load_state(self, state: Tensors, steps: int) -> None:
        """Resume from the state() of all parameters after `steps` steps. ValueError for another model's."""
        n = self.model.num_params
        for name, shape in {"m": (n,), "v": (self._with_v(n),)}.items():
            if state[name].shape != shape:
                raise ValueError(
                    f"{type(self).__name__}.load_state: {name} must have shape {shape}, "
                    f"got {state[name].shape}"
                )
        for moment, (name, where) in zip(self.moments, self._ranges().items(), strict=True):
            moment[...] = state[name][where]
        self.steps = steps


@names_checked
class AdamW(Optimizer):
    """Adam with decoupled weight decay (arXiv:1711.05101). Only 2-D weights decay, as in GPT-2's recipes."""

    def __init__(
        self,
        model: Trainable,
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.95),
        eps: float = 1e-8,
        weight_decay: float = 0.1,
    ) -> None:
        super().__init__(model, betas, lr=lr, eps=eps, weight_decay=weight_decay)

    def _update(self, ops: Ops, p: Floats, g: Floats, m: Floats, v: Floats, grad_scale: float) -> None:
        start, stop = self.owned
        n_decay = min(max(self.model.n_decay - start, 0), stop - start)
        ops.adamw_step(
            p[start:stop], g[start:stop], m, v, n_decay,
            self.lr, *self.betas, self.eps, self.weight_decay, self.steps, grad_scale,
        )  # fmt: skip


@names_checked
class Muon(Optimizer):
    """Muon for the matrices of the layers, AdamW for the embeddings, an untied head, biases and norms.

    Each of a layer's matrices (queries, keys and values apart, as are a gate and its values) moves along its
    momentum with all singular values made equal (kellerjordan.github.io/posts/muon). The momentum rises from
    0.1 below `momentum` over the first 300 steps. AdamW's rate is adamw_ratio * lr, so that one schedule
    serves both; 2-D weights decay at that rate.
    """

    WARMUP = 300
    adamw_ratio: float

    def __init__(
        self,
        model: Trainable,
        lr: float = 0.02,
        momentum: float = 0.95,
        adamw_ratio: float = 0.4,
        betas: tuple[float, float] = (0.9, 0.99),
        eps: float = 1e-8,
        weight_decay: float = 0.1,
    ) -> None:
        if not 0.1 <= momentum < 1:
            raise ValueError(f"Muon: momentum must be in [0.1, 1), got {momentum}")
        super().__init__(model, betas, lr=lr, adamw_ratio=adamw_ratio, eps=eps, weight_decay=weight_decay)
        self.momentum = momentum
        self._first, self._matrices = _layer_matrices(model.config)

    def _with_v(self, n: int) -> int:
        return min(n, self._first) + max(0, n - self.model.n_decay)

    def _update(self, ops: Ops, p: Floats, g: Floats, m: Floats, v: Floats, grad_scale: float) -> None:
        start, stop = self.owned
        first, last = (min(max(i, start), stop) for i in (self._first, self.model.n_decay))
        momentum = self.momentum - 0.1 * max(0.0, 1 - self.steps / self.WARMUP)
        decay = self.adamw_ratio * self.weight_decay
        if first < last:
            within, begin = slice(first, last), first - self._first
            starts = self._matrices[:, 0]
            matrices = self._matrices[(starts >= begin) & (starts < last - self._first)]
            matrices[:, 0] -= begin
            of_these = m[first - start : last - start]
            ops.muon_step(p[within], g[within], of_these, matrices, self.lr, momentum, decay, grad_scale)
        # embeddings, which decay; then biases and layernorms, which do not
        for a, b, n_decay in ((start, first, first - start), (last, stop, 0)):
            v_at = slice(*(self._with_v(i) - self._with_v(start) for i in (a, b)))
            if a < b:
                ops.adamw_step(
                    p[a:b], g[a:b], m[a - start : b - start], v[v_at], n_decay,
                    self.lr * self.adamw_ratio, *self.betas, self.eps, self.weight_decay, self.steps,
                    grad_scale,
                )  # fmt: skip


def _layer_matrices(config: GPTConfig) -> tuple[int, Integers]:
    """Return where the layers' matrices begin in flat_params; and ops.muon_step's (n,4) from there on."""
    start, matrices, of_keys = 0, [], config.K * config.D
    for name, shape in parameter_shapes(config).items():
        if len(shape) != 2 or not name.startswith("h."):
            continue
        rows, columns = shape
        widths = [columns]
        if name.endswith("c_attn.weight"):  # queries, keys and values
            widths = [config.n_head * config.D, of_keys, of_keys]
        elif name.endswith("c_fc.weight"):  # one, or a gate and what it lets through
            widths = [config.F] * (columns // config.F)
        for column, width in zip(itertools.accumulate([0, *widths]), widths, strict=False):
            matrices.append((start + column, rows, width, columns))
        start += rows * columns
    return embedding_size(config), np.array(matrices, np.int64)
