"""A softmax over a part of the classes: which, with what gradients, and that it is right in the mean."""

import numpy as np
import pytest

from npgpt.engine import kernels
from npgpt.engine.config import GPTConfig
from npgpt.engine.model import GPT, HEAD
from npgpt.engine.sampled import draw_classes
from tests.gradcheck import assert_gradient

V, KEY = 50, (7, 3, 0, HEAD)
SHAPE = {"n_layer": 1, "n_head": 2, "n_embd": 8, "block_size": 6, "vocab_size": V}


def draw(targets, count=9, key=KEY, vocab_size=V, ops=None):
    return draw_classes(ops or kernels.ops_for(np.float32), np.asarray(targets), vocab_size, count, key)


def batch(rng):
    ids = rng.integers(0, V, (3, 7)).astype(np.int32)
    return ids[:, :-1], np.where(rng.random((3, 6)) < 0.2, -1, ids[:, 1:])


def test_classes_are_those_of_the_targets_and_drawn_ones():
    targets, drawn = np.array([[4, -1, 9], [4, 30, -1]], np.int32), np.zeros(V)
    for step in range(4000):
        classes = draw(targets, key=(7, step, 0, HEAD))
        assert (np.diff(classes.ids) > 0).all() and {4, 9, 30} <= set(classes.ids.tolist())
        np.testing.assert_array_equal(
            classes.ids[classes.targets(targets)[targets >= 0]], targets[targets >= 0]
        )
        assert (classes.targets(targets)[targets < 0] == -1).all()
        given = np.isin(classes.ids, [4, 9, 30])
        np.testing.assert_array_equal(classes.shift, np.where(given, 0, np.log(47 / 9)).astype(np.float32))
        drawn[classes.ids] += 1
    others = np.delete(drawn, [4, 9, 30]) / 4000
    assert abs(others - 9 / 47).max() < 4 * np.sqrt(9 / 47 * 38 / 47 / 4000)  # four standard deviations


def test_the_sum_of_exponentials_is_right_in_the_mean(rng):
    scores, targets, found = rng.standard_normal(V), np.array([3, 8]), []
    for step in range(4000):
        ids, shift, _ = draw(targets, key=(7, step, 0, HEAD))
        found.append(np.exp(scores[ids] + shift).sum())
    error = np.mean(found) / np.exp(scores).sum() - 1
    assert abs(error) < 4 * np.std(found) / np.mean(found) / np.sqrt(4000)


def test_where_few_are_left_the_softmax_is_full():
    assert draw(np.arange(41)) is None and draw([1], count=49) is None
    assert len(draw(np.arange(40), key=(7, 0, 0, HEAD)).ids) > 40


def test_a_target_that_is_not_there_is_an_error():
    with pytest.raises(ValueError, match="classes must contain all targets"):
        draw([1, 2], key=(1, 1, 0, HEAD), count=1).targets(np.arange(V))


def test_draws_are_the_same_on_every_instruction_set(isa):
    expected = draw([4, 9], ops=kernels.ops_for(np.float64))
    for ours, theirs in zip(draw([4, 9]), expected, strict=True):
        np.testing.assert_array_equal(ours, theirs)


@pytest.mark.parametrize("fields", [{}, {"tied": False}], ids=["tied", "untied"])
def test_gradients_are_those_of_differences(rng, fields):
    model = GPT(GPTConfig(**SHAPE | fields), dtype=np.float64)
    with model.edit() as params:  # far from their first values, where differences say little
        for name, w in params.items():
            w[...] = 0.3 * rng.standard_normal(w.shape) + (name.endswith("weight") and w.ndim == 1)
    x, y = batch(rng)
    classes = draw(y)

    def loss():
        h = model.hidden(x)[y >= 0]
        logits = h @ model.head_weights[classes.ids].T + classes.shift
        target = (model.head_weights[y[y >= 0]] * h).sum(axis=1)
        return float(np.mean(np.log(np.exp(logits).sum(axis=1)) - target))

    model.classes = classes
    assert model.forward(x, y) == pytest.approx(loss(), rel=1e-12)
    model.backward()
    grads = {name: g.copy() for name, g in model.grads.items()}
    with model.edit() as params:
        for name, w in params.items():
            assert_gradient(name, loss, w, grads[name], rng.choice(w.size, min(30, w.size), replace=False))


def test_a_step_is_the_same_on_any_number_of_threads(isa, rng, threads):
    model = GPT(GPTConfig(**SHAPE | {"n_embd": 64, "vocab_size": 3000}), seed=1)
    ids = rng.integers(0, 3000, (40, 7)).astype(np.int32)
    found = []
    for n in 1, 2, 3:
        threads(n)
        model.classes = draw(ids, count=700, vocab_size=3000)
        loss = model.forward(ids[:, :-1], ids[:, 1:])
        model.backward()
        found.append((loss, model.flat_grads.tobytes()))
        model.zero_grads()
    assert len(set(found)) == 1


def test_validation_and_logits_stay_full(rng):
    model = GPT(GPTConfig(**SHAPE), seed=1)
    x, y = batch(rng)
    full = model.loss(x, y), model.logits(x)
    model.classes = draw(y)
    assert model.loss(x, y) == full[0]
    np.testing.assert_array_equal(model.logits(x), full[1])
    assert model.forward(x, y) != full[0]
