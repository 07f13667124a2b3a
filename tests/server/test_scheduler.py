"""The scheduler: the same text in any company, what is reported of each token, who may wait, who goes."""

import asyncio
import itertools
import threading
import weakref

import numpy as np
import pytest

from npgpt.runtime import libnpgpt
from npgpt.runtime.sampling import Sampling
from npgpt.server import scheduler as scheduler_module
from npgpt.server.scheduler import PREFILL, Busy, Scheduler
from npgpt.server.sequence import EmbeddingRequest, RunningText, Sequence, TextRequest
from tests.conftest import COMPILED
from tests.models import random_model

pytestmark = pytest.mark.skipif(not COMPILED, reason="there are no compiled kernels here")
END = 256


@pytest.fixture(scope="module")
def model():
    return random_model(block_size=200)


@pytest.fixture
def scheduler(model):
    """scheduler(**limits): one that runs, with an event loop of its own."""
    loop, made = asyncio.new_event_loop(), []
    thread = threading.Thread(target=loop.run_forever)
    thread.start()

    def make(sessions=64, queue=64, of=model):
        made.append(Scheduler(libnpgpt.Model.of(of), of.tokenizer, sessions, queue))
        made[-1].start(loop)
        return made[-1]

    yield make
    for one in made:
        one.close(RuntimeError("the end"))
    loop.call_soon_threadsafe(loop.stop)
    thread.join()
    loop.close()


def computed(scheduler, requests):
    """(sequences, [[text, tokens, finish]]) of requests that are submitted together."""
    done = threading.Event()
    results = [["", [], None] for _ in requests]

    def wake():
        for result, sequence in zip(results, sequences, strict=True):
            text, tokens, finish = sequence.take()
            result[0], result[1] = result[0] + text, result[1] + tokens
            result[2] = finish or result[2]
        if all(result[2] for result in results):
            done.set()

    sequences = [Sequence(request, wake) for request in requests]
    scheduler.submit(sequences)
    assert done.wait(60)
    return sequences, results


def finished(scheduler, requests):
    return computed(scheduler, requests)[1]


def ask(ids, n=40, seed=1, **more):
    how = more.pop("sampling", Sampling(1.0))
    return TextRequest(tuple(ids), n, how, seed, ends=(END,), **{"ignore_eos": True, **more})


def test_what_it_writes_is_what_generate_writes_in_any_company(scheduler, model, rng):
    prompts = [rng.integers(0, 256, n).tolist() for n in (1, 3, 20, 70, 150, 200)]
    expected = [
        model.generate(prompt, max_new_tokens=150, temperature=1.0, seed=i, ignore_eos=True)
        for i, prompt in enumerate(prompts)
    ]
    scheduler = scheduler()

    def asked():
        return [ask(prompt, 150, seed=i) for i, prompt in enumerate(prompts)]

    assert [finished(scheduler, [one])[0][0] for one in asked()] == expected  # beyond the context too
    together = finished(scheduler, asked() + [ask([i], 30) for i in range(20)])
    assert [text for text, _, _ in together[: len(prompts)]] == expected
    assert scheduler.running == scheduler.waiting == 0


def test_one_that_arrives_joins_while_a_long_prompt_is_read(scheduler, model, monkeypatch):
    order = []

    class Watched(RunningText):
        def read(self, most):
            order.append((len(self.request.ids), min(most, len(self.unread))))
            return super().read(most)

        def draw(self):
            order.append((len(self.request.ids), 0))
            super().draw()

    monkeypatch.setattr(scheduler_module, "RunningText", Watched)
    finished(scheduler(), [ask([65] * n, 30) for n in (1, 150)])
    assert max(read for _, read in order) <= PREFILL
    reads = [i for i, (prompt, read) in enumerate(order) if prompt == 150 and read]
    between = [order[a:b].count((1, 0)) for a, b in itertools.pairwise(reads)]
    assert len(reads) == 3 and min(between) == 1  # the short one's tokens came in between


def test_what_is_reported_of_each_token(scheduler, model):
    prompt = list(b"O sol")
    (text, tokens, finish), (plain, none, _) = finished(
        scheduler(), [ask(prompt, top=3, echo=True), ask(prompt, echo=True)]
    )
    assert text == plain and text.startswith("O sol") and none == [] and finish == "length"
    ids = [token.id for token in tokens]
    assert ids[:5] == prompt and len(ids) == 45 and tokens[0][2:] == (None, [])
    z = model.logits(np.array([ids]))[0].astype(np.float64)
    log_p = z - z.max(1, keepdims=True)
    log_p -= np.log(np.exp(log_p).sum(1, keepdims=True))
    for i in range(1, 45):
        assert tokens[i].logprob == pytest.approx(log_p[i - 1, ids[i]], abs=1e-3)
        best = sorted(range(257), key=lambda k: -log_p[i - 1, k])[:3]
        assert [id for id, _ in tokens[i].top] == best
    decoder = model.tokenizer.stream()
    assert [token.offset for token in tokens[1:]] == np.cumsum(
        [len(decoder.push(i)) for i in ids[:-1]]
    ).tolist()


def test_a_stop_string_ends_text_and_tokens(scheduler):
    scheduler = scheduler()
    ((whole, _, _),) = finished(scheduler, [ask([65], 60, top=0)])
    stop = whole[20:23]
    ((text, tokens, finish),) = finished(scheduler, [ask([65], 60, top=0, stop=(stop,))])
    assert finish == "stop" and text == whole[: whole.find(stop)]
    assert all(token.offset < len(text) for token in tokens)


def test_no_tokens_and_only_a_prompt(scheduler):
    scheduler = scheduler()
    assert finished(scheduler, [ask([65], 0)]) == [["", [], "length"]]
    ((text, tokens, finish),) = finished(scheduler, [ask(list(b"abc"), 0, echo=True, top=2)])
    assert (text, len(tokens), finish) == ("abc", 3, "length")


def test_embeddings_are_the_mean_of_what_the_head_reads(scheduler, model, rng):
    ids = rng.integers(0, 257, 150).tolist()
    session = libnpgpt.Session(libnpgpt.Model.of(model))
    expected = session.feed_hidden(ids).mean(0)
    (sequence, _), _ = computed(scheduler(), [EmbeddingRequest(tuple(ids)), ask([1])])
    np.testing.assert_allclose(sequence.vector, expected / np.linalg.norm(expected), atol=1e-5)


def test_a_text_longer_than_the_context_is_read_in_windows(scheduler, model, rng):
    ids = rng.integers(0, 257, 450).tolist()  # the context is 200
    runtime = libnpgpt.Model.of(model)
    windows = [libnpgpt.Session(runtime).feed_hidden(ids[n : n + 200]) for n in (0, 200, 400)]
    expected = np.concatenate(windows).mean(0)
    (sequence,), _ = computed(scheduler(), [EmbeddingRequest(tuple(ids))])
    np.testing.assert_allclose(sequence.vector, expected / np.linalg.norm(expected), atol=1e-5)


@pytest.fixture(scope="module")
def ending():
    """A model for which an end of text is likeliest, behind many a prompt."""
    model = random_model(block_size=200)
    likeliest = model.logits(np.array([[65, 66, 67]]))[0, -1].argmax()
    with model.edit() as params:
        (wte,) = (w for name, w in params.items() if name.endswith("wte.weight"))
        wte[END] = 1.05 * wte[likeliest]
    return model


@pytest.mark.parametrize("n", [1, 20])
def test_the_end_is_told_like_every_token_that_is_drawn(scheduler, ending, n):
    """Evaluation programs leave out the last entry, which without the end was one of the prompt's."""
    greedy, ends = Sampling(0.0), 0
    prompts = [[65 + k, 66, 67] for k in range(24)]
    asked = [ask(ids, n, sampling=greedy, ignore_eos=False, top=1, echo=True) for ids in prompts]
    sequences, results = computed(scheduler(of=ending), asked)
    for ids, sequence, (text, tokens, finish) in zip(prompts, sequences, results, strict=True):
        assert len(tokens) == len(ids) + sequence.n_drawn + (finish == "stop")
        assert [token.id for token in tokens[: len(ids)]] == ids and tokens[-1].offset <= len(text)
        if finish == "stop":
            ends += 1
            z = ending.logits(np.array([[token.id for token in tokens]]))[0, -2].astype(np.float64)
            log_p = z[END] - z.max() - np.log(np.exp(z - z.max()).sum())
            assert tokens[-1].id == END == tokens[-1].top[0][0]
            assert tokens[-1].logprob == pytest.approx(log_p, abs=1e-3)
    assert 0 < ends


def test_the_queue_is_bounded_and_a_client_that_goes_frees_its_place(scheduler, monkeypatch):
    opened = weakref.WeakSet()

    class Session(libnpgpt.Session):
        def __init__(self, *args, **more):
            super().__init__(*args, **more)
            opened.add(self)

    monkeypatch.setattr(libnpgpt, "Session", Session)
    scheduler = scheduler(sessions=2, queue=2)
    held = [Sequence(ask([65], 10**6)) for _ in range(4)]
    scheduler.submit(held)
    with pytest.raises(Busy):
        scheduler.submit([Sequence(ask([65]))])
    while scheduler.running < 2 or len(opened) < 2:  # they leave the queue first
        pass
    assert scheduler.waiting == 2
    scheduler.cancel(held[1:])
    ((text, _, _),) = finished(scheduler, [ask([65], 5)])
    assert text
    scheduler.cancel(held)
    while scheduler.running:
        pass
    assert not opened


def test_broken_weights_are_the_sequences_own_trouble(scheduler):
    broken = random_model(seed=4)
    with broken.edit():
        broken.flat_params[...] = np.nan
    ((text, _, finish),) = finished(scheduler(of=broken), [ask([65])])
    assert text == "" and isinstance(finish, ValueError) and "must be finite" in str(finish)
    ((_, _, finish),) = finished(scheduler(of=broken), [EmbeddingRequest((65,))])
    assert isinstance(finish, ValueError) and "must be finite" in str(finish)


def test_no_memory_for_a_session_and_a_bug_are_reported(scheduler, monkeypatch, capsys):
    def no_memory(*_, **__):
        raise MemoryError("none")

    scheduler = scheduler()
    with monkeypatch.context() as patch:
        patch.setattr(libnpgpt, "Session", no_memory)
        ((_, _, finish),) = finished(scheduler, [ask([65])])
        assert isinstance(finish, MemoryError)
    with monkeypatch.context() as patch:
        patch.setattr(libnpgpt, "feed_many", lambda *_: 1 / 0)
        ((_, _, finish),) = finished(scheduler, [ask([65])])
        assert isinstance(finish, ZeroDivisionError) and "ZeroDivisionError" in capsys.readouterr().err
    ((text, _, finish),) = finished(scheduler, [ask([65])])
    assert text and finish == "length"


def test_closing_ends_what_runs_and_what_waits(scheduler):
    scheduler = scheduler(sessions=1)
    sequences = [Sequence(ask([65], 10**6)) for _ in range(3)]
    scheduler.submit(sequences)
    error = RuntimeError("closed")
    scheduler.close(error)
    assert [sequence.finish for sequence in sequences] == [error] * 3
    with pytest.raises(RuntimeError, match="closed"):
        scheduler.submit([Sequence(ask([65]))])
