"""How much each token of a text speaks for what comes next, by the gradient or without it.

A method sees a function f(e) of the token embeddings e (T,C) of one text; positions are held. The tests hold
the methods to captum's of the same name.

Some methods need an embedding that says nothing. It is zero where positions are learned. Rotary positions add
nothing to it, and f is not continuous at zero there: each RMSNorm amplifies almost nothing by 300, which is
more than a float holds in a deep model. So the mean embedding of the vocabulary stands for it there.

Dimensions: T time, C = n_embd, V = vocab_size, n rows of a batch: variants of the text.
"""

import heapq
import re
import warnings
from collections.abc import Callable, Iterator, Sequence
from functools import cached_property
from typing import NamedTuple, TypeAlias

import numpy as np

from npgpt.engine.finite import check_measured
from npgpt.engine.traced import TracedGPT
from npgpt.engine.types import Floats, Integers
from npgpt.runtime.sampling import log_softmax

ROWS, TOKENS = 32, 512  # at most so many, and of so many tokens, are computed together: bounds the memory
POINTS = 32  # of integrated gradients on the whole way, where that is enough
MORE_POINTS = 8  # on each half of a part that is not smooth enough
MAX_PARTS = 64
TOLERANCE = 0.005  # of completeness: the bound that is stated is 1 %
ROUNDING = 1e-5  # of f in float32, relative to its size
SAMPLES = 32  # of SmoothGrad
NOISE = 0.1  # its standard deviation, relative to the range of the text's embeddings
QUANTITIES = ("logprob", "logit", "prob")


class Objective(NamedTuple):
    """What is explained: a number of the next token, minus that of another where there is one."""

    of: str  # one of QUANTITIES
    target: int
    against: int | None = None

    def __call__(self, logits: Floats) -> tuple[Floats, Floats]:
        """Return the value (n,) in float64, and its gradient (n,V), for logits (n,V)."""
        signs = [(self.target, 1.0), *([] if self.against is None else [(self.against, -1.0)])]
        z = logits.astype(np.float64)
        values, slopes = np.zeros(len(z)), np.zeros_like(z)
        if self.of == "logit":
            for token, sign in signs:
                values += sign * z[:, token]
                slopes[:, token] += sign
            return values, slopes.astype(logits.dtype)
        z -= z.max(axis=1, keepdims=True)
        z -= np.log(np.exp(z).sum(axis=1, keepdims=True))
        p = np.exp(z)
        for token, sign in signs:
            # d log p[token] / d logits = one-hot - p, d p[token] = p[token] d log p[token]
            scale = sign * p[:, token] if self.of == "prob" else np.full(len(z), sign)
            values += scale if self.of == "prob" else sign * z[:, token]
            slopes -= scale[:, None] * p
            slopes[:, token] += scale
        return values, slopes.astype(logits.dtype)


class Subject:
    """The function f(e) that is explained, of the token embeddings of one text: of its next token."""

    def __init__(self, model: TracedGPT, ids: Integers, objective: Objective) -> None:
        self._model, self._objective = model, objective
        self.passes = 0  # of the text through the model; a gradient is three
        self.e = model.token_embeddings(ids)  # (T,C)
        self.nothing = np.zeros_like(self.e)  # (T,C), embeddings that say nothing
        if model.config.rope:
            self.nothing += model.params["wte.weight"].mean(axis=0, dtype=np.float64).astype(self.e.dtype)

    @cached_property
    def value(self) -> float:
        """The value f(e) of the text itself."""
        return float(self.values(self.e[None])[0])

    def values(self, variants: Floats) -> Floats:
        """Return f (n,) of the variants (n,T,C) of the embeddings, in float64."""
        self.passes += len(variants)
        return np.concatenate([self._forward(v)[0] for v in batches(variants)])

    @cached_property
    def gradient(self) -> Floats:
        """The gradient of f (T,C) at the text itself, whose value comes with it."""
        (value,), (gradient,) = self._with_gradients(self.e[None])
        self.value = float(value)
        found: Floats = gradient
        return found

    def gradients(self, variants: Floats) -> Floats:
        """Return the gradient of f (n,T,C) at the variants (n,T,C) of the embeddings."""
        return np.concatenate([self._with_gradients(v)[1] for v in batches(variants)])

    def _with_gradients(self, variants: Floats) -> tuple[Floats, Floats]:
        self.passes += 3 * len(variants)
        values, gradients = self._gradients(variants)
        check_measured("explain", gradients, self._model.params)
        return values, gradients

    def _forward(self, variants: Floats) -> tuple[Floats, Floats]:
        return self._objective(self._logits(self._model.hidden_from(variants)[:, -1]))

    def _gradients(self, variants: Floats) -> tuple[Floats, Floats]:
        trace = self._model.trace(variants)
        values, dlogits = self._objective(self._logits(trace.hidden[:, -1]))
        dhidden = np.zeros_like(trace.hidden)
        # forward: logits = head(hidden[:, -1])
        dhidden[:, -1] = self._model.head_backward(dlogits)
        return values, trace.backward(dhidden)

    def _logits(self, hidden: Floats) -> Floats:
        logits = self._model.logits_of(hidden)
        check_measured("explain", logits, self._model.params)
        return logits


class LabelSubject(Subject):
    """The function f(e) of a label behind one text.

    The labels' log-probabilities are its logits, as classify() has it: a "logprob" is one among the labels.
    """

    def __init__(
        self, model: TracedGPT, ids: Integers, labels: Sequence[Sequence[int]], objective: Objective
    ) -> None:
        """Take the ids before each label, and those of the labels up to their ends."""
        super().__init__(model, ids, objective)
        self._labels = [np.array(label) for label in labels]

    def log_probabilities(self, variants: Floats) -> Floats:
        """Return the log-probability (n,K) of each of K labels behind variants (n,T,C), in float64."""
        found = np.zeros((len(variants), len(self._labels)))
        for k, label in enumerate(self._labels):
            log_p = self._log_p(self._model.hidden_from(self._followed(variants, label)), label)
            found[:, k] = log_p[..., np.arange(len(label)), label].sum(axis=-1)
        return found

    def _followed(self, variants: Floats, label: Integers) -> Floats:
        """Return the variants with the embeddings of all but the last token of a label (n,T+A-1,C)."""
        after = np.repeat(self._model.token_embeddings(label[None, :-1]), len(variants), axis=0)
        return np.concatenate([variants, after], axis=1)

    def _log_p(self, hidden: Floats, label: Integers) -> Floats:
        """Return the log-probabilities (n,A,V) of all tokens at the places of a label's (A,)."""
        return log_softmax(self._logits(hidden[:, -len(label) :]))

    def _forward(self, variants: Floats) -> tuple[Floats, Floats]:
        return self._objective(self.log_probabilities(variants))

    def _gradients(self, variants: Floats) -> tuple[Floats, Floats]:
        (values, slopes), total = self._forward(variants), np.zeros_like(variants)  # slopes (n,K)
        for k, label in enumerate(self._labels):
            if not slopes[:, k].any():
                continue
            trace = self._model.trace(self._followed(variants, label))
            # d log p[token] / d logits = one-hot - p
            dlogits = -np.exp(self._log_p(trace.hidden, label))
            dlogits[:, np.arange(len(label)), label] += 1
            dlogits *= slopes[:, k, None, None]
            dhidden = np.zeros_like(trace.hidden)
            flat = dlogits.reshape(-1, dlogits.shape[-1]).astype(variants.dtype)
            dhidden[:, -len(label) :] = self._model.head_backward(flat).reshape(len(variants), len(label), -1)
            total += trace.backward(dhidden)[:, : variants.shape[1]]
        return values, total


def batches(variants: Floats) -> Iterator[Floats]:
    """Yield the variants (n,T,C), as many as are computed together at a time."""
    n, T, _ = variants.shape
    rows = _rows(T)
    for begin in range(0, n, rows):
        yield variants[begin : begin + rows]


def _rows(T: int) -> int:
    """Return how many variants of T tokens are computed together."""
    return max(1, min(ROWS, TOKENS // T))


def _sums(a: Floats) -> Floats:
    """Return the sums over channels (...) of (...,C), in float64."""
    sums: Floats = a.sum(axis=-1, dtype=np.float64)
    return sums


def _lengths(a: Floats) -> Floats:
    """Return the lengths (...) of vectors (...,C), in float64."""
    return np.sqrt(_sums(a.astype(np.float64) ** 2))


# ---------------------------------------------------------------------------- the methods


def gradient(f: Subject) -> Floats:
    """Return the lengths (T,) of df/de, at least 0 (Simonyan et al. 2013, arXiv:1312.6034).

    Not the sums over channels: a layernorm does not see what is added to all channels alike, so that these
    sums are 0 in GPT-2, whatever it reads.
    """
    return _lengths(f.gradient)


def grad_x_input(f: Subject) -> Floats:
    """Return the sums over channels (T,) of e df/de (Shrikumar et al. 2016, arXiv:1605.01713)."""
    return _sums(f.gradient * f.e)


def integrated(f: Subject, tolerance: float = TOLERANCE) -> Floats:
    """Return the integrals (T,) of (e - e0) df/de on the way from e0, which says nothing, to e.

    Their sum is f(e) - f(e0): Sundararajan et al. 2017, arXiv:1703.01365, call it completeness. It holds for
    each part of the way too, so that the points go where they are needed: the part that is the furthest from
    it is halved, until all is within `tolerance` of f(e) - f(e0). RuntimeWarning where MAX_PARTS are too few.
    """
    way = f.e - f.nothing

    def places(shares: Floats) -> Floats:
        return f.nothing + shares.astype(f.e.dtype)[:, None, None] * way

    nothing, f.value = map(float, f.values(np.stack([f.nothing, f.e])))
    at = {0.0: nothing, 1.0: f.value}  # share of the way -> f

    def value(share: float) -> float:
        if share not in at:
            at[share] = float(f.values(places(np.array([share])))[0])
        return at[share]

    def part(begin: float, end: float, points: int) -> tuple[float, float, float, Floats]:
        nodes, weights = np.polynomial.legendre.leggauss(points)
        shares = begin + (end - begin) * (nodes + 1) / 2
        slopes = _sums(f.gradients(places(shares)) * way)  # (points,T)
        scores = (weights[:, None] * (end - begin) / 2 * slopes).sum(axis=0)
        error = abs(float(scores.sum()) - (value(end) - value(begin)))
        return -error, begin, end, scores

    parts = [part(0.0, 1.0, POINTS)]
    allowed = tolerance * abs(value(1.0) - value(0.0)) + ROUNDING * max(abs(value(1.0)), abs(value(0.0)))
    while (error := -sum(one[0] for one in parts)) > allowed and len(parts) < MAX_PARTS:
        _, begin, end, _ = heapq.heappop(parts)
        middle = (begin + end) / 2
        for half in ((begin, middle), (middle, end)):
            heapq.heappush(parts, part(*half, MORE_POINTS))
    if error > allowed:
        whole = value(1.0) - value(0.0)
        message = (
            f"explain: integrated gradients are {error:.2g} away from the {whole:.2g} they must add up to"
        )
        warnings.warn(message, RuntimeWarning, stacklevel=2)
    total: Floats = np.sum([scores for _, _, _, scores in sorted(parts, key=lambda one: one[1])], axis=0)
    return total


def smooth(f: Subject) -> Floats:
    """Return the lengths (T,) of the mean of df/de over SAMPLES texts with noise, the same noise each time.

    Smilkov et al. 2017, arXiv:1706.03825, whose noise is 10 to 20 % of the range of the input.
    """
    return _lengths(f.gradients(f.e + noise(f.e)).mean(axis=0, dtype=np.float64))


def noise(e: Floats) -> Floats:
    """Return the noise (SAMPLES,T,C) that smooth() adds to embeddings e (T,C)."""
    drawn = np.random.default_rng(0).standard_normal((SAMPLES, *e.shape), np.float32).astype(e.dtype)
    return drawn * e.dtype.type(NOISE * float(e.max() - e.min()))


def occlusion(f: Subject) -> Floats:
    """Return f(e) minus f where one token (T,) says nothing (Zeiler, Fergus 2013, arXiv:1311.2901)."""
    T, rows, found = len(f.e), _rows(len(f.e)), []
    for begin in range(0, T, rows):
        tokens = np.arange(begin, min(begin + rows, T))
        variants = np.repeat(f.e[None], len(tokens), axis=0)
        variants[np.arange(len(tokens)), tokens] = f.nothing[tokens]
        found.append(f.values(variants))
    whole: Floats = f.value - np.concatenate(found)
    return whole


Attribute: TypeAlias = Callable[[Subject], Floats]
METHODS: dict[str, Attribute] = {
    "gradient": gradient,
    "grad_x_input": grad_x_input,
    "integrated": integrated,
    "smooth": smooth,
    "occlusion": occlusion,
}
LENGTHS = "gradient", "smooth"  # methods whose scores have no sign: how strongly f reacts to a token
ELSEWHERE = {  # names of captum, inseq and AllenNLP, as small letters alone -> ours
    "saliency": "gradient",
    "inputxgradient": "grad_x_input", "simplegradient": "grad_x_input",  # AllenNLP's is times the embedding
    "integratedgradients": "integrated", "integratedgradient": "integrated",
    "smoothgrad": "smooth", "smoothgradient": "smooth", "noisetunnel": "smooth",
}  # fmt: skip


def method_named(name: str) -> str:
    """Return the name in METHODS of a method, which may have its name of captum, inseq or AllenNLP.

    >>> method_named("IntegratedGradients"), method_named("input_x_gradient")
    ('integrated', 'grad_x_input')
    """
    plain = re.sub("[-_ ]", "", str(name)).lower()
    ours = {one.replace("_", ""): one for one in METHODS} | ELSEWHERE
    if plain not in ours:
        raise ValueError(f"explain: method must be one of {', '.join(METHODS)}, got {name!r}")
    return ours[plain]
