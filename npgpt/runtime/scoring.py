"""Scores of given text: probabilities of continuations and of labels, and embeddings.

B rows, t tokens of a row, C = n_embd, V = vocab_size.
"""

from collections.abc import Iterable, Iterator, Sequence
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import ArrayLike

from npgpt.engine.finite import check_measured
from npgpt.engine.model import GPT
from npgpt.engine.types import Floats, Text
from npgpt.runtime.sampling import log_softmax, prompt_ids
from npgpt.text import examples
from npgpt.text.tokenizer import Place, Tokenizer

ROWS = 32  # windows that are computed together
Texts: TypeAlias = str | bytes | Iterable[str | bytes]  # one, or several
Window: TypeAlias = tuple[int, list[int], list[int]]  # number of the text, ids to read, last ids to score


def score(model: GPT, tokenizer: Tokenizer | None, prompt: Text | ArrayLike, completions: Any = None) -> Any:
    """Return the natural logarithm of the probability that a completion follows the prompt.

    Both are text, bytes or ids. One completion gives a float, a list of them a list. With None, `prompt`
    itself is scored from the beginning of a document. Negated and divided by the number of tokens, it is the
    loss. Each token is predicted from at most block_size tokens before it; longer text is read in
    halves that overlap.
    """

    def ids(text: Any) -> list[int]:
        return prompt_ids(text, tokenizer, model.config.vocab_size, place)

    if completions is None:
        prompt, completions = "", prompt
    is_empty = isinstance(prompt, (str, bytes)) and not prompt
    place = Place.BEGIN if is_empty else Place.INSIDE
    before = prompt_ids(prompt, tokenizer, model.config.vocab_size)
    if isinstance(completions, list) and not all(isinstance(c, (int, np.integer)) for c in completions):
        return log_probabilities(model, [(before, ids(completion)) for completion in completions])
    return log_probabilities(model, [(before, ids(completions))])[0]


def log_probabilities(model: GPT, pairs: Sequence[tuple[list[int], list[int]]]) -> list[float]:
    """Return, for each pair of ids (before, after), the log-probability that `after` follows `before`."""
    T, windows = model.config.block_size, []
    for n, (before, after) in enumerate(pairs):
        ids, at = list(before) + list(after), len(before)
        while at < len(ids):  # ids[at:] are not scored yet
            begin = 0 if len(ids) <= T + 1 else max(0, min(at - 1, at - T // 2))
            window = ids[begin : begin + T + 1]
            windows.append((n, window[:-1], ids[at : begin + len(window)]))
            at = begin + len(window)
    totals = [0.0] * len(pairs)
    for n, log_p, scored in predictions(model, windows):
        totals[n] += float(log_p[np.arange(len(scored)), scored].sum())
    return totals


def predictions(model: GPT, windows: list[Window]) -> Iterator[tuple[int, Floats, list[int]]]:
    """Yield the number of each window, log-probabilities (n,V) where its n ids to score stand, and these.

    The order is not that of `windows`. ValueError for logits that are not finite.
    """
    for n, h, scored in _hidden(model, windows):
        logits = model.scores(h[-len(scored) :])  # (n,V)
        check_measured("score", logits, model.params)
        yield n, log_softmax(logits), scored


def classify(model: GPT, tokenizer: Tokenizer | None, text: Texts, labels: Iterable[str | bytes]) -> Any:
    """Return {label: probability} of the labels as the model's answer to `text`, the most probable first.

    A list of texts gives a list. A model with a chat template or with roles (npgpt.finetune makes them) is
    asked in a conversation; of another one the label is scored after the text and a line end.
    """
    names = check_labels("classify", tokenizer, labels)
    assert tokenizer
    texts = [text] if isinstance(text, (str, bytes)) else list(text)
    pairs = [pair for one in texts for pair in answers(tokenizer, one, names)]
    max_prompt = max(1, model.config.block_size + 1 - max(len(after) for _, after in pairs))
    pairs = [(before[-max_prompt:], after) for before, after in pairs]
    scores = np.array(log_probabilities(model, pairs)).reshape(-1, len(names))
    shares = np.exp(scores - scores.max(axis=1, keepdims=True))
    shares /= shares.sum(axis=1, keepdims=True)
    order = np.argsort(-shares, axis=1, kind="stable").tolist()
    found = [{names[i]: float(p[i]) for i in best} for best, p in zip(order, shares, strict=True)]
    return found[0] if isinstance(text, (str, bytes)) else found


def check_labels(
    function: str, tokenizer: Tokenizer | None, labels: Iterable[str | bytes]
) -> list[str | bytes]:
    """Return the labels as a list; TypeError or ValueError, by the function's name, for one or equal ones."""
    if isinstance(labels, (str, bytes)):
        raise TypeError(f"{function}: labels must be a list of texts, got the text {labels!r}")
    names = list(labels)
    if len(names) < 2:
        raise ValueError(f"{function}: labels must be two at least, got {names or labels!r}")
    spelt = {n.encode("utf-8", "surrogateescape") if isinstance(n, str) else n for n in names}
    if len(spelt) < len(names):
        raise ValueError(f"{function}: labels must differ, got {names!r}")
    if tokenizer is None:
        raise ValueError(f"{function}: the model must have a tokenizer")
    return names


def answers(
    tokenizer: Tokenizer, text: str | bytes, labels: list[str | bytes]
) -> Iterator[tuple[list[int], list[int]]]:
    """Yield the ids before each label as an answer to `text`, and those of the label up to its end."""
    if examples.template_of(tokenizer):
        for label in labels:
            asked, said = (
                t if isinstance(t, str) else t.decode("utf-8", "surrogateescape") for t in (text, label)
            )
            turns = ("user", asked), ("assistant", said)
            ids, mask = examples.encode_example(tokenizer, examples.Example(0, "label", turns))
            yield ids[: int(mask.argmax())].tolist(), ids[mask].tolist()
        return
    if examples.has_roles(tokenizer):
        before, place = examples.encode_chat(tokenizer, [{"role": "user", "content": text}]), Place.SEGMENT
    else:
        line = text + "\n" if isinstance(text, str) else text + b"\n"
        before, place = tokenizer.encode_prompt(line).tolist(), Place.INSIDE
    for label in labels:
        yield before, [*tokenizer.encode(label, place=place).tolist(), examples.end_token(tokenizer)]


def embed(model: GPT, tokenizer: Tokenizer | None, text: Texts) -> Floats:
    """Return the mean hidden state of `text`, scaled to length 1: (C,), or (n,C) for a list of n.

    A text longer than the context is read in windows of the context's size.
    """
    T = model.config.block_size
    windows: list[Window] = []
    texts = [text] if isinstance(text, (str, bytes)) else list(text)
    for n, one in enumerate(texts):
        ids = prompt_ids(one, tokenizer, model.config.vocab_size)
        windows += [(n, ids[begin : begin + T], []) for begin in range(0, len(ids), T)]
    sums: Floats = np.zeros((len(texts), model.config.n_embd), np.float32)
    for n, h, _ in _hidden(model, windows):
        sums[n] += h.sum(axis=0)
    check_measured("embed", sums, model.params)
    sums /= np.maximum(np.linalg.norm(sums.astype(np.float64), axis=1, keepdims=True), 1e-30)
    return sums[0] if isinstance(text, (str, bytes)) else sums


def _hidden(model: GPT, windows: list[Window]) -> Iterator[tuple[int, Floats, list[int]]]:
    """Yield for each window the number of its text, the hidden states of its ids (t,C), the ids to score."""
    windows.sort(key=lambda window: len(window[1]))  # rows of similar length are computed together
    for begin in range(0, len(windows), ROWS):
        rows = windows[begin : begin + ROWS]
        padded = np.zeros((len(rows), len(rows[-1][1])), np.int32)  # (B,t), zeros after the ids
        for row, (_, ids, _) in zip(padded, rows, strict=True):
            row[: len(ids)] = ids
        for h, (n, ids, scored) in zip(model.hidden(padded), rows, strict=True):
            yield n, h[: len(ids)], scored
