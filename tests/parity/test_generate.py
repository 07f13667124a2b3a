"""Generation side by side with Transformers': batches, beams, and what its logits processors leave over."""

import numpy as np
import pytest

import npgpt
from npgpt.engine.config import GPTConfig
from npgpt.runtime.sampling import Sampling, probabilities

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
torch.set_num_threads(1)

FAMILY = {"gpt": {"post_norm": True}, "gpt-2": {}, "gpt-3": {"window": 7}}
V = 61


@pytest.fixture(scope="module", params=FAMILY)
def pair(request, tmp_path_factory):
    """(our model, theirs, end of text): the same weights, and a token that ends about half of the rows."""
    rng, folder = np.random.default_rng(7), tmp_path_factory.mktemp("pair")
    config = GPTConfig(n_layer=2, n_head=2, n_embd=32, block_size=64, vocab_size=V, **FAMILY[request.param])
    model = npgpt.GPT2LMHeadModel(config)
    with model.edit() as params:
        for name, w in params.items():
            spread = {"wte.weight": 0.15, "wpe.weight": 0.3}.get(name, 0.2)
            w[...] = spread * rng.standard_normal(w.shape) + (w.ndim == 1 and name.endswith("weight"))
    model.save_pretrained(folder)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(folder).eval()
    new = model.generate(rng.integers(0, V, (12, 9)), max_new_tokens=40)[:, 9:]
    shares = np.array([(new == token).any(axis=1).mean() for token in range(V)])
    return npgpt.GPT2LMHeadModel.from_pretrained(folder), theirs, int(np.abs(shares - 0.5).argmin())


def batch(rng, lengths):
    """Prompts of these lengths, padded on the left -> ids, mask."""
    n = max(lengths)
    mask = np.arange(n) >= n - np.array(lengths)[:, None]
    return np.where(mask, rng.integers(0, V, mask.shape), 0), mask.astype(int)


def both(pair, ids, mask, **settings):
    """What ours and theirs generate: rows that end are filled with the end of text, here and there."""
    ours, theirs, end = pair
    settings = {"do_sample": False, "eos_token_id": end, "pad_token_id": end} | settings
    expected = theirs.generate(torch.tensor(ids), attention_mask=torch.tensor(mask), **settings).numpy()
    return ours.generate(ids, mask, **settings), expected


@pytest.mark.parametrize("penalty", [1.0, 1.4])
def test_greedy_batches(pair, rng, penalty):
    """Rows of one length, as Transformers' GPT takes no mask when it generates; those that end are filled."""
    ids, mask = batch(rng, [9] * 12)
    got, expected = both(pair, ids, mask, max_new_tokens=40, repetition_penalty=penalty)
    np.testing.assert_array_equal(got, expected)
    if penalty == 1:
        ended = got[:, -1] == pair[2]
        assert ended.any() and not ended.all(), "some rows should end and some go on"


def test_greedy_batches_with_padding(pair, rng):
    """Each row is what it is alone; and with GPT-2 and GPT-3 what Transformers makes of the padded batch."""
    ids, mask = batch(rng, [3, 12, 7, 1, 12])
    got, expected = both(pair, ids, mask, max_length=40)
    if pair[0].config.post_norm:
        alone = [both(pair, ids[b : b + 1, 12 - n :], mask[b : b + 1, 12 - n :], max_length=28 + n)[1][0]
                 for b, n in enumerate(mask.sum(axis=1))]  # fmt: skip
        for row, n, one in zip(got, mask.sum(axis=1), alone, strict=True):
            np.testing.assert_array_equal(row[12 - n : 12 - n + len(one)], one)
    else:
        np.testing.assert_array_equal(got, expected)


BEAMS = [
    {"num_beams": 3},
    {"num_beams": 4, "num_return_sequences": 4, "length_penalty": 0.0},
    {"num_beams": 4, "num_return_sequences": 2, "early_stopping": True, "length_penalty": 2.0},
    {"num_beams": 4, "num_return_sequences": 3, "early_stopping": "never", "repetition_penalty": 1.3},
    {"num_beams": 2, "early_stopping": "never", "length_penalty": -1.0},
]


def test_beams(pair, rng):
    ids, mask = batch(rng, [9] * 6)
    ended = []
    for settings in BEAMS:
        got, expected = both(pair, ids, mask, max_new_tokens=25, **settings)
        np.testing.assert_array_equal(got, expected, str(settings))
        ended += (got[:, -1] == pair[2]).tolist()
    assert any(ended) and not all(ended), "some beams should end and some go on"


def test_beams_with_padding(pair, rng):
    if pair[0].config.post_norm:
        return  # Transformers' GPT takes no mask when it generates
    ids, mask = batch(rng, [3, 11, 6])
    got, expected = both(pair, ids, mask, max_length=30, num_beams=3)
    np.testing.assert_array_equal(got, expected)


def test_draws_come_from_the_distribution_that_is_theirs(pair, rng):
    """How often each token came in 4000 draws, beside its probability by their processors."""
    ours, theirs, _ = pair
    ids, _ = batch(rng, [9])
    how = {"temperature": 0.8, "top_k": 20, "top_p": 0.9}
    got = ours.generate(ids, max_new_tokens=1, do_sample=True, num_return_sequences=4000, seed=1, **how)
    with torch.no_grad():
        expected = their_probabilities(theirs(torch.tensor(ids)).logits[:, -1], torch.tensor(ids), **how)[0]
    counts = np.bincount(got[:, -1], minlength=V) / 4000
    np.testing.assert_allclose(counts, expected, atol=4 * np.sqrt(0.25 / 4000))
    assert not counts[expected == 0].any()


def their_probabilities(logits, ids, **how):
    """The softmax of what Transformers' own list of processors leaves, made as generate() makes it."""
    generation = transformers.GenerationConfig(do_sample=True, **how)
    model = transformers.GPT2LMHeadModel(
        transformers.GPT2Config(vocab_size=1, n_positions=4, n_embd=2, n_layer=1, n_head=1)
    )
    processors = model._get_logits_processor(generation, ids.shape[1])
    return torch.softmax(processors(ids, logits.float()), dim=-1).numpy()


@pytest.mark.parametrize(
    "how",
    [
        {"temperature": 0.7},
        {"repetition_penalty": 1.7},
        {"repetition_penalty": 0.6, "temperature": 1.9},
        {"top_k": 5},
        {"top_k": 1},
        {"top_k": 10**6},
        {"top_p": 0.5},
        {"top_p": 0.95, "temperature": 0.5},
        {"top_p": 1e-9},
        {"min_p": 0.05},
        {"min_p": 1.0},
        {"top_k": 40, "top_p": 0.9, "min_p": 0.02, "temperature": 1.3, "repetition_penalty": 1.2},
    ],
    ids=str,
)
def test_the_filters_leave_the_same_candidates_and_probabilities(rng, measured, how):
    for size in (50, 5000):
        for spread in (0.5, 3.0):
            logits = (spread * rng.standard_normal((4, size))).astype(np.float32)
            logits[1] = np.round(logits[1])  # many are equal
            ids = rng.integers(0, size, (4, 30))
            expected = their_probabilities(torch.tensor(logits), torch.tensor(ids), **{"top_k": 0} | how)
            for row in range(4):
                seen = np.zeros(size, bool)
                seen[ids[row]] = True
                got = probabilities(logits[row], Sampling(**{"temperature": 1.0} | how), seen)
                if row == 1 and "top_p" in how:  # which of equal tokens stay is up to a sort
                    np.testing.assert_allclose(np.sort(got), np.sort(expected[row]), rtol=1e-4, atol=1e-7)
                    continue
                np.testing.assert_array_equal(got > 0, expected[row] > 0)
                error = np.abs(got - expected[row]).max()
                measured("probabilities beside those of Transformers' logits processors", error, 1e-5)
