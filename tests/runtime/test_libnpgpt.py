"""libnpgpt through its C ABI: the engine's numbers, the NumPy path's draws, the same bits in any company."""

import functools
import os

import numpy as np
import pytest

import npgpt
from npgpt.engine import kernels
from npgpt.interop.gguf import write_gguf
from npgpt.runtime import libnpgpt
from npgpt.runtime.sampling import Sampling
from tests.conftest import COMPILED
from tests.models import FAMILY, random_model, same_in_any_company, steps

pytestmark = pytest.mark.skipif(not COMPILED, reason="there are no compiled kernels here")


@pytest.mark.parametrize("kind", FAMILY)
def test_all_paths_give_the_full_forward_pass(kind, isa, rng, measured):
    model = random_model(**FAMILY[kind])
    ids = rng.integers(0, model.config.vocab_size, 45)
    full = model.logits(ids[None])[0]
    runtime = libnpgpt.Model.of(model)
    at_once = libnpgpt.Session(runtime).feed(ids, every=True)
    one_by_one = steps(libnpgpt.Session(runtime), ids)
    session = libnpgpt.Session(runtime)
    in_parts = [session.feed(part, every=True) for part in np.split(ids, [3, 13, 14, 16, 22])]
    for logits in (at_once, one_by_one, np.concatenate(in_parts)):
        measured("key-value cache against the full pass", np.abs(logits - full).max(), 1e-4)
    assert len(session) == 45


def test_a_text_longer_than_a_chunk(isa, rng, measured):
    model = random_model(block_size=300, n_layer=2)
    ids = rng.integers(0, 257, 290)
    session = libnpgpt.Session(libnpgpt.Model.of(model))
    full = model.logits(ids[None])[0]
    measured(
        "key-value cache against the full pass", np.abs(session.feed(ids, every=True) - full).max(), 1e-4
    )
    session.reset()
    session.feed(ids)
    np.testing.assert_allclose(session.logits(), full[-1], atol=1e-4)


# of whose tokens each head makes its own query, key and value, and one whose layers make them all
SHAPES = [{"n_embd": 192, "n_head": 6}, {"n_layer": 1, "n_embd": 544, "n_head": 17}]


@pytest.mark.parametrize("shape", SHAPES, ids=["small", "large"])
@pytest.mark.parametrize("type", ["engine", "f32", "f16", "q8_0", "q4_0"])
def test_the_same_bits_in_any_company_and_on_any_threads(type, shape, isa, threads, tmp_path):
    model = random_model(**shape)
    if type == "engine":
        runtime = libnpgpt.Model.of(model)
    else:
        write_gguf(tmp_path / "m.gguf", model, model.tokenizer, type)
        runtime = libnpgpt.Model.open(tmp_path / "m.gguf")
        runtime.use_kernels(isa)
    same_in_any_company(runtime, threads)


@pytest.mark.parametrize("shape", [{"n_embd": 40, "n_head": 4}, {"n_embd": 96, "n_head": 3}])
def test_packed_weights_give_the_same_bits(shape, isa, threads, rng):
    """Of widths that end inside a strip and with one; until an optimizer may change them."""
    model = random_model(**shape)
    packed = libnpgpt.Model.of(model)
    in_place = libnpgpt.Model(functools.partial(libnpgpt._from_tensors, model))
    in_place.use_kernels(isa)
    ids = rng.integers(0, 257, 40)
    for count in 1, 3:
        threads(count)
        results = []
        for runtime in packed, in_place:
            one, two = libnpgpt.Session(runtime), libnpgpt.Session(runtime)
            logits = [one.feed(part, every=True) for part in np.split(ids, [30, 33])]  # in panels, then few
            two.feed(ids[:3])
            for i in ids[:5]:
                libnpgpt.feed_many([one, two], [i, i])
                logits.append([one.logits(), two.logits()])
            results.append(np.concatenate([*logits, steps(two, ids[:9])], axis=None))
        np.testing.assert_array_equal(*results)
    assert packed.packed and libnpgpt.Model.of(model) is packed
    model.grads["wte.weight"][...] = 1
    assert not libnpgpt.Model.of(model).packed


SETTINGS = [
    Sampling(0),
    Sampling(1.0),
    Sampling(0.7, top_k=5),
    Sampling(1.0, top_p=0.8),
    Sampling(1.0, min_p=0.2),
    Sampling(1.3, top_k=40, top_p=0.9, min_p=0.01, repetition_penalty=1.5),
    Sampling(1e-320),
    Sampling(1e300, repetition_penalty=1e-300),
    Sampling(1.0, presence_penalty=1.5, frequency_penalty=-0.5),
    Sampling(0, frequency_penalty=0.7),
    Sampling(0.9, top_p=0.9, presence_penalty=-1e300, frequency_penalty=1e300),
]


@pytest.mark.parametrize("how", SETTINGS)
@pytest.mark.parametrize("kind", ["gpt-2", "gpt", "gpt-3"])
def test_numpy_draws_the_same_tokens(kind, how, rng):
    model = random_model(**FAMILY[kind])
    for seed, prompt in ((0, [65]), (2**63 + 5, rng.integers(0, 256, 47)), (7, rng.integers(0, 256, 99))):
        args = model, prompt, 120, how, (256,), seed != 0, seed
        with kernels.use("numpy"):
            assert not libnpgpt.is_compiled_for(model)
            expected = list(libnpgpt.generate_ids(*args))
        assert list(libnpgpt.generate_ids(*args)) == expected  # the context is full twice over


@pytest.mark.parametrize("type", ["f32", "f16", "q8_0", "q4_0"])
def test_guesses_change_nothing(type, rng, tmp_path):
    """Texts that repeat themselves, beyond the context; many guesses come true, and many do not."""
    made = random_model()
    write_gguf(tmp_path / "m.gguf", made, made.tokenizer, type)
    model = libnpgpt.Model.open(tmp_path / "m.gguf")
    plain, guessing = libnpgpt.Session(model), libnpgpt.Session(model, speculate=True)
    ids = [*rng.integers(0, 256, 9), *[7, 8, 9, 10, 11, 12, 13, 14] * 5, *rng.integers(0, 3, 99)]
    for id in [*ids, *ids[9:40]]:
        plain.feed([id])
        guessing.feed([id])
        assert len(plain) == len(guessing)
        np.testing.assert_array_equal(plain.logits(), guessing.logits())
    for how in (Sampling(0), Sampling(0.3)):
        args = model, ids[:30], 90, how, (256,), True, 3
        assert list(libnpgpt.generate_ids(*args)) == list(libnpgpt.generate_ids(*args, speculate=True))


@pytest.mark.parametrize("how", [Sampling(0), *SETTINGS[5:6], *SETTINGS[-3:-2]])
@pytest.mark.parametrize("speculate", [False, True])
def test_a_talk_reads_its_beginning_once(how, speculate, rng, monkeypatch):
    """Replies are those to the whole text, also where that goes another way, is shorter or is too long."""
    model, talk, reads = random_model(), libnpgpt.Talk(), []
    usual = libnpgpt.Session.feed
    monkeypatch.setattr(
        libnpgpt.Session, "feed", lambda self, ids: reads.append(len(ids)) or usual(self, ids)
    )
    new = rng.integers(0, 256, 99).tolist()
    text, known = new[:9], []  # known: what the cache holds
    for turn, change in enumerate(
        ("more", "more", "the same", "another", "less", "more", "too much", "less", "more")
    ):
        args = model, text, 6, how, (), False, turn, speculate
        expected = list(libnpgpt.generate_ids(*args))
        reads.clear()
        assert list(libnpgpt.generate_ids(*args, talk=talk)) == expected
        same = [a == b for a, b in zip(known, text, strict=False)]
        shared = same.index(False) if False in same else len(same)
        shared = 0 if len(text) > model.config.block_size else min(shared, len(text) - 1)
        assert reads == [len(text) - shared, 1, 1, 1, 1, 1]
        known = text + expected[:-1]
        known = known if len(known) <= model.config.block_size else []
        if change == "more":
            text = text + expected + new[turn : turn + 4]
        elif change == "another":
            text = [*text[:5], (text[5] + 1) % 256, *text[6:]]
        elif change == "less":
            text = text[:7]
        elif change == "too much":
            text = text + new


def test_a_session_goes_back(rng):
    runtime, ids = libnpgpt.Model.of(random_model()), rng.integers(0, 256, 30).tolist()
    whole, back = libnpgpt.Session(runtime), libnpgpt.Session(runtime)
    whole.feed([*ids[:5], *ids[9:]])
    back.feed(ids)
    back.rewind(5)
    assert len(back) == 5
    with pytest.raises(ValueError, match="sample"):
        back.sample(libnpgpt.sampling_struct(Sampling(0)))
    back.feed(ids[9:])
    np.testing.assert_array_equal(whole.logits(), back.logits())
    with pytest.raises(ValueError, match=r"rewind: count must be at most the 26 tokens in the cache, got 27"):
        back.rewind(27)
    sliding = libnpgpt.Session(runtime, context=8)
    sliding.feed(ids[:8])
    sliding.feed(ids[8:9])  # the cache holds 5, 6, 7, 8
    sliding.rewind(2)
    sliding.feed(ids[:1])
    whole.reset()
    whole.feed([*ids[5:7], ids[0]])
    np.testing.assert_array_equal(whole.logits(), sliding.logits())


def test_weights_count_as_they_are_now(rng):
    model = random_model()
    before = model.generate("a", temperature=0, return_ids=True)
    with model.edit() as params:
        for w in params.values():
            w[...] = rng.normal(0, 0.3, w.shape)
    after = model.generate("a", temperature=0, return_ids=True)
    with kernels.use("numpy"):
        assert after == model.generate("a", temperature=0, return_ids=True) != before


def test_a_full_context_slides_or_stops(rng):
    runtime = libnpgpt.Model.of(random_model())
    session = libnpgpt.Session(runtime, context=8, slide=False)
    session.feed([1, 2, 3, 4, 5, 6, 7, 8])
    held = session.logits()
    with pytest.raises(ValueError, match="the context of 8 tokens holds 8, 1 more do not fit"):
        session.feed([9])
    with pytest.raises(ValueError, match="full"):
        libnpgpt.feed_many([session], [9])
    assert len(session) == 8 and np.array_equal(session.logits(), held)
    sliding = libnpgpt.Session(runtime, context=8)
    sliding.feed(range(1, 9))
    sliding.feed([9])
    assert len(sliding) == 4  # 6, 7, 8, 9
    fresh = libnpgpt.Session(runtime)
    fresh.feed([6, 7, 8, 9])
    np.testing.assert_array_equal(sliding.logits(), fresh.logits())


@pytest.mark.parametrize("kind", FAMILY)
def test_hidden_states_are_what_the_head_reads(kind, isa, rng, measured):
    model = random_model(**FAMILY[kind])
    ids = rng.integers(0, model.config.vocab_size, 20)
    session = libnpgpt.Session(libnpgpt.Model.of(model))
    hidden = np.concatenate([session.feed_hidden(ids[:3]), session.feed_hidden(ids[3:])])
    logits = hidden @ model.head_weights.T
    measured(
        "hidden states by the head against the full pass",
        np.abs(logits - model.logits(ids[None])).max(),
        1e-4,
    )
    np.testing.assert_allclose(session.logits(), logits[-1], atol=1e-4)
    with pytest.raises(ValueError, match="do not fit"):
        session.feed_hidden(ids.repeat(2))


def test_a_text_read_anew_goes_on_as_one_that_slides():
    runtime, how = (
        libnpgpt.Model.of(random_model()),
        Sampling(1, repetition_penalty=1.2, frequency_penalty=0.3),
    )
    sliding, own = libnpgpt.Session(runtime, 8), libnpgpt.Session(runtime, 8, slide=False)
    drawn, text = libnpgpt.sampling_struct(how, seed=3), [1, 2, 3]
    for session in (sliding, own):
        session.feed(text)
    for _ in range(30):
        text.append(sliding.sample(drawn))
        assert own.sample(drawn) == text[-1]
        sliding.feed(text[-1:])
        if len(own) == 8:
            own.forget()
            own.feed(text[-4:])
        else:
            own.feed(text[-1:])


def test_what_is_refused_is_named():
    model = random_model()
    runtime = libnpgpt.Model.of(model)
    session = libnpgpt.Session(runtime)
    with pytest.raises(ValueError, match=r"ids must be in 0..256, got 257"):
        session.feed([3, 257])
    with pytest.raises(ValueError, match="the session must have been fed"):
        session.sample(libnpgpt.sampling_struct(Sampling()))
    with pytest.raises(ValueError, match=r"context must be in 0..48, got 49"):
        libnpgpt.Session(runtime, context=49)
    session.feed([1])
    bad = libnpgpt.sampling_struct(Sampling())
    bad.top_p = 1.5
    with pytest.raises(ValueError, match=r"top_p must be in 0..1, got 1.5"):
        session.sample(bad)
    with pytest.raises(ValueError, match="there twice"):
        libnpgpt.feed_many([session, session], [1, 2])
    with pytest.raises(ValueError, match="one model"):
        libnpgpt.feed_many([session, libnpgpt.Session(libnpgpt.Model.of(random_model()))], [1, 2])


def test_a_float64_model_generates_on_numpy():
    config = npgpt.GPTConfig(n_layer=1, n_head=1, n_embd=8, block_size=4, vocab_size=257)
    model = npgpt.GPT(config, dtype=np.float64)
    assert not libnpgpt.is_compiled_for(model)
    assert len(model.generate("a", max_new_tokens=9, ignore_eos=True, return_ids=True)) == 9


def test_seeds_of_numpy():
    model = npgpt.GPT(npgpt.GPTConfig(n_layer=1, n_head=2, n_embd=16, block_size=16, vocab_size=31), seed=0)
    for seed in (5, -1):
        texts = {
            tuple(model.generate([1, 2], 8, seed=kind(seed), return_ids=True)) for kind in (int, np.int64)
        }
        assert len(texts) == 1
    with pytest.raises(TypeError):
        model.generate([1, 2], 8, seed=1.5, return_ids=True)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="there are no pipes with names here")
def test_a_pipe_is_no_model(tmp_path):
    os.mkfifo(tmp_path / "pipe.gguf")
    with pytest.raises(ValueError, match="cannot be mapped"):  # and it does not wait for a writer
        libnpgpt.Model.open(tmp_path / "pipe.gguf")
