"""What was read serves the next prompt that begins so: the same bits, bounded memory, no other's prompts."""

import asyncio
import threading

import numpy as np
import pytest

from npgpt.interop.gguf import write_gguf
from npgpt.runtime import libnpgpt
from npgpt.runtime.sampling import Sampling
from npgpt.server import prefixes
from npgpt.server.prefixes import BLOCK, PREFILL, WIDE, PrefixCache, Prompt
from npgpt.server.scheduler import Scheduler
from npgpt.server.sequence import RunningText, Sequence, TextRequest
from npgpt.text.tokenizer import ByteTokenizer
from tests.conftest import COMPILED
from tests.models import FAMILY, random_model

pytestmark = pytest.mark.skipif(not COMPILED, reason="there are no compiled kernels here")
MODELS = ["gpt-2", "gpt-3", "gpt", "llama", "q8_0", "q4_1"]
LONG = 150


@pytest.fixture(scope="module", params=MODELS)
def runtime(request, tmp_path_factory):
    if request.param in FAMILY:
        return libnpgpt.Model.of(random_model(**FAMILY[request.param] | {"block_size": 200}))
    path = tmp_path_factory.mktemp("models") / "model.gguf"
    write_gguf(path, random_model(n_embd=256, n_head=4, block_size=200), ByteTokenizer(), request.param)
    return libnpgpt.Model.open(path)


def read(runtime, ids, cache, sharer="", **more):
    """(ids not read again, keys and values, logits, chunks) of a prompt that is read to its first draw."""
    request = TextRequest(tuple(ids), 2, Sampling(0.0), sharer=sharer, **more)
    sequence = Sequence(request)
    running = RunningText(sequence, request, runtime, ByteTokenizer(), (cache, 0))
    chunks, feed, held = [], running.session.feed, running.session
    held.feed = lambda chunk, **how: (chunks.append(len(chunk)), feed(chunk, **how))[1]
    while not sequence.n_drawn:
        if running.is_ready:
            libnpgpt.feed_many([running.session], running.unread)
            running.unread = []
            running.draw()
        else:
            running.read(PREFILL)
    return sequence.n_cached, held.save(0, len(ids)), held.logits(), chunks


def same(a, b):
    return np.array_equal(a[1], b[1]) and np.array_equal(a[2], b[2])


def test_the_same_bits_for_every_length_and_every_hit(runtime, threads, rng, request):
    """Read wide or not, in which chunks: all that decides how sums are rounded."""
    whole = rng.integers(0, 256, LONG).tolist()
    other = (np.array(whole) + 1).tolist()
    cold = PrefixCache(0)
    cases = [(LONG, n, n) for n in range(1, LONG + 1)]  # the beginning of what was read
    cases += [(n, n, LONG) for n in range(1, LONG, 7)]  # all of what was read, and more
    cases += [(n, n // 2, n) for n in range(2, LONG, 5)]  # half of it is another text
    cases += [(n, n - 1, n) for n in range(2, LONG, 3)]
    cases = cases if "gpt-2" in request.node.name else cases[::4]
    hits = 0
    for i, (first, shared, length) in enumerate(cases):
        threads(1 + i % 3)
        cache = PrefixCache(1 << 30)
        read(runtime, whole[:first], cache)
        ids = whole[:shared] + other[shared:length]
        found = read(runtime, ids, cache)
        assert same(found, read(runtime, ids, cold)), (first, shared, length)
        if ids == whole[:first]:
            assert found[0] == length - (length == 1) and found[3] == []
        least = shared // BLOCK * BLOCK - (BLOCK if length - shared < WIDE + BLOCK else 0)
        assert found[0] >= min(least, length - BLOCK - WIDE), (first, shared, length, found[0])
        assert found[0] + sum(found[3]) == length or length == 1 or length % PREFILL == 1
        hits += found[0] > 0
    assert hits > 0.7 * len(cases)


def test_a_talk_that_grows_and_branches(runtime, rng):
    cache, cold = PrefixCache(1 << 30), PrefixCache(0)
    talk: list[int] = rng.integers(0, 256, 40).tolist()
    for turn in range(8):
        ids = talk + rng.integers(0, 256, 1 + turn).tolist()
        found = read(runtime, ids, cache)
        assert same(found, read(runtime, ids, cold)) and (
            turn == 0 or found[0] >= len(talk) - 2 * BLOCK - WIDE
        )
        talk = ids if turn % 3 else ids + rng.integers(0, 256, 9).tolist()


def test_a_prompt_whose_tokens_are_reported_is_read(runtime, rng):
    ids, cache = rng.integers(0, 256, 70).tolist(), PrefixCache(1 << 30)
    read(runtime, ids, cache)
    assert read(runtime, ids, cache, echo=True, top=0)[0] == 0
    assert read(runtime, ids, cache, echo=True)[0] == 70


def test_prompts_are_shared_only_by_those_who_may(runtime, rng):
    ids, cache = rng.integers(0, 256, 70).tolist(), PrefixCache(1 << 30)
    read(runtime, ids, cache, "one")
    assert read(runtime, ids, cache, "another")[0] == 0
    assert read(runtime, ids, cache, "one")[0] == 70
    assert read(runtime, [*ids, 1], cache, "")[0] == 0


def reachable(cache, root, ids):
    """How many bytes of blocks a prompt finds."""
    before, total = root, 0
    pieces = [tuple(ids[n : n + BLOCK]) for n in range(0, len(ids) + 1, BLOCK)]
    for piece in pieces:
        if not (block := cache.get((before, piece))):
            break
        before, total = block.number, total + block.bytes
    return total


def test_memory_is_bounded_and_the_least_recently_used_goes(rng):
    runtime = libnpgpt.Model.of(random_model(block_size=200))
    one = PrefixCache(1 << 30)
    prompts = [rng.integers(0, 256, 100).tolist() for _ in range(12)]
    read(runtime, prompts[0], one)
    size = one.bytes
    cache = PrefixCache(3 * size)
    for i, ids in enumerate(prompts):
        read(runtime, ids, cache)
        assert read(runtime, prompts[0], cache)[0] == 100  # asked for again and again
        assert cache.bytes <= cache.most and cache.bytes == sum(b.bytes for b in cache._blocks.values())
        assert sum(reachable(cache, (0, ""), ids) for ids in prompts) == cache.bytes  # nothing is lost
        assert i == 0 or read(runtime, ids, cache)[0] == 100
    assert read(runtime, prompts[1], cache)[0] < 100
    small = PrefixCache(size // 3)
    for _ in range(2):
        for ids in prompts:
            read(runtime, ids, small)
            assert 0 < reachable(small, (0, ""), ids) == small.bytes <= small.most
    assert read(runtime, prompts[-1], PrefixCache(10))[0] == 0


@pytest.fixture
def computed():
    """computed(requests, cache): the sequences and their texts, of a scheduler of its own."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    model = random_model(block_size=200)

    def run(requests, cache):
        scheduler = Scheduler(libnpgpt.Model.of(model), model.tokenizer, 64, 64, cache)
        scheduler.start(loop)
        done, texts = threading.Event(), [""] * len(requests)

        def wake():
            for i, sequence in enumerate(sequences):
                texts[i] += sequence.take().text
            if all(sequence.finish and not sequence.has_output for sequence in sequences):
                done.set()

        sequences = [Sequence(request, wake) for request in requests]
        scheduler.submit(sequences)
        assert done.wait(60)
        scheduler.close(RuntimeError("the end"))
        return sequences, texts

    yield run
    loop.call_soon_threadsafe(loop.stop)
    thread.join()
    loop.close()


def test_several_answers_read_their_prompt_once(computed, monkeypatch, rng):
    fed, feed = [], libnpgpt.Session.feed
    monkeypatch.setattr(
        libnpgpt.Session, "feed", lambda s, ids, **h: (fed.append(len(ids)), feed(s, ids, **h))[1]
    )
    ids = tuple(rng.integers(0, 256, 150).tolist())
    how = {"ends": (256,), "ignore_eos": True}
    requests = [TextRequest(ids, 20, Sampling(1.0), seed, **how) for seed in range(16)]
    cache = PrefixCache(1 << 30)
    sequences, texts = computed(requests, cache)
    assert sum(fed) == 150 and [s.n_cached for s in sequences] == [0] + [150] * 15
    fed.clear()
    assert computed(requests, PrefixCache(0))[1] == texts and sum(fed) == 16 * 150
    assert len(set(texts)) == 16


def test_the_same_texts_in_any_company(computed, rng):
    base = rng.integers(0, 256, 120).tolist()
    asked = []
    for seed, n in enumerate((1, 17, 60, 64, 65, 69, 70, 100, 120, 120, 64)):
        ids = base[:n] + rng.integers(0, 256, 5 * (seed % 3)).tolist()
        asked.append(TextRequest(tuple(ids), 120, Sampling(1.0), seed, (256,), True, top=1))
    expected = [computed([one], PrefixCache(0))[1][0] for one in asked]
    cache = PrefixCache(1 << 30)
    for _ in range(3):  # beyond the context, too
        assert computed(asked, cache)[1] == expected
    assert prefixes.BLOCK < len(cache._blocks)
    # the cache was of another scheduler each time, as of another model
    assert Prompt(cache, (-1, ""), tuple(base)).load(libnpgpt.Session(libnpgpt.Model.of(random_model()))) == 0
