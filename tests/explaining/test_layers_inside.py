"""Attention and lens: what the fast path kept, and what a shorter model says."""

from dataclasses import replace

import numpy as np
import pytest

import npgpt
from npgpt.engine.traced import TracedGPT
from npgpt.runtime.sampling import log_softmax
from tests.models import FAMILY, random_model

IDS = np.array([7, 3, 3, 11, 29, 0, 18, 5, 30], np.int32)


@pytest.fixture(params=FAMILY)
def model(request):
    return random_model(**FAMILY[request.param])


def test_attention_weights_are_those_that_the_fast_path_used(impl, model, measured):
    """Their rows sum to 1, nothing looks ahead or out of its window; with the values they give its output."""
    weights, config = model.attention(IDS), model.config
    T, H = len(IDS), config.n_head
    assert weights.shape == (config.n_layer, H, T, T) and (weights >= 0).all()
    measured("attention, sum of a row", np.abs(weights.sum(axis=-1, dtype=np.float64) - 1).max(), 1e-5)
    age = np.arange(T)[:, None] - np.arange(T)
    traced = TracedGPT(model)
    trace = traced.trace(traced.token_embeddings(IDS[None]))
    for layer, kept in enumerate(trace._cache.layers):
        window = config.window if config.window and layer % 2 else T
        assert ((weights[layer] > 0) == ((age >= 0) & (age < window))).all()
        heads = kept.attended.qkv[0].reshape(T, -1, config.D).astype(np.float64)
        values = np.repeat(heads[:, H + config.K :], H // config.K, axis=1)  # (T,H,D)
        out = np.einsum("hts,shd->thd", weights[layer], values).reshape(T, -1)
        measured("attention @ values", np.abs(out - kept.attended.out[0]).max(), 1e-5)


def test_a_layer_of_the_lens_is_the_model_that_ends_there(impl, model):
    """To the bit; the last layer is the model itself."""
    lens = model.lens(IDS)
    for layer in range(model.config.n_layer):
        shorter = npgpt.GPT(replace(model.config, n_layer=layer + 1), seed=None)
        with shorter.edit() as params:
            for name in params:
                params[name][...] = model.params[name]
        expected = log_softmax(shorter.logits(IDS[None])[0])
        assert lens.log_probabilities(layer).tobytes() == expected.tobytes()
    assert lens.log_probabilities(-1).tobytes() == log_softmax(model.logits(IDS[None])[0]).tobytes()


def test_what_the_lens_says_of_a_distribution():
    lens = random_model().lens(IDS)
    log_p = np.stack([lens.log_probabilities(layer) for layer in range(3)])
    p = np.exp(log_p)
    np.testing.assert_allclose(lens.entropy, -(p * log_p).sum(-1))
    np.testing.assert_allclose(lens.probabilities(5), p[:, :, 5])
    np.testing.assert_allclose(lens.probabilities(IDS)[:, 2], p[:, 2, IDS[2]])
    np.testing.assert_array_equal(lens.top, np.argsort(-p, axis=-1)[..., :10])
    np.testing.assert_allclose(lens.shares, np.take_along_axis(p, lens.top, -1))


def test_they_are_the_same_on_any_number_of_threads(threads):
    found = set()
    for n in (1, 3, 3):
        threads(n)
        model = random_model(**FAMILY["llama"])
        lens = model.lens(IDS)
        found.add((model.attention(IDS).tobytes(), lens.states.tobytes(), lens.entropy.tobytes()))
    assert len(found) == 1
