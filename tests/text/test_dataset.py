"""Splitting, and that an epoch makes each token a target once."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from npgpt.text.dataset import Batches, Dataset, cut_windows, evaluation_batches, parse_split
from npgpt.text.tokenizer import ByteTokenizer

END = 256


@pytest.mark.parametrize(
    "text", ["", "a,b", "0.5,0.6", "-0.5,1.5", "0,1", "0.5,0.2,0.2,0.1", "nan", "0.8,0.1"]
)
def test_bad_splits_are_refused(text):
    with pytest.raises(ValueError, match="split must be"):
        parse_split(text)


def test_splits():
    assert parse_split("0.8,0.1,0.1") == (0.8, 0.1, 0.1)
    assert parse_split("0.9,0.1") == (0.9, 0.1, 0)
    assert parse_split((1,)) == (1, 0, 0)


def write(folder, *documents):
    """Files 0.txt, 1.txt, ... -> their paths."""
    paths = [folder / f"{number}.txt" for number in range(len(documents))]
    for path, document in zip(paths, documents, strict=True):
        path.write_bytes(document)
    return paths


@given(st.text(min_size=3))
def test_the_parts_are_the_text_cut_between_characters(text):
    ids = np.append(ByteTokenizer().encode(text.encode()), np.uint16(END))
    parts = Dataset.from_ids(ids, (0.6, 0.2, 0.2), ByteTokenizer())
    whole = np.concatenate([parts.train, parts.validation, parts.test])
    assert whole.tolist() == ids.tolist() and len(parts) == len(ids)
    assert len(parts.train)
    for part in (parts.train, parts.validation, parts.test):
        parts.tokenizer.decode_bytes(part).decode("utf-8")  # no part begins or ends inside a character


def test_from_text_reads_files(tmp_path):
    (tmp_path / "a.txt").write_bytes(b"one\r\n")
    (tmp_path / "b.txt").write_bytes(b"two")
    parts = Dataset.from_text([tmp_path / "a.txt", str(tmp_path / "b.txt")], split="1")
    assert parts.train.tolist() == [*b"one\n", END, *b"two", END]
    assert Dataset.from_text(tmp_path / "a.txt", split="1", clean="none").train.tolist() == [*b"one\r\n", END]


def test_too_short_a_text_is_refused(tmp_path):
    with pytest.raises(ValueError, match="at least 2 tokens, got 1"):
        Dataset.from_text(write(tmp_path, b"a"))


@given(st.integers(2, 200), st.integers(1, 20), st.integers(1, 5), st.integers(0, 3))
def test_an_epoch_makes_each_token_a_target_once(n, T, B, epoch):
    ids = np.arange(n, dtype=np.uint16)
    batches = Batches(ids, T, B, seed=7, end_of_text=END)
    seen = []
    for step in range(epoch * batches.per_epoch, (epoch + 1) * batches.per_epoch):
        x, y = batches.batch(step)
        assert x.shape == y.shape and x.shape[1] == T and 1 <= len(x) <= B
        assert x.dtype == y.dtype == np.int32
        assert (y >= 0).any(axis=1).all()  # no window is all padding
        counted = y >= 0
        before = np.where(
            y == 0, END, y - 1
        )  # what stands before each target, the end of text before the first
        assert (x[counted] == before[counted]).all()
        seen += y[counted].tolist()
    assert sorted(seen) == list(range(n))


def test_a_batch_depends_on_seed_and_step_alone():
    ids = np.random.default_rng(0).integers(0, 256, 1000).astype(np.uint16)
    forwards = Batches(ids, 16, 4, seed=1, end_of_text=END)
    all_of_them = [forwards.batch(step) for step in range(40)]
    for step in (39, 0, 17, 16, 38):  # any order, a fresh object
        for a, b in zip(Batches(ids, 16, 4, 1, END).batch(step), all_of_them[step], strict=True):
            np.testing.assert_array_equal(a, b)
    other = Batches(ids, 16, 4, seed=2, end_of_text=END)
    assert any((other.batch(s)[1] != all_of_them[s][1]).any() for s in range(3))


@given(st.integers(1, 100), st.integers(1, 20), st.integers(1, 5))
def test_evaluation_windows_cover_all_in_order(n, T, B):
    ids = np.arange(n, dtype=np.uint16)
    targets = np.concatenate([y.ravel() for _, y in evaluation_batches(ids, T, B, END)])
    assert targets[targets >= 0].tolist() == list(range(n))
    some = np.concatenate([y.ravel() for _, y in evaluation_batches(ids, T, B, END, max_tokens=2 * T)])
    assert 1 <= len(some) // T <= 2 and set(some) <= set(targets)


def test_ragged_window_is_padded():
    x, y = cut_windows(np.array([5, 6, 7], np.uint16), [0, 1], 2, END)
    assert x[0].tolist() == [END, 5] and y.tolist() == [[5, 6], [7, -1]] and x[1, 0] == 6


def test_a_document_is_in_one_split_alone():
    """Its copies in the splits behind are left out, however the cut falls; the text keeps its length."""
    rng = np.random.default_rng(0)
    documents = [np.append(rng.integers(0, 256, n), 256).astype(np.uint16) for n in (90, 60, 40, 9, 11)]
    a, b, c, d, e = documents
    for order in ([a, b, c, a, d, e, a, c], [a, b, c, d, d, d, b, e], [a, a, a], [a, b, c, d, e]):
        ids = np.concatenate(order)
        for split in ((0.8, 0.1, 0.1), (0.5, 0.3, 0.2), (0.6, 0.4, 0)):
            dataset = Dataset.from_ids(ids, split, ByteTokenizer())
            assert len(dataset) == len(ids)
            kept = [dataset.train, dataset.validation, dataset.test]
            texts = [part.astype(">u2").tobytes() for part in kept]
            for document in {id(document): document for document in order}.values():
                whole = document.astype(">u2").tobytes()
                assert whole in b"".join(texts)
                # an end of it, where a cut goes through it, is as much a copy as the whole
                assert sum(whole[-16:] in text for text in texts) <= 1
    plain = Dataset.from_ids(np.concatenate(documents), (0.8, 0.1, 0.1), ByteTokenizer())
    assert plain.n_copies == 0 and plain.validation.base is not None  # a view, where nothing is left out


def test_copies_after_cleaning_are_copies(tmp_path):
    for name, text in (("a", "um dia \n" * 50), ("b", "outro\n" * 9), ("c", "um dia \r\n" * 50)):
        (tmp_path / f"{name}.txt").write_bytes(text.encode())
    dataset = Dataset.from_text([tmp_path / f"{name}.txt" for name in "abc"], (0.5, 0.25, 0.25))
    assert b"um dia" in dataset.tokenizer.decode_bytes(dataset.train)
    for part in (dataset.validation, dataset.test):
        assert b"um dia" not in dataset.tokenizer.decode_bytes(part)
