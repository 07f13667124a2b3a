"""The GPT family in one file: learned positions, output head tied to the embedding.

GPT-2 is the default. Switches of GPTConfig make it GPT (layernorms behind the branches) or GPT-3 (a window in
every other layer). Each backward stands under its forward and quotes the line that it differentiates. The
arithmetic is in the ops (ops.py says what each computes; kernels.py chooses who runs it). Token ids in,
numbers out: this file knows nothing of text.

Dimensions: B batch, T time, C = n_embd, V = vocab_size, L = n_layer, H = n_head, D = C // H.
"""

from collections.abc import Callable
from math import prod, sqrt
from typing import Any, NamedTuple, Protocol, TypeAlias, overload

import numpy as np
from numpy.typing import ArrayLike, DTypeLike

from npgpt.engine import kernels
from npgpt.engine.config import GPTConfig, frozen_shapes, parameter_shapes, size_of
from npgpt.engine.kernels import Ops
from npgpt.engine.types import Floats, Integers, Shapes, Tensors

EMBEDDING, ATTENTION, MLP = range(3)  # the places of a layer where dropout acts
NOTHING: Floats = np.empty(0, np.float32)  # stands where nobody reads

Kept: TypeAlias = list[Any]  # what backward() needs of forward(), in its order
Attended: TypeAlias = tuple[Floats, Floats, Floats]  # qkv, out, lse
Statistics: TypeAlias = tuple[Floats, Floats]  # mean, rstd of a layernorm
Attend: TypeAlias = "Callable[[int, Floats], tuple[Floats, Floats]]"  # layer, qkv -> out, lse


class Weights(NamedTuple):
    """Of a linear layer or a layernorm, or the gradients of these."""

    weight: Floats  # NOTHING for the gradient of a frozen one
    bias: Floats | None


class Layer(NamedTuple):
    """The weights of a layer, or the gradients of these, under the names of the formulas."""

    ln_1: Weights
    c_attn: Weights
    attn_proj: Weights
    ln_2: Weights
    c_fc: Weights
    mlp_proj: Weights


_NAMES = "ln_1", "attn.c_attn", "attn.c_proj", "ln_2", "mlp.c_fc", "mlp.c_proj"
GPT2_NAMES = dict(zip(Layer._fields, _NAMES, strict=True))


class Adapters(Protocol):
    """What the backward pass asks of the adapters of a model (lora.py), which are trained in its place."""

    flat_grads: Floats

    def linear_backward(self, ops: Ops, dy: Floats, x: Floats, w: Floats, name: str) -> Floats:
        """Return dx of the linear layer `name`, and add to the adapters' gradients."""

    def take_rows(self, grads: Tensors) -> None:
        """Take the gradient of the trained rows of wte out of the model's gradients."""


class KVCache:
    """Keys and values of the positions seen so far, for decode()."""

    def __init__(self, config: GPTConfig, room: int, first: Integers, dtype: DTypeLike) -> None:
        D = config.n_embd // config.n_head
        self.room, self.length = room, 0
        self.first = first  # (B,): where the text of each row begins, behind its padding
        self.keys = np.zeros((config.n_layer, len(first), config.n_head, room, D), dtype)
        self.values = np.zeros_like(self.keys)

    def reorder(self, rows: ArrayLike) -> None:
        """Row b becomes what row rows[b] was, as beams go on from others; there may be more or fewer rows."""
        rows = np.asarray(rows)
        if len(rows) != len(self.first):
            self.keys, self.values = self.keys[:, rows], self.values[:, rows]
        elif (rows != np.arange(len(rows))).any():
            for seen in (self.keys[..., : self.length, :], self.values[..., : self.length, :]):
                seen[...] = seen[:, rows]
        self.first = self.first[rows]


class GPT:
    """The model: weights, forward, backward.

    params and grads map GPT-2's parameter names to views of flat_params and flat_grads. Weights change only
    through an optimizer or by hand followed by touch(). Where there are adapters (lora.py), these are what is
    trained, and flat_grads is room for the backward pass.
    """

    adapters: "Adapters | None" = None
    _runtime: Any = None  # what libnpgpt has made of it

    def __init__(self, config: GPTConfig, seed: int | None = 0, dtype: DTypeLike = np.float32) -> None:
        """Weights drawn as GPT-2's: N(0, 0.02), residual projections N(0, 0.02 / sqrt(2 L)), biases 0.

        seed None leaves them zero, for who fills them at once.
        """
        self.config, self.seed = config, seed or 0
        self.dtype: np.dtype[Any] = np.dtype(dtype)
        kernels.ops_for(dtype)  # refuses other dtypes
        shapes = parameter_shapes(config)
        self.num_params = size_of(shapes)
        self.n_decay = sum(prod(s) for s in shapes.values() if len(s) == 2)
        self.flat_params = kernels.zeros(self.num_params, self.dtype)
        self.params = views_of(self.flat_params, shapes)
        self._layers, self._ln_f = _by_layer(self.params, config)
        self.step = 0  # of training: what the dropout masks depend on, with the seed
        self.first_sample = 0  # of a batch within its step: where the masks go on
        self._flat_grads: Floats | None = None
        self._grads: Tensors | None = None
        self._caches: Kept | None = None
        if seed is not None:
            self._initialise()

    def _initialise(self) -> None:
        rng = np.random.default_rng(self.seed)
        for name, w in self.params.items():
            if w.ndim == 2:
                residual = name.endswith("c_proj.weight") and not self.config.post_norm
                std = 0.02 / sqrt(2 * self.config.n_layer) if residual else 0.02
                w[...] = std * rng.standard_normal(w.shape, dtype=np.float32)
            else:
                w[...] = 0 if name.endswith("bias") else 1  # layernorm weights are 1

    # ------------------------------------------------------------------------ parameters

    def touch(self) -> None:
        """Call after changing params by hand: a step begun with the old weights is given up."""
        if self._caches:
            self.zero_grads()
        self._runtime = None  # made of the old weights

    def zero_grads(self) -> None:
        """Gives up the gradients gathered so far, and a forward() that waits for its backward()."""
        self.flat_grads[...] = 0
        if self.adapters:
            self.adapters.flat_grads[...] = 0
        self._caches = None

    @property
    def flat_grads(self) -> Floats:
        """1-D, the twin of flat_params; made of zeros at first use."""
        if self._flat_grads is None:
            self._flat_grads = kernels.zeros(size_of(self._grad_shapes()), self.dtype)
        return self._flat_grads

    @property
    def grads(self) -> Tensors:
        """{name: view of flat_grads}. backward() adds to them; an optimizer's step zeroes them."""
        if self._grads is None:
            self._grads = views_of(self.flat_grads, self._grad_shapes())
            self._layer_grads, self._ln_f_grads = _by_layer(self._grads, self.config)
        return self._grads

    def _grad_shapes(self) -> Shapes:
        shapes = parameter_shapes(self.config)
        return frozen_shapes(shapes) if self.adapters else shapes

    def layer_start(self, layer: int) -> int:
        """Where in flat_params the matrices of a layer begin; they go on to those of the next, or n_decay."""
        embeddings = self.params["wte.weight"].size + self.params["wpe.weight"].size
        return embeddings + layer * (self.n_decay - embeddings) // self.config.n_layer

    # ------------------------------------------------------------------------ forward

    @overload
    def forward(self, ids: ArrayLike, targets: None = None, first: None = None) -> Floats: ...
    @overload
    def forward(self, ids: ArrayLike, targets: ArrayLike, first: ArrayLike | None = None) -> float: ...
    def forward(
        self, ids: ArrayLike, targets: ArrayLike | None = None, first: ArrayLike | None = None
    ) -> Floats | float:
        """ids, targets (B,T) integers -> mean cross-entropy in nats; without targets, logits (B,T,V).

        Targets below 0 do not count. With targets this begins a training step: dropout acts, what backward()
        needs is kept, and the head's part of the gradient is in grads already (so that no logits are kept).
        Each one wants its backward(); for a loss alone there is loss().
        first (B,T): where in its row the text of each token begins. A token sees nothing before that, and its
        position counts from there. Without it a row is one text.
        """
        if targets is None:
            return self.logits(ids)
        ids, targets = self._check_ids("forward", ids), self._check_targets("forward", ids, targets)
        first = self._check_first("forward", ids, first)
        if self._caches:
            raise RuntimeError(
                "forward: the last forward(ids, targets) waits for its backward(); "
                "call loss(ids, targets) for a loss alone, zero_grads() to give the step up"
            )
        ops, wte, dwte = kernels.ops_for(self.dtype), self.params["wte.weight"], self.grads["wte.weight"]
        caches: Kept = []
        x = self._full_pass(ops, ids, caches, first)
        loss, dx = _head(ops, x, wte, targets, dwte)
        self._caches = [(ids, dx), *caches]
        return loss

    def loss(self, ids: ArrayLike, targets: ArrayLike, first: ArrayLike | None = None) -> float:
        """As forward(ids, targets, first), without caches and without dropout."""
        ids, targets = self._check_ids("loss", ids), self._check_targets("loss", ids, targets)
        ops = kernels.ops_for(self.dtype)
        x = self._full_pass(ops, ids, first=self._check_first("loss", ids, first))
        return _head(ops, x, self.params["wte.weight"], targets)[0]

    def hidden(self, ids: ArrayLike, first: ArrayLike | None = None) -> Floats:
        """ids (B,T) -> what the head reads of each (B,T,C), no dropout."""
        ids = self._check_ids("hidden", ids)
        first = self._check_first("hidden", ids, first)
        return self._full_pass(kernels.ops_for(self.dtype), ids, first=first)

    def logits(self, ids: ArrayLike) -> Floats:
        """ids (B,T) -> logits (B,T,V), no dropout."""
        ids = self._check_ids("logits", ids)
        ops = kernels.ops_for(self.dtype)
        x = self._full_pass(ops, ids)
        B, T, C = x.shape
        return ops.matmul(x.reshape(B * T, C), self.params["wte.weight"], trans_b=True).reshape(B, T, -1)

    def _full_pass(
        self, ops: Ops, ids: Integers, caches: Kept | None = None, first: Integers | None = None
    ) -> Floats:
        """ids (B,T) -> what the head reads (B,T,C); what backward needs is appended to `caches`."""
        config, places = self.config, np.arange(ids.shape[1], dtype=np.int32)
        first = np.zeros(ids.shape, np.int32) if first is None else first
        first_keys = _first_keys(config, places, first)

        def attend(layer: int, qkv: Floats) -> tuple[Floats, Floats]:
            return ops.attention_forward(qkv, config.n_head, config.scale, first_keys[layer % 2])

        return self._blocks(ops, ids, places - first, attend, caches)

    def _blocks(
        self, ops: Ops, ids: Integers, positions: Integers, attend: Attend, caches: Kept | None = None
    ) -> Floats:
        """The layers, with attend(layer, qkv) -> out, lse for the attention of one."""
        training, eps = caches is not None, self.config.layer_norm_epsilon
        wte, wpe = self.params["wte.weight"], self.params["wpe.weight"]
        x = ops.embedding_forward(ids, positions, wte, wpe)  # (B,T,C)
        x = self._dropout(ops, x, 0, EMBEDDING, training)
        for layer, p in enumerate(self._layers):
            # a and m, normed, cost less to compute again than to keep
            if not self.config.post_norm:
                a, *norm_1 = ops.layernorm_forward(x, *p.ln_1, eps)
                x_mid, seen = self._attention_forward(ops, a, x, layer, attend, training)  # (B,T,C)
                m, *norm_2 = ops.layernorm_forward(x_mid, *p.ln_2, eps)
                x_out, h = self._mlp_forward(ops, m, x_mid, layer, training)  # (B,T,C)
                kept: tuple[Any, ...] = (x, norm_1, seen, x_mid, norm_2, h)
            else:
                x_mid, seen = self._attention_forward(ops, x, x, layer, attend, training)
                m, *norm_1 = ops.layernorm_forward(x_mid, *p.ln_1, eps)
                x_end, h = self._mlp_forward(ops, m, m, layer, training)
                x_out, *norm_2 = ops.layernorm_forward(x_end, *p.ln_2, eps)
                kept = (x, seen, x_mid, norm_1, h, x_end, norm_2)
            if caches is not None:
                caches.append(kept)
            x = x_out
        if caches is not None:
            caches.append(positions)
        if self._ln_f:
            y, *norm_f = ops.layernorm_forward(x, *self._ln_f, eps)
            if caches is not None:
                caches.append((x, norm_f))
            return y
        return x

    def backward(self, layer_done: Callable[[int], None] = lambda layer: None) -> None:
        """Adds the gradients of the last forward(ids, targets) to grads. The caches are used up.

        layer_done(layer) is called, from the last layer to the first, when those of a layer are all there.
        """
        if not self._caches:
            raise RuntimeError("backward: call forward(ids, targets) first, once for each backward")
        ops, grads, caches = kernels.ops_for(self.dtype), self.grads, self._caches
        self._caches = None

        norm_1: Statistics
        norm_2: Statistics
        norm_f: Statistics
        ids, dx = caches.pop(0)  # the head's backward came with its forward
        if self._ln_f and self._ln_f_grads:
            # forward: y = norm(x, ln_f)
            x, norm_f = caches.pop()
            dx = ops.layernorm_backward(dx, x, *norm_f, self._ln_f.weight, *self._ln_f_grads)
        positions = caches.pop()
        places = np.arange(ids.shape[1], dtype=np.int32)
        first_keys = _first_keys(self.config, places, places - positions)

        for layer in reversed(range(self.config.n_layer)):
            p, g, first_key = self._layers[layer], self._layer_grads[layer], first_keys[layer % 2]
            if not self.config.post_norm:
                x, norm_1, seen, x_mid, norm_2, h = caches.pop()
                # forward: x_out = x_mid + mlp(m)
                m = ops.layernorm_apply(x_mid, *norm_2, *p.ln_2)
                dm = self._mlp_backward(ops, dx, m, layer, h)
                # forward: m = norm(x_mid, ln_2), and x_mid goes on beside it
                dx = ops.layernorm_backward(dm, x_mid, *norm_2, p.ln_2.weight, *g.ln_2, residual=dx)
                # forward: x_mid = x + attention(a)
                a = ops.layernorm_apply(x, *norm_1, *p.ln_1)
                da = self._attention_backward(ops, dx, a, layer, seen, first_key)
                # forward: a = norm(x, ln_1), and x goes on beside it
                dx = ops.layernorm_backward(da, x, *norm_1, p.ln_1.weight, *g.ln_1, residual=dx)
            else:
                x, seen, x_mid, norm_1, h, x_end, norm_2 = caches.pop()
                # forward: x_out = norm(x_end, ln_2)
                dx = ops.layernorm_backward(dx, x_end, *norm_2, p.ln_2.weight, *g.ln_2)
                # forward: x_end = m + mlp(m)
                m = ops.layernorm_apply(x_mid, *norm_1, *p.ln_1)
                dm = self._mlp_backward(ops, dx, m, layer, h) + dx
                # forward: m = norm(x_mid, ln_1)
                dx = ops.layernorm_backward(dm, x_mid, *norm_1, p.ln_1.weight, *g.ln_1)
                # forward: x_mid = x + attention(x)
                dx = self._attention_backward(ops, dx, x, layer, seen, first_key) + dx
            layer_done(layer)
        # forward: x = dropout(wte[ids] + wpe[positions])
        dx = self._dropout(ops, dx, 0, EMBEDDING, training=True)
        ops.embedding_backward(dx, ids, positions, grads["wte.weight"], grads["wpe.weight"])
        if self.adapters:
            self.adapters.take_rows(grads)

    # ------------------------------------------------------------------------ a layer's two branches

    def _attention_forward(
        self, ops: Ops, a: Floats, x: Floats, layer: int, attend: Attend, training: bool
    ) -> tuple[Floats, Attended]:
        """x + attention(a), and what of it backward needs."""
        p = self._layers[layer]
        qkv = ops.linear_forward(a, *p.c_attn)  # (B,T,3C)
        out, lse = attend(layer, qkv)  # (B,T,C)
        return self._add_projected(ops, out, p.attn_proj, x, layer, ATTENTION, training), (qkv, out, lse)

    def _attention_backward(
        self, ops: Ops, dx: Floats, a: Floats, layer: int, seen: Attended, first_key: Integers | None
    ) -> Floats:
        """dx of the sum -> da."""
        qkv, out, lse = seen
        # forward: x + dropout(out @ attn_proj)
        dy = self._dropout(ops, dx, layer, ATTENTION, training=True)
        dout = self._linear_backward(ops, dy, out, layer, "attn_proj")
        # forward: out = attention(qkv)
        dqkv = ops.attention_backward(dout, qkv, out, lse, self.config.n_head, self.config.scale, first_key)
        # forward: qkv = a @ c_attn
        return self._linear_backward(ops, dqkv, a, layer, "c_attn")

    def _mlp_forward(
        self, ops: Ops, m: Floats, x: Floats, layer: int, training: bool
    ) -> tuple[Floats, Floats]:
        """x + mlp(m), and what of it backward needs: act costs less to compute again than to keep."""
        p = self._layers[layer]
        if self.config.activation == "gelu":
            h = ops.linear_forward(m, *p.c_fc)
            act = ops.erf_gelu_forward(h)
        else:  # one op
            act, h = ops.linear_gelu_forward(m, *p.c_fc)  # (B,T,4C)
        return self._add_projected(ops, act, p.mlp_proj, x, layer, MLP, training), h

    def _mlp_backward(self, ops: Ops, dx: Floats, m: Floats, layer: int, h: Floats) -> Floats:
        """dx of the sum -> dm."""
        p, g = self._layers[layer], self._layer_grads[layer]
        # forward: x + dropout(gelu(h) @ mlp_proj)
        dy = self._dropout(ops, dx, layer, MLP, training=True)
        exact = self.config.activation == "gelu"
        if exact or self.adapters:
            act = ops.erf_gelu_forward(h) if exact else ops.gelu_forward(h)
            dact = self._linear_backward(ops, dy, act, layer, "mlp_proj")
            dh = ops.erf_gelu_backward(dact, h) if exact else ops.gelu_backward(dact, h)
        else:
            dh = ops.gelu_linear_backward(dy, h, p.mlp_proj.weight, *g.mlp_proj)
        # forward: h = m @ c_fc
        return self._linear_backward(ops, dh, m, layer, "c_fc")

    def _linear_backward(self, ops: Ops, dy: Floats, x: Floats, layer: int, name: str) -> Floats:
        """dy of y = x @ weight + bias, one of a layer's four -> dx; adds to the gradients, or adapters."""
        w = getattr(self._layers[layer], name).weight
        if self.adapters:
            return self.adapters.linear_backward(ops, dy, x, w, f"h.{layer}.{GPT2_NAMES[name]}")
        return ops.linear_backward(dy, x, w, *getattr(self._layer_grads[layer], name))

    def _add_projected(
        self, ops: Ops, y: Floats, proj: Weights, x: Floats, layer: int, place: int, training: bool
    ) -> Floats:
        """x + dropout(y @ proj), the end of a branch. Without dropout the product does the sum."""
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
        self, batch_size: int = 1, length: int | None = None, first: ArrayLike | None = None
    ) -> KVCache:
        """An empty KVCache with room for `length` positions (default and at most block_size).

        first (B,): how many ids of padding stand before the text of each row. The text's positions count from
        there, nothing of it sees the padding, and the room is `length` with it.
        """
        length = self.config.block_size if length is None else length
        if not 1 <= length <= self.config.block_size:
            raise ValueError(f"new_cache: length must be in [1, {self.config.block_size}], got {length}")
        first = np.zeros(batch_size, np.int32) if first is None else np.asarray(first, np.int32)
        if first.shape != (batch_size,) or first.min() < 0:
            raise ValueError(f"new_cache: first must be {batch_size} numbers, at least 0, got {first}")
        return KVCache(self.config, length, first, self.dtype)

    def decode(self, ids: ArrayLike, cache: KVCache) -> Floats:
        """ids (B,t), which follow the cache's -> logits (B,V) of what comes next. Fills the cache."""
        B, t = np.shape(ids) if np.ndim(ids) == 2 else (0, 0)
        ids = self._check_ids("decode", ids)
        if B != len(cache.first):
            raise ValueError(f"decode: ids must have {len(cache.first)} rows, got {B}")
        if cache.length + t > cache.room:
            raise ValueError(
                f"decode: ids must fit the cache's {cache.room - cache.length} free positions, got {t}"
            )
        ops, config = kernels.ops_for(self.dtype), self.config
        H, C = config.n_head, config.n_embd
        start, end = cache.length, cache.length + t
        queries = np.arange(start, end)
        first_keys = _first_keys(config, queries, cache.first)

        def attend(layer: int, qkv: Floats) -> tuple[Floats, Floats]:
            q, k, v = qkv.reshape(B, t, 3, H, C // H).transpose(2, 0, 3, 1, 4)  # (B,H,t,D)
            keys, values, first_key = cache.keys[layer], cache.values[layer], first_keys[layer % 2]
            keys[:, :, start:end], values[:, :, start:end] = k, v
            if start == 0:  # there is nothing behind
                return ops.attention_forward(qkv, H, config.scale, first_key)
            begin = 0 if first_key is None else int(first_key.min())  # a window costs what it holds
            keys, values, places = keys[:, :, begin:end], values[:, :, begin:end], np.arange(begin, end)
            scores = q @ keys.transpose(0, 1, 3, 2) * self.dtype.type(config.scale)  # (B,H,t,end-begin)
            hidden = places > queries[:, None]  # (t,end-begin)
            if first_key is not None:
                hidden = (hidden | (places < first_key[..., None]))[:, None]  # (B,1,t,end-begin)
            if hidden.any():
                scores = np.where(hidden, -np.inf, scores).astype(self.dtype)
            out = (ops.softmax_forward(scores) @ values).transpose(0, 2, 1, 3).reshape(B, t, C)
            return np.ascontiguousarray(out), NOTHING  # there is no backward

        positions = np.maximum(queries - cache.first[:, None], 0).astype(np.int32)  # (B,t)
        x = self._blocks(ops, ids, positions, attend)
        cache.length = end
        return ops.matmul(np.ascontiguousarray(x[:, -1]), self.params["wte.weight"], trans_b=True)

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

    def _check_first(self, function: str, ids: Integers, first: ArrayLike | None) -> Integers | None:
        if first is None:
            return None
        first = _integers(function, "first", first)
        if first.shape != ids.shape or not ((first >= 0) & (first <= np.arange(ids.shape[1]))).all():
            raise ValueError(
                f"{function}: first must be of shape {ids.shape}, from 0 to each token's own place"
            )
        return np.ascontiguousarray(first, np.int32)

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
    ops: Ops, x: Floats, wte: Floats, targets: Integers, dwte: Floats | None = None
) -> tuple[float, Floats | None]:
    """ops.head_cross_entropy of the tokens that count alone, where less than half of them do."""
    counted = targets >= 0
    if 2 * counted.sum() >= counted.size:
        return ops.head_cross_entropy(x, wte, targets, dwte)
    loss, part = ops.head_cross_entropy(x[counted][None], wte, targets[counted][None], dwte)
    if part is None:
        return loss, None
    dx = np.zeros_like(x)
    dx[counted] = part[0]
    return loss, dx


def _first_keys(
    config: GPTConfig, queries: Integers, first: Integers
) -> tuple[Integers | None, Integers | None]:
    """For layers 0, 2, ... and 1, 3, ...: the first key that each query sees (B,t), or None where it is 0.

    queries (t,): their places; first (B,) or (B,t): where the text of each row, or query, begins. A
    query before it sees itself alone.
    """
    begin = np.minimum(first if first.ndim == 2 else first[:, None], queries).astype(np.int32)
    everything = begin if first.any() else None
    if config.window is None:
        return everything, everything
    return everything, np.maximum(begin, queries - (config.window - 1)).astype(np.int32)


def views_of(flat: Floats, shapes: Shapes) -> Tensors:
    """{name: view} of a 1-D array, one tensor behind the other."""
    views: Tensors = {}
    start = 0
    for name, shape in shapes.items():
        views[name] = flat[start : start + prod(shape)].reshape(shape)
        start += prod(shape)
    return views


def _by_layer(tensors: Tensors, config: GPTConfig) -> tuple[list[Layer], Weights | None]:
    """For each layer its tensors (of params or grads) under the names of the formulas; and those of ln_f."""

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
