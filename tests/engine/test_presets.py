"""The published sizes, and what they are said to cost."""

import pytest

import npgpt
from npgpt.engine.config import (
    PRESETS,
    SHARE,
    GPTConfig,
    cost,
    count_parameters,
    flops_per_token,
    preset,
    training_floats,
)
from npgpt.engine.model import GPT

RELEASED = {
    "gpt": 116_534_784,
    "gpt2": 124_439_808,
    "gpt2-medium": 354_823_168,
    "gpt2-large": 774_030_080,
    "gpt2-xl": 1_557_611_200,
}
PUBLISHED = {
    "gpt3-small": 125e6,
    "gpt3-medium": 350e6,
    "gpt3-large": 760e6,
    "gpt3-xl": 1.3e9,
    "gpt3-2.7b": 2.7e9,
    "gpt3-6.7b": 6.7e9,
    "gpt3-13b": 13e9,
    "gpt3-175b": 175e9,
}


def test_parameters_are_those_released_or_published():
    assert PRESETS.keys() == RELEASED.keys() | PUBLISHED.keys()
    for name, n in RELEASED.items():
        assert count_parameters(preset(name)) == n, name
    for name, n in PUBLISHED.items():
        assert count_parameters(preset(name)) == pytest.approx(n, rel=0.02), name


def test_switches_of_the_family():
    assert preset("gpt").post_norm and preset("gpt").window is None
    assert preset("gpt2") == GPTConfig()
    assert preset("gpt3-small").window == 256 and preset("gpt3-small").block_size == 2048
    assert npgpt.preset("gpt2", block_size=32, n_layer=1) == GPTConfig(block_size=32, n_layer=1)
    with pytest.raises(ValueError, match=r"name must be one of gpt, gpt2, .*, got 'gpt4'"):
        preset("gpt4")


def test_costs():
    config = preset("gpt3-small", n_layer=2, n_head=2, n_embd=32, block_size=64, vocab_size=97)
    model = GPT(config)
    told = cost(config, peak_gflops=100, batch=3)
    assert told["parameters"] == model.num_params
    assert told["training_bytes"] == 4 * training_floats(config, 3, 64)
    cache = model.new_cache()
    assert told["inference_bytes"] == 4 * model.num_params + cache.keys.nbytes + cache.values.nbytes + 4 * 97
    flops = flops_per_token(config, 64) * 3 * 64
    assert told["step_seconds"] == pytest.approx(flops / (SHARE * 100e9))
