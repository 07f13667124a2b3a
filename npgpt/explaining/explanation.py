"""An explanation of the next token: how much each token of the text speaks for it."""

import html
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from npgpt.engine.model import GPT
from npgpt.engine.traced import TracedGPT
from npgpt.engine.types import Fields, Floats, Integers, Text
from npgpt.explaining.attribution import (
    LENGTHS,
    METHODS,
    QUANTITIES,
    LabelSubject,
    Objective,
    Subject,
    method_named,
)
from npgpt.explaining.reading import Token, pick_labels, read_labels, read_pair, read_text, token_of
from npgpt.text.tokenizer import Tokenizer


@dataclass(frozen=True, eq=False)
class Explanation:
    """How much each token of a text speaks for the target as the next token; a negative score, against it."""

    tokens: list[str]  #: (T,), the texts of the ids; bytes that are not UTF-8 alone as hexadecimals
    ids: list[int]  #: (T,)
    scores: Floats  #: (T,) float64
    target: Token  #: the token, or the label with its place among the labels as id
    method: str  #: one of attribution.METHODS
    against: Token | None = None  #: the token that the target is compared with
    of: str = "logprob"  #: of the target, minus that of `against`: one of attribution.QUANTITIES
    value: float = 0.0  #: what is explained, for the whole text
    labels: list[str] | None = None  #: of a classification, where target and against are two of these

    def allennlp(self) -> Fields:
        """Return AllenNLP's object of a saliency map: {"instance_1": {"grad_input_1": [...]}}.

        As there, its numbers are the sizes of the scores, divided by their sum.
        """
        sizes = np.abs(self.scores)
        return {"instance_1": {"grad_input_1": (sizes / max(float(sizes.sum()), 1e-300)).tolist()}}

    @property
    def signed(self) -> bool:
        """Whether a negative score speaks against the target: gradient and smooth give lengths."""
        return self.method not in LENGTHS

    def _repr_html_(self) -> str:
        """Return the tokens for notebooks: blue speaks for the target, in its box, and orange against it.

        By a method without signs, blue is what the target reacts to.
        """
        sign = "+" if self.signed else ""
        largest, pieces = float(np.abs(self.scores).max()) or 1.0, []
        for token, score in zip(self.tokens, self.scores, strict=True):
            colour = "11,98,164" if score > 0 else "194,65,12"
            shade = f"background:rgba({colour},{0.66 * abs(score) / largest:.3f});border-radius:3px"
            pieces.append(f'<span title="{score:{sign}.4g}" style="{shade}">{html.escape(token)}</span>')
        box = f'<span style="border:1px solid;border-radius:3px">{html.escape(self.target.text)}</span>'
        other = f" - {html.escape(repr(self.against.text))}" if self.against else ""
        what = f"{self.of} {html.escape(repr(self.target.text))}{other} = {self.value:.4f}, {self.method}"
        text = "white-space:pre-wrap;font:17px/1.8 Georgia,serif"
        return f'<div style="{text}">{"".join(pieces)}{box}</div><small>{what}</small>'


def _logits(model: TracedGPT, ids: Integers) -> Floats:
    """Return the logits (V,) behind ids (T,)."""
    logits: Floats = model.logits_of(model.hidden_from(model.token_embeddings(ids[None]))[:, -1])[0]
    return logits


def explain(
    model: GPT,
    tokenizer: Tokenizer | None,
    text: Text | ArrayLike,
    target: Any = None,
    against: Any = None,
    method: str = "integrated",
    of: str = "logprob",
    labels: Iterable[str | bytes] | None = None,
) -> Explanation:
    """Return the Explanation of the token after `text` (text, bytes or ids), or of a label of it.

    target is one token, as text or id, the most probable one by default; with `against`, another token, it is
    explained why the target is more probable than that. With `labels`, both are labels, and the tokens are
    those that classify() reads before them. ValueError or TypeError for a bad argument.
    """
    name = method_named(method)
    if of not in QUANTITIES:
        raise ValueError(f"explain: of must be one of {', '.join(QUANTITIES)}, got {of!r}")
    subject: Subject
    traced, names = TracedGPT(model), None
    if labels is None:
        ids = read_text(model, tokenizer, text)
        token, other = read_pair(model, tokenizer, lambda: _logits(traced, ids), target, against)
        subject = Subject(traced, ids, Objective(of, token.id, other.id if other else None))
    else:
        names, ids, after = read_labels(model, tokenizer, text, labels)
        e = traced.token_embeddings(ids[None])
        scores = LabelSubject(traced, ids, after, Objective(of, 0)).log_probabilities(e)
        token, other = pick_labels(names, scores[0], target, against)
        subject = LabelSubject(traced, ids, after, Objective(of, token.id, other.id if other else None))
    scores = METHODS[name](subject)
    tokens = [token_of(tokenizer, id).text for id in ids]
    return Explanation(tokens, ids.tolist(), scores, token, name, other, of, subject.value, names)
