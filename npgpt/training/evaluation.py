"""How well a model predicts a text, compared with baselines that need no model.

Everything is measured over all tokens of a text, in non-overlapping windows of block_size.
V = vocabulary; B, T = windows, tokens in a window.
"""

import gzip
import lzma
import math
import sys
import time
from collections.abc import Callable, Iterable
from typing import Any, TypeAlias

import numpy as np

from npgpt.engine.finite import check_measured
from npgpt.engine.model import GPT
from npgpt.engine.notebooks import small_table
from npgpt.engine.types import Fields, Floats, Integers
from npgpt.text.dataset import evaluation_batches
from npgpt.text.kneser_ney import COUNTED, KneserNey
from npgpt.text.tokenizer import Tokenizer

Map: TypeAlias = Callable[[Callable[[Any], Floats], Iterable[Any]], Iterable[Floats]]  # as the builtin
TOKENS_AT_ONCE = 1024  # limits the memory of the logits; it changes the last bits of the results alone


class Evaluation(dict[str, Any]):
    """What evaluate() measures, by name."""

    def _repr_html_(self) -> str:
        """Return a table for notebooks."""
        shown = {name: f"{value:.4f}" if isinstance(value, float) else value for name, value in self.items()}
        return small_table("Evaluation", shown)


def mean_loss(model: GPT, batches: Iterable[tuple[Integers, ...]], map: Map = map) -> float:
    """Return the mean loss over batches of x, y (and starts), in nats per token whose target is not -1.

    `map` is the built-in one, or one that divides the batches among ranks.
    """

    def loss_and_tokens(batch: tuple[Integers, ...]) -> Floats:
        n = int((batch[1] >= 0).sum())
        return np.array([model.loss(*batch) * n, n], np.float64)

    total, count = sum(map(loss_and_tokens, batches), np.zeros(2))
    return float(total / count)


def evaluate(model: GPT, ids: Integers, tokenizer: Tokenizer, apart: bool = False) -> Evaluation:
    """Return how well the model predicts `ids`, by name.

    loss (nats per token), perplexity (None where it is beyond a float), bits_per_byte, accuracy@1,
    accuracy@5, and the counts tokens and bytes. apart: a token sees its own document alone. ValueError for
    logits that are not finite.
    """
    T, end = model.config.block_size, tokenizer.end_of_text
    total, first, fifth = 0.0, 0, 0
    for x, y, *starts in evaluation_batches(ids, T, max(1, TOKENS_AT_ONCE // T), end, apart=apart):
        y[np.isin(y, tokenizer.begin)] = -1  # which is given, not predicted
        logits, targets = model.logits(x, *starts)[y >= 0], y[y >= 0]  # (n,V), (n,)
        check_measured("evaluate", logits, model.params)
        logits = logits.astype(np.float64)
        at_target = logits[np.arange(len(targets)), targets][:, None]  # (n,1)
        top = logits.max(axis=1, keepdims=True)
        total += float((np.log(np.exp(logits - top).sum(axis=1, keepdims=True)) + top - at_target).sum())
        tied = (logits == at_target) & (np.arange(logits.shape[1]) < targets[:, None])  # ties go by id
        rank = ((logits > at_target) | tied).sum(axis=1)  # (n,): how many tokens are more likely
        first, fifth = first + int((rank < 1).sum()), fifth + int((rank < 5).sum())
    n, n_bytes = int((~np.isin(ids, tokenizer.begin)).sum()), len(tokenizer.decode_bytes(ids))
    found = {
        "tokens": n,
        "bytes": n_bytes,
        "loss": total / n,
        "perplexity": math.exp(total / n) if total / n < math.log(sys.float_info.max) else None,
        "bits_per_byte": total / math.log(2) / max(n_bytes, 1),
        "accuracy@1": first / n,
        "accuracy@5": fifth / n,
    }
    return Evaluation(found)


def count(train_ids: Integers, tokenizer: Tokenizer) -> KneserNey:
    """Return the n-gram model of a training part."""
    return KneserNey(tokenizer.decode_bytes(train_ids[-COUNTED:]))


def counted_loss(
    model: KneserNey, ids: Integers, tokenizer: Tokenizer, block_size: int, max_tokens: int
) -> float:
    """Return what counting loses where training validates: nats per token of the same windows of `ids`.

    As a GPT, the n-gram model knows one token before a window.
    """
    bits, n = 0.0, 0
    for x, y in evaluation_batches(ids, block_size, 1, tokenizer.end_of_text, max_tokens):
        targets = y[y >= 0]
        bits += model.bits(tokenizer.decode_bytes(targets), tokenizer.decode_bytes(x[0, :1]))
        n += len(targets)
    return bits * math.log(2) / n


def baselines(
    ids: Integers, train_ids: Integers, tokenizer: Tokenizer, counted: KneserNey | None = None
) -> Fields:
    """Return the bits per byte of the same ids without a model; for uniform and unigram the accuracies too.

    uniform     every token is equally probable
    unigram     token frequencies of the training part, each count plus one
    gzip, xz    the text compressed by itself, at the strongest setting
    kneser-ney  `counted`, the n-gram model of the training part, and the seconds that it takes to count and
                to measure; without it there is none, as where the ids are not held out from that part
    """
    V, n = tokenizer.vocab_size, len(ids)
    text = tokenizer.decode_bytes(ids)
    counts = np.bincount(train_ids, minlength=V) + 1.0  # (V,)
    nats = -np.log(counts / counts.sum())[ids].sum()
    ranked = np.argsort(-counts, kind="stable")
    per_byte = max(len(text), 1)
    found = {
        "uniform": {"bits_per_byte": n * math.log2(V) / per_byte, "accuracy@1": 1 / V, "accuracy@5": 5 / V},
        "unigram": {
            "bits_per_byte": float(nats) / math.log(2) / per_byte,
            "accuracy@1": float(np.isin(ids, ranked[:1]).mean()),
            "accuracy@5": float(np.isin(ids, ranked[:5]).mean()),
        },
        "gzip": {"bits_per_byte": 8 * len(gzip.compress(text, 9)) / per_byte},
        "xz": {"bits_per_byte": 8 * len(lzma.compress(text, preset=9 | lzma.PRESET_EXTREME)) / per_byte},
    }
    if counted:
        began = time.perf_counter() - counted.seconds
        bits = counted.bits(text)
        found["kneser-ney"] = {"bits_per_byte": bits / per_byte, "seconds": time.perf_counter() - began}
    return found
