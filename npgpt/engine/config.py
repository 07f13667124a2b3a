"""The shape of a model: its settings, its parameters by name, and the cost of a training step.

Dimensions as in model.py: C = n_embd, V = vocab_size, T = block_size, L = n_layer, H = n_head, D = C // H.
"""

from dataclasses import dataclass, replace
from math import inf, log2, prod, sqrt
from typing import Any

import numpy as np

from npgpt.engine import kernels
from npgpt.engine.names import names_checked
from npgpt.engine.types import Shapes

ACTIVATIONS = ("gelu_new", "gelu")  # as Transformers names them


@names_checked
@dataclass(frozen=True)
class GPTConfig:
    """The shape of a model. The defaults are GPT-2's smallest (124M parameters)."""

    n_layer: int = 12  #: layers
    n_head: int = 12  #: attention heads, which must divide n_embd
    n_embd: int = 768  #: channels
    block_size: int = 1024  #: the longest context, in tokens
    vocab_size: int = 50257  #: tokens that the model knows: ids are 0..vocab_size-1
    dropout: float = 0.0  #: probability, after the embedding and after each of a layer's two branches
    bias: bool = True  #: in the linear layers and the layernorms
    layer_norm_epsilon: float = 1e-5  #: what layernorms add to the variance
    post_norm: bool = False  #: GPT: layernorms after the sums, and none at the end
    window: int | None = None  #: GPT-3: layers 1, 3, ... see this many tokens, the present one included
    scale_attn_weights: bool = True  #: False: scores are not scaled, as in GPT-Neo
    activation: str = "gelu_new"  #: GELU's tanh form; "gelu": the exact one, as in nanoGPT

    def __post_init__(self) -> None:
        sizes = ("n_layer", "n_head", "n_embd", "block_size", "vocab_size")
        for name in sizes if self.window is None else (*sizes, "window"):
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
        if not 0 < self.layer_norm_epsilon < inf:
            epsilon = self.layer_norm_epsilon
            raise ValueError(f"GPTConfig: layer_norm_epsilon must be positive and finite, got {epsilon}")
        if self.activation not in ACTIVATIONS:
            known = " or ".join(ACTIVATIONS)
            raise ValueError(f"GPTConfig: activation must be {known}, got {self.activation!r}")
        others = self.window is not None, not self.scale_attn_weights, self.activation != "gelu_new"
        if self.post_norm and any(others):
            raise ValueError(
                "GPTConfig: post_norm must be alone, got a window, unscaled scores or exact GELU beside it"
            )

    @property
    def qkv_bias(self) -> bool:
        """True where queries, keys and values have biases: not with a window, as in GPT-Neo."""
        return self.bias and self.window is None

    @property
    def scale(self) -> float:
        """The factor of the attention scores: 1/sqrt(D), or the power of two next to it with a window.

        GPT-Neo's files have no scale: it goes into the queries' weights, which a power of two leaves exact.
        """
        if not self.scale_attn_weights:
            return 1.0
        D = self.n_embd // self.n_head
        return 1 / sqrt(D) if self.window is None else 2.0 ** -round(log2(D) / 2)


ENGINES = ("gpt", "gpt-2", "gpt-3")


def engine_config(engine: str, **fields: Any) -> GPTConfig:
    """Return the GPTConfig of one of ENGINES with these fields; ValueError for another engine."""
    if engine not in ENGINES:
        raise ValueError(f"engine_config: engine must be one of {', '.join(ENGINES)}, got {engine!r}")
    if engine == "gpt-3":
        fields = {"window": 256} | fields
    return GPTConfig(post_norm=engine == "gpt", **fields)


def engine_of(config: GPTConfig) -> str:
    """Return the name in ENGINES of a config's kind."""
    return "gpt" if config.post_norm else "gpt-2" if config.window is None else "gpt-3"


def parameter_shapes(config: GPTConfig) -> Shapes:
    """Return {GPT-2's name: shape}, 2-D weights first, so that those with weight decay are one slice.

    >>> shapes = parameter_shapes(GPTConfig(n_layer=1, n_head=2, n_embd=8, block_size=4, vocab_size=5))
    >>> shapes["wte.weight"], shapes["h.0.attn.c_attn.weight"]
    ((5, 8), (8, 24))
    """
    C, V, T = config.n_embd, config.vocab_size, config.block_size
    matrices: Shapes = {"wte.weight": (V, C), "wpe.weight": (T, C)}
    vectors: Shapes = {}

    def linear(name: str, n_in: int, n_out: int, bias: bool = config.bias) -> None:
        matrices[f"{name}.weight"] = (n_in, n_out)  # (in, out): y = x @ w
        if bias:
            vectors[f"{name}.bias"] = (n_out,)

    def layernorm(name: str) -> None:
        vectors[f"{name}.weight"] = (C,)
        if config.bias:
            vectors[f"{name}.bias"] = (C,)

    for layer in range(config.n_layer):
        layernorm(f"h.{layer}.ln_1")
        linear(f"h.{layer}.attn.c_attn", C, 3 * C, config.qkv_bias)
        linear(f"h.{layer}.attn.c_proj", C, C)
        layernorm(f"h.{layer}.ln_2")
        linear(f"h.{layer}.mlp.c_fc", C, 4 * C)
        linear(f"h.{layer}.mlp.c_proj", 4 * C, C)
    if not config.post_norm:
        layernorm("ln_f")
    return matrices | vectors


def size_of(shapes: Shapes) -> int:
    """Return how many numbers tensors of these shapes hold."""
    return sum(map(prod, shapes.values()))


def count_parameters(config: GPTConfig) -> int:
    """Return the number of parameters, in a time that does not depend on n_layer."""
    layer, two = (size_of(parameter_shapes(replace(config, n_layer=n))) for n in (1, 2))
    return layer + (config.n_layer - 1) * (two - layer)


def frozen_shapes(shapes: Shapes) -> Shapes:
    """Return the shapes whose gradients backward() needs with adapters: all but the layers' matrices."""
    return {n: shape for n, shape in shapes.items() if not (n.startswith("h.") and len(shape) == 2)}


def flops_per_token(config: GPTConfig, time: int) -> float:
    """Return the flops of one training step per token at context `time`; a query counts the keys it sees."""
    L, C, V = config.n_layer, config.n_embd, config.vocab_size
    window = min(config.window or time, time)
    keys = (time + 1) / 2, window * (2 * time - window + 1) / (2 * time)  # seen by a query on average
    attention = 14 * C * (keys[0] * (L - L // 2) + keys[1] * (L // 2))
    return 72 * L * C * C + 6 * C * V + attention


def training_floats(config: GPTConfig, batch: int, time: int) -> int:
    """Return how many numbers a training step holds: weights, gradients, two moments, the forward's cache."""
    L, H, C, V = config.n_layer, config.n_head, config.n_embd, config.vocab_size
    rows = batch * time
    cached = L * rows * ((10 + config.post_norm) * C + H + 4) + rows * 2 * C + min(rows * V, kernels.LOGITS)
    moving = rows * 12 * C  # gradients of the current layer
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
    cache = 2 * config.n_layer * T * config.n_embd
    return {
        "parameters": n,
        "training_bytes": 4 * training_floats(config, batch, T),
        "inference_bytes": 4 * (n + cache + config.vocab_size),
        "step_seconds": batch * T * flops_per_token(config, T) / (SHARE * peak_gflops * 1e9),
    }
