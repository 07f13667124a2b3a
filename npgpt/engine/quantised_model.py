"""A model whose matrices stay in the blocks of a file: nothing but LoRA adapters over it is trained."""

from collections.abc import Mapping
from dataclasses import replace
from hashlib import sha256
from typing import cast

import numpy as np
from numpy.typing import DTypeLike

from npgpt.engine.config import GPTConfig, count_parameters, frozen_shapes, parameter_shapes
from npgpt.engine.kernels import Ops
from npgpt.engine.model import GPT
from npgpt.engine.quantised import Quantised, QuantisedOps
from npgpt.engine.types import Floats, PathLike, Shapes, Tensors


class QuantisedGPT(GPT):
    """A GPT over Quantised matrices; norms, biases and learned positions are float, and flat_params is these.

    params has the matrices too, as Quantised. They cannot change, so that forward() with targets needs
    adapters; loss(), logits() and decode() do not.
    """

    is_float = False

    def __init__(
        self,
        config: GPTConfig,
        vectors: Tensors,
        matrices: Mapping[str, Quantised],
        file: PathLike,
        seed: int = 0,
        dtype: DTypeLike = np.float32,
    ) -> None:
        """Take the parameters of parameter_shapes(config), of which `file` holds the matrices."""
        self.matrices, self.file = dict(matrices), file
        self.config = config  # which _shapes() reads
        flat = np.concatenate([vectors[name].ravel() for name in self._shapes()]).astype(dtype)
        super().__init__(config, seed, dtype, weights=flat)
        self.num_params = count_parameters(config)

    def _shapes(self) -> Shapes:
        return {n: s for n, s in parameter_shapes(self.config).items() if n not in self.matrices}

    def _matrices(self) -> Tensors:
        return cast(Tensors, self.matrices)

    def _ops(self) -> Ops:
        return cast(Ops, QuantisedOps(super()._ops(), self.matrices["wte.weight"]))

    def _grad_shapes(self) -> Shapes:
        """Return the shapes of what backward() adds to: of the matrices, trained rows of wte alone."""
        if not self.adapters:
            raise ValueError("forward: a model in blocks must have adapters to be trained, got none")
        C = self.config.n_embd
        shapes: Shapes = {"wte.weight": (len(self.matrices["wte.weight"].tail), C)}
        if not self.config.tied:
            shapes["lm_head.weight"] = 0, C
        return shapes | {n: s for n, s in frozen_shapes(self._shapes()).items() if n != "wpe.weight"}

    def _logits_of(self, ops: Ops, x: Floats) -> Floats:
        return cast(Quantised, self.head_weights).forward(super()._ops(), x)

    def grow(self, known: int, vocab_size: int) -> None:
        """Have so many tokens. Rows from `known` on are new, the mean of those before; a LoRA trains them.

        A head of its own keeps its rows, so that a LoRA of such rows is refused.
        """
        wte = self.matrices["wte.weight"]
        wte.replace_from(known, wte.tail[:0])
        mean = sum((w.sum(axis=0, dtype=np.float64) for _, w in wte.strips()), np.zeros(wte.K)) / known
        wte.replace_from(known, np.tile(mean.astype(self.dtype), (vocab_size - known, 1)))
        self.config = replace(self.config, vocab_size=vocab_size)
        self.num_params = count_parameters(self.config)

    def scores(self, h: Floats) -> Floats:
        """Return the logits (M,V) of hidden states (M,C)."""
        return self._logits_of(self._ops(), h)

    def array(self, name: str) -> Floats:
        """Return a parameter as a new array, without its low-rank product: (in,out) as in a GPT, or (V,C)."""
        w = self.params[name]
        if not isinstance(w, Quantised):
            return w
        out = np.empty((w.N, w.K), self.dtype)
        for rows, numbers in w.strips():
            out[rows] = numbers
        return out.T if name.startswith("h.") else out

    @property
    def nbytes(self) -> int:
        """The bytes of the matrices' blocks."""
        return sum(w.nbytes for w in self.matrices.values())

    def digest(self) -> str:
        """Return the sha256 of all weights."""
        digest = sha256(self.flat_params.data)
        for name in sorted(self.matrices):
            for part in self.matrices[name].parts:
                digest.update(np.ascontiguousarray(part.blocks).data)
        return digest.hexdigest()
