"""An explanation of the next token: how much each token of the text speaks for it."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from npgpt.engine.model import GPT
from npgpt.engine.traced import TracedGPT
from npgpt.engine.types import Fields, Floats, Text
from npgpt.explaining.attribution import METHODS, QUANTITIES, Objective, Subject, method_named
from npgpt.explaining.reading import Token, read_pair, read_text, token_of
from npgpt.text.tokenizer import Tokenizer


@dataclass(frozen=True, eq=False)
class Explanation:
    """How much each token of a text speaks for the target as the next token; a negative score, against it."""

    tokens: list[str]  #: (T,), the texts of the ids; bytes that are not UTF-8 alone as hexadecimals
    ids: list[int]  #: (T,)
    scores: Floats  #: (T,) float64
    target: Token
    method: str  #: one of attribution.METHODS
    against: Token | None = None  #: the token that the target is compared with
    of: str = "logprob"  #: of the target, minus that of `against`: one of attribution.QUANTITIES
    value: float = 0.0  #: what is explained, for the whole text

    def allennlp(self) -> Fields:
        """Return AllenNLP's object of a saliency map: {"instance_1": {"grad_input_1": [...]}}.

        As there, its numbers are the sizes of the scores, divided by their sum.
        """
        sizes = np.abs(self.scores)
        return {"instance_1": {"grad_input_1": (sizes / max(float(sizes.sum()), 1e-300)).tolist()}}


def explain(
    model: GPT,
    tokenizer: Tokenizer | None,
    text: Text | ArrayLike,
    target: Any = None,
    against: Any = None,
    method: str = "integrated",
    of: str = "logprob",
) -> Explanation:
    """Return the Explanation of the token after `text` (text, bytes or ids).

    target is one token, as text or id, the most probable one by default; with `against`, another token, it is
    explained why the target is more probable than that. ValueError or TypeError for a bad argument.
    """
    name = method_named(method)
    if of not in QUANTITIES:
        raise ValueError(f"explain: of must be one of {', '.join(QUANTITIES)}, got {of!r}")
    ids = read_text(model, tokenizer, text)
    traced = TracedGPT(model)
    logits = traced.logits_of(traced.hidden_from(traced.token_embeddings(ids[None]))[:, -1])
    token, other = read_pair(model, tokenizer, logits[0], target, against)
    subject = Subject(traced, ids, Objective(of, token.id, None if other is None else other.id))
    value = float(subject.values(subject.e[None])[0])
    scores = METHODS[name](subject)
    tokens = [token_of(tokenizer, id).text for id in ids]
    return Explanation(tokens, ids.tolist(), scores, token, name, other, of, value)
