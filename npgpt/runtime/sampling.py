"""Generation on the engine's forward pass, with a KV cache: logits to a token, tokens to a stream of text.

The logits pass through these steps in order: bias, penalties, ban of the end of text (ignore_eos) and of what
a grammar excludes, temperature, top-k, top-p, min-p. Candidates and probabilities are those of Hugging Face's
logits processors. No accepted setting can produce a NaN or leave no token to draw. B rows, V = vocabulary.
"""

import secrets
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from npgpt.engine.finite import LOGITS, is_finite, is_finite_number
from npgpt.engine.model import GPT, KVCache
from npgpt.engine.ops import philox4x32
from npgpt.engine.types import Floats, Integers, Text
from npgpt.runtime.guide import Guide
from npgpt.text.tokenizer import Place, StreamDecoder, Tokenizer


@dataclass(frozen=True)
class Sampling:
    """The settings by which a token is drawn. Each default but that of temperature means off."""

    temperature: float = 0.8  # 0: always the most probable token
    top_k: int | None = None  # only the k most probable tokens
    top_p: float = 1.0  # only the most probable tokens that together reach probability p
    min_p: float = 0.0  # only tokens at least min_p times as probable as the most probable
    repetition_penalty: float = 1.0  # above 1: tokens seen before become less probable
    presence_penalty: float = 0.0  # taken from the logits of tokens drawn before
    frequency_penalty: float = 0.0  # the same, times the number of draws of the token

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
    if not (is_finite_number(value) and holds(value)):
        raise ValueError(f"generate: {name} must be {what}, got {value!s:.60}")


def penalised(logits: Floats, penalty: float, seen: NDArray[np.bool]) -> Floats:
    """Return logits or log-probabilities (V,) in which those of the tokens seen are lowered by the penalty.

    A positive one is divided by the penalty, another multiplied by it. seen: bool (V,).
    """
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
    min_tokens_to_keep: int = 1,
    drawn: Integers | None = None,
    allowed: NDArray[np.bool] | None = None,
    bias: Floats | None = None,
) -> Floats:
    """Return the distribution that a token is drawn from, for logits (V,): float64 (V,) of sum 1.

    seen: bool (V,), the tokens of the repetition penalty; banned: a token of probability 0;
    min_tokens_to_keep: so many of the most probable tokens stay whatever top_p and min_p are; drawn (V,):
    how often each token was drawn, for the other penalties; allowed: bool (V,), others have probability 0;
    bias (V,): added to the logits. ValueError for logits that are not finite.

    >>> probabilities(np.log([1, 2, 5.0]), Sampling(temperature=1, top_k=2)).round(3).tolist()
    [0.0, 0.286, 0.714]
    """
    z: Floats = np.array(logits, np.float64)  # (V,), a copy
    if not is_finite(z):
        raise ValueError(f"generate: {LOGITS}")
    if bias is not None:
        z += bias
    if seen is not None:
        z = penalised(z, sampling.repetition_penalty, seen)
    if drawn is not None:
        with np.errstate(over="ignore"):
            less = z - sampling.presence_penalty - sampling.frequency_penalty * drawn
        z = np.where(drawn > 0, np.clip(less, -1e300, 1e300), z)
    if banned is not None and len(z) > 1:
        z[banned] = -np.inf
    if allowed is not None:
        z[~allowed] = -np.inf
    best = int(z.argmax())
    if sampling.temperature == 0:
        p: Floats = (np.arange(len(z)) == best).astype(np.float64)
        return p

    z = z - z[best]  # <= 0, so that no temperature overflows
    with np.errstate(over="ignore"):
        p = np.exp(z / sampling.temperature)
    if sampling.top_k is not None and sampling.top_k < len(z):
        k = max(int(sampling.top_k), min_tokens_to_keep)
        p[z < np.partition(z, -k)[-k]] = 0  # tokens equal to the last one stay
    p /= p.sum()
    if sampling.top_p < 1 or sampling.min_p > 0:
        order = np.argsort(-p, kind="stable")  # most probable first, ties by id
        before = np.cumsum(p[order]) - p[order]  # probability of all tokens before this one
        stays = (before < sampling.top_p) & (p[order] >= sampling.min_p * p[best])
        stays[:min_tokens_to_keep] = True
        p[order[~stays]] = 0
        p /= p.sum()
    return p


class Draws:
    """A sequence of random numbers in [0, 1): the n-th is a function of seed and n alone.

    Each is 53 bits of Philox 4x32-10 (ops.py), as in csrc/runtime/sampler.cpp. Without a seed the sequence is
    another one each time.
    """

    def __init__(self, seed: int | None = None) -> None:
        seed = (secrets.randbits(64) if seed is None else int(seed)) % 2**64
        self._key, self._count = (seed % 2**32, seed >> 32), 0

    def random(self) -> float:
        """Return the next number of the sequence."""
        n = self._count
        self._count += 1
        a, b, *_ = map(int, philox4x32((n, n >> 32, 0, 0), self._key))
        return ((a >> 5) * 2**26 + (b >> 6)) / 2**53


def draw(p: Floats, generator: Draws | np.random.Generator) -> int:
    """Return an id drawn from the distribution p (V,) with one number of the generator."""
    total = np.cumsum(p)
    index = int(np.searchsorted(total, generator.random() * total[-1], side="right"))
    return min(index, int(np.flatnonzero(p)[-1]))  # rounding must not pass the last possible id


def log_softmax(logits: Floats) -> Floats:
    """Return the logarithms of the probabilities of logits (...,V): float64 (...,V).

    ValueError for logits that are not finite.
    """
    if not is_finite(logits):
        raise ValueError(f"generate: {LOGITS}")
    z: Floats = logits.astype(np.float64)
    z -= z.max(axis=-1, keepdims=True)
    z -= np.log(np.exp(z).sum(axis=-1, keepdims=True))
    return z


class Context:
    """Rows of ids of one length that grow by a token each, with the model's KV cache of them.

    When the model's context is full, the older half is dropped and the rest is read again from position 0.
    """

    def __init__(self, model: GPT, ids: ArrayLike, length: int, starts: Integers | None = None) -> None:
        """Begin with ids (B,n), n >= 1, which may grow to `length`; starts (B,) counts each row's padding."""
        self.model, self.ids = model, np.asarray(ids, np.int32)
        self.starts = np.zeros(len(self.ids), np.int32) if starts is None else starts
        self._room = min(length, model.config.block_size)
        self._cache: KVCache | None = None
        self._begin = self._read = 0

    def logits(self) -> Floats:
        """Return the logits of the next token of each row (B,V)."""
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
        """Append a token to each row."""
        self.ids = np.concatenate([self.ids, np.asarray(tokens, np.int32)[:, None]], axis=1)

    def reorder(self, rows: Integers) -> None:
        """Replace row b by row rows[b], for each b; their number may change."""
        self.ids, self.starts = self.ids[rows], self.starts[rows]
        if self._cache:
            self._cache.reorder(rows)


def generate_ids(
    model: GPT,
    prompt: list[int],
    max_new_tokens: int,
    sampling: Sampling,
    ends: Sequence[int] = (),
    ignore_eos: bool = False,
    seed: int | None = None,
    guide: Guide | None = None,
    bias: Floats | None = None,
) -> Iterator[int]:
    """Yield at most max_new_tokens ids that follow `prompt` (N >= 1), up to one of `ends` (not yielded).

    ignore_eos bans the first of them, and the others end nothing. A guide says which ids may come, and ends
    where it is over; bias (V,) is added to the logits.
    """
    generator = Draws(seed)
    context = Context(model, [prompt], len(prompt) + max_new_tokens)
    seen = np.zeros(model.config.vocab_size, bool)
    seen[prompt] = True
    drawn = np.zeros(model.config.vocab_size, np.int64)
    banned = ends[0] if ends and ignore_eos else None
    for _ in range(max_new_tokens):
        allowed = guide.allowed() if guide else None
        p = probabilities(
            context.logits()[0], sampling, seen, banned, drawn=drawn, allowed=allowed, bias=bias
        )
        token = draw(p, generator)
        drawn[token] += 1
        if token in ends and not ignore_eos:
            return
        yield token
        if guide and guide.ends_with(token):
            return
        context.extend([token])
        seen[token] = True


def prompt_ids(
    prompt: Text | ArrayLike, tokenizer: Tokenizer | None, vocab_size: int, follows: Place | None = None
) -> list[int]:
    """Return the ids of a prompt, text (str, bytes) or ids; an empty one becomes one end of text.

    follows: where in another text it stands; then it may be empty, and is given no beginning. ValueError or
    TypeError for a prompt that is neither, or ids outside the vocabulary.
    """
    ids: Integers
    if isinstance(prompt, (str, bytes)):
        if tokenizer is None:
            raise ValueError("generate: prompt must be token ids for a model without a tokenizer, got text")
        ids = tokenizer.encode(prompt, place=follows) if follows else tokenizer.encode_prompt(prompt)
    else:
        if isinstance(prompt, (list, tuple)) and any(isinstance(one, (str, bytes)) for one in prompt):
            raise TypeError("generate: prompt must be one text, got a list; call it once for each text")
        ids = np.asarray(prompt)
        if ids.ndim == 2 and len(ids) == 1:
            ids = ids[0]
        if ids.ndim != 1 or (ids.size and not np.issubdtype(ids.dtype, np.integer)):
            got = f"{ids.dtype} {ids.shape}" if ids.ndim else repr(prompt)
            raise TypeError(f"generate: prompt must be text or a row of ids, got {got}")
    if not len(ids):
        if follows:
            return []
        if tokenizer is None:
            raise ValueError("generate: prompt must hold at least 1 id, got none")
        ids = np.array([tokenizer.end_of_text])  # where a document begins
    if not 0 <= ids.min() <= ids.max() < vocab_size:
        raise ValueError(f"generate: prompt ids must be in 0..{vocab_size - 1}, got {ids.min()}..{ids.max()}")
    return list(map(int, ids))


def text_chunks(ids: Iterable[int], tokenizer: Tokenizer, stop: Sequence[str] = ()) -> Iterator[str]:
    """Yield the text of ids as they come, up to the first stop string; no chunk breaks a character.

    Text that may begin a stop string is held back until that is decided.
    """
    stream = TextStream(tokenizer.stream(), [tokenizer.normalize_part(s) for s in stop])
    for token in ids:
        if chunk := stream.push(token):
            yield chunk
        if stream.stopped:
            return
    if chunk := stream.close():
        yield chunk


class TextStream:
    """A stream from ids to text that ends before the first stop string; no result breaks a character."""

    def __init__(self, decoder: StreamDecoder, stop: Sequence[str] = ()) -> None:
        self._decoder, self._stop, self._held = decoder, stop, ""
        self.stopped = False  # True after a stop string: no more text comes

    def push(self, token: int) -> str:
        """Add an id and return the text that is now decided, often ''."""
        return self._take(self._decoder.push(token), end=False)

    def close(self) -> str:
        """End the stream and return the text held back, '' after a stop string."""
        return self._take(self._decoder.close(), end=True)

    def _take(self, text: str, end: bool) -> str:
        if not self._stop or self.stopped:
            return "" if self.stopped else text
        held = self._held + text
        stop_at = min((at for s in self._stop if (at := held.find(s)) >= 0), default=-1)
        self.stopped = stop_at >= 0
        ready = stop_at if self.stopped else len(held) - (0 if end else _undecided(held, self._stop))
        self._held = held[ready:]
        return held[:ready]


def _undecided(text: str, stop: Sequence[str]) -> int:
    """Return the length of the longest end of `text` with which a stop string begins."""
    longest = max((len(s) - 1 for s in stop), default=0)
    sizes = range(min(longest, len(text)), 0, -1)
    return next((n for n in sizes if any(s.startswith(text[-n:]) for s in stop)), 0)
