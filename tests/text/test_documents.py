"""Documents are apart: in the windows of training, and in the parts of a text."""

import gzip
import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import npgpt
from npgpt.text import dataset
from npgpt.text.dataset import Batches, Dataset, cut_windows, evaluation_batches
from npgpt.text.distinct import DistinctCorpus
from npgpt.text.tokenizer import BPETokenizer, ByteTokenizer
from npgpt.training.evaluation import evaluate, mean_loss
from npgpt.training.trainer import prepare

END = 256


def text_of(rng, sizes):
    """Documents of these sizes, each with its end, as one row of ids."""
    return np.concatenate([np.append(rng.integers(0, 256, n), END) for n in sizes]).astype(np.uint16)


@given(st.lists(st.integers(1, 30), min_size=2, max_size=9), st.integers(1, 20), st.integers(1, 4))
def test_windows_are_those_of_joined_documents_and_say_where_each_begins(sizes, T, B):
    ids = text_of(np.random.default_rng(0), sizes)
    apart, joined = Batches(ids, T, B, 3, END, apart=True), Batches(ids, T, B, 3, END)
    for step in range(3 * joined.per_epoch):
        (x, y), (x_apart, y_apart, *starts) = joined.batch(step), apart.batch(step)
        assert (x == x_apart).all() and (y == y_apart).all()
        begins = starts[0] if starts else np.zeros_like(x)
        for row, places in zip(x, begins, strict=True):
            # what is before a token in its document: up to the end of text that closes the document before
            expected = [max([0, *(i for i in range(t + 1) if row[i] == END)]) for t in range(T)]
            assert places.tolist() == expected
        assert bool(starts) == bool(begins.any())  # else a run is the same to the last bit


def test_evaluation_says_it_too():
    ids = text_of(np.random.default_rng(1), [5, 3, 9])
    with_starts = list(evaluation_batches(ids, 8, 2, END, apart=True))
    assert [len(batch) for batch in with_starts] == [3, 3] and with_starts[0][2].tolist() == [
        [0] * 6 + [6] * 2,
        [0, 0] + [2] * 6,
    ]


def test_a_token_learns_from_its_own_document_alone():
    """Whatever another document says: loss and gradient of this one's targets are the same."""
    rng = np.random.default_rng(2)
    model = npgpt.GPT(
        npgpt.GPTConfig(n_layer=2, n_head=2, n_embd=16, block_size=32, vocab_size=257, dropout=0.0), seed=0
    )
    found = []
    for _ in range(2):
        ids = text_of(rng, [11, 0])[:-1]  # another one before the same one
        ids = np.concatenate([ids, text_of(np.random.default_rng(3), [15])])
        x, y, starts = cut_windows(ids, np.array([0]), 28, END, apart=True)
        y[0, :12] = -1
        model.zero_grads()
        loss = model.forward(x, y, starts)
        model.backward()
        found.append((loss, model.grads["h.0.attn.c_attn.weight"].copy()))
        joined = model.loss(x, y)
        assert abs(joined - loss) > 1e-6
    assert found[0][0] == pytest.approx(found[1][0], rel=1e-6)
    np.testing.assert_allclose(found[0][1], found[1][1], atol=1e-6)


def test_one_document_trains_as_before_and_several_do_not():
    rng = np.random.default_rng(4)
    flags = {"steps": 3, "n_layer": 1, "n_embd": 16, "block_size": 16, "split": "1"}

    def weights(ids, documents):
        dataset = Dataset.from_ids(ids, "1", ByteTokenizer(), documents)
        trainer = prepare(dataset, flags, 0)
        losses = [trainer._forward_backward(step)[0] for step in range(3)]
        return dataset.apart, losses, trainer.model.flat_grads.tobytes()

    one, two = text_of(rng, [300]), text_of(rng, [20] * 15)
    assert weights(one, "apart")[1:] == weights(one, "joined")[1:] and not weights(one, "apart")[0]
    assert weights(two, "apart")[0] and weights(two, "apart")[1] != weights(two, "joined")[1]


def test_what_is_measured_is_each_document_for_itself():
    ids = text_of(np.random.default_rng(5), [7, 30, 2, 11])
    model = npgpt.GPT(npgpt.GPTConfig(n_layer=1, n_head=2, n_embd=16, block_size=64, vocab_size=257), seed=1)
    alone = 0.0
    for document in np.split(ids, np.flatnonzero(ids == END)[:-1] + 1):
        x = np.append(END, document[:-1])[None].astype(np.int32)
        alone += model.loss(x, document[None].astype(np.int32)) * len(document)
    found = evaluate(model, ids, ByteTokenizer(), apart=True)["loss"]
    assert found == pytest.approx(alone / len(ids), rel=1e-5)
    assert mean_loss(model, evaluation_batches(ids, 64, 1, END, apart=True)) == pytest.approx(found, rel=1e-5)
    assert abs(evaluate(model, ids, ByteTokenizer())["loss"] - found) > 1e-6


# ---------------------------------------------------------------------------- parts


@given(
    st.lists(st.integers(1, 40), min_size=30, max_size=60),
    st.sampled_from([(0.8, 0.1, 0.1), (0.6, 0.4), (0.9, 0, 0.1)]),
)
def test_parts_begin_with_documents_and_are_about_as_large_as_asked(sizes, split):
    ids = text_of(np.random.default_rng(6), sizes)
    dataset = Dataset.from_ids(ids, split, ByteTokenizer())
    parts = [dataset.train, dataset.validation, dataset.test]
    assert sum(map(len, parts)) + dataset.n_copies == len(ids)
    if max(sizes) < 0.25 * len(ids) * min(filter(None, split)):
        assert all(part[-1] == END for part in parts if len(part))
    for part, share in zip(parts, (*split, 0), strict=False):
        assert len(part) + dataset.n_copies >= 0.5 * share * len(ids) - 1 and bool(len(part)) >= bool(
            share and not dataset.n_copies
        )


def test_of_few_documents_one_is_cut():
    ids = text_of(np.random.default_rng(7), [1000, 900])
    dataset = Dataset.from_ids(ids, (0.8, 0.1, 0.1), ByteTokenizer())
    old = Dataset.from_ids(ids, (0.8, 0.1, 0.1), ByteTokenizer(), "joined")
    assert [len(part) for part in (dataset.train, dataset.validation, dataset.test)] == [1522, 190, 190]
    assert (dataset.train == old.train).all() and dataset.apart and not old.apart


def test_near_duplicates_are_on_one_side(tmp_path):
    """Of plain files, which keep theirs."""
    rng = np.random.default_rng(8)
    texts = [" ".join(f"w{n}" for n in rng.integers(0, 10**6, 60)) for _ in range(40)]
    for number in range(30, 40):
        texts[number] = texts[number - 30] + " mais uma"
    for number, text in enumerate(texts):
        (tmp_path / f"{number:02}.txt").write_text(text)
    dataset = Dataset.from_text(tmp_path, (0.7, 0.2, 0.1))
    assert dataset.n_copies == sum(len(text) + 1 for text in texts[30:])
    kept = [dataset.tokenizer.decode_bytes(part).decode() for part in (dataset.validation, dataset.test)]
    assert kept == ["".join(texts[28:30]), ""]
    assert len(Dataset.from_text(tmp_path, (0.7, 0.2, 0.1), documents="joined").test) > 0
    with pytest.raises(ValueError, match="documents must be one of apart, joined, got 'no'"):
        Dataset.from_text(tmp_path, documents="no")


def test_records_over_several_parts_have_the_ids_of_each_alone(tmp_path):
    """They are encoded by threads, some at a time: none is lost, none comes before another."""
    texts = [f"{number}: " + "o mar e o sol " * (number % 300) for number in range(1500)]
    with gzip.open(tmp_path / "a.jsonl.gz", "wt", encoding="utf-8") as file:
        file.writelines(json.dumps({"text": text}) + "\n" for text in texts)
    assert sum(map(len, texts)) > 3 * dataset.PART
    tokenizer = BPETokenizer.train([b"o mar e o sol 0123456789: " * 9], 270)
    corpus = DistinctCorpus(tmp_path / "a.jsonl.gz", "none", True, encoding="auto")
    chunks = [chunk for _, chunk in corpus.chunks()]
    assert [chunk.split(b":")[0] for chunk in chunks] == [str(number).encode() for number in range(1500)]
    alone = [[*tokenizer.encode(chunk).tolist(), tokenizer.end_of_text] for chunk in chunks]
    assert dataset.encode(corpus, tokenizer).tolist() == [id for ids in alone for id in ids]


def test_what_fails_in_a_thread_fails_the_text(tmp_path, monkeypatch):
    (tmp_path / "a.txt").write_text("o mar")
    tokenizer = BPETokenizer.train([b"o mar, o mar"], 258)
    monkeypatch.setattr(tokenizer, "_encode", lambda data: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        dataset.encode(DistinctCorpus(tmp_path / "a.txt", "none", True), tokenizer)
