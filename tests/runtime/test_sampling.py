"""How tokens are drawn and turned to text; no accepted setting makes a NaN."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import npgpt
from npgpt.engine import kernels
from npgpt.runtime.sampling import Sampling, draw, probabilities, text_chunks
from npgpt.text.examples import add_roles
from npgpt.text.tokenizer import ByteTokenizer
from tests.models import write_speller

tokenizer = ByteTokenizer()
LOGITS = np.log(np.array([0.1, 0.4, 0.2, 0.3]))


@pytest.fixture(scope="module")
def model():
    config = npgpt.GPTConfig(n_layer=2, n_head=2, n_embd=16, block_size=12, vocab_size=257)
    model = npgpt.GPT(config, seed=3)
    with model.edit():
        model.flat_params[: model.n_decay] *= 20  # far from uniform
    return model


def test_temperature():
    np.testing.assert_allclose(probabilities(LOGITS, Sampling(1.0)), [0.1, 0.4, 0.2, 0.3])
    np.testing.assert_allclose(probabilities(LOGITS, Sampling(0.5)), np.array([1, 16, 4, 9]) / 30)
    assert probabilities(LOGITS, Sampling(0)).tolist() == [0, 1, 0, 0]
    assert probabilities(LOGITS, Sampling(1e-320)).tolist() == [0, 1, 0, 0]
    np.testing.assert_allclose(probabilities(LOGITS, Sampling(1e300)), [0.25] * 4)


def test_what_is_cut_off():
    np.testing.assert_allclose(probabilities(LOGITS, Sampling(1, top_k=2)), [0, 4 / 7, 0, 3 / 7])
    np.testing.assert_allclose(probabilities(LOGITS, Sampling(1, top_k=99)), [0.1, 0.4, 0.2, 0.3])
    np.testing.assert_allclose(probabilities(LOGITS, Sampling(1, top_p=0.6)), [0, 4 / 7, 0, 3 / 7])
    np.testing.assert_allclose(probabilities(LOGITS, Sampling(1, min_p=0.6)), [0, 4 / 7, 0, 3 / 7])
    for strict in (Sampling(1, top_p=0), Sampling(1, min_p=1), Sampling(1, top_k=1)):
        assert probabilities(LOGITS, strict).tolist() == [0, 1, 0, 0]


def test_repetition_penalty_makes_seen_tokens_less_probable():
    logits, seen = np.array([2.0, -2.0, 1.0]), np.array([True, True, False])
    expected = np.exp([1.0, -4.0, 1.0])
    got = probabilities(logits, Sampling(1, repetition_penalty=2), seen)
    np.testing.assert_allclose(got, expected / expected.sum())


def test_penalties_for_tokens_drawn_before():
    drawn = np.array([0, 1, 3])
    p = probabilities(np.zeros(3), Sampling(1, presence_penalty=0.5, frequency_penalty=0.25), drawn=drawn)
    expected = np.exp([0, -0.75, -1.25])
    np.testing.assert_allclose(p, expected / expected.sum())


extreme = st.floats(-1e38, 1e38) | st.sampled_from([0.0, -0.0, 3e38, -3e38])


@given(
    st.lists(extreme, min_size=1, max_size=8),
    st.builds(
        Sampling,
        temperature=st.floats(0, 1e308),
        top_k=st.none() | st.integers(1, 10**9),
        top_p=st.floats(0, 1),
        min_p=st.floats(0, 1),
        repetition_penalty=st.floats(5e-324, 1e308),
        presence_penalty=st.floats(-1e308, 1e308),
        frequency_penalty=st.floats(-1e308, 1e308),
    ),
    st.sampled_from([None, 0]),
    st.floats(0, 1, exclude_max=True),
)
def test_never_nan(logits, sampling, banned, u):
    seen = np.arange(len(logits)) % 2 == 0
    drawn = np.arange(len(logits)) % 3
    p = probabilities(np.array(logits, np.float32), sampling, seen, banned, drawn=drawn)
    assert (p >= 0).all() and p.sum() == pytest.approx(1)
    assert banned is None or len(p) == 1 or p[banned] == 0

    class Fixed:
        def random(self):
            return u

    assert p[draw(p, Fixed())] > 0


def test_draws_follow_the_distribution():
    p, generator = np.array([0.5, 0, 0.2, 0.3]), np.random.default_rng(0)
    counts = np.bincount([draw(p, generator) for _ in range(20000)], minlength=4)
    np.testing.assert_allclose(counts / 20000, p, atol=0.015)  # 4 standard deviations


@pytest.mark.parametrize(
    "name, value, error",
    [
        ("temperature", -1, ValueError),
        ("temperature", float("inf"), ValueError),
        ("temperature", float("nan"), ValueError),
        ("temperature", 10**400, ValueError),  # no float holds it
        ("temperature", "hot", TypeError),
        ("top_k", 0, ValueError),
        ("top_k", 1.5, ValueError),
        ("top_p", 1.1, ValueError),
        ("top_p", -0.1, ValueError),
        ("min_p", 2, ValueError),
        ("repetition_penalty", 0, ValueError),
        ("max_new_tokens", -1, ValueError),
        ("max_new_tokens", 1.5, TypeError),
        ("seed", 1.5, TypeError),
        ("seed", "one", TypeError),
        ("stop", [""], ValueError),
        ("prompt", [257], ValueError),
        ("prompt", [-1], ValueError),
        ("prompt", [0.5], TypeError),
        ("prompt", np.zeros((2, 2), int), TypeError),
    ],
)
def test_bad_arguments_are_refused_by_name(model, name, value, error):
    with pytest.raises(error, match=f"generate: {name}"):
        model.generate(**({"prompt": "a", "stream": True} | {name: value}))


def slow_greedy(model, ids, n):
    """Greedy generation with the full forward pass: what the cache must agree with."""
    T, ids, new = model.config.block_size, list(ids), []
    window = ids[-T:]
    for _ in range(n):
        if len(window) > T:
            window = ids[-(T // 2) :]
        new.append(int(model.logits(np.array([window]))[0, -1].argmax()))
        ids.append(new[-1])
        window = [*window, new[-1]]
    return new


@pytest.mark.parametrize("n_prompt", [1, 5, 11, 12, 13, 40])
def test_the_cache_gives_what_the_full_pass_gives_beyond_the_context_too(model, n_prompt):
    prompt = np.random.default_rng(n_prompt).integers(0, 256, n_prompt)
    drawn = model.generate(prompt, max_new_tokens=30, temperature=0, ignore_eos=True, return_ids=True)
    assert drawn == slow_greedy(model, prompt, 30)


def test_same_seed_same_text(model):
    one, two, other = (model.generate("O sol", max_new_tokens=40, seed=seed) for seed in (5, 5, 6))
    assert one == two != other


def test_prompts_of_all_kinds(model):
    greedy = {"temperature": 0, "max_new_tokens": 5, "return_ids": True}
    assert model.generate("ã", **greedy) == model.generate("ã".encode(), **greedy)
    assert model.generate("ã", **greedy) == model.generate(np.array([[0xC3, 0xA3]]), **greedy)
    assert model.generate("", **greedy) == model.generate([], **greedy) == model.generate([256], **greedy)
    assert model.generate("a", max_new_tokens=0) == ""


def test_a_stream_is_the_text_in_whole_characters(model):
    settings = {"max_new_tokens": 200, "temperature": 2.0, "seed": 1}
    chunks = list(model.generate("x", stream=True, **settings))
    assert "".join(chunks) == model.generate("x", **settings) and len(chunks) > 10
    assert not any("" == piece for piece in chunks)


def test_the_end_of_text_ends_it_unless_banned(model):
    ends = npgpt.GPT(model.config)
    with ends.edit() as params:
        params["ln_f.weight"][...], params["ln_f.bias"][...] = 0, 1
        params["wte.weight"][256] = 10  # always by far the most probable
    assert ends.generate("a", temperature=0) == ""
    assert len(ends.generate("a", temperature=0, max_new_tokens=3, ignore_eos=True, return_ids=True)) == 3


@pytest.mark.parametrize(
    "stop, expected",
    [
        ([], "um dois três dois"),
        (["dois"], "um "),
        ([" três", "dois três"], "um "),
        (["ê"], "um dois tr"),
        (["quatro"], "um dois três dois"),
        (["um"], ""),
        (["doisX", "s t"], "um doi"),
    ],
)
def test_stop_strings(stop, expected):
    ids = tokenizer.encode("um dois três dois").tolist()
    chunks = list(text_chunks(iter(ids), tokenizer, stop))
    assert "".join(chunks) == expected
    assert stop or len(chunks) == len(expected)  # without stop strings nothing is held back


@given(st.text("ab", max_size=30), st.lists(st.text("ab", min_size=1, max_size=4), max_size=3))
def test_stop_strings_end_the_text_where_the_first_one_begins(text, stop):
    found = [text.find(s) for s in stop if s in text]
    # The stream ends as soon as a stop string is complete, so the one that ends first decides.
    ends = [text.find(s) + len(s) for s in stop if s in text]
    got = "".join(text_chunks(tokenizer.encode(text).tolist(), tokenizer, stop))
    if not found:
        assert got == text
    else:
        known = text[: min(ends)]
        assert got == known[: min(known.find(s) for s in stop if s in known)]


def test_nothing_comes_after_a_stop_string(model):
    ids = iter(tokenizer.encode("abcdef").tolist())
    assert "".join(text_chunks(ids, tokenizer, ["c"])) == "ab"
    assert next(ids) == ord("d")  # the rest was never asked for


def test_a_model_with_broken_weights_says_so(model):
    broken = npgpt.GPT(model.config)
    with broken.edit():
        broken.flat_params[...] = np.nan
    with pytest.raises(ValueError, match="logits must be finite"):
        broken.generate("a")


def test_score_is_the_log_probability(model):
    prompt, text = [5, 6, 7], [8, 9, 10, 11]
    logits = model.logits(np.array([prompt + text]))[0].astype(np.float64)
    log_p = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
    expected = sum(log_p[2 + i, token] for i, token in enumerate(text))
    assert model.score(prompt, text) == pytest.approx(expected, abs=1e-4)
    assert model.score("") == 0
    long = model.score("a" * 100)  # longer than the context
    assert np.isfinite(long) and long < 0


def test_a_model_without_a_tokenizer_takes_ids():
    config = npgpt.GPTConfig(n_layer=1, n_head=1, n_embd=8, block_size=4, vocab_size=11)
    model = npgpt.GPT(config)
    assert len(model.generate([1, 2], max_new_tokens=9, return_ids=True)) == 9
    with pytest.raises(ValueError, match="prompt must be token ids for a model without a tokenizer"):
        model.generate("a", return_ids=True)
    with pytest.raises(ValueError, match="return_ids must be True"):
        model.generate([1])
    with pytest.raises(ValueError, match="prompt must hold at least 1 id"):
        model.generate([], return_ids=True)


def test_the_end_of_the_base_ends_a_text_too(tmp_path):
    """A model that was taught to talk ends its turns by another token, but has learnt that one before."""
    tokenizer = add_roles(ByteTokenizer())
    first = tokenizer.vocabulary.special["<|endoftext|>"]
    assert tokenizer.ends == (tokenizer.end_of_text, first)
    assert tokenizer.end_names == ["<|end|>", "<|endoftext|>"]
    assert first != tokenizer.end_of_text and ByteTokenizer().ends == (256,)
    write_speller(tmp_path / "m", tokenizer, [*b"sim", first, *b"nunca"], before=1)
    model = npgpt.load(tmp_path / "m")
    for name in kernels.available():
        with kernels.use(name):
            assert model.generate("?", 9, temperature=0) == "sim"
            assert model.generate("?", 9, temperature=0, return_ids=True) == [*b"sim"]
            assert model.generate("?", 9, temperature=0, ignore_eos=True) == "simnunca"
