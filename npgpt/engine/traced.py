"""A model with its weights held still, from token embeddings to hidden states and back to their gradient.

The blocks are those of model.py, forward and backward. Here stand what goes in and what was kept on the way:
the attention of each head, and what each layer would have given to the head.

Dimensions: B batch, T time, C = n_embd, V = vocab_size, H heads of queries, K of keys, D numbers in a head.
"""

from collections.abc import Iterator
from dataclasses import replace

import numpy as np

from npgpt.engine.config import parameter_shapes
from npgpt.engine.kernels import Ops
from npgpt.engine.model import GPT, ForwardCache, Statistics, Weights
from npgpt.engine.types import Floats, Integers, Shapes, Tensors


class _NoWeights:
    """Adapters of a backward pass that goes to the inputs alone: no gradient of a matrix is computed."""

    def __init__(self) -> None:
        self.flat_grads: Floats = np.zeros(0, np.float32)

    def linear_backward(self, ops: Ops, dy: Floats, x: Floats, w: Floats, name: str) -> Floats:
        """Return dx (...,K) of y = x @ w: dy (...,N), w (K,N)."""
        return ops.matmul(dy.reshape(-1, dy.shape[-1]), w, trans_b=True).reshape(x.shape)

    def take_rows(self, grads: Tensors) -> None:
        """Do nothing: there are no rows of wte to train."""


class TracedGPT(GPT):
    """A model over the weights of another, without a copy and without dropout, that traces what it computes.

    Nothing of the other model changes, its gradients and a training step that it is in included.
    """

    def __init__(self, model: GPT) -> None:
        """Take the weights of `model`; ValueError where they stay in the blocks of a file."""
        if not model.is_float:
            raise ValueError("TracedGPT: weights must be floats, got those of a file in blocks")
        config = replace(model.config, dropout=0.0)
        super().__init__(config, dtype=model.dtype, weights=model.flat_params)
        self.adapters = _NoWeights()

    def _norm_apply(self, ops: Ops, x: Floats, kept: Statistics, p: Weights) -> Floats:
        """Return x (B,T,C): what backward multiplies with for gradients of matrices is not looked at."""
        return x

    def _grad_shapes(self) -> Shapes:
        """Return the shapes of what backward() adds to, and nobody reads: the norms' vectors."""
        return {name: shape for name, shape in parameter_shapes(self.config).items() if "ln_" in name}

    def token_embeddings(self, ids: Integers) -> Floats:
        """Return the embeddings (...,C) of ids (...), without positions."""
        return self.params["wte.weight"][ids]

    def embedded(self, e: Floats) -> tuple[Floats, Integers]:
        """Return the first layer's input (B,T,C) for token embeddings e (B,T,C), and the positions (B,T)."""
        B, T, _ = e.shape
        positions = np.tile(np.arange(T, dtype=np.int32), (B, 1))
        wpe = self.params.get("wpe.weight")
        return (e if wpe is None else e + wpe[positions]), positions

    def hidden_from(self, e: Floats) -> Floats:
        """Return the head's input (B,T,C) for token embeddings e (B,T,C), and keep nothing."""
        return self._from_embeddings(self._ops(), *self.embedded(e))

    def trace(self, e: Floats) -> "Trace":
        """Return the forward pass of token embeddings e (B,T,C), kept."""
        return Trace(self, e)

    def logits_of(self, h: Floats) -> Floats:
        """Return the logits (...,V) of the head's input h (...,C)."""
        rows = np.ascontiguousarray(h.reshape(-1, h.shape[-1]))
        return self._logits_of(self._ops(), rows).reshape(*h.shape[:-1], -1)

    def products(self, a: Floats, b: Floats) -> Floats:
        """Return a @ b.T (M,N) of a (M,C) and b (N,C), with the same bits on any number of threads."""
        return self._ops().matmul(np.ascontiguousarray(a), b, trans_b=True)

    def head_backward(self, dlogits: Floats) -> Floats:
        """Return the gradient of the head's input (M,C) from that of the logits (M,V)."""
        # forward: logits = h @ head.T
        return self._ops().matmul(dlogits, self.head_weights)


class Trace:
    """A forward pass from token embeddings, with what its layers kept."""

    def __init__(self, model: TracedGPT, e: Floats) -> None:
        self.model, self._cache = model, ForwardCache()
        self._ops = model._ops()
        #: (B,T,C), what the head reads
        self.hidden = model._from_embeddings(self._ops, *model.embedded(e), self._cache)

    def backward(self, dhidden: Floats) -> Floats:
        """Return the gradient of the token embeddings (B,T,C) from that of hidden; it empties the trace."""
        self._cache.dx = dhidden
        # forward: x = e + wpe[positions]
        return self.model._blocks_backward(self._ops, self._cache)

    def states(self) -> Iterator[Floats]:
        """Yield for each layer what the head would read (B,T,C) if that layer were the last."""
        for kept in self._cache.layers[1:]:  # the input of a layer is the output of the one before
            if self.model._ln_f is None:
                yield kept.x
            else:
                yield self.model._norm_forward(self._ops, kept.x, self.model._ln_f)[0]
        yield self.hidden

    def attention(self, layer: int) -> Floats:
        """Return how much each token looks at each other in a layer (B,H,T,T): rows are queries, of sum 1.

        The weights are exp(scale * q.k - lse), of the q, k and lse that attention_forward() left.
        """
        config, ops = self.model.config, self._ops
        (qkv, _, lse), H, D = self._cache.layers[layer].attended, config.n_head, config.D
        B, T, _ = qkv.shape
        heads = qkv.reshape(B, T, -1, D)
        weights = np.empty((B, H, T, T), qkv.dtype)
        age = np.arange(T)[:, None] - np.arange(T)
        seen = age >= 0
        if config.window is not None and layer % 2:
            seen &= age < config.window
        for b, h in np.ndindex(B, H):
            q, k = heads[b, :, h], heads[b, :, H + h // (H // config.K)]
            scores = ops.matmul(np.ascontiguousarray(q), np.ascontiguousarray(k), trans_b=True)
            scores *= qkv.dtype.type(config.scale)
            weights[b, h] = np.exp(np.where(seen, scores - lse[b, h, :, None], -np.inf))
        return weights
