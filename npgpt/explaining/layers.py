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

TOP = 10  # tokens of each layer that a lens keeps


def traced(model: GPT, ids: Integers) -> Trace:
    """Return the forward pass of ids (T,), kept; ValueError where it is not finite."""
    still = TracedGPT(model)
    trace = still.trace(still.token_embeddings(ids[None]))
    check_measured("explain", trace.hidden, model.params)
    return trace


def attention(model: GPT, tokenizer: Tokenizer | None, text: Text | ArrayLike) -> Floats:
    """Return how much each token of `text` looks at each: (L,H,T,T), whose rows are queries and sum to 1."""
    trace = traced(model, read_text(model, tokenizer, text))
    return np.stack([trace.attention(layer)[0] for layer in range(model.config.n_layer)])


@dataclass(frozen=True, eq=False)
class Lens:
    """What each layer of a model would have said next, had it been the last, behind each token of a text."""

    tokens: list[str]  #: (T,), the texts of the ids
    ids: list[int]  #: (T,)
    top: Integers  #: (L,T,k), the most probable ids of each layer, best first
    shares: Floats  #: (L,T,k) float64, their probabilities
    entropy: Floats  #: (L,T) float64, of each layer's probabilities, in nats
    states: Floats  #: (L,T,C), each layer's output behind the last norm
    model: TracedGPT

    def log_probabilities(self, layer: int) -> Floats:
        """Return the logarithms of a layer's probabilities (T,V) in float64; the last are the model's."""
        return log_softmax(self.model.logits_of(self.states[layer]))

    def probabilities(self, ids: ArrayLike) -> Floats:
        """Return the probabilities (L,T) that layers give to ids (T,), one behind each token, or one id."""
        at, picked = np.arange(len(self.ids)), np.broadcast_to(np.asarray(ids), len(self.ids))
        rows = [self.log_probabilities(layer)[at, picked] for layer in range(len(self.states))]
        found: Floats = np.exp(np.stack(rows))
        return found


def lens(model: GPT, tokenizer: Tokenizer | None, text: Text | ArrayLike) -> Lens:
    """Return the Lens of a text (nostalgebraist 2020, "interpreting GPT: the logit lens")."""
    ids = read_text(model, tokenizer, text)
    trace = traced(model, ids)
    top, shares, entropy, states = [], [], [], np.concatenate(list(trace.states()))
    for state in states:
        log_p = log_softmax(trace.model.logits_of(state))  # (T,V), of one layer at a time
        best = np.argpartition(-log_p, min(TOP, log_p.shape[1]) - 1, axis=-1)[:, :TOP]
        best = np.take_along_axis(best, np.argsort(-np.take_along_axis(log_p, best, -1), kind="stable"), -1)
        top.append(best)
        shares.append(np.exp(np.take_along_axis(log_p, best, axis=-1)))
        entropy.append(-(np.exp(log_p) * log_p).sum(axis=-1))
    tokens = [token_of(tokenizer, id).text for id in ids]
    found = np.stack(top), np.stack(shares), np.stack(entropy)
    return Lens(tokens, ids.tolist(), *found, states, trace.model)
