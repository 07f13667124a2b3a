"""Generation in Transformers' terms: shapes, seeds, padding, the end of the context, and what is refused."""

import numpy as np
import pytest

import npgpt
from npgpt.engine import kernels

V = 31


@pytest.fixture(scope="module", params=[{}, {"post_norm": True}, {"window": 3}], ids=str)
def model(request):
    config = npgpt.GPTConfig(n_layer=2, n_head=2, n_embd=16, block_size=16, vocab_size=V, **request.param)
    model = npgpt.GPT2LMHeadModel(config, seed=3)
    with model.edit():
        model.flat_params[: model.n_decay] *= 12  # far from uniform
    return model


@pytest.fixture
def prompts(rng):
    return rng.integers(0, V, (3, 5))


def test_shapes_and_defaults(model, prompts):
    assert model.generate(prompts).shape == (3, 16), "20 new ones cut at the context, as in Transformers"
    assert model.generate(prompts, max_length=9).shape == (3, 9)
    assert model.generate(prompts, max_new_tokens=1).shape == (3, 6)
    rows = model.generate(prompts.tolist(), do_sample=True, num_return_sequences=4, seed=1)
    assert rows.shape == (12, 16) and rows.dtype == np.int64
    np.testing.assert_array_equal(rows[:, :5], np.repeat(prompts, 4, axis=0))
    assert len({tuple(row) for row in rows}) == 12


@pytest.mark.parametrize("beams", [1, 3])
def test_the_same_seed_gives_the_same_rows_in_any_batch(model, prompts, beams):
    how = {"do_sample": True, "num_beams": beams, "max_length": 30, "top_k": 9, "top_p": 0.9}
    rows = model.generate(prompts, seed=5, **how)
    np.testing.assert_array_equal(model.generate(prompts, seed=5, **how), rows)
    np.testing.assert_array_equal(model.generate(prompts[:1], seed=5, **how), rows[:1])
    assert (model.generate(prompts, seed=6, **how) != rows).any()


@pytest.mark.parametrize("how", [{}, {"num_beams": 2}, {"do_sample": True, "seed": 2}], ids=str)
def test_rows_are_what_they_are_alone(model, rng, how):
    """Greedy and beams; draws where their numbers, which go by the row, are the same."""
    lengths = np.array([4, 9, 1])
    mask = np.arange(9) >= 9 - lengths[:, None]
    ids = np.where(mask, rng.integers(0, V, (3, 9)), 30)
    rows = model.generate(ids, mask, max_new_tokens=7, **how)
    for b, n in enumerate(lengths[:1] if "seed" in how else lengths):
        alone = model.generate(ids[b : b + 1, 9 - n :], max_new_tokens=7, **how)[0]
        np.testing.assert_array_equal(rows[b, 9 - n :], alone)
    np.testing.assert_array_equal(rows[:, :9], ids)


@pytest.mark.skipif(kernels.library() is None, reason="the kernels are not in use here")
@pytest.mark.parametrize(
    "how", [{}, {"do_sample": True, "top_k": 9, "num_return_sequences": 3, "seed": 2}], ids=str
)
def test_numpy_writes_the_same_rows(model, rng, how):
    mask = np.arange(6) >= np.array([[2], [0], [5]])
    ids = np.where(mask, rng.integers(0, V, (3, 6)), 30)
    how = {"max_new_tokens": 9, "repetition_penalty": 1.1, "eos_token_id": [4, 17], **how}
    rows = model.generate(ids, mask, **how)
    with kernels.use("numpy"):
        np.testing.assert_array_equal(model.generate(ids, mask, **how), rows)


def test_beyond_the_context_it_goes_on_as_prompts_do(model, prompts):
    rows = model.generate(prompts, max_length=60)
    for row, prompt in zip(rows, prompts, strict=True):
        assert row[5:].tolist() == npgpt.GPT.generate(model, prompt, 55, temperature=0, return_ids=True)


def test_beams_find_what_is_more_probable_than_greed(model, prompts):
    def score(rows):
        logits = model.logits(rows[:, :-1]).astype(np.float64)
        log_p = logits - np.log(np.exp(logits).sum(axis=-1, keepdims=True))
        return np.take_along_axis(log_p, rows[:, 1:, None], -1)[:, 4:, 0].sum(axis=1)

    greedy = score(model.generate(prompts, max_length=12))
    best = [score(model.generate(prompts, max_length=12, num_beams=n)) for n in (2, 8, V)]
    assert (best[-1] >= greedy - 1e-4).all() and (best[-1] > greedy + 1e-3).any()
    many = score(model.generate(prompts[:1], max_length=12, num_beams=8, num_return_sequences=8))
    assert (np.diff(many) <= 1e-6).all(), "the best comes first"
    # three tokens and beams enough for all of them: nothing can be missed
    rows = model.generate(prompts[:1], max_length=7, num_beams=V)
    every = np.concatenate(
        [np.repeat(prompts[:1], V * V, axis=0), np.indices((V, V)).reshape(2, -1).T], axis=1
    )
    np.testing.assert_allclose(score(rows)[0], score(every).max(), atol=1e-5)


def test_rows_end_and_are_filled(model, prompts):
    free = model.generate(prompts, max_length=40)
    end = int(free[0, 8])
    rows = model.generate(prompts, max_length=40, eos_token_id=end, pad_token_id=29)
    for row, whole in zip(rows, free, strict=True):
        stop = 5 + np.flatnonzero(whole[5:] == end)
        n = stop[0] + 1 if len(stop) else len(row)
        np.testing.assert_array_equal(row[:n], whole[:n])
        assert (row[n:] == 29).all()


def test_without_a_prompt_it_begins_with_the_end_of_text(model):
    assert model.generate(eos_token_id=7, max_length=4)[0, 0] == 7
    with pytest.raises(ValueError, match="input_ids must be given where there is no end of text"):
        model.generate()


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"input_ids": [1, 2]}, r"input_ids must be integers \(B, n\), got int64 \(2,\)"),
        ({"input_ids": [[0.5]]}, "input_ids must be integers"),
        ({"input_ids": [[]]}, "input_ids must be integers"),
        ({"input_ids": [[V]]}, r"input_ids must be in 0\.\.30, got 31\.\.31"),
        ({"attention_mask": [[1]]}, r"attention_mask must be of 0 and 1, of shape \(1, 2\), got \(1, 1\)"),
        ({"attention_mask": [[1, 2]]}, "attention_mask must be of 0 and 1"),
        ({"attention_mask": [[1, 0]]}, "attention_mask must be zeros, then ones"),
        ({"attention_mask": [[0, 0]]}, "attention_mask must be zeros, then ones"),
        ({"max_length": 0}, "max_length must be a whole number, at least 1, got 0"),
        ({"max_length": 2}, "max_length must be more than the 2 ids of the prompt, .* got 2"),
        (
            {"input_ids": [[1] * 16]},
            "max_length must be more than the 16 ids of the prompt, or max_new_tokens",
        ),
        ({"max_new_tokens": 0}, "max_new_tokens must be a whole number, at least 1, got 0"),
        ({"eos_token_id": [1, 2.5]}, r"eos_token_id must be an id or a list, got \(1, 2.5\)"),
        ({"eos_token_id": True}, "eos_token_id must be an id or a list"),
        ({"max_length": 9, "max_new_tokens": 3}, "max_length must be left out"),
        ({"num_beams": 0}, "num_beams must be a whole number"),
        ({"num_beams": 2.0}, "num_beams must be a whole number"),
        ({"num_return_sequences": 2}, "num_return_sequences must be at most num_beams"),
        (
            {"num_return_sequences": 3, "num_beams": 2, "do_sample": True},
            "num_return_sequences must be at most",
        ),
        ({"early_stopping": "soon"}, "early_stopping must be a bool or 'never', got 'soon'"),
        ({"temperature": 0, "do_sample": True}, r"temperature must be above 0 with do_sample, got 0"),
        ({"top_p": 2, "do_sample": True}, r"top_p must be in 0\.\.1"),
    ],
    ids=str,
)
def test_bad_arguments_are_refused_by_name(model, settings, message):
    with pytest.raises(ValueError, match=f"^generate: {message}"):
        model.generate(**{"input_ids": [[1, 2]]} | settings)
