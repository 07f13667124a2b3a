"""LoRA: gradients by central differences, what is trained and what is not, merged and kept apart."""

import json

import numpy as np
import pytest
from safetensors.numpy import load_file

from npgpt.engine import kernels, lora
from npgpt.engine.config import GPTConfig, engine_config, training_floats
from npgpt.engine.lora import LoRA, lora_floats
from npgpt.engine.model import GPT
from npgpt.engine.optim import AdamW
from npgpt.interop.peft import write_adapter
from npgpt.text.tokenizer import ByteTokenizer
from tests.gradcheck import assert_gradient

SMALL = {"n_layer": 2, "n_head": 2, "n_embd": 8, "block_size": 12, "vocab_size": 19}
PACKED = np.array([[0, 0, 0, 3, 3, 3, 3, 7], [0, 0, 0, 0, 0, 5, 5, 7]], np.int32)


def made(rng, dtype=np.float64, **more):
    model = GPT(GPTConfig(**SMALL | more), seed=1, dtype=dtype)
    with model.edit() as params:
        for w in params.values():
            w += 0.1 * rng.standard_normal(w.shape)
    return model


def batch(rng):
    x = rng.integers(0, 19, PACKED.shape)
    return x, np.where(rng.random(x.shape) < 0.3, -1, rng.integers(0, 19, x.shape))


def test_backward_of_the_product(rng):
    base, a, b, x = (rng.standard_normal(s) for s in ((5, 7), (5, 2), (2, 7), (6, 5)))
    dy, da, db = rng.standard_normal((6, 7)), np.zeros_like(a), np.zeros_like(b)
    w = lora.lora_forward(base, a, b, 1.5)
    dx = lora.lora_backward(kernels.ops_for(np.float64), dy, x, w, a, b, da, db, 1.5)

    def loss():
        return float((dy * (x @ lora.lora_forward(base, a, b, 1.5))).sum())

    for name, array, gradient in (("a", a, da), ("b", b, db), ("x", x, dx)):
        assert_gradient(name, loss, array, gradient)


@pytest.mark.parametrize(
    "more", [{}, {"post_norm": True}, {"window": 3}, {"activation": "gelu"}, {"bias": False}]
)
def test_gradients_of_adapters_in_packed_rows(more, rng):
    model = made(rng, **more)
    adapters = LoRA(model, rank=2, rows=3)
    with adapters.edit():
        adapters.flat_params += 0.1 * rng.standard_normal(adapters.num_params)
    x, y = batch(rng)
    model.forward(x, y, PACKED)
    model.backward()
    assert not model.flat_grads.any() and len(model.flat_grads) < model.num_params

    def loss():
        with adapters.edit():  # whose end merges them
            pass
        return model.loss(x, y, PACKED)

    with adapters.edit() as params:
        for name, w in params.items():
            where = rng.choice(w.size, min(w.size, 6), replace=False)
            assert_gradient(name, loss, w, adapters.grads[name].copy(), where)


@pytest.mark.parametrize("more", [{}, {"post_norm": True}, {"window": 3}])
def test_packed_examples_are_as_each_alone(more, rng, impl):
    model = made(rng, np.float32, **more)
    x, y = batch(rng)
    model.forward(x, y, PACKED)
    model.backward()
    together, alone, total = model.flat_grads.copy(), np.zeros(model.num_params), (y >= 0).sum()
    hidden = model.hidden(x, PACKED)
    for row in range(len(x)):
        for begin in np.unique(PACKED[row]):
            part = PACKED[row] == begin
            np.testing.assert_allclose(hidden[row, part], model.hidden(x[None, row, part])[0], atol=2e-5)
            if (n := int((y[row, part] >= 0).sum())) > 0:
                model.zero_grads()
                model.forward(x[None, row, part], y[None, row, part])
                model.backward()
                alone += model.flat_grads * (n / total)
    np.testing.assert_allclose(together, alone, atol=2e-5)


def test_starts_are_checked(rng):
    model = made(rng)
    x, y = batch(rng)
    for wrong in (PACKED[:1], PACKED + 1, PACKED - 1):
        with pytest.raises(ValueError, match="starts must be of shape"):
            model.loss(x, y, wrong)
    with pytest.raises(TypeError, match="starts must be integers"):
        model.loss(x, y, PACKED.astype(float))


def test_only_adapters_are_trained_and_files_have_them(rng, tmp_path, impl):
    model = made(rng, np.float32)
    before = {name: w.copy() for name, w in model.params.items()}
    x, y = batch(rng)
    adapters = LoRA(model, rank=2, rows=1)
    assert model.loss(x, y) == pytest.approx(GPT.loss(model, x, y))
    optimizer, losses = AdamW(adapters, lr=0.02), []
    for _ in range(30):
        losses.append(model.forward(x, y, PACKED))
        model.backward()
        optimizer.step(max_grad_norm=1.0)
    assert losses[-1] < 0.8 * losses[0]
    assert sum(m.size for m in optimizer.moments) == 2 * adapters.num_params < model.num_params
    for name, w in model.params.items():
        changed = name.startswith("h.") and w.ndim == 2
        if name == "wte.weight":
            assert (w[:-1] == before[name][:-1]).all() and (w[-1] != before[name][-1]).any()
        else:
            assert (w != before[name]).any() == changed, name
    for name, w in adapters.unmerged().params.items():
        trained = 1 if name == "wte.weight" else 0
        assert (w[: len(w) - trained] == before[name][: len(w) - trained]).all(), name
    assert (adapters.unmerged().params["wte.weight"] == model.params["wte.weight"]).all()
    write_adapter(tmp_path / "adapter", adapters, "base", ByteTokenizer())
    stored, config = (
        load_file(tmp_path / "adapter/adapter_model.safetensors"),
        json.loads((tmp_path / "adapter/adapter_config.json").read_text()),
    )
    key = "base_model.model.transformer.h.1.mlp.c_fc.lora_{}.weight"
    a, b = stored[key.format("A")], stored[key.format("B")]
    merged = before["h.1.mlp.c_fc.weight"] + config["lora_alpha"] / config["r"] * (b @ a).T
    np.testing.assert_allclose(merged, model.params["h.1.mlp.c_fc.weight"], atol=1e-6)


def test_memory_is_little():
    config = GPTConfig(n_layer=6, n_head=4, n_embd=256, block_size=128, vocab_size=1024)
    model = GPT(config, seed=None)
    full, little = training_floats(config, 1, 128), lora_floats(config, 1, 128, 8, 4)
    adapters = LoRA(model, 8, 4)
    held = model.num_params + sum(w.size for w in adapters.base.values()) + model.flat_grads.size
    held += 4 * adapters.num_params
    kept = full - 4 * model.num_params
    assert little == held + kept and held < 0.6 * 4 * model.num_params


def test_rows_of_a_head_of_its_own_are_refused():
    config = engine_config("llama", n_layer=1, n_head=2, n_embd=16, block_size=8, vocab_size=11, tied=False)
    with pytest.raises(
        ValueError, match=r"^LoRA: the head must be tied to wte to train 2 rows of added tokens$"
    ):
        LoRA(GPT(config), rank=2, rows=2)
    assert LoRA(GPT(config), rank=2).num_params == 2 * (16 + 48 + 16 + 16 + 16 + 128 + 64 + 16)
