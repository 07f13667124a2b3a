"""The shape of a model: its settings, its parameters by name, and the cost of a training step.

Dimensions as in model.py: C = n_embd, V = vocab_size, T = block_size, L = n_layer, H = n_head, K heads of
keys and values, D numbers in a head, F numbers inside an MLP.
"""

from dataclasses import dataclass, replace
from math import inf, log2, pi, prod, sqrt
from typing import Any

import numpy as np
from numpy.typing import DTypeLike

from npgpt.engine import kernels
from npgpt.engine.names import names_checked
from npgpt.engine.notebooks import small_table
from npgpt.engine.types import Floats, Shapes

ACTIVATIONS = ("gelu_new", "gelu", "swiglu")  # the first two as Transformers names them
NORMS = ("layernorm", "rmsnorm")
ROPE_TYPES = ("default", "linear", "llama3")  # as Transformers names them


@dataclass(frozen=True)
class Rope:
    """Rotary positions: how fast the pairs of a head turn from one token to the next.

    The formulas are those of Transformers' modeling_rope_utils.py.
    """

    theta: float = 10_000.0  #: pair i of D/2 turns by theta ** (-2 i / D) a token
    type: str = "default"  #: "linear": all turn `factor` times slower; "llama3": the slow ones do
    factor: float = 1.0  #: how much longer the context is than the original one
    low_freq_factor: float = 1.0  #: llama3: fewer turns in the original context are slowed by `factor`
    high_freq_factor: float = 4.0  #: llama3: more turns in the original context are left alone
    original_context: int = 8192  #: llama3: the context before it was made longer, in tokens

    def __post_init__(self) -> None:
        if self.type not in ROPE_TYPES:
            raise ValueError(f"Rope: type must be one of {', '.join(ROPE_TYPES)}, got {self.type!r}")
        for name in ("theta", "factor", "low_freq_factor", "high_freq_factor", "original_context"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < inf:
                raise ValueError(f"Rope: {name} must be a positive number, got {value!r}")
        if self.high_freq_factor <= self.low_freq_factor:
            raise ValueError(
                f"Rope: high_freq_factor must be above low_freq_factor ({self.low_freq_factor}), "
                f"got {self.high_freq_factor}"
            )

    def angles(self, length: int, D: int, dtype: DTypeLike) -> Floats:
        """Return the angles (length, D/2) of the pairs of a head at positions 0..length-1, in radians."""
        speeds = self.theta ** (-2 * np.arange(D // 2) / D)
        if self.type == "linear":
            speeds = speeds / self.factor
        elif self.type == "llama3":
            turns = self.original_context * speeds / (2 * pi)
            share = (turns - self.low_freq_factor) / (self.high_freq_factor - self.low_freq_factor)
            share = np.clip(share, 0, 1)
            speeds = share * speeds + (1 - share) * speeds / self.factor
        # multiplied in the model's precision, as Transformers does: far out that changes the angle
        angles: Floats = np.arange(length, dtype=dtype)[:, None] * speeds.astype(dtype)
        return angles


@names_checked
@dataclass(frozen=True)
class GPTConfig:
    """The shape of a model. The defaults are GPT-2's smallest (124M parameters).

    The parts of a layer are chosen one by one: norm, activation, rope, heads of keys, biases. engine_config()
    chooses them for the members of the family.
    """

    n_layer: int = 12  #: layers
    n_head: int = 12  #: attention heads, which must divide n_embd
    n_embd: int = 768  #: channels
    block_size: int = 1024  #: the longest context, in tokens
    vocab_size: int = 50257  #: tokens that the model knows: ids are 0..vocab_size-1
    dropout: float = 0.0  #: probability, after the embedding and after each of a layer's two branches
    bias: bool = True  #: in the linear layers and the layernorms
    layer_norm_epsilon: float = 1e-5  #: what norms add to the variance, or to the mean of the squares
    post_norm: bool = False  #: GPT: layernorms after the sums, and none at the end
    window: int | None = None  #: GPT-3: layers 1, 3, ... see this many tokens, the present one included
    scale_attn_weights: bool = True  #: False: scores are not scaled, as in GPT-Neo
    activation: str = "gelu_new"  #: GELU's tanh form; "gelu": the exact one; "swiglu": a gated MLP
    norm: str = "layernorm"  #: "rmsnorm": no mean is subtracted, and there is no bias
    rope: Rope | None = None  #: rotary positions instead of learned ones
    n_kv_head: int | None = None  #: heads of keys and values, which must divide n_head; None: n_head
    head_size: int | None = None  #: numbers in a head; None: n_embd / n_head
    n_inner: int | None = None  #: numbers inside an MLP; None: 4 n_embd
    tied: bool = True  #: False: the output head has weights of its own
    attention_bias: bool | None = None  #: in the linear layers of attention; None: as `bias`
    mlp_bias: bool | None = None  #: in those of the MLP; None: as `bias`

    def __post_init__(self) -> None:
        sizes = ("n_layer", "n_head", "n_embd", "block_size", "vocab_size")
        for name in (*sizes, "window", "n_kv_head", "head_size", "n_inner"):
            value = getattr(self, name)
            if value is None and name not in sizes:
                continue
            if not isinstance(value, int | np.integer) or isinstance(value, bool):
                raise TypeError(f"GPTConfig: {name} must be an integer, got {value!r}")
            if value < 1:
                raise ValueError(f"GPTConfig: {name} must be at least 1, got {value}")
        if self.n_embd % self.n_head and self.head_size is None:
            raise ValueError(
                f"GPTConfig: n_embd must be a multiple of n_head ({self.n_head}), got {self.n_embd}"
            )
        if not 0 <= self.dropout < 1:
            raise ValueError(f"GPTConfig: dropout must be in [0, 1), got {self.dropout}")
        if not 0 < self.layer_norm_epsilon < inf:
            epsilon = self.layer_norm_epsilon
            raise ValueError(f"GPTConfig: layer_norm_epsilon must be positive and finite, got {epsilon}")
        for name, known in (("activation", ACTIVATIONS), ("norm", NORMS)):
            if getattr(self, name) not in known:
                what = " or ".join(known)
                raise ValueError(f"GPTConfig: {name} must be {what}, got {getattr(self, name)!r}")
        if self.n_head % self.K:
            raise ValueError(f"GPTConfig: n_kv_head must divide n_head ({self.n_head}), got {self.n_kv_head}")
        if self.rope and self.D % 2:
            raise ValueError(f"GPTConfig: rope must turn pairs, got heads of {self.D} numbers")
        self._check_kind()

    def _repr_html_(self) -> str:
        """Return a table for notebooks: the sizes, and what is not as the defaults have it."""
        sizes = ("n_layer", "n_head", "n_embd", "block_size", "vocab_size")
        fields = GPTConfig.__dataclass_fields__
        other = [name for name in fields if name not in sizes and getattr(self, name) != fields[name].default]
        return small_table("GPTConfig", {name: getattr(self, name) for name in (*sizes, *other)})

    def _check_kind(self) -> None:
        """Refuse parts that no member of the family has together: no file could hold them."""
        defaults = GPTConfig.__dataclass_fields__
        llama = ("rope", "n_kv_head", "head_size", "n_inner", "attention_bias", "mlp_bias")
        gpt2 = ("window", "scale_attn_weights", "post_norm")
        if self.norm == "rmsnorm":
            if self.rope is None or self.activation != "swiglu":
                raise ValueError("GPTConfig: norm rmsnorm must have rope and activation swiglu beside it")
            others = [name for name in gpt2 if getattr(self, name) != defaults[name].default]
        else:
            others = [name for name in llama if getattr(self, name) != defaults[name].default]
            others += ["activation"] * (self.activation == "swiglu")
        if others:
            raise ValueError(f"GPTConfig: norm {self.norm} must be alone, got {', '.join(others)} beside it")
        others = [
            name
            for name in ("window", "scale_attn_weights", "activation")
            if getattr(self, name) != defaults[name].default
        ]
        if self.post_norm and others:
            raise ValueError(f"GPTConfig: post_norm must be alone, got {', '.join(others)} beside it")

    @property
    def D(self) -> int:
        """The numbers in a head."""
        return self.head_size or self.n_embd // self.n_head

    @property
    def K(self) -> int:
        """The heads of keys and of values."""
        return self.n_kv_head or self.n_head

    @property
    def F(self) -> int:
        """The numbers inside an MLP."""
        return self.n_inner or 4 * self.n_embd

    @property
    def qkv_bias(self) -> bool:
        """True where queries, keys and values have biases: not with a window, as in GPT-Neo."""
        return (self.bias if self.attention_bias is None else self.attention_bias) and self.window is None

    @property
    def scale(self) -> float:
        """The factor of the attention scores: 1/sqrt(D), or the power of two next to it with a window.

        GPT-Neo's files have no scale: it goes into the queries' weights, which a power of two leaves exact.
        """
        if not self.scale_attn_weights:
            return 1.0
        return 1 / sqrt(self.D) if self.window is None else 2.0 ** -round(log2(self.D) / 2)


ENGINES = ("gpt", "gpt-2", "gpt-3", "llama")


def engine_config(engine: str, **fields: Any) -> GPTConfig:
    """Return the GPTConfig of one of ENGINES with these fields; ValueError for another engine."""
    if engine not in ENGINES:
        raise ValueError(f"engine_config: engine must be one of {', '.join(ENGINES)}, got {engine!r}")
    if engine == "gpt-3":
        fields = {"window": 256} | fields
    if engine == "llama":  # an MLP of three matrices, as large as two of 4 n_embd
        inner = {"n_inner": -(-8 * fields.get("n_embd", 768) // 3 // 32) * 32}
        fields = {"norm": "rmsnorm", "rope": Rope(), "activation": "swiglu", "bias": False} | inner | fields
    return GPTConfig(post_norm=engine == "gpt", **fields)


def engine_of(config: GPTConfig) -> str:
    """Return the name in ENGINES of a config's kind."""
    if config.norm == "rmsnorm":
        return "llama"
    return "gpt" if config.post_norm else "gpt-2" if config.window is None else "gpt-3"


def parameter_shapes(config: GPTConfig) -> Shapes:
    """Return {GPT-2's name: shape}, 2-D weights first, so that those with weight decay are one slice.

    >>> shapes = parameter_shapes(GPTConfig(n_layer=1, n_head=2, n_embd=8, block_size=4, vocab_size=5))
    >>> shapes["wte.weight"], shapes["h.0.attn.c_attn.weight"]
    ((5, 8), (8, 24))
    """
    C, V, T = config.n_embd, config.vocab_size, config.block_size
    matrices: Shapes = {"wte.weight": (V, C)}
    if not config.rope:
        matrices["wpe.weight"] = T, C
    if not config.tied:
        matrices["lm_head.weight"] = V, C
    vectors: Shapes = {}
    heads = config.n_head * config.D
    attention_bias, mlp_bias = (
        config.bias if b is None else b for b in (config.attention_bias, config.mlp_bias)
    )
    gates = 2 if config.activation == "swiglu" else 1

    def linear(name: str, n_in: int, n_out: int, bias: bool) -> None:
        matrices[f"{name}.weight"] = (n_in, n_out)  # (in, out): y = x @ w
        if bias:
            vectors[f"{name}.bias"] = (n_out,)

    def norm(name: str) -> None:
        vectors[f"{name}.weight"] = (C,)
        if config.bias and config.norm == "layernorm":
            vectors[f"{name}.bias"] = (C,)

    for layer in range(config.n_layer):
        norm(f"h.{layer}.ln_1")
        linear(f"h.{layer}.attn.c_attn", C, heads + 2 * config.K * config.D, config.qkv_bias)
        linear(f"h.{layer}.attn.c_proj", heads, C, attention_bias)
        norm(f"h.{layer}.ln_2")
        linear(f"h.{layer}.mlp.c_fc", C, gates * config.F, mlp_bias)
        linear(f"h.{layer}.mlp.c_proj", config.F, C, mlp_bias)
    if not config.post_norm:
        norm("ln_f")
    return matrices | vectors


def size_of(shapes: Shapes) -> int:
    """Return how many numbers tensors of these shapes hold."""
    return sum(map(prod, shapes.values()))


def count_parameters(config: GPTConfig) -> int:
    """Return the number of parameters, in a time that does not depend on n_layer."""
    layer, two = (size_of(parameter_shapes(replace(config, n_layer=n))) for n in (1, 2))
    return layer + (config.n_layer - 1) * (two - layer)


def embedding_size(config: GPTConfig) -> int:
    """Return how many parameters stand before the layers' matrices: the embeddings, and an untied head."""
    shapes = parameter_shapes(replace(config, n_layer=1))
    return size_of({n: s for n, s in shapes.items() if len(s) == 2 and not n.startswith("h.")})


def frozen_shapes(shapes: Shapes) -> Shapes:
    """Return the shapes whose gradients backward() needs with adapters: all but the layers' matrices."""
    return {n: shape for n, shape in shapes.items() if not (n.startswith("h.") and len(shape) == 2)}


def flops_per_token(config: GPTConfig, time: int) -> float:
    """Return the flops of one training step per token at context `time`; a query counts the keys it sees."""
    L, C, V = config.n_layer, config.n_embd, config.vocab_size
    window = min(config.window or time, time)
    keys = (time + 1) / 2, window * (2 * time - window + 1) / (2 * time)  # seen by a query on average
    attention = 14 * config.n_head * config.D * (keys[0] * (L - L // 2) + keys[1] * (L // 2))
    of_a_layer = parameter_shapes(replace(config, n_layer=1)).values()
    matrices = sum(prod(shape) for shape in of_a_layer if len(shape) == 2) - embedding_size(config)
    return 6 * L * matrices + 6 * C * V + attention


def training_floats(config: GPTConfig, batch: int, time: int) -> int:
    """Return how many numbers a training step holds: weights, gradients, two moments, the forward's cache."""
    L, H, C, V = config.n_layer, config.n_head, config.n_embd, config.vocab_size
    rows, qkv, hidden = batch * time, (H + 2 * config.K) * config.D, config.F
    if config.activation == "swiglu":
        hidden *= 2
    layer = (2 + config.post_norm) * C + qkv + H * config.D + hidden + H + 4
    cached = L * rows * layer + rows * 2 * C + min(rows * V, kernels.LOGITS)
    moving = rows * (4 * C + 2 * config.F + (hidden - config.F))  # gradients of the current layer
    return 4 * count_parameters(config) + cached + moving


# The published sizes of the family.
# GPT: Radford et al. 2018. GPT-2: Radford et al. 2019, in the sizes that were released. GPT-3: Brown et al.
# 2020 (arXiv:2005.14165), table 2.1, where two rows do not divide: XL takes 16 heads, 13B a width of 5120.
# The window of its banded layers was not published: 256 tokens as in GPT-Neo, whose queries, keys and values
# have no biases either.
GPT3 = {  # n_layer, n_head, n_embd
    "small": (12, 12, 768),
    "medium": (24, 16, 1024),
    "large": (24, 16, 1536),
    "xl": (24, 16, 2048),
    "2.7b": (32, 32, 2560),
    "6.7b": (32, 32, 4096),
    "13b": (40, 40, 5120),
    "175b": (96, 96, 12288),
}
PRESETS = {  # engine, n_layer, n_head, n_embd, block_size, vocab_size
    "gpt": ("gpt", 12, 12, 768, 512, 40478),
    "gpt2": ("gpt-2", 12, 12, 768, 1024, 50257),
    "gpt2-medium": ("gpt-2", 24, 16, 1024, 1024, 50257),
    "gpt2-large": ("gpt-2", 36, 20, 1280, 1024, 50257),
    "gpt2-xl": ("gpt-2", 48, 25, 1600, 1024, 50257),
    **{f"gpt3-{name}": ("gpt-3", *sizes, 2048, 50257) for name, sizes in GPT3.items()},
}
SHARE = 0.6  # of the peak of multiply-adds that a training step of these sizes reaches here


def preset(name: str, **fields: Any) -> GPTConfig:
    """Return the GPTConfig of one of PRESETS, but for `fields`; ValueError for another name."""
    if name not in PRESETS:
        raise ValueError(f"preset: name must be one of {', '.join(PRESETS)}, got {name!r}")
    engine, n_layer, n_head, n_embd, block_size, vocab_size = PRESETS[name]
    sizes = {"n_layer": n_layer, "n_head": n_head, "n_embd": n_embd}
    return engine_config(engine, **sizes | {"block_size": block_size, "vocab_size": vocab_size} | fields)


def cost(config: GPTConfig, peak_gflops: float, batch: int = 1) -> dict[str, float]:
    """Return {name: number} of the costs of a model at full context in float32.

    They are its parameters, the bytes of a training step of `batch` texts, the bytes of generating one text,
    and the seconds of that step at SHARE of peak_gflops.

    >>> cost(preset("gpt2"), peak_gflops=100)["parameters"]
    124439808
    """
    T, n = config.block_size, count_parameters(config)
    cache = 2 * config.n_layer * T * config.K * config.D
    return {
        "parameters": n,
        "training_bytes": 4 * training_floats(config, batch, T),
        "inference_bytes": 4 * (n + cache + config.vocab_size),
        "step_seconds": batch * T * flops_per_token(config, T) / (SHARE * peak_gflops * 1e9),
    }
