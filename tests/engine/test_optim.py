"""AdamW and Muon on a model: the formula, clipping, which weights decay, and going on from a saved state."""

import math

import numpy as np
import pytest

from npgpt.engine.config import GPTConfig
from npgpt.engine.model import GPT
from npgpt.engine.ops import POLAR
from npgpt.engine.optim import AdamW, Muon

CONFIG = GPTConfig(n_layer=1, n_head=3, n_embd=15, block_size=7, vocab_size=11)


def model_with_gradient(rng, dtype=np.float32, scale=1.0):
    model = GPT(CONFIG, seed=1, dtype=dtype)
    with model.edit():
        model.flat_params[...] = rng.standard_normal(model.num_params)
        model.flat_grads[...] = scale * rng.standard_normal(model.num_params)
    return model


def test_steps_follow_the_formula(impl, rng):
    """Five steps with clipping and a changing rate, against the formula in float64, tensor by tensor."""
    model = model_with_gradient(rng)
    optimizer = AdamW(model, lr=0.01, betas=(0.8, 0.95), eps=1e-6, weight_decay=0.1)
    theta = {name: w.astype(np.float64) for name, w in model.params.items()}
    first = {name: np.zeros(w.shape) for name, w in theta.items()}
    second = {name: np.zeros(w.shape) for name, w in theta.items()}
    for step in range(1, 6):
        optimizer.lr = 0.01 / step
        model.flat_grads[...] = rng.standard_normal(model.num_params) * 10.0 ** (2 - step)
        grads = {name: g.astype(np.float64) for name, g in model.grads.items()}
        norm = math.sqrt(sum((g * g).sum() for g in grads.values()))
        assert optimizer.step(max_grad_norm=1.0) == pytest.approx(norm, rel=1e-6)
        assert optimizer.steps == step
        for name, w in theta.items():
            g = grads[name] * min(1.0, 1.0 / (norm + 1e-6))
            first[name] = 0.8 * first[name] + 0.2 * g
            second[name] = 0.95 * second[name] + 0.05 * g * g
            m, v = first[name] / (1 - 0.8**step), second[name] / (1 - 0.95**step)
            if w.ndim == 2:
                w -= optimizer.lr * 0.1 * w
            w -= optimizer.lr * m / (np.sqrt(v) + 1e-6)
            np.testing.assert_allclose(model.params[name], w, rtol=2e-6, atol=2e-6, err_msg=name)
        assert not model.flat_grads.any()


@pytest.mark.parametrize("max_grad_norm", [None, 1e9, 3.0])
def test_clipping(impl, rng, max_grad_norm):
    """A step of Adam hardly depends on the gradient's size: clipping shows in the moments."""
    model = model_with_gradient(rng, scale=2.0)
    g = model.flat_grads.astype(np.float64)
    norm = math.sqrt((g * g).sum())
    optimizer = AdamW(model, betas=(0.5, 0.5))
    assert optimizer.step(max_grad_norm) == pytest.approx(norm, rel=1e-6), "the norm before clipping"
    scale = 3.0 / norm if max_grad_norm == 3.0 else 1.0
    np.testing.assert_allclose(optimizer.state()["m"], 0.5 * g * scale, rtol=2e-6, atol=1e-12)
    np.testing.assert_allclose(optimizer.state()["v"], 0.5 * (g * scale) ** 2, rtol=2e-6, atol=1e-12)


def test_only_matrices_decay(impl, rng):
    model = model_with_gradient(rng, scale=0.0)
    before = {name: w.copy() for name, w in model.params.items()}
    AdamW(model, lr=0.5, weight_decay=0.1).step()
    for name, w in model.params.items():
        # without a gradient nothing moves but by decay: lr * weight_decay = 5 %
        np.testing.assert_allclose(w, before[name] * (0.95 if w.ndim == 2 else 1.0), rtol=3e-7)


def test_no_rate_no_change(impl, rng):
    model = model_with_gradient(rng)
    before = model.flat_params.copy()
    AdamW(model, lr=0.0).step()
    np.testing.assert_array_equal(model.flat_params, before)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_gradient_that_is_not_finite_changes_nothing(impl, rng, bad):
    model = model_with_gradient(rng)
    optimizer = AdamW(model)
    optimizer.step(1.0)
    kept = model.flat_params.copy(), *(a.copy() for a in optimizer.state().values())
    model.flat_grads[7] = bad
    assert not math.isfinite(optimizer.step(1.0))
    assert optimizer.steps == 1 and not model.flat_grads.any()
    for now, before in zip((model.flat_params, *optimizer.state().values()), kept, strict=True):
        np.testing.assert_array_equal(now, before)


def test_goes_on_from_a_saved_state_bit_for_bit(impl):
    def gradient(model, step):
        model.flat_grads[...] = np.random.default_rng(step).standard_normal(model.num_params)

    def run(model, optimizer, steps):
        for step in steps:
            gradient(model, step)
            optimizer.step(1.0)

    whole = GPT(CONFIG)
    run(whole, AdamW(whole), range(6))
    first = GPT(CONFIG)
    optimizer = AdamW(first)
    run(first, optimizer, range(3))
    state = {name: moment.copy() for name, moment in optimizer.state().items()}
    second = GPT(CONFIG, seed=9)
    with second.edit():
        second.flat_params[...] = first.flat_params
    resumed = AdamW(second)
    resumed.load_state(state, optimizer.steps)
    assert resumed.steps == 3
    run(second, resumed, range(3, 6))
    np.testing.assert_array_equal(second.flat_params, whole.flat_params)
    with pytest.raises(ValueError, match=r"^AdamW.load_state: m must have shape .*, got \(3,\)$"):
        resumed.load_state({"m": np.zeros(3, np.float32), "v": state["v"]}, 3)


def test_a_step_ends_the_life_of_caches(rng):
    model = model_with_gradient(rng)
    ids = np.zeros((1, 3), int)
    model.forward(ids, ids)
    AdamW(model).step()
    with pytest.raises(RuntimeError, match=r"^backward: "):
        model.backward()


@pytest.mark.parametrize(
    "settings, what",
    [
        ({"lr": -1e-3}, "lr must be finite and at least 0, got -0.001"),
        ({"lr": math.nan}, "lr must be finite and at least 0, got nan"),
        ({"lr": 10**400}, r"lr must be finite and at least 0, got 10{59}$"),  # no float holds it
        ({"eps": -1.0}, "eps must be finite and at least 0, got -1.0"),
        ({"weight_decay": math.inf}, "weight_decay must be finite and at least 0, got inf"),
        ({"betas": (0.9, 1.0)}, r"betas must be in \[0, 1\), got \(0.9, 1.0\)"),
        ({"betas": (-0.1, 0.9)}, r"betas must be in \[0, 1\), got \(-0.1, 0.9\)"),
    ],
)
def test_bad_settings(settings, what):
    with pytest.raises(ValueError, match=f"^AdamW: {what}$"):
        AdamW(GPT(CONFIG), **settings)


# ---------------------------------------------------------------------------- Muon


def test_muon_moves_layers_by_their_directions_and_the_rest_as_adamw(impl, rng):
    """Three steps against the formulas in float64: every tensor by the rule for its name."""
    model = model_with_gradient(rng)
    optimizer = Muon(model, lr=0.03, momentum=0.9, adamw_ratio=0.5, betas=(0.8, 0.95), weight_decay=0.1)
    theta = {name: w.astype(np.float64) for name, w in model.params.items()}
    first = {name: np.zeros(w.shape) for name, w in theta.items()}
    second = {name: np.zeros(w.shape) for name, w in theta.items()}
    for step in range(1, 4):
        model.flat_grads[...] = rng.standard_normal(model.num_params)
        grads = {name: g.astype(np.float64) for name, g in model.grads.items()}
        norm = math.sqrt(sum((g * g).sum() for g in grads.values()))
        assert optimizer.step(max_grad_norm=1.0) == pytest.approx(norm, rel=1e-6)
        momentum = 0.8 + 0.1 * step / 300
        for name, w in theta.items():
            g = grads[name] / (norm + 1e-6)
            if name.startswith("h.") and w.ndim == 2:
                first[name] += (1 - momentum) * (g - first[name])
                u = (1 - momentum) * g + momentum * first[name]
                w *= 1 - 0.015 * 0.1
                for part in np.split(np.arange(w.shape[1]), 3 if "c_attn" in name else 1):
                    rate = 0.03 * max(1, len(part) / len(w)) ** 0.5
                    w[:, part] -= rate * orthogonal(u[:, part])
            else:
                first[name] += 0.2 * (g - first[name])
                second[name] += 0.05 * (g * g - second[name])
                m, v = first[name] / (1 - 0.8**step), second[name] / (1 - 0.95**step)
                w *= 1 - (0.015 * 0.1 if w.ndim == 2 else 0)
                w -= 0.015 * m / (np.sqrt(v) + 1e-8)
            np.testing.assert_allclose(model.params[name], w, rtol=1e-5, atol=1e-5, err_msg=name)
        assert not model.flat_grads.any()


def orthogonal(u):
    """By its singular values: what orthogonalise does by products alone."""
    left, s, right = np.linalg.svd(u, full_matrices=False)
    s = s / (1.02 * np.linalg.norm(s))
    for a, b, c in POLAR:
        s = a * s + b * s**3 + c * s**5
    return (left * s) @ right


def test_muon_goes_on_from_a_saved_state(impl, rng):
    model = model_with_gradient(rng)
    optimizer, gradients = Muon(model), rng.standard_normal((4, model.num_params))
    for g in gradients[:2]:
        model.flat_grads[...] = g
        optimizer.step(1.0)
    weights, state = model.flat_params.copy(), {k: a.copy() for k, a in optimizer.state().items()}
    for g in gradients[2:]:
        model.flat_grads[...] = g
        optimizer.step(1.0)
    expected = model.flat_params.copy()
    with model.edit():
        model.flat_params[...] = weights
    again = Muon(model)
    again.load_state(state, 2)
    for g in gradients[2:]:
        model.flat_grads[...] = g
        again.step(1.0)
    np.testing.assert_array_equal(model.flat_params, expected)
    with pytest.raises(ValueError, match=r"^Muon\.load_state: v must have shape"):
        again.load_state(state | {"v": state["m"]}, 2)


@pytest.mark.parametrize(
    "bad", [{"lr": -1}, {"momentum": 1.0}, {"betas": (0.9, 1.0)}, {"adamw_ratio": math.inf}]
)
def test_muon_refuses(rng, bad):
    with pytest.raises(ValueError, match=f"^Muon: {next(iter(bad))} must be"):
        Muon(model_with_gradient(rng), **bad)


def test_muon_leaves_all_as_it_was_where_a_gradient_is_not_finite(impl, rng):
    model = model_with_gradient(rng)
    before = model.flat_params.copy()
    model.flat_grads[7] = np.nan
    optimizer = Muon(model)
    assert math.isnan(optimizer.step(1.0)) and optimizer.steps == 0
    np.testing.assert_array_equal(model.flat_params, before)
    assert not model.flat_grads.any()
