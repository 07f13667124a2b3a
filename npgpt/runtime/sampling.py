"""Generation on the engine's forward pass, with a KV cache: logits to a token, tokens to a stream of text.

Order of what is done to the logits: end of text banned (ignore_eos), repetition penalty, temperature, top-k,
top-p, min-p, as in Hugging Face. No setting that is accepted can make a NaN or leave no token to draw.
V = vocabulary.
"""

import math
import secrets
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Sampling:
    """How a token is drawn. Every default but the temperature means: off."""

    temperature: float = 0.8  # 0: always the most probable token
    top_k: int | None = None  # only the k most probable tokens
    top_p: float = 1.0  # only the most probable tokens that together reach probability p
    min_p: float = 0.0  # only tokens at least min_p times as probable as the most probable
    repetition_penalty: float = 1.0  # above 1: tokens seen before become less probable

    def __post_init__(self):
        _require("temperature", self.temperature, "at least 0 and finite", lambda v: v >= 0)
        if self.top_k is not None:
            _require("top_k", self.top_k, "a whole number, at least 1", lambda v: v >= 1 and v == int(v))
        _require("top_p", self.top_p, "in 0..1", lambda v: 0 <= v <= 1)
        _require("min_p", self.min_p, "in 0..1", lambda v: 0 <= v <= 1)
        _require("repetition_penalty", self.repetition_penalty, "above 0 and finite", lambda v: v > 0)


def _require(name: str, value, what: str, holds) -> None:
    if isinstance(value, bool) or not isinstance(value, (int, float, np.number)):
        raise TypeError(f"generate: {name} must be a number, got {value!r}")
    if not (math.isfinite(value) and holds(value)):
        raise ValueError(f"generate: {name} must be {what}, got {value}")


def probabilities(logits, sampling: Sampling, seen=None, banned: int | None = None) -> np.ndarray:
    """The distribution that a token is drawn from: logits (V,) -> float64 (V,), sum 1.

    seen: bool (V,), the tokens that the repetition penalty is for; banned: a token that may not come.
    """
    z = np.array(logits, np.float64)  # (V,), a copy
    if not np.isfinite(z).all():
        raise ValueError("generate: the model's logits must be finite (its weights are not)")
    if seen is not None and sampling.repetition_penalty != 1:
        p = sampling.repetition_penalty
        with np.errstate(over="ignore"):  # a tiny or huge penalty
            z = np.clip(np.where(seen, np.where(z > 0, z / p, z * p), z), -1e300, 1e300)
    if banned is not None and len(z) > 1:
        z[banned] = -np.inf
    order = np.argsort(-z, kind="stable")  # most probable first, ties by id
    kept = np.zeros(len(z))
    if sampling.temperature == 0:
        kept[order[0]] = 1
        return kept

    z = z[order] - z[order[0]]  # <= 0, the first is 0: so no temperature overflows
    with np.errstate(over="ignore"):
        p = np.exp(z / sampling.temperature)
    p = p[: sampling.top_k]
    p /= p.sum()
    before = np.cumsum(p) - p  # probability of all tokens ahead of this one
    first = np.arange(len(p)) == 0  # the most probable token always stays
    p = np.where(first | ((before < sampling.top_p) & (p >= sampling.min_p * p[0])), p, 0)
    kept[order[: len(p)]] = p / p.sum()
    return kept


class Draws:
    """Numbers in [0, 1): the n-th is a function of seed and n alone, here as in csrc/runtime/sampler.cpp.

    53 bits of Philox 4x32-10 (Salmon et al. 2011; ops.py) each. Without a seed, other ones each time.
    """

    def __init__(self, seed: int | None = None):
        seed = (secrets.randbits(64) if seed is None else int(seed)) % 2**64
        self._key, self._count = (seed % 2**32, seed >> 32), 0

    def random(self) -> float:
        n, (k0, k1) = self._count, self._key
        self._count += 1
        a, b, c, d = n % 2**32, n >> 32, 0, 0
        for _ in range(10):
            x, y = a * 0xD2511F53, c * 0xCD9E8D57
            a, b, c, d = (y >> 32) ^ b ^ k0, y % 2**32, (x >> 32) ^ d ^ k1, x % 2**32
            k0, k1 = (k0 + 0x9E3779B9) % 2**32, (k1 + 0xBB67AE85) % 2**32
        return ((a >> 5) * 2**26 + (b >> 6)) / 2**53


def draw(p: np.ndarray, generator) -> int:
    """An id drawn from the distribution p (V,), with one number of the generator."""
    total = np.cumsum(p)
    index = int(np.searchsorted(total, generator.random() * total[-1], side="right"))
    return min(index, int(np.flatnonzero(p)[-1]))  # rounding must not land behind the last possible token


def generate_ids(model, prompt, max_new_tokens, sampling, end_of_text=None, ignore_eos=False, seed=None):
    """Yield new ids after the ids of prompt (N >= 1), up to max_new_tokens or the end of text (not yielded).

    When the context is full the older half is forgotten and the rest read again from position 0.
    """
    ids = [int(i) for i in prompt]
    block_size, vocab_size = model.config.block_size, model.config.vocab_size
    generator = Draws(seed)
    seen = np.zeros(vocab_size, bool)
    seen[ids] = True
    banned = end_of_text if ignore_eos else None
    cache, unread = None, ids[-block_size:]
    for _ in range(max_new_tokens):
        if cache is None or cache.length + len(unread) > block_size:
            unread = ids[-block_size:] if cache is None else ids[-max(1, block_size // 2) :]
            cache = model.new_cache(1, block_size)
        logits = model.decode(np.array([unread], np.int32), cache)[0]  # (V,)
        token = draw(probabilities(logits, sampling, seen, banned), generator)
        if token == end_of_text:
            return
        yield token
        ids.append(token)
        seen[token] = True
        unread = [token]


def prompt_ids(prompt, tokenizer, vocab_size: int) -> list[int]:
    """The ids of a prompt given as text (str, bytes) or as ids; an empty one becomes one end of text."""
    if isinstance(prompt, (str, bytes)):
        if tokenizer is None:
            raise ValueError("generate: prompt must be token ids for a model without a tokenizer, got text")
        ids = tokenizer.encode(prompt)
    else:
        ids = np.asarray(prompt)
        if ids.ndim == 2 and len(ids) == 1:
            ids = ids[0]
        if ids.size and (ids.ndim != 1 or not np.issubdtype(ids.dtype, np.integer)):
            raise TypeError(f"generate: prompt must be text or a row of ids, got {ids.dtype} {ids.shape}")
    if not len(ids):
        if tokenizer is None:
            raise ValueError("generate: prompt must hold at least 1 id, got none")
        ids = np.array([tokenizer.end_of_text])  # where a document begins
    if not 0 <= ids.min() <= ids.max() < vocab_size:
        raise ValueError(f"generate: prompt ids must be in 0..{vocab_size - 1}, got {ids.min()}..{ids.max()}")
    return ids.tolist()


def text_pieces(ids, tokenizer, stop=()) -> Iterator[str]:
    """Ids to text as it comes, ending before the first stop string; no piece breaks a character.

    Text that may be the beginning of a stop string is held back until that is decided.
    """
    decoder, held = tokenizer.stream(), ""
    for token in ids:
        held += decoder.push(token)
        if (end := _find_first(held, stop)) >= 0:
            if held[:end]:
                yield held[:end]
            return
        ready = len(held) - _undecided(held, stop)
        if ready:
            yield held[:ready]
            held = held[ready:]
    held += decoder.close()
    end = _find_first(held, stop)
    if held := held[:end] if end >= 0 else held:
        yield held


def _find_first(text: str, stop) -> int:
    """Where the first of the stop strings begins, -1 without one."""
    return min((place for s in stop if (place := text.find(s)) >= 0), default=-1)


def _undecided(text: str, stop) -> int:
    """Length of the longest end of text that a stop string begins with."""
    longest = max((len(s) - 1 for s in stop), default=0)
    sizes = range(min(longest, len(text)), 0, -1)
    return next((n for n in sizes if any(s.startswith(text[-n:]) for s in stop)), 0)
