"""What happens from layer to layer: who looks at whom, and what each layer would have said (logit lens).

Dimensions: T time, V = vocab_size, L layers, H heads.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from npgpt.engine.finite import check_measured
from npgpt.engine.model import GPT
from npgpt.engine.traced import Trace, TracedGPT
from npgpt.engine.types import Floats, Integers, Text
from npgpt.explaining.reading import read_text, token_of
from npgpt.runtime.sampling import log_softmax
from npgpt.text.tokenizer import Tokenizer


def _trace(model: GPT, ids: Integers) -> Trace:
    traced = TracedGPT(model)
    trace = traced.trace(traced.token_embeddings(ids[None]))
    check_measured("explain", trace.hidden, model.params)
    return trace


def attention(model: GPT, tokenizer: Tokenizer | None, text: Text | ArrayLike) -> Floats:
    """Return how much each token of `text` looks at each: (L,H,T,T), whose rows are queries and sum to 1."""
    trace = _trace(model, read_text(model, tokenizer, text))
    return np.stack([trace.attention(layer)[0] for layer in range(model.config.n_layer)])


@dataclass(frozen=True, eq=False)
class Lens:
    """What each layer of a model would have said next, had it been the last, behind each token of a text."""

    tokens: list[str]  #: (T,), the texts of the ids
    ids: list[int]  #: (T,)
    states: Floats  #: (L,T,C), each layer's output behind the last norm
    model: TracedGPT
    tokenizer: Tokenizer | None

    def __len__(self) -> int:
        """Return the number of layers."""
        return len(self.states)

    def log_probabilities(self, layer: int) -> Floats:
        """Return the logarithms of a layer's probabilities (T,V) in float64; the last are the model's."""
        return log_softmax(self.model.logits_of(self.states[layer]))

    def entropy(self) -> Floats:
        """Return the entropy of each layer's probabilities in nats: (L,T)."""
        rows = []
        for layer in range(len(self)):
            log_p = self.log_probabilities(layer)
            rows.append(-(np.exp(log_p) * log_p).sum(axis=-1))
        return np.stack(rows)

    def probabilities(self, ids: ArrayLike) -> Floats:
        """Return the probabilities (L,T) that layers give to ids (T,), one behind each token, or one id."""
        picked = np.broadcast_to(np.asarray(ids), len(self.ids))
        rows = [self.log_probabilities(layer)[np.arange(len(picked)), picked] for layer in range(len(self))]
        found: Floats = np.exp(np.stack(rows))
        return found

    def top(self, k: int = 5) -> tuple[Integers, Floats]:
        """Return the k most probable ids of each layer (L,T,k), best first, and their probabilities."""
        ids, shares = [], []
        for layer in range(len(self)):
            log_p = self.log_probabilities(layer)
            best = np.argsort(-log_p, axis=-1, kind="stable")[:, :k]
            ids.append(best)
            shares.append(np.exp(np.take_along_axis(log_p, best, axis=-1)))
        return np.stack(ids), np.stack(shares)


def lens(model: GPT, tokenizer: Tokenizer | None, text: Text | ArrayLike) -> Lens:
    """Return the Lens of a text (nostalgebraist 2020, "interpreting GPT: the logit lens")."""
    ids = read_text(model, tokenizer, text)
    trace = _trace(model, ids)
    states = np.concatenate(list(trace.states()))
    return Lens([token_of(tokenizer, id).text for id in ids], ids.tolist(), states, trace.model, tokenizer)
