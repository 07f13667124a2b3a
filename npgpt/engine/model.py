"""The GPT family in one file, and Llama's shape beside it.

GPT-2 is the default. GPTConfig chooses the parts of a layer: GPT has its layernorms after the branches, GPT-3
a window in every other layer, Llama RMSNorm, rotary positions, fewer heads of keys, and a gated MLP. Each
backward stands under its forward and quotes the line that it differentiates. The arithmetic is in the ops:
ops.py defines them, kernels.py chooses the implementation. Token ids go in, numbers come out: this file knows
nothing of text.

Dimensions: B batch, T time, C = n_embd, V = vocab_size, L = n_layer, H = n_head, K heads of keys and values,
D numbers in a head, F inside an MLP; N = (H + 2K) D, which is 3C in GPT-2; G numbers before the activation:
F, or 2F where it is gated.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from copy import deepcopy
from hashlib import sha256
from math import prod, sqrt
from typing import Any, NamedTuple, Protocol, Self, TypeAlias, overload

import numpy as np
from numpy.typing import ArrayLike, DTypeLike

from npgpt.engine import kernels
from npgpt.engine.config import GPTConfig, embedding_size, frozen_shapes, parameter_shapes, size_of
from npgpt.engine.kernels import Ops
from npgpt.engine.sampled import Classes
from npgpt.engine.types import Fields, Floats, Integers, Shapes, Tensors

EMBEDDING, ATTENTION, MLP, HEAD = range(4)  # what numbers are drawn for in a layer: dropout's `place`
NOTHING: Floats = np.empty(0, np.float32)  # stands for an array that is never read

Attend: TypeAlias = "Callable[[int, Floats], tuple[Floats, Floats]]"  # layer, qkv -> out, lse


class Weights(NamedTuple):
    """The weight and bias of a linear layer or a norm, or the gradients of these."""

    weight: Floats  # NOTHING for the gradient of a frozen weight
    bias: Floats | None


class Layer(NamedTuple):
    """The weights of a layer, or the gradients of these, under the names of the formulas."""

    ln_1: Weights
    c_attn: Weights
    attn_proj: Weights
    ln_2: Weights
    c_fc: Weights
    mlp_proj: Weights


# What a norm keeps of each row that it has read: a layernorm mean and rstd, an RMSNorm rstd alone
Statistics: TypeAlias = tuple[Floats, ...]


class Attended(NamedTuple):
    """The cache of attention: its backward pass reads what its forward pass computed."""

    qkv: Floats  # (B,T,N), rotated where positions are rotary
    out: Floats  # (B,T,HD)
    lse: Floats  # (B,H,T): log of the sum of the exponentials of each query's scores


class PreNormCache(NamedTuple):
    """The cache of a layer with norms before its branches, in the order of its forward pass."""

    x: Floats  # (B,T,C), the input of the layer
    norm_1: Statistics
    attended: Attended
    x_mid: Floats  # (B,T,C), x with attention added
    norm_2: Statistics
    h: Floats  # (B,T,G), before the activation


class PostNormCache(NamedTuple):
    """The cache of a layer of GPT, with layernorms after the branches, for its backward pass."""

    x: Floats  # (B,T,C), the input of the layer
    attended: Attended
    x_mid: Floats  # (B,T,C), x with attention added
    norm_1: Statistics
    h: Floats  # (B,T,G), before the activation
    x_end: Floats  # (B,T,C), the first norm's output with the MLP added
    norm_2: Statistics


class FinalNormCache(NamedTuple):
    """The cache of the last norm for its backward pass."""

    x: Floats  # (B,T,C)
    norm: Statistics


class Places(NamedTuple):
    """The places of a layer's tokens, for its backward pass."""

    positions: Integers  # (B,T)
    first_key: Integers | None  # (B,T): the first key that each query sees; None: the first of all


class Activation(NamedTuple):
    """The two ops of what stands between an MLP's linear layers."""

    forward: Callable[[Floats], Floats]  # h (B,T,G) -> (B,T,F)
    backward: Callable[[Floats, Floats], Floats]  # its gradient (B,T,F), h (B,T,G) -> dh (B,T,G)


class ForwardCache:
    """The cache of a training step: forward() fills it from the first layer on, backward() empties it."""

    def __init__(self) -> None:
        self.ids: Integers = np.empty((0, 0), np.int32)  # (B,T)
        self.positions: Integers = np.empty((0, 0), np.int32)  # (B,T)
        self.layers: list[PreNormCache | PostNormCache] = []
        self.final: FinalNormCache | None = None  # GPT has no last norm
        self.dx: Floats | None = None  # (B,T,C), the gradient of the head's input


_NAMES = "ln_1", "attn.c_attn", "attn.c_proj", "ln_2", "mlp.c_fc", "mlp.c_proj"
GPT2_NAMES = dict(zip(Layer._fields, _NAMES, strict=True))


class Adapters(Protocol):
    """The interface of a model's adapters (lora.py), which are trained instead of it, to backward()."""

    flat_grads: Floats

    def linear_backward(self, ops: Ops, dy: Floats, x: Floats, w: Floats, name: str) -> Floats:
        """Return dx of the linear layer `name`, and add to the adapters' gradients."""

    def take_rows(self, grads: Tensors) -> None:
        """Take the gradient of the trained rows of wte out of the model's gradients."""


class KVCache:
    """The keys and values of the positions so far, for decode()."""

    def __init__(self, config: GPTConfig, capacity: int, starts: Integers, dtype: DTypeLike) -> None:
        self.capacity, self.length = capacity, 0
        self.starts = starts  # (B,): where the text of each row begins, after its padding
        self.keys = np.zeros((config.n_layer, len(starts), config.K, capacity, config.D), dtype)
        self.values = np.zeros_like(self.keys)

    def reorder(self, rows: ArrayLike) -> None:
        """Set row b to what row rows[b] was, as beam search does; the number of rows may change."""
        rows = np.asarray(rows)
        if len(rows) != len(self.starts):
            self.keys, self.values = self.keys[:, rows], self.values[:, rows]
        elif (rows != np.arange(len(rows))).any():
            for seen in (self.keys[..., : self.length, :], self.values[..., : self.length, :]):
                seen[...] = seen[:, rows]
        self.starts = self.starts[rows]


class GPT:
    """The model: weights, forward, backward.

    params and grads map GPT-2's parameter names to views of flat_params and flat_grads. The weights are
    read-only outside `with model.edit():`; optimizers change them by update(); gradients are writable. Where
    there are adapters (lora.py), they are trained instead, and flat_grads is memory for the backward pass.
    copy.copy, copy.deepcopy and pickle give a model with weights of its own.
    """

    is_float = True  # False: matrices stay in the blocks of a file (quantised_model.py)

    def __init__(
        self,
        config: GPTConfig,
        seed: int | None = 0,
        dtype: DTypeLike = np.float32,
        weights: Floats | None = None,
    ) -> None:
        """Draw the weights as GPT-2's: N(0, 0.02), residual projections N(0, 0.02 / sqrt(2 L)), biases 0.

        With seed None they stay zero. `weights` are used as they are instead, without a copy: 1-D, all
        parameters in the order of parameter_shapes(config), changed through edit() alone from now on.
        ValueError unless they fit in number and dtype.
        """
        self.config, self.seed = config, seed or 0
        self.dtype: np.dtype[Any] = np.dtype(dtype)
        kernels.ops_for(dtype)  # TypeError for other dtypes
        shapes = self._shapes()
        self.num_params = size_of(shapes)
        if weights is not None and (weights.shape, weights.dtype) != ((self.num_params,), self.dtype):
            raise ValueError(
                f"GPT: weights must be {self.num_params} numbers of {self.dtype}, "
                f"got {weights.dtype} {weights.shape}"
            )
        self.n_decay = sum(prod(s) for s in shapes.values() if len(s) == 2)
        self._weights = kernels.zeros(self.num_params, self.dtype) if weights is None else weights
        self.version = 0  # of the weights: edit() increments it
        self.adapters: Adapters | None = None
        self.step = 0  # of training: the dropout masks depend on it and on the seed
        self.first_sample = 0  # of a batch within its step: its dropout masks start there
        self.classes: Classes | None = None  # of the step, that its softmax goes over; None: all
        self._flat_grads: Floats | None = None
        self._cache: ForwardCache | None = None
        self._make_views()
        if seed is not None and weights is None:
            with self.edit() as params:
                self._initialise(params)

    def _shapes(self) -> Shapes:
        """Return {name: shape} of what flat_params holds."""
        return parameter_shapes(self.config)

    def _matrices(self) -> Tensors:
        """Return the parameters that flat_params does not hold."""
        return {}

    def _ops(self) -> Ops:
        """Return the ops that compute with these weights."""
        return kernels.ops_for(self.dtype)

    def _make_views(self) -> None:
        self.flat_params, self.params = read_only_views(self._weights, self._shapes())
        self.params |= self._matrices()
        self._layers, self._ln_f = _by_layer(self.params, self.config)
        self._grads: Tensors | None = None
        self._layer_grads: list[Layer] = []
        self._ln_f_grads: Weights | None = None
        self._turns: tuple[Floats, Floats] | None = None  # cosines and sines of rotary positions

    def _initialise(self, params: Tensors) -> None:
        rng = np.random.default_rng(self.seed)
        for name, w in params.items():
            if w.ndim == 2:
                residual = name.endswith("c_proj.weight") and not self.config.post_norm
                std = 0.02 / sqrt(2 * self.config.n_layer) if residual else 0.02
                w[...] = std * rng.standard_normal(w.shape, dtype=np.float32)
            else:
                w[...] = 0 if name.endswith("bias") else 1  # the weights of norms are 1

    # ------------------------------------------------------------------------ parameters

    @contextmanager
    def edit(self) -> Iterator[Tensors]:
        """Make the weights writable for the block, and yield params.

        What was computed from the old weights is made again when it is next needed; a step begun with them is
        discarded.
        """
        with self.update(), writable(self.flat_params, self.params):
            yield self.params

    @contextmanager
    def update(self) -> Iterator[Floats]:
        """Yield the weights, 1-D and writable, to an optimizer; all else as in edit(), which costs more."""
        self.version += 1  # for what is computed inside the block
        try:
            yield self._weights
        finally:
            if self._cache:
                self.zero_grads()
            self.version += 1

    def __getstate__(self) -> Fields:
        """Return the state for copies and pickles, each number once: views are made again of the copy."""
        return {name: value for name, value in vars(self).items() if name not in _VIEWS}

    def __setstate__(self, state: Fields) -> None:
        vars(self).update(state)
        self._make_views()

    def __copy__(self) -> Self:
        """Return a copy with weights of its own: the versions of two models count one array each."""
        return deepcopy(self)

    def zero_grads(self) -> None:
        """Discard the gradients gathered so far, and a forward() that waits for its backward()."""
        self.flat_grads[...] = 0
        if self.adapters:
            self.adapters.flat_grads[...] = 0
        self._cache = None

    def attach(self, adapters: Adapters) -> None:
        """Train these adapters instead of the layers' matrices; discard the gradients gathered so far."""
        self.adapters = adapters
        self._flat_grads = self._grads = self._cache = None
        self._layer_grads, self._ln_f_grads = [], None

    @property
    def may_change(self) -> bool:
        """True once there are gradients, and inside edit(): the weights may change at any moment."""
        return self._flat_grads is not None or self.flat_params.flags.writeable

    @property
    def flat_grads(self) -> Floats:
        """The gradients of flat_params, 1-D, in its order; made of zeros at first use."""
        if self._flat_grads is None:
            self._flat_grads = kernels.zeros(size_of(self._grad_shapes()), self.dtype)
        return self._flat_grads

    @property
    def grads(self) -> Tensors:
        """The gradients, {name: view of flat_grads}: backward() adds to them, an optimizer zeroes them."""
        if self._grads is None:
            self._grads = views_of(self.flat_grads, self._grad_shapes())
        return self._grads

    def _prepare_gradients(self) -> None:
        """Sort the views of the gradients by layer, for backward()."""
        if not self._layer_grads:
            self._layer_grads, self._ln_f_grads = _by_layer(self.grads, self.config)

    def _grad_shapes(self) -> Shapes:
        shapes = self._shapes()
        return frozen_shapes(shapes) if self.adapters else shapes

    def digest(self) -> str:
        """Return the sha256 of all weights."""
        return sha256(self.flat_params.data).hexdigest()

    def array(self, name: str) -> Floats:
        """Return a parameter as an array, also where it stays in the blocks of a file."""
        return self.params[name]

    def layer_start(self, layer: int) -> int:
        """Return where in flat_params a layer's matrices begin; they end at the next layer's, or n_decay."""
        embeddings = embedding_size(self.config)
        return embeddings + layer * (self.n_decay - embeddings) // self.config.n_layer

    # ------------------------------------------------------------------------ forward

    @overload
    def forward(self, ids: ArrayLike, targets: None = None, starts: None = None) -> Floats: ...
    @overload
    def forward(self, ids: ArrayLike, targets: ArrayLike, starts: ArrayLike | None = None) -> float: ...
    def forward(
        self, ids: ArrayLike, targets: ArrayLike | None = None, starts: ArrayLike | None = None
    ) -> Floats | float:
        """Return the mean cross-entropy in nats of targets (B,T) after ids (B,T), or logits (B,T,V) without.

        Targets below 0 do not count. With targets this begins a training step: dropout acts, what backward()
        needs is kept, and the head's gradient is added to grads at once (so that no logits are kept). Where
        `classes` are set, the softmax goes over these alone.
        Each call must be followed by backward(); loss() gives a loss alone.
        starts (B,T): where in its row the segment of each token begins. A token sees nothing before that, and
        its position counts from there. Without it a row is one segment.
        """
        if targets is None:
            return self.logits(ids)
        ids, targets = self._check_ids("forward", ids), self._check_targets("forward", ids, targets)
        starts = self._check_starts("forward", ids, starts)
        if self._cache:
            raise RuntimeError(
                "forward: the last forward(ids, targets) waits for its backward(); "
                "call loss(ids, targets) for a loss alone, zero_grads() to give the step up"
            )
        ops, cache = self._ops(), ForwardCache()
        x = self._full_pass(ops, ids, cache, starts)
        if self.classes:
            loss, cache.dx = self._sampled_head(ops, x, targets, self.classes)
        else:
            loss, cache.dx = _head(ops, x, self.head_weights, targets, self._head_of(self.grads))
        self._cache = cache
        return loss

    def _sampled_head(
        self, ops: Ops, x: Floats, targets: Integers, classes: Classes
    ) -> tuple[float, Floats | None]:
        """Return _head's loss and dx over a part of the classes; add to the gradients of their weights."""
        w = self.head_weights[classes.ids]  # (n,C)
        dw = np.zeros_like(w)
        shift = classes.shift.astype(x.dtype)
        loss, dx = _head(ops, x, w, classes.targets(targets), dw, shift)
        self._head_of(self.grads)[classes.ids] += dw
        return loss, dx

    def loss(self, ids: ArrayLike, targets: ArrayLike, starts: ArrayLike | None = None) -> float:
        """Return the loss of forward(ids, targets, starts) without dropout, and keep nothing for backward."""
        ids, targets = self._check_ids("loss", ids), self._check_targets("loss", ids, targets)
        ops = self._ops()
        x = self._full_pass(ops, ids, starts=self._check_starts("loss", ids, starts))
        return _head(ops, x, self.head_weights, targets)[0]

    def hidden(self, ids: ArrayLike, starts: ArrayLike | None = None) -> Floats:
        """Return the hidden states (B,T,C) that the head reads for ids (B,T), without dropout."""
        ids = self._check_ids("hidden", ids)
        starts = self._check_starts("hidden", ids, starts)
        return self._full_pass(self._ops(), ids, starts=starts)

    def logits(self, ids: ArrayLike, starts: ArrayLike | None = None) -> Floats:
        """Return the logits (B,T,V) for ids (B,T), without dropout; starts as of forward()."""
        ids = self._check_ids("logits", ids)
        ops = self._ops()
        x = self._full_pass(ops, ids, starts=self._check_starts("logits", ids, starts))
        B, T, C = x.shape
        return self._logits_of(ops, x.reshape(B * T, C)).reshape(B, T, -1)

    def _logits_of(self, ops: Ops, x: Floats) -> Floats:
        """Return the logits (M,V) of the head's input (M,C)."""
        return ops.matmul(x, self.head_weights, trans_b=True)

    def scores(self, h: Floats) -> Floats:
        """Return the logits (M,V) of hidden states (M,C)."""
        return h @ self.head_weights.T

    @property
    def head_weights(self) -> Floats:
        """The output head's weights (V,C): those of the embedding where they are tied."""
        return self._head_of(self.params)

    def _head_of(self, tensors: Tensors) -> Floats:
        """Return the head's tensor (V,C) of params or grads."""
        return tensors["wte.weight" if self.config.tied else "lm_head.weight"]

    def _full_pass(
        self,
        ops: Ops,
        ids: Integers,
        cache: ForwardCache | None = None,
        starts: Integers | None = None,
    ) -> Floats:
        """Return the head's input (B,T,C) for ids (B,T); `cache` receives what backward needs."""
        columns = np.arange(ids.shape[1], dtype=np.int32)
        positions = columns - (np.zeros(ids.shape, np.int32) if starts is None else starts)
        x = self._embed(ops, ids, positions, training=cache is not None)
        if cache is not None:
            cache.ids = ids
        return self._from_embeddings(ops, x, positions, cache)

    def _embed(self, ops: Ops, ids: Integers, positions: Integers, training: bool = False) -> Floats:
        """Return the first layer's input (B,T,C) for ids and positions (B,T)."""
        x = ops.embedding_forward(ids, positions, self.params["wte.weight"], self.params.get("wpe.weight"))
        return self._dropout(ops, x, 0, EMBEDDING, training)

    def _from_embeddings(
        self, ops: Ops, x: Floats, positions: Integers, cache: ForwardCache | None = None
    ) -> Floats:
        """Return the head's input (B,T,C) for the first layer's (B,T,C), at positions (B,T)."""
        config, columns = self.config, np.arange(x.shape[1], dtype=np.int32)
        first_keys = _first_keys(config, columns, columns - positions)
        if cache is not None:
            cache.positions = positions

        def attend(layer: int, qkv: Floats) -> tuple[Floats, Floats]:
            self._rotate(ops.rope_forward, qkv, positions)
            return ops.attention_forward(
                qkv, config.n_head, config.scale, first_keys[layer % 2], config.n_kv_head
            )

        return self._blocks(ops, x, attend, cache)

    def _blocks(self, ops: Ops, x: Floats, attend: Attend, cache: ForwardCache | None = None) -> Floats:
        """Return the head's input (B,T,C) for the first layer's (B,T,C).

        attend(layer, qkv) -> out, lse computes a layer's attention.
        """
        training = cache is not None
        for layer, p in enumerate(self._layers):
            # a and m, normed, cost less to compute again than to keep
            kept: PreNormCache | PostNormCache
            if not self.config.post_norm:
                a, norm_1 = self._norm_forward(ops, x, p.ln_1)
                x_mid, attended = self._attention_forward(ops, a, x, layer, attend, training)  # (B,T,C)
                m, norm_2 = self._norm_forward(ops, x_mid, p.ln_2)
                x_out, h = self._mlp_forward(ops, m, x_mid, layer, training)  # (B,T,C)
                kept = PreNormCache(x, norm_1, attended, x_mid, norm_2, h)
            else:
                x_mid, attended = self._attention_forward(ops, x, x, layer, attend, training)
                m, norm_1 = self._norm_forward(ops, x_mid, p.ln_1)
                x_end, h = self._mlp_forward(ops, m, m, layer, training)
                x_out, norm_2 = self._norm_forward(ops, x_end, p.ln_2)
                kept = PostNormCache(x, attended, x_mid, norm_1, h, x_end, norm_2)
            if cache is not None:
                cache.layers.append(kept)
            x = x_out
        if self._ln_f:
            y, norm = self._norm_forward(ops, x, self._ln_f)
            if cache is not None:
                cache.final = FinalNormCache(x, norm)
            return y
        return x

    def backward(self, layer_done: Callable[[int], None] = lambda layer: None) -> None:
        """Add the gradients of the last forward(ids, targets) to grads, and discard its cache.

        layer_done(layer) is called from the last layer to the first, once a layer's gradients are final.
        """
        if not self._cache:
            raise RuntimeError("backward: call forward(ids, targets) first, once for each backward")
        ops, cache = self._ops(), self._cache
        self._cache = None
        ids, positions = cache.ids, cache.positions
        dx = self._blocks_backward(ops, cache, layer_done)
        # forward: x = dropout(wte[ids] + wpe[positions])
        dx = self._dropout(ops, dx, 0, EMBEDDING, training=True)
        ops.embedding_backward(dx, ids, positions, self.grads["wte.weight"], self.grads.get("wpe.weight"))
        if self.adapters:
            self.adapters.take_rows(self.grads)

    def _blocks_backward(
        self, ops: Ops, cache: ForwardCache, layer_done: Callable[[int], None] = lambda layer: None
    ) -> Floats:
        """Return the gradient of the first layer's input (B,T,C) from cache.dx; empty the cache."""
        self._prepare_gradients()
        dx, cache.dx = cache.dx, None  # the head's backward came with its forward
        assert dx is not None
        if cache.final and self._ln_f and self._ln_f_grads:
            # forward: y = norm(x, ln_f)
            (x, norm), cache.final = cache.final, None
            dx = self._norm_backward(ops, dx, x, norm, self._ln_f, self._ln_f_grads)
        columns = np.arange(cache.positions.shape[1], dtype=np.int32)
        first_keys = _first_keys(self.config, columns, columns - cache.positions)

        for layer in reversed(range(self.config.n_layer)):
            kept, places = cache.layers.pop(), Places(cache.positions, first_keys[layer % 2])
            if isinstance(kept, PreNormCache):
                dx = self._pre_norm_backward(ops, dx, layer, kept, places)
            else:
                dx = self._post_norm_backward(ops, dx, layer, kept, places)
            layer_done(layer)
        return dx

    def _pre_norm_backward(
        self, ops: Ops, dx: Floats, layer: int, kept: PreNormCache, places: Places
    ) -> Floats:
        """Return dx (B,T,C), the gradient of the input of a layer with norms before its branches."""
        p, g = self._layers[layer], self._layer_grads[layer]
        x, norm_1, attended, x_mid, norm_2, h = kept
        # forward: x_out = x_mid + mlp(m)
        m = self._norm_apply(ops, x_mid, norm_2, p.ln_2)
        dm = self._mlp_backward(ops, dx, m, layer, h)
        # forward: m = norm(x_mid, ln_2), and the residual x_mid
        dx = self._norm_backward(ops, dm, x_mid, norm_2, p.ln_2, g.ln_2, residual=dx)
        # forward: x_mid = x + attention(a)
        a = self._norm_apply(ops, x, norm_1, p.ln_1)
        da = self._attention_backward(ops, dx, a, layer, attended, places)
        # forward: a = norm(x, ln_1), and the residual x
        return self._norm_backward(ops, da, x, norm_1, p.ln_1, g.ln_1, residual=dx)

    def _post_norm_backward(
        self, ops: Ops, dx: Floats, layer: int, kept: PostNormCache, places: Places
    ) -> Floats:
        """Return dx (B,T,C), the gradient of the input of a layer of GPT."""
        p, g = self._layers[layer], self._layer_grads[layer]
        x, attended, x_mid, norm_1, h, x_end, norm_2 = kept
        # forward: x_out = norm(x_end, ln_2)
        dx = self._norm_backward(ops, dx, x_end, norm_2, p.ln_2, g.ln_2)
        # forward: x_end = m + mlp(m)
        m = self._norm_apply(ops, x_mid, norm_1, p.ln_1)
        dm = self._mlp_backward(ops, dx, m, layer, h) + dx
        # forward: m = norm(x_mid, ln_1)
        dx = self._norm_backward(ops, dm, x_mid, norm_1, p.ln_1, g.ln_1)
        # forward: x_mid = x + attention(x)
        return self._attention_backward(ops, dx, x, layer, attended, places) + dx

    # ------------------------------------------------------------------------ norms

    def _norm_forward(self, ops: Ops, x: Floats, p: Weights) -> tuple[Floats, Statistics]:
        """Return y (B,T,C), and what backward needs of each row."""
        if self.config.norm == "rmsnorm":
            y, rstd = ops.rmsnorm_forward(x, p.weight, self.config.layer_norm_epsilon)
            return y, (rstd,)
        y, mean, rstd = ops.layernorm_forward(x, *p, self.config.layer_norm_epsilon)
        return y, (mean, rstd)

    def _norm_apply(self, ops: Ops, x: Floats, kept: Statistics, p: Weights) -> Floats:
        """Return y of _norm_forward again."""
        if self.config.norm == "rmsnorm":
            (rstd,) = kept
            return ops.rmsnorm_apply(x, rstd, p.weight)
        mean, rstd = kept
        return ops.layernorm_apply(x, mean, rstd, p.weight, p.bias)

    def _norm_backward(
        self,
        ops: Ops,
        dy: Floats,
        x: Floats,
        kept: Statistics,
        p: Weights,
        g: Weights,
        residual: Floats | None = None,
    ) -> Floats:
        """Return dx (B,T,C), with the gradient that reaches x past the norm; add to the gradients."""
        if self.config.norm == "rmsnorm":
            (rstd,) = kept
            return ops.rmsnorm_backward(dy, x, rstd, p.weight, g.weight, residual)
        mean, rstd = kept
        return ops.layernorm_backward(dy, x, mean, rstd, p.weight, g.weight, g.bias, residual)

    # ------------------------------------------------------------------------ a layer's two branches

    def _attention_forward(
        self, ops: Ops, a: Floats, x: Floats, layer: int, attend: Attend, training: bool
    ) -> tuple[Floats, Attended]:
        """Return x + attention(a) (B,T,C), and what backward needs of it."""
        p = self._layers[layer]
        qkv = ops.linear_forward(a, *p.c_attn)  # (B,T,N)
        out, lse = attend(layer, qkv)  # (B,T,HD)
        x_mid = self._add_projected(ops, out, p.attn_proj, x, layer, ATTENTION, training)
        return x_mid, Attended(qkv, out, lse)

    def _attention_backward(
        self, ops: Ops, dx: Floats, a: Floats, layer: int, attended: Attended, places: Places
    ) -> Floats:
        """Return da from dx, the gradient of the sum."""
        (qkv, out, lse), config = attended, self.config
        # forward: x + dropout(out @ attn_proj)
        dy = self._dropout(ops, dx, layer, ATTENTION, training=True)
        dout = self._linear_backward(ops, dy, out, layer, "attn_proj")
        # forward: out = attention(rotated(qkv))
        heads = config.n_head, config.scale, places.first_key, config.n_kv_head
        dqkv = ops.attention_backward(dout, qkv, out, lse, *heads)
        self._rotate(ops.rope_backward, dqkv, places.positions)
        # forward: qkv = a @ c_attn
        return self._linear_backward(ops, dqkv, a, layer, "c_attn")

    def _rotate(self, op: Callable[..., None], qkv: Floats, positions: Integers) -> None:
        """Turn queries and keys, or their gradients back, in place, where positions (B,t) are rotary."""
        rope, D = self.config.rope, self.config.D
        if not rope:
            return
        if self._turns is None:
            angles = rope.angles(self.config.block_size, D, self.dtype).astype(np.float64)
            self._turns = np.cos(angles).astype(self.dtype), np.sin(angles).astype(self.dtype)
        op(qkv, positions, *self._turns, self.config.n_head + self.config.K)

    def _mlp_forward(
        self, ops: Ops, m: Floats, x: Floats, layer: int, training: bool
    ) -> tuple[Floats, Floats]:
        """Return x + mlp(m) (B,T,C), and h for backward: act costs less to compute again than to keep."""
        p = self._layers[layer]
        if self.config.activation == "gelu_new":  # one op
            act, h = ops.linear_gelu_forward(m, *p.c_fc)  # (B,T,F)
        else:
            h = ops.linear_forward(m, *p.c_fc)  # (B,T,G)
            act = self._activation(ops).forward(h)
        return self._add_projected(ops, act, p.mlp_proj, x, layer, MLP, training), h

    def _mlp_backward(self, ops: Ops, dx: Floats, m: Floats, layer: int, h: Floats) -> Floats:
        """Return dm from dx, the gradient of the sum."""
        p, g = self._layers[layer], self._layer_grads[layer]
        # forward: x + dropout(activation(h) @ mlp_proj)
        dy = self._dropout(ops, dx, layer, MLP, training=True)
        if self.config.activation == "gelu_new" and not self.adapters:  # one op
            dh = ops.gelu_linear_backward(dy, h, p.mlp_proj.weight, *g.mlp_proj)
        else:
            activation = self._activation(ops)
            dact = self._linear_backward(ops, dy, activation.forward(h), layer, "mlp_proj")
            dh = activation.backward(dact, h)
        # forward: h = m @ c_fc
        return self._linear_backward(ops, dh, m, layer, "c_fc")

    def _activation(self, ops: Ops) -> Activation:
        """Return the op between the MLP's two linear layers."""
        if self.config.activation == "gelu_new":
            return Activation(ops.gelu_forward, ops.gelu_backward)
        if self.config.activation == "gelu":
            return Activation(ops.erf_gelu_forward, ops.erf_gelu_backward)
        return Activation(ops.swiglu_forward, ops.swiglu_backward)

    def _linear_backward(self, ops: Ops, dy: Floats, x: Floats, layer: int, name: str) -> Floats:
        """Return dx of y = x @ weight + bias, one of a layer's four; add to the gradients, or adapters."""
        w = getattr(self._layers[layer], name).weight
        if self.adapters:
            return self.adapters.linear_backward(ops, dy, x, w, f"h.{layer}.{GPT2_NAMES[name]}")
        return ops.linear_backward(dy, x, w, *getattr(self._layer_grads[layer], name))

    def _add_projected(
        self, ops: Ops, y: Floats, proj: Weights, x: Floats, layer: int, place: int, training: bool
    ) -> Floats:
        """Return x + dropout(y @ proj), the end of a branch. Without dropout the product does the sum."""
        if not (training and self.config.dropout):
            return ops.linear_forward(y, *proj, residual=x)
        return x + self._dropout(ops, ops.linear_forward(y, *proj), layer, place, training)

    def _dropout(self, ops: Ops, x: Floats, layer: int, place: int, training: bool) -> Floats:
        if not (training and self.config.dropout):
            return x
        key = (self.seed, self.step, layer, place)
        return ops.dropout_forward(x, self.config.dropout, key, self.first_sample)

    # ------------------------------------------------------------------------ decoding

    def new_cache(
        self, batch_size: int = 1, length: int | None = None, starts: ArrayLike | None = None
    ) -> KVCache:
        """Return an empty KVCache of `length` positions (default and maximum: block_size).

        starts (B,): how many ids of padding stand before the text of each row. The text's positions count
        from there, nothing of it sees the padding, and `length` includes it.
        """
        length = self.config.block_size if length is None else length
        if not 1 <= length <= self.config.block_size:
            raise ValueError(f"new_cache: length must be in [1, {self.config.block_size}], got {length}")
        starts = np.zeros(batch_size, np.int32) if starts is None else np.asarray(starts, np.int32)
        if starts.shape != (batch_size,) or starts.min() < 0:
            raise ValueError(f"new_cache: starts must be {batch_size} numbers, at least 0, got {starts}")
        return KVCache(self.config, length, starts, self.dtype)

    def decode(self, ids: ArrayLike, cache: KVCache) -> Floats:
        """Return the logits (B,V) of the token after ids (B,t), and append these ids to the cache."""
        B, t = np.shape(ids) if np.ndim(ids) == 2 else (0, 0)
        ids = self._check_ids("decode", ids)
        if B != len(cache.starts):
            raise ValueError(f"decode: ids must have {len(cache.starts)} rows, got {B}")
        if cache.length + t > cache.capacity:
            raise ValueError(
                f"decode: ids must fit the cache's {cache.capacity - cache.length} free positions, got {t}"
            )
        ops, config = self._ops(), self.config
        H, K, D = config.n_head, config.K, config.D
        start, end = cache.length, cache.length + t
        queries = np.arange(start, end)
        first_keys = _first_keys(config, queries, cache.starts)
        positions = np.maximum(queries - cache.starts[:, None], 0).astype(np.int32)  # (B,t)

        def attend(layer: int, qkv: Floats) -> tuple[Floats, Floats]:
            self._rotate(ops.rope_forward, qkv, positions)
            heads = qkv.reshape(B, t, H + 2 * K, D).transpose(0, 2, 1, 3)
            q, k, v = heads[:, :H], heads[:, H : H + K], heads[:, H + K :]  # (B,H,t,D), then (B,K,t,D) twice
            keys, values, first_key = cache.keys[layer], cache.values[layer], first_keys[layer % 2]
            keys[:, :, start:end], values[:, :, start:end] = k, v
            if start == 0:  # the cache is empty
                return ops.attention_forward(qkv, H, config.scale, first_key, config.n_kv_head)
            begin = 0 if first_key is None else int(first_key.min())  # the keys before a window are left out
            keys, values, columns = keys[:, :, begin:end], values[:, :, begin:end], np.arange(begin, end)
            if K < H:  # a head of keys serves several of queries
                keys, values = (np.repeat(a, H // K, axis=1) for a in (keys, values))
            scores = q @ keys.transpose(0, 1, 3, 2) * self.dtype.type(config.scale)  # (B,H,t,end-begin)
            hidden = columns > queries[:, None]  # (t,end-begin)
            if first_key is not None:
                hidden = (hidden | (columns < first_key[..., None]))[:, None]  # (B,1,t,end-begin)
            if hidden.any():
                scores = np.where(hidden, -np.inf, scores).astype(self.dtype)
            out = (ops.softmax_forward(scores) @ values).transpose(0, 2, 1, 3).reshape(B, t, H * D)
            return np.ascontiguousarray(out), NOTHING  # there is no backward

        x = self._blocks(ops, self._embed(ops, ids, positions), attend)
        cache.length = end
        return self._logits_of(ops, np.ascontiguousarray(x[:, -1]))

    # ------------------------------------------------------------------------ helpers

    def _check_ids(self, function: str, ids: ArrayLike) -> Integers:
        ids = _integers(function, "ids", ids)
        if ids.shape[1] > self.config.block_size or ids.size == 0:
            raise ValueError(
                f"{function}: ids must have 1 to {self.config.block_size} columns, got shape {ids.shape}"
            )
        if ids.min() < 0 or ids.max() >= self.config.vocab_size:
            bad = ids.min() if ids.min() < 0 else ids.max()
            raise ValueError(f"{function}: ids must be in [0, {self.config.vocab_size}), got {bad}")
        return np.ascontiguousarray(ids, dtype=np.int32)

    def _check_starts(self, function: str, ids: Integers, starts: ArrayLike | None) -> Integers | None:
        if starts is None:
            return None
        starts = _integers(function, "starts", starts)
        if starts.shape != ids.shape or not ((starts >= 0) & (starts <= np.arange(ids.shape[1]))).all():
            raise ValueError(
                f"{function}: starts must be of shape {ids.shape}, from 0 to each token's own place"
            )
        return np.ascontiguousarray(starts, np.int32)

    def _check_targets(self, function: str, ids: Integers, targets: ArrayLike) -> Integers:
        targets = _integers(function, "targets", targets)
        if targets.shape != ids.shape:
            raise ValueError(f"{function}: targets must have shape {ids.shape} like ids, got {targets.shape}")
        if targets.max() >= self.config.vocab_size:
            raise ValueError(
                f"{function}: targets must be below {self.config.vocab_size}, got {targets.max()}"
            )
        return np.maximum(targets.astype(np.int64), -1).astype(np.int32)  # they may be unsigned


def _head(
    ops: Ops, x: Floats, wte: Floats, targets: Integers, dwte: Floats | None = None, *shift: Floats
) -> tuple[float, Floats | None]:
    """Return ops.head_cross_entropy; where less than half of the targets count, compute those alone."""
    counted = targets >= 0
    if 2 * counted.sum() >= counted.size:
        return ops.head_cross_entropy(x, wte, targets, dwte, *shift)
    loss, dx_counted = ops.head_cross_entropy(x[counted][None], wte, targets[counted][None], dwte, *shift)
    if dx_counted is None:
        return loss, None
    dx = np.zeros_like(x)
    dx[counted] = dx_counted[0]
    return loss, dx


def _first_keys(
    config: GPTConfig, queries: Integers, starts: Integers
) -> tuple[Integers | None, Integers | None]:
    """Return the first key that each query sees (B,t), for layers 0, 2, ... and for layers 1, 3, ...

    None stands for 0 everywhere. queries (t,): their columns; starts (B,) or (B,t): where the segment of each
    row, or query, begins. A query before it sees itself alone.
    """
    begin = np.minimum(starts if starts.ndim == 2 else starts[:, None], queries).astype(np.int32)
    everything = begin if starts.any() else None
    if config.window is None:
        return everything, everything
    return everything, np.maximum(begin, queries - (config.window - 1)).astype(np.int32)


_VIEWS = "flat_params", "params", "_layers", "_ln_f", "_grads", "_layer_grads", "_ln_f_grads", "_turns"


def read_only_views(flat: Floats, shapes: Shapes) -> tuple[Floats, Tensors]:
    """Return a read-only view of a 1-D array, and those of the tensors that it holds, by name."""
    whole = flat[:]
    whole.flags.writeable = False
    return whole, views_of(whole, shapes)


@contextmanager
def writable(flat: Floats, views: Tensors) -> Iterator[None]:
    """Make arrays of read_only_views() writable for the block, and after it what they were before."""
    arrays, before = [flat, *views.values()], flat.flags.writeable
    try:
        for array in arrays:
            array.flags.writeable = True
        yield
    finally:
        for array in arrays:
            array.flags.writeable = before


def views_of(flat: Floats, shapes: Shapes) -> Tensors:
    """Return {name: view} of a 1-D array that holds tensors of these shapes one after the other."""
    views: Tensors = {}
    start = 0
    for name, shape in shapes.items():
        views[name] = flat[start : start + prod(shape)].reshape(shape)
        start += prod(shape)
    return views


def _by_layer(tensors: Tensors, config: GPTConfig) -> tuple[list[Layer], Weights | None]:
    """Return the tensors of each layer (params or grads) by the formulas' names, and those of ln_f."""

    def pair(name: str) -> Weights:
        return Weights(tensors.get(f"{name}.weight", NOTHING), tensors.get(f"{name}.bias"))

    layers = [Layer(*(pair(f"h.{n}.{name}") for name in GPT2_NAMES.values())) for n in range(config.n_layer)]
    return layers, None if config.post_norm else pair("ln_f")


def _integers(function: str, name: str, array: ArrayLike) -> Integers:
    array = np.asarray(array)
    if array.dtype.kind not in "iu":
        raise TypeError(f"{function}: {name} must be integers, got {array.dtype}")
    if array.ndim != 2:
        raise ValueError(f"{function}: {name} must be of shape (B, T), got {array.shape}")
    return array
