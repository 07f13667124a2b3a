"""What evaluate says is what can be computed by hand."""

import gzip

import numpy as np
import pytest

from npgpt.engine.config import GPTConfig
from npgpt.engine.model import GPT
from npgpt.text.dataset import evaluation_batches
from npgpt.text.kneser_ney import KneserNey
from npgpt.text.tokenizer import BPETokenizer, ByteTokenizer
from npgpt.training import evaluation

tokenizer = ByteTokenizer()


@pytest.fixture
def model():
    return GPT(GPTConfig(n_layer=1, n_head=1, n_embd=8, block_size=5, vocab_size=257), seed=1)


def test_loss_and_evaluate_agree_window_by_window(model):
    ids = np.append(tokenizer.encode("ação e reação"), 256)
    before = np.append(256, ids[:-1])
    nats, ranks = [], []
    for start in range(0, len(ids), 5):
        logits = model.logits(before[None, start : start + 5])[0].astype(np.float64)
        for z, target in zip(logits, ids[start : start + 5], strict=True):
            nats.append(np.log(np.exp(z).sum()) - z[target])
            ranks.append((z > z[target]).sum())
    measured = evaluation.evaluate(model, ids, tokenizer)
    assert measured["loss"] == pytest.approx(np.mean(nats), abs=1e-5)
    batches = evaluation_batches(ids, 5, 2, 256)
    assert evaluation.mean_loss(model, batches) == pytest.approx(np.mean(nats), abs=1e-5)
    assert measured["perplexity"] == pytest.approx(np.exp(np.mean(nats)), rel=1e-4)
    assert measured["bits_per_byte"] == pytest.approx(sum(nats) / np.log(2) / (len(ids) - 1), abs=1e-5)
    assert measured["accuracy@1"] == np.mean(np.array(ranks) < 1)
    assert measured["accuracy@5"] == np.mean(np.array(ranks) < 5)
    assert (measured["tokens"], measured["bytes"]) == (len(ids), len(ids) - 1)


def test_a_model_that_knows_nothing_is_not_taken_for_one_that_does(model):
    with model.edit():
        model.flat_params[...] = 0  # all logits equal
    measured = evaluation.evaluate(model, tokenizer.encode("zzzz"), tokenizer)
    assert measured["accuracy@5"] == 0 and measured["bits_per_byte"] == pytest.approx(np.log2(257))


def test_baselines():
    train, test = tokenizer.encode("aaab"), tokenizer.encode("abcd")
    found = evaluation.baselines(test, train, tokenizer)
    assert found["uniform"]["bits_per_byte"] == pytest.approx(np.log2(257))
    expected = -np.log2(np.array([4, 2, 1, 1]) / (4 + 257)).mean()
    assert found["unigram"]["bits_per_byte"] == pytest.approx(expected)
    assert found["unigram"]["accuracy@1"] == 0.25
    assert found["gzip"]["bits_per_byte"] == 8 * len(gzip.compress(b"abcd", 9)) / 4
    assert found["xz"]["bits_per_byte"] > 8
    assert "kneser-ney" not in found


def test_what_counting_reaches_stands_beside_a_part_held_out():
    text = b"the cat sat on the mat, the rat ate the hat, and the cat ate the rat that sat on the mat. "
    train = tokenizer.encode(text)
    found = evaluation.baselines(
        tokenizer.encode("the rat sat"), train, tokenizer, evaluation.count(train, tokenizer)
    )
    row = found["kneser-ney"]
    assert row["bits_per_byte"] == KneserNey(text).bits(b"the rat sat") / 11 and row["seconds"] > 0


def test_counting_is_measured_where_training_validates():
    text = b"the cat sat on the mat, the rat ate the hat, and the cat ate the rat that sat on the mat. "
    train, ids = tokenizer.encode(text), np.append(tokenizer.encode("the rat sat on a hat"), 256)
    counted = KneserNey(text)
    everything = counted.bits(b"the rat ") + counted.bits(b"sat on a", b" ") + counted.bits(b" hat", b"a")
    found = evaluation.counted_loss(evaluation.count(train, tokenizer), ids, tokenizer, 8, 1000)
    assert found == pytest.approx(everything * np.log(2) / 21)
    first = counted.bits(b"the rat ") * np.log(2) / 8
    assert evaluation.counted_loss(counted, ids, tokenizer, 8, 8) == pytest.approx(first)


def test_bits_per_byte_count_bytes_not_tokens():
    """A model that knows nothing needs log2 V bits a token, whatever a token holds."""
    text = "ação e reação, ação e reação".encode()
    bpe = BPETokenizer.train([text], 264)
    ids = np.append(bpe.encode(text), bpe.end_of_text)
    model = GPT(GPTConfig(n_layer=1, n_head=1, n_embd=8, block_size=5, vocab_size=264), seed=1)
    with model.edit():
        model.flat_params[...] = 0
    assert len(ids) < len(text) - 5
    bits = len(ids) * np.log2(264) / len(text)
    measured = evaluation.evaluate(model, ids, bpe)
    assert (measured["tokens"], measured["bytes"]) == (len(ids), len(text))
    assert measured["bits_per_byte"] == pytest.approx(bits, rel=1e-5)
    found = evaluation.baselines(ids, ids, bpe)
    assert found["uniform"]["bits_per_byte"] == pytest.approx(bits)
    assert found["gzip"]["bits_per_byte"] == 8 * len(gzip.compress(text, 9)) / len(text)
