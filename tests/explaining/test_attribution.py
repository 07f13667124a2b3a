"""Attribution: gradients by embeddings, what the methods promise, and that a model is left alone."""

import numpy as np
import pytest

import npgpt
from npgpt.engine.traced import TracedGPT
from npgpt.explaining import attribution
from npgpt.explaining.attribution import (
    ELSEWHERE,
    METHODS,
    LabelSubject,
    Objective,
    Subject,
    method_named,
    noise,
)
from tests.gradcheck import assert_gradient
from tests.models import FAMILY, random_model

IDS = np.array([7, 3, 3, 11, 29, 0, 18, 5, 30], np.int32)
OBJECTIVES = {
    "logprob": Objective("logprob", 5),
    "logit": Objective("logit", 5),
    "prob": Objective("prob", 5),
    "logprob against": Objective("logprob", 5, 9),
    "logit against": Objective("logit", 5, 9),
    "prob against": Objective("prob", 5, 9),
}


def in_float64(model):
    wide = npgpt.GPT(model.config, seed=None, dtype=np.float64)
    with wide.edit() as params:
        for name, w in model.params.items():
            params[name][...] = w
    return wide


def subject_of(model, objective=OBJECTIVES["logprob"], ids=IDS):
    return Subject(TracedGPT(model), ids, objective)


@pytest.fixture(params=FAMILY)
def model(request):
    return random_model(**FAMILY[request.param])


# ---------------------------------------------------------------------------- gradients


def test_the_gradient_by_embeddings_is_that_of_central_differences(rng, model):
    f = subject_of(in_float64(model), OBJECTIVES["logprob against"])
    where = rng.choice(f.e.size, 12, replace=False)
    assert_gradient("e", lambda: f.values(f.e[None])[0], f.e, f.gradients(f.e[None])[0], where)


@pytest.mark.parametrize("objective", OBJECTIVES.values(), ids=OBJECTIVES)
def test_so_is_that_of_each_quantity(rng, objective):
    f = subject_of(in_float64(random_model()), objective)
    where = rng.choice(f.e.size, 12, replace=False)
    assert_gradient("e", lambda: f.values(f.e[None])[0], f.e, f.gradients(f.e[None])[0], where)


@pytest.mark.parametrize("objective", ["logprob", "logit", "prob"])
def test_so_is_that_of_a_label(rng, model, objective):
    """Of labels of one token and of several; the target is the second, against the third."""
    labels = [[5], [9, 8, 7], [2, 30]]
    f = LabelSubject(TracedGPT(in_float64(model)), IDS, labels, Objective(objective, 1, 2))
    where = rng.choice(f.e.size, 8, replace=False)
    assert_gradient("e", lambda: f.values(f.e[None])[0], f.e, f.gradients(f.e[None])[0], where)
    scores = [model.score(IDS.tolist(), label) for label in labels]
    np.testing.assert_allclose(f.log_probabilities(f.e[None])[0], scores, rtol=1e-4)


def test_each_implementation_has_that_gradient(impl, model, measured):
    exact = subject_of(in_float64(model))
    gradient = exact.gradients(exact.e[None])
    f = subject_of(model)
    error = np.abs(f.gradients(f.e[None]) - gradient).max() / np.abs(gradient).max()
    measured("gradient by embeddings, against float64", error, 1e-4)


def test_variants_do_not_see_each_other():
    f = subject_of(random_model())
    variants = f.e * np.linspace(0.1, 1, 70, dtype=np.float32)[:, None, None]  # of several batches
    together = f.values(variants), f.gradients(variants)
    for n in (0, 33, 69):
        np.testing.assert_allclose(together[0][n], f.values(variants[n : n + 1])[0], rtol=1e-5)
        one = f.gradients(variants[n : n + 1])[0]
        np.testing.assert_allclose(together[1][n], one, rtol=0, atol=1e-5 * np.abs(one).max())


# ---------------------------------------------------------------------------- methods


def test_integrated_gradients_add_up_to_what_the_text_changes(model, measured):
    for of in ("logprob", "prob against"):
        f = subject_of(model, OBJECTIVES[of])
        change = float(f.values(f.e[None])[0] - f.values(f.nothing[None])[0])
        error = abs(METHODS["integrated"](f).sum() - change) / abs(change)
        measured(f"integrated gradients of {of}, completeness", error, 0.01)


def test_integrated_gradients_say_where_they_do_not(monkeypatch):
    monkeypatch.setattr(attribution, "MAX_PARTS", 1)
    with pytest.warns(RuntimeWarning, match="integrated gradients are .* away from the"):
        METHODS["integrated"](subject_of(random_model(**FAMILY["llama, wide"])))


def test_an_occluded_token_is_one_of_zeros():
    """A model with one more token, whose embedding is zeros, reads that token instead."""
    model = random_model(tied=False)
    larger = npgpt.GPT(npgpt.GPTConfig(**vars(model.config) | {"vocab_size": 258}), seed=None)
    with larger.edit() as params:
        for name, w in model.params.items():
            params[name][: len(w)] = w
    rows = np.tile(IDS, (len(IDS) + 1, 1))
    rows[np.arange(len(IDS)), np.arange(len(IDS))] = 257
    logits = larger.logits(rows)[:, -1, 5]
    scores = METHODS["occlusion"](subject_of(model, OBJECTIVES["logit"]))
    np.testing.assert_allclose(scores, logits[-1] - logits[:-1], atol=1e-5)


def test_gradients_become_scores():
    f = subject_of(random_model())
    gradient = f.gradients(f.e[None])[0].astype(np.float64)
    np.testing.assert_allclose(METHODS["grad_x_input"](f), (gradient * f.e).sum(-1), rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(METHODS["gradient"](f), np.linalg.norm(gradient, axis=-1), rtol=1e-6)
    assert (
        np.abs(gradient.sum(-1)).max() < 1e-4 * np.linalg.norm(gradient, axis=-1).min()
    )  # GPT-2 has layernorms
    mean = np.mean([f.gradients((f.e + n)[None])[0] for n in noise(f.e)], axis=0)
    np.testing.assert_allclose(METHODS["smooth"](f), np.linalg.norm(mean, axis=-1), rtol=1e-4)
    assert noise(f.e).std() == pytest.approx(0.1 * np.ptp(f.e), rel=0.02)


@pytest.mark.parametrize("name", METHODS)
def test_scores_are_the_same_on_any_number_of_threads(name, threads):
    for fields in FAMILY["gpt-2"], FAMILY["llama"], FAMILY["gpt-3"]:
        model, found = random_model(**fields), set()
        for n in (1, 3, 3):
            threads(n)
            found.add(model.explain(IDS, 5, method=name).scores.tobytes())
        assert len(found) == 1


def test_methods_have_their_names_of_elsewhere():
    assert method_named("SimpleGradient") == "grad_x_input"  # AllenNLP multiplies by the embedding
    assert method_named("Saliency") == "gradient" and method_named("input_x_gradient") == "grad_x_input"
    assert method_named("grad_x_input") == "grad_x_input" and method_named("Occlusion") == "occlusion"
    assert method_named("Integrated Gradients") == "integrated"  # as get_name() of captum gives it
    assert set(ELSEWHERE.values()) <= set(METHODS)


# ---------------------------------------------------------------------------- the model


def test_a_training_step_does_not_notice_it():
    found = []
    for explained in (False, True):
        model = random_model(dropout=0.2)
        ids = IDS[None].repeat(2, axis=0)
        model.forward(ids[:, :-1], ids[:, 1:])
        if explained:
            model.explain(IDS), model.lens(IDS), model.attention(IDS)
        model.backward()
        found.append((model.flat_grads.tobytes(), model.flat_params.tobytes(), model.version))
    assert found[0] == found[1]


def test_dropout_has_no_part_in_it():
    with_dropout, without = (random_model(dropout=p).explain(IDS, 5).scores for p in (0.5, 0.0))
    assert with_dropout.tobytes() == without.tobytes()


def test_weights_that_are_not_finite_are_refused():
    model = random_model()
    with model.edit() as params:
        params["h.1.mlp.c_fc.weight"][0, 0] = np.nan
    for what in (model.explain, model.attention, model.lens):
        with pytest.raises(ValueError, match=r"h\.1\.mlp\.c_fc\.weight must be finite"):
            what(IDS)
