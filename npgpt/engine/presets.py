"""The published sizes of the family, and what each costs.

GPT: Radford et al. 2018. GPT-2: Radford et al. 2019, in the sizes that were released. GPT-3: Brown et al.
2020 (arXiv:2005.14165), table 2.1, where two rows do not divide: XL takes 16 heads, 13B a width of 5120. What
its banded layers see was not published: 256 tokens as in GPT-Neo, no biases on queries, keys and values.
"""

from typing import Any

from npgpt.engine.config import GPTConfig, count_parameters, engine_config, flops_per_token, training_floats

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
    """The GPTConfig of one of PRESETS; fields are what is to differ from it."""
    if name not in PRESETS:
        raise ValueError(f"preset: name must be one of {', '.join(PRESETS)}, got {name!r}")
    engine, n_layer, n_head, n_embd, block_size, vocab_size = PRESETS[name]
    sizes = {"n_layer": n_layer, "n_head": n_head, "n_embd": n_embd}
    return engine_config(engine, **sizes | {"block_size": block_size, "vocab_size": vocab_size} | fields)


def cost(config: GPTConfig, peak_gflops: float, batch: int = 1) -> dict[str, float]:
    """What a model costs at full context in float32.

    Parameters; bytes of a training step of `batch` texts and of generating one; the seconds of that step at
    SHARE of peak_gflops.

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
