"""A GPT-2 in one file: pre-LayerNorm blocks, learned positions, output head tied to the embedding.

Forward and backward are written out: each line of backward quotes the forward line that it differentiates.
The arithmetic is in the ops (ops.py says what each computes; kernels.py chooses who runs it). Token ids in,
numbers out: this file knows nothing of text.

Dimensions: B batch, T time, C = n_embd, V = vocab_size, L = n_layer, H = n_head, D = C // H.
"""

from dataclasses import dataclass
from math import prod, sqrt
from types import SimpleNamespace

import numpy as np

from npgpt.engine import kernels

EMBEDDING, ATTENTION, MLP = range(3)  # the places of a layer where dropout acts


@dataclass(frozen=True)
class GPTConfig:
    """Shape of a model. The defaults are GPT-2's smallest (124M parameters)."""

    n_layer: int = 12
    n_head: int = 12
    n_embd: int = 768
    block_size: int = 1024  # the longest context, in tokens
    vocab_size: int = 50257
    dropout: float = 0.0  # probability, after the embedding and after each of a layer's two branches
    bias: bool = True  # in the linear layers and the layernorms
    layer_norm_epsilon: float = 1e-5

    def __post_init__(self):
        for name in ("n_layer", "n_head", "n_embd", "block_size", "vocab_size"):
            value = getattr(self, name)
            if not isinstance(value, int | np.integer) or isinstance(value, bool):
                raise TypeError(f"GPTConfig: {name} must be an integer, got {value!r}")
            if value < 1:
                raise ValueError(f"GPTConfig: {name} must be at least 1, got {value}")
        if self.n_embd % self.n_head:
            raise ValueError(
                f"GPTConfig: n_embd must be a multiple of n_head ({self.n_head}), got {self.n_embd}"
            )
        if not 0 <= self.dropout < 1:
            raise ValueError(f"GPTConfig: dropout must be in [0, 1), got {self.dropout}")
        if not self.layer_norm_epsilon > 0:
            raise ValueError(f"GPTConfig: layer_norm_epsilon must be positive, got {self.layer_norm_epsilon}")


def parameter_shapes(config):
    """{GPT-2's name: shape}, 2-D weights first, so that what weight decay touches is one slice."""
    C, V, T = config.n_embd, config.vocab_size, config.block_size
    matrices, vectors = {"wte.weight": (V, C), "wpe.weight": (T, C)}, {}

    def linear(name, n_in, n_out):
        matrices[f"{name}.weight"] = (n_in, n_out)  # (in, out): y = x @ w
        if config.bias:
            vectors[f"{name}.bias"] = (n_out,)

    def layernorm(name):
        vectors[f"{name}.weight"] = (C,)
        if config.bias:
            vectors[f"{name}.bias"] = (C,)

    for layer in range(config.n_layer):
        layernorm(f"h.{layer}.ln_1")
        linear(f"h.{layer}.attn.c_attn", C, 3 * C)
        linear(f"h.{layer}.attn.c_proj", C, C)
        layernorm(f"h.{layer}.ln_2")
        linear(f"h.{layer}.mlp.c_fc", C, 4 * C)
        linear(f"h.{layer}.mlp.c_proj", 4 * C, C)
    layernorm("ln_f")
    return matrices | vectors


def count_parameters(config):
    return sum(prod(shape) for shape in parameter_shapes(config).values())


class KVCache:
    """Keys and values of the positions seen so far, for decode()."""

    def __init__(self, config, batch_size, room, dtype):
        D = config.n_embd // config.n_head
        self.room, self.length = room, 0
        self.keys = np.zeros((config.n_layer, batch_size, config.n_head, room, D), dtype)
        self.values = np.zeros_like(self.keys)


class GPT:
    """The model: weights, forward, backward.

    params and grads map GPT-2's parameter names to views of flat_params and flat_grads. Weights change only
    through an optimizer or by hand followed by touch().
    """

    def __init__(self, config, seed=0, dtype=np.float32):
        """Weights drawn as GPT-2's: N(0, 0.02), residual projections N(0, 0.02 / sqrt(2 L)), biases 0."""
        self.config, self.seed, self.dtype = config, seed, np.dtype(dtype)
        kernels.ops_for(dtype)  # refuses other dtypes
        shapes = parameter_shapes(config)
        self.num_params = count_parameters(config)
        self.n_decay = sum(prod(s) for s in shapes.values() if len(s) == 2)
        self.flat_params = kernels.zeros(self.num_params, self.dtype)
        self.params = _views(self.flat_params, shapes)
        self._layers = _by_layer(self.params, config.n_layer)
        self.step = 0  # of training: what the dropout masks depend on, with the seed
        self._flat_grads = self._grads = self._layer_grads = self._caches = None
        self._initialise()
        self.touch()

    def _initialise(self):
        rng = np.random.default_rng(self.seed)
        for name, w in self.params.items():
            if w.ndim == 2:
                residual = name.endswith("c_proj.weight")
                std = 0.02 / sqrt(2 * self.config.n_layer) if residual else 0.02
                w[...] = std * rng.standard_normal(w.shape, dtype=np.float32)
            else:
                w[...] = 0 if name.endswith("bias") else 1  # layernorm weights are 1

    # ------------------------------------------------------------------------ parameters

    def touch(self):
        """Call after changing params by hand: a step begun with the old weights is given up."""
        if self._caches:
            self.zero_grads()

    def zero_grads(self):
        """Gives up the gradients gathered so far, and a forward() that waits for its backward()."""
        self.flat_grads[...] = 0
        self._caches = None

    @property
    def flat_grads(self):
        """1-D, the twin of flat_params; made of zeros at first use."""
        if self._flat_grads is None:
            self._flat_grads = kernels.zeros(self.num_params, self.dtype)
        return self._flat_grads

    @property
    def grads(self):
        """{name: view of flat_grads}. backward() adds to them; an optimizer's step zeroes them."""
        if self._grads is None:
            self._grads = _views(self.flat_grads, parameter_shapes(self.config))
            self._layer_grads = _by_layer(self._grads, self.config.n_layer)
        return self._grads

    # ------------------------------------------------------------------------ forward

    def forward(self, ids, targets=None):
        """ids, targets (B,T) integers -> mean cross-entropy in nats; without targets, logits (B,T,V).

        Targets below 0 do not count. With targets this begins a training step: dropout acts, what backward()
        needs is kept, and the head's part of the gradient is in grads already (so that no logits are kept).
        Each one wants its backward(); for a loss alone there is loss().
        """
        if targets is None:
            return self.logits(ids)
        ids, targets = self._check_ids("forward", ids), self._check_targets("forward", ids, targets)
        if self._caches:
            raise RuntimeError(
                "forward: the last forward(ids, targets) waits for its backward(); "
                "call loss(ids, targets) for a loss alone, zero_grads() to give the step up"
            )
        ops, wte, dwte = kernels.ops_for(self.dtype), self.params["wte.weight"], self.grads["wte.weight"]
        caches = []
        x = self._blocks(ops, ids, caches)
        loss, dx = ops.head_cross_entropy(x, wte, targets, dwte)
        self._caches = [(ids, dx), *caches]
        return loss

    def loss(self, ids, targets):
        """As forward(ids, targets), without caches and without dropout."""
        ids, targets = self._check_ids("loss", ids), self._check_targets("loss", ids, targets)
        ops = kernels.ops_for(self.dtype)
        x = self._blocks(ops, ids)
        return ops.head_cross_entropy(x, self.params["wte.weight"], targets)[0]

    def logits(self, ids):
        """ids (B,T) -> logits (B,T,V), no dropout."""
        ids = self._check_ids("logits", ids)
        ops = kernels.ops_for(self.dtype)
        x = self._blocks(ops, ids)
        B, T, C = x.shape
        return ops.matmul(x.reshape(B * T, C), self.params["wte.weight"], trans_b=True).reshape(B, T, -1)

    def _blocks(self, ops, ids, caches=None):
        """ids (B,T) -> x (B,T,C) after the final layernorm. What backward needs is appended to `caches`."""
        config, training = self.config, caches is not None
        H, eps = config.n_head, config.layer_norm_epsilon
        scale = 1 / sqrt(config.n_embd // H)
        positions = np.ascontiguousarray(np.broadcast_to(np.arange(ids.shape[1], dtype=np.int32), ids.shape))

        wte, wpe = self.params["wte.weight"], self.params["wpe.weight"]

        x = ops.embedding_forward(ids, positions, wte, wpe)  # (B,T,C)
        x = self._dropout(ops, x, 0, EMBEDDING, training)
        for layer, p in enumerate(self._layers):
            a, mean_1, rstd_1 = ops.layernorm_forward(x, p.ln_1.weight, p.ln_1.bias, eps)
            qkv = ops.linear_forward(a, p.c_attn.weight, p.c_attn.bias)  # (B,T,3C)
            out, lse = ops.attention_forward(qkv, H, scale)  # (B,T,C)
            x_mid = self._branch(ops, out, p.attn_proj, x, layer, ATTENTION, training)  # (B,T,C)
            m, mean_2, rstd_2 = ops.layernorm_forward(x_mid, p.ln_2.weight, p.ln_2.bias, eps)
            act, h = ops.linear_gelu_forward(m, p.c_fc.weight, p.c_fc.bias)  # (B,T,4C)
            x_out = self._branch(ops, act, p.mlp_proj, x_mid, layer, MLP, training)  # (B,T,C)
            if training:
                # a, m and act cost less to compute again than to keep
                caches.append((x, mean_1, rstd_1, qkv, out, lse, x_mid, mean_2, rstd_2, h))
            x = x_out
        w, b = self.params["ln_f.weight"], self.params.get("ln_f.bias")
        y, mean, rstd = ops.layernorm_forward(x, w, b, eps)
        if training:
            caches.append((positions, x, mean, rstd))
        return y

    def _branch(self, ops, y, proj, x, layer, place, training):
        """x + dropout(y @ proj), the end of a layer's branch. Without dropout the product does the sum."""
        if not (training and self.config.dropout):
            return ops.linear_forward(y, proj.weight, proj.bias, residual=x)
        return x + self._dropout(ops, ops.linear_forward(y, proj.weight, proj.bias), layer, place, training)

    def _dropout(self, ops, x, layer, place, training):
        if not (training and self.config.dropout):
            return x
        return ops.dropout_forward(x, self.config.dropout, (self.seed, self.step, layer, place))

    # ------------------------------------------------------------------------ backward

    def backward(self):
        """Adds the gradients of the last forward(ids, targets) to grads. The caches are used up."""
        if not self._caches:
            raise RuntimeError("backward: call forward(ids, targets) first, once for each backward")
        ops, config = kernels.ops_for(self.dtype), self.config
        grads, caches = self.grads, self._caches
        H, scale = config.n_head, 1 / sqrt(config.n_embd // config.n_head)
        self._caches = None

        ids, dx = caches.pop(0)  # the head's backward came with its forward
        positions, x, mean, rstd = caches.pop()
        # forward: y = layernorm(x, ln_f)
        dx = ops.layernorm_backward(
            dx, x, mean, rstd, self.params["ln_f.weight"], grads["ln_f.weight"], grads.get("ln_f.bias")
        )

        for layer in reversed(range(config.n_layer)):
            p, g = self._layers[layer], self._layer_grads[layer]
            x, mean_1, rstd_1, qkv, out, lse, x_mid, mean_2, rstd_2, h = caches.pop()
            # forward: x_out = x_mid + dropout(gelu(h) @ mlp_proj)
            dy = self._dropout(ops, dx, layer, MLP, training=True)
            dh = ops.gelu_linear_backward(dy, h, p.mlp_proj.weight, g.mlp_proj.weight, g.mlp_proj.bias)
            # forward: h = m @ c_fc
            m = ops.layernorm_apply(x_mid, mean_2, rstd_2, p.ln_2.weight, p.ln_2.bias)
            dm = ops.linear_backward(dh, m, p.c_fc.weight, g.c_fc.weight, g.c_fc.bias)
            # forward: m = layernorm(x_mid, ln_2), and x_mid goes on beside it
            dx = ops.layernorm_backward(
                dm, x_mid, mean_2, rstd_2, p.ln_2.weight, g.ln_2.weight, g.ln_2.bias, residual=dx
            )
            # forward: x_mid = x + dropout(out @ attn_proj)
            dy = self._dropout(ops, dx, layer, ATTENTION, training=True)
            dout = ops.linear_backward(dy, out, p.attn_proj.weight, g.attn_proj.weight, g.attn_proj.bias)
            # forward: out = attention(qkv)
            dqkv = ops.attention_backward(dout, qkv, out, lse, H, scale)
            # forward: qkv = a @ c_attn
            a = ops.layernorm_apply(x, mean_1, rstd_1, p.ln_1.weight, p.ln_1.bias)
            da = ops.linear_backward(dqkv, a, p.c_attn.weight, g.c_attn.weight, g.c_attn.bias)
            # forward: a = layernorm(x, ln_1), and x goes on beside it
            dx = ops.layernorm_backward(
                da, x, mean_1, rstd_1, p.ln_1.weight, g.ln_1.weight, g.ln_1.bias, residual=dx
            )
        # forward: x = dropout(wte[ids] + wpe[positions])
        dx = self._dropout(ops, dx, 0, EMBEDDING, training=True)
        ops.embedding_backward(dx, ids, positions, grads["wte.weight"], grads["wpe.weight"])

    # ------------------------------------------------------------------------ decoding

    def new_cache(self, batch_size=1, length=None):
        """An empty KVCache with room for `length` positions (default and at most block_size)."""
        length = self.config.block_size if length is None else length
        if not 1 <= length <= self.config.block_size:
            raise ValueError(f"new_cache: length must be in [1, {self.config.block_size}], got {length}")
        return KVCache(self.config, batch_size, length, self.dtype)

    def decode(self, ids, cache):
        """ids (B,t), which follow the cache's -> logits (B,V) of what comes next. Fills the cache."""
        B, t = np.shape(ids) if np.ndim(ids) == 2 else (0, 0)
        ids = self._check_ids("decode", ids)
        if B != cache.keys.shape[1]:
            raise ValueError(f"decode: ids must have {cache.keys.shape[1]} rows, got {B}")
        if cache.length + t > cache.room:
            raise ValueError(
                f"decode: ids must fit the cache's {cache.room - cache.length} free positions, got {t}"
            )
        ops, config = kernels.ops_for(self.dtype), self.config
        H, C, eps = config.n_head, config.n_embd, config.layer_norm_epsilon
        D, start = C // H, cache.length
        end = start + t
        positions = np.ascontiguousarray(np.broadcast_to(np.arange(start, end, dtype=np.int32), ids.shape))
        # query t sees the keys 0..t; the scores' mask is needed for a prefill alone
        hidden = np.arange(end) > np.arange(start, end)[:, None] if t > 1 else None  # (t,end)

        wte, wpe = self.params["wte.weight"], self.params["wpe.weight"]

        x = ops.embedding_forward(ids, positions, wte, wpe)  # (B,t,C)
        for layer, p in enumerate(self._layers):
            a, _, _ = ops.layernorm_forward(x, p.ln_1.weight, p.ln_1.bias, eps)
            qkv = ops.linear_forward(a, p.c_attn.weight, p.c_attn.bias)  # (B,t,3C)
            q, k, v = qkv.reshape(B, t, 3, H, D).transpose(2, 0, 3, 1, 4)  # (B,H,t,D)
            keys, values = cache.keys[layer], cache.values[layer]  # (B,H,room,D)
            keys[:, :, start:end], values[:, :, start:end] = k, v
            scores = q @ keys[:, :, :end].transpose(0, 1, 3, 2) * self.dtype.type(1 / sqrt(D))  # (B,H,t,end)
            if hidden is not None:
                scores[:, :, hidden] = -np.inf
            att = ops.softmax_forward(scores)
            out = (att @ values[:, :, :end]).transpose(0, 2, 1, 3).reshape(B, t, C)
            out = np.ascontiguousarray(out)
            x = ops.linear_forward(out, p.attn_proj.weight, p.attn_proj.bias, residual=x)
            m, _, _ = ops.layernorm_forward(x, p.ln_2.weight, p.ln_2.bias, eps)
            act, _ = ops.linear_gelu_forward(m, p.c_fc.weight, p.c_fc.bias)
            x = ops.linear_forward(act, p.mlp_proj.weight, p.mlp_proj.bias, residual=x)
        cache.length = end
        last = np.ascontiguousarray(x[:, -1])  # (B,C)
        y, _, _ = ops.layernorm_forward(last, self.params["ln_f.weight"], self.params.get("ln_f.bias"), eps)
        return ops.matmul(y, wte, trans_b=True)

    # ------------------------------------------------------------------------ cost

    def flops_per_token(self, time):
        """Flops of one training step per token at context `time`; causal attention counted once."""
        L, C, V = self.config.n_layer, self.config.n_embd, self.config.vocab_size
        return 72 * L * C * C + 6 * C * V + 7 * L * C * (time + 1)

    def training_bytes(self, batch, time):
        """Bytes of a training step: weights, gradients, two moments, and what forward keeps for backward."""
        L, H, C, V = (getattr(self.config, n) for n in ("n_layer", "n_head", "n_embd", "vocab_size"))
        rows = batch * time
        kept = L * rows * (10 * C + H + 4) + rows * 2 * C + min(rows * V, kernels.LOGITS)
        moving = rows * 12 * C  # gradients of the layer in work
        return self.dtype.itemsize * (4 * self.num_params + kept + moving)

    # ------------------------------------------------------------------------ helpers

    def _check_ids(self, function, ids):
        ids = _integers(function, "ids", ids)
        if ids.shape[1] > self.config.block_size or ids.size == 0:
            raise ValueError(
                f"{function}: ids must have 1 to {self.config.block_size} columns, got shape {ids.shape}"
            )
        if ids.min() < 0 or ids.max() >= self.config.vocab_size:
            bad = ids.min() if ids.min() < 0 else ids.max()
            raise ValueError(f"{function}: ids must be in [0, {self.config.vocab_size}), got {bad}")
        return np.ascontiguousarray(ids, dtype=np.int32)

    def _check_targets(self, function, ids, targets):
        targets = _integers(function, "targets", targets)
        if targets.shape != ids.shape:
            raise ValueError(f"{function}: targets must have shape {ids.shape} like ids, got {targets.shape}")
        if targets.max() >= self.config.vocab_size:
            raise ValueError(
                f"{function}: targets must be below {self.config.vocab_size}, got {targets.max()}"
            )
        return np.ascontiguousarray(np.maximum(targets, -1), dtype=np.int32)


def _views(flat, shapes):
    views, start = {}, 0
    for name, shape in shapes.items():
        views[name] = flat[start : start + prod(shape)].reshape(shape)
        start += prod(shape)
    return views


def _by_layer(tensors, n_layer):
    """For each layer its tensors (of params or grads) under the names that the formulas use."""

    def pair(name):
        return SimpleNamespace(weight=tensors[f"{name}.weight"], bias=tensors.get(f"{name}.bias"))

    return [
        SimpleNamespace(
            ln_1=pair(f"h.{layer}.ln_1"),
            c_attn=pair(f"h.{layer}.attn.c_attn"),
            attn_proj=pair(f"h.{layer}.attn.c_proj"),
            ln_2=pair(f"h.{layer}.ln_2"),
            c_fc=pair(f"h.{layer}.mlp.c_fc"),
            mlp_proj=pair(f"h.{layer}.mlp.c_proj"),
        )
        for layer in range(n_layer)
    ]


def _integers(function, name, array):
    array = np.asarray(array)
    if array.dtype.kind not in "iu":
        raise TypeError(f"{function}: {name} must be integers, got {array.dtype}")
    if array.ndim != 2:
        raise ValueError(f"{function}: {name} must be of shape (B, T), got {array.shape}")
    return array
