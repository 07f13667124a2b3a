"""Generation on the engine's forward pass, with a KV cache: logits to a token, tokens to a stream of text.

Order of what is done to the logits: end of text banned (ignore_eos), penalties, temperature, top-k,
top-p, min-p: the same candidates and probabilities as Hugging Face's logits processors give. No setting that
is accepted can make a NaN or leave no token to draw. B rows, V = vocabulary.
"""

import math
import secrets
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from npgpt.engine.model import GPT, KVCache
from npgpt.engine.ops import philox4x32
from npgpt.engine.types import Floats, Integers, Text
from npgpt.text.tokenizer import StreamDecoder, Tokenizer


@dataclass(frozen=True)
class Sampling:
    """How a token is drawn. Every default but the temperature means: off."""

    temperature: float = 0.8  # 0: always the most probable token
    top_k: int | None = None  # only the k most probable tokens
    top_p: float = 1.0  # only the most probable tokens that together reach probability p
    min_p: float = 0.0  # only tokens at least min_p times as probable as the most probable
    repetition_penalty: float = 1.0  # above 1: tokens seen before become less probable
    presence_penalty: float = 0.0  # taken from the logits of tokens drawn before
    frequency_penalty: float = 0.0  # the same, as many times as each was drawn

    def __post_init__(self) -> None:
        _require("temperature", self.temperature, "at least 0 and finite", lambda v: v >= 0)
        if self.top_k is not None:
            _require("top_k", self.top_k, "a whole number, at least 1", lambda v: v >= 1 and v == int(v))
        _require("top_p", self.top_p, "in 0..1", lambda v: 0 <= v <= 1)
        _require("min_p", self.min_p, "in 0..1", lambda v: 0 <= v <= 1)
        _require("repetition_penalty", self.repetition_penalty, "above 0 and finite", lambda v: v > 0)
        _require("presence_penalty", self.presence_penalty, "finite", lambda v: True)
        _require("frequency_penalty", self.frequency_penalty, "finite", lambda v: True)


def _require(name: str, value: object, what: str, holds: Callable[[Any], bool]) -> None:
    if isinstance(value, bool) or not isinstance(value, (int, float, np.number)):
        raise TypeError(f"generate: {name} must be a number, got {value!r}")
    if not (math.isfinite(value) and holds(value)):
        raise ValueError(f"generate: {name} must be {what}, got {value}")


def penalised(logits: Floats, penalty: float, seen: NDArray[np.bool]) -> Floats:
    """Logits, or log-probabilities, of the tokens seen (bool (V,)) divided or multiplied by the penalty."""
    if penalty == 1:
        return logits
    with np.errstate(over="ignore"):  # a tiny or huge penalty
        less = np.where(logits > 0, logits / penalty, logits * penalty)
    return np.clip(np.where(seen, less, logits), -1e300, 1e300)


def probabilities(
    logits: Floats,
    sampling: Sampling,
    seen: NDArray[np.bool] | None = None,
    banned: int | None = None,
    least: int = 1,
    drawn: Integers | None = None,
) -> Floats:
    """The distribution that a token is drawn from: logits (V,) -> float64 (V,), sum 1.

    seen: bool (V,), the tokens that the repetition penalty is for; banned: a token that may not come;
    least: so many of the most probable stay whatever top_p and min_p say; drawn (V,): how often each token
    came, for the other penalties.

    >>> probabilities(np.log([1, 2, 5.0]), Sampling(temperature=1, top_k=2)).round(3).tolist()
    [0.0, 0.286, 0.714]
    """
    z: Floats = np.array(logits, np.float64)  # (V,), a copy
    if not np.isfinite(z).all():
        raise ValueError("generate: the model's logits must be finite (its weights are not)")
    if seen is not None:
        z = penalised(z, sampling.repetition_penalty, seen)
    if drawn is not None:
        with np.errstate(over="ignore"):
            less = z - sampling.presence_penalty - sampling.frequency_penalty * drawn
        z = np.where(drawn > 0, np.clip(less, -1e300, 1e300), z)
    if banned is not None and len(z) > 1:
        z[banned] = -np.inf
    best = int(z.argmax())
    if sampling.temperature == 0:
        p: Floats = (np.arange(len(z)) == best).astype(np.float64)
        return p

    z = z - z[best]  # <= 0: so no temperature overflows
    with np.errstate(over="ignore"):
        p = np.exp(z / sampling.temperature)
    if sampling.top_k is not None and sampling.top_k < len(z):
        k = max(int(sampling.top_k), least)
        p[z < np.partition(z, -k)[-k]] = 0  # those equal to the last stay
    p /= p.sum()
    if sampling.top_p < 1 or sampling.min_p > 0:
        order = np.argsort(-p, kind="stable")  # most probable first, ties by id
        ahead = np.cumsum(p[order]) - p[order]  # probability of all tokens ahead of this one
        stays = (ahead < sampling.top_p) & (p[order] >= sampling.min_p * p[best])
        stays[:least] = True
        p[order[~stays]] = 0
        p /= p.sum()
    return p


class Draws:
    """Numbers in [0, 1): the n-th is a function of seed and n alone, here as in csrc/runtime/sampler.cpp.

    53 bits of Philox 4x32-10 (ops.py) each. Without a seed, other ones each time.
    """

    def __init__(self, seed: int | None = None) -> None:
        seed = (secrets.randbits(64) if seed is None else int(seed)) % 2**64
        self._key, self._count = (seed % 2**32, seed >> 32), 0

    def random(self) -> float:
        """The next of them."""
        n = self._count
        self._count += 1
        a, b, *_ = map(int, philox4x32((n, n >> 32, 0, 0), self._key))
        return ((a >> 5) * 2**26 + (b >> 6)) / 2**53


def draw(p: Floats, generator: Draws | np.random.Generator) -> int:
    """An id drawn from the distribution p (V,), with one number of the generator."""
    total = np.cumsum(p)
    index = int(np.searchsorted(total, generator.random() * total[-1], side="right"))
    return min(index, int(np.flatnonzero(p)[-1]))  # rounding must not land behind the last possible token


def log_softmax(logits: Floats) -> Floats:
    """logits (...,V) -> float64 (...,V): the logarithms of their probabilities."""
    z: Floats = logits.astype(np.float64)
    z -= z.max(axis=-1, keepdims=True)
    z -= np.log(np.exp(z).sum(axis=-1, keepdims=True))
    return z


class Context:
    """Rows of ids of one length that grow by a token each, and what the model has read of them.

    When the model's context is full the older half is forgotten and the rest read again from position 0.
    """

    def __init__(self, model: GPT, ids: ArrayLike, length: int, starts: Integers | None = None) -> None:
        """ids (B,n), n >= 1, that may grow to `length`; starts (B,): the padding on the left of each row."""
        self.model, self.ids = model, np.asarray(ids, np.int32)
        self.starts = np.zeros(len(self.ids), np.int32) if starts is None else starts
        self._room = min(length, model.config.block_size)
        self._cache: KVCache | None = None
        self._begin = self._read = 0

    def logits(self) -> Floats:
        """(B,V): of what comes next."""
        length, T = self.ids.shape[1], self.model.config.block_size
        if self._cache is None or length - self._begin > self._cache.capacity:
            keep = T if self._cache is None else max(1, T // 2)
            self._begin = self._read = max(0, length - keep)
            starts = np.maximum(self.starts - self._begin, 0)
            self._cache = self.model.new_cache(len(self.ids), self._room, starts)
        logits = self.model.decode(self.ids[:, self._read :], self._cache)
        self._read = length
        return logits

    def extend(self, tokens: ArrayLike) -> None:
        """A token more to each row."""
        self.ids = np.concatenate([self.ids, np.asarray(tokens, np.int32)[:, None]], axis=1)

    def reorder(self, rows: Integers) -> None:
        """Row b becomes what row rows[b] was; there may be more or fewer of them."""
        self.ids, self.starts = self.ids[rows], self.starts[rows]
        if self._cache:
            self._cache.reorder(rows)


def generate_ids(
    model: GPT,
    prompt: list[int],
    max_new_tokens: int,
    sampling: Sampling,
    end_of_text: int | None = None,
    ignore_eos: bool = False,
    seed: int | None = None,
) -> Iterator[int]:
    """Yield the ids that follow prompt (N >= 1), up to max_new_tokens or the end of text (not yielded)."""
    generator = Draws(seed)
    context = Context(model, [prompt], len(prompt) + max_new_tokens)
    seen = np.zeros(model.config.vocab_size, bool)
    seen[prompt] = True
    drawn = np.zeros(model.config.vocab_size, np.int64)
    banned = end_of_text if ignore_eos else None
    for _ in range(max_new_tokens):
        p = probabilities(context.logits()[0], sampling, seen, banned, drawn=drawn)
        token = draw(p, generator)
        drawn[token] += 1
        if token == end_of_text:
            return
        yield token
        context.extend([token])
        seen[token] = True


def prompt_ids(prompt: Text | ArrayLike, tokenizer: Tokenizer | None, vocab_size: int) -> list[int]:
    """The ids of a prompt given as text (str, bytes) or as ids; an empty one becomes one end of text."""
    ids: Integers
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
    return list(map(int, ids))


def text_pieces(ids: Iterable[int], tokenizer: Tokenizer, stop: Sequence[str] = ()) -> Iterator[str]:
    """Ids to text as it comes, ending before the first stop string; no piece breaks a character.

    Text that may be the beginning of a stop string is held back until that is decided.
    """
    stream = TextStream(tokenizer.stream(), stop)
    for token in ids:
        if piece := stream.push(token):
            yield piece
        if stream.stopped:
            return
    if piece := stream.close():
        yield piece


class TextStream:
    """The same, pushed: one id in, the text that is decided out, often ''."""

    def __init__(self, decoder: StreamDecoder, stop: Sequence[str] = ()) -> None:
        self._decoder, self._stop, self._held = decoder, stop, ""
        self.stopped = False  # at a stop string: nothing comes any more

    def push(self, token: int) -> str:
        """The text that is decided once this id is in."""
        return self._take(self._decoder.push(token), end=False)

    def close(self) -> str:
        """What was held back, where no stop string came."""
        return self._take(self._decoder.close(), end=True)

    def _take(self, text: str, end: bool) -> str:
        if not self._stop or self.stopped:
            return "" if self.stopped else text
        held = self._held + text
        place = min((at for s in self._stop if (at := held.find(s)) >= 0), default=-1)
        self.stopped = place >= 0
        ready = place if self.stopped else len(held) - (0 if end else _undecided(held, self._stop))
        self._held = held[ready:]
        return held[:ready]


def _undecided(text: str, stop: Sequence[str]) -> int:
    """Length of the longest end of text that a stop string begins with."""
    longest = max((len(s) - 1 for s in stop), default=0)
    sizes = range(min(longest, len(text)), 0, -1)
    return next((n for n in sizes if any(s.startswith(text[-n:]) for s in stop)), 0)
