"""What a model reads, and what it may write next, as people give them: texts and targets to ids."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from npgpt.engine.model import GPT
from npgpt.engine.types import Floats, Integers, Text
from npgpt.runtime.scoring import answers, check_labels
from npgpt.text.tokenizer import Place, Tokenizer

ID = "id:"  # before the id of a token, where that is written as text


@dataclass(frozen=True)
class Token:
    """One token of a vocabulary."""

    id: int  #: in 0..V-1
    text: str  #: what it stands for; "" where the model has no tokenizer


def read_text(model: GPT, tokenizer: Tokenizer | None, text: Text | ArrayLike) -> Integers:
    """Return the ids (T,) of a text (str, bytes) or of ids, as generation reads them.

    ValueError where it is empty, longer than the context, or a text for a model without a tokenizer.
    """
    if isinstance(text, str | bytes | bytearray | memoryview):
        if tokenizer is None:
            raise ValueError("explain: text must be token ids for a model without a tokenizer, got text")
        if not len(text):
            raise ValueError("explain: text must not be empty")
        ids = np.asarray(tokenizer.encode_prompt(text))
    else:
        ids = np.asarray(text)
        if ids.ndim == 2 and len(ids) == 1:
            ids = ids[0]
        if ids.ndim != 1 or (ids.size and not np.issubdtype(ids.dtype, np.integer)):
            got = f"{ids.dtype} {ids.shape}" if ids.ndim else repr(text)
            raise TypeError(f"explain: text must be one text or a row of ids, got {got}")
    V, T = model.config.vocab_size, model.config.block_size
    if not 1 <= len(ids) <= T:
        raise ValueError(f"explain: text must have 1 to {T} tokens, the model's context, got {len(ids)}")
    if not 0 <= ids.min() <= ids.max() < V:
        raise ValueError(f"explain: ids must be in 0..{V - 1}, got {ids.min()}..{ids.max()}")
    return ids.astype(np.int32)


def token_of(tokenizer: Tokenizer | None, id: int) -> Token:
    r"""Return a token by its id; bytes that are not UTF-8 alone are written as \xc3."""
    text = tokenizer.token_bytes(int(id), skip_special_tokens=False) if tokenizer else b""
    return Token(int(id), text.decode("utf-8", "backslashreplace"))


def read_pair(
    model: GPT, tokenizer: Tokenizer | None, logits: Callable[[], Floats], target: Any, against: Any
) -> tuple[Token, Token | None]:
    """Return the tokens that target and against mean; None is the first by logits() (V,), and none at all.

    ValueError where both are the same.
    """
    other = None if against is None else read_target(model, tokenizer, "against", against)
    if target is None:
        token = token_of(tokenizer, int(logits().argmax()))
    else:
        token = read_target(model, tokenizer, "target", target)
    if other is not None and other.id == token.id:
        raise ValueError(
            f"explain: against must be another token than the target, got {other.text!r} for both"
        )
    return token, other


def read_target(model: GPT, tokenizer: Tokenizer | None, name: str, target: Text | int) -> Token:
    """Return the token that a target means: a text that is one token behind other text, an id, or "id:7".

    ValueError where it is none; the message has the argument's name.
    """
    V = model.config.vocab_size
    if isinstance(target, int | np.integer) and not isinstance(target, bool):
        if not 0 <= target < V:
            raise ValueError(f"explain: {name} must be in 0..{V - 1}, got {target}")
        return token_of(tokenizer, int(target))
    if not isinstance(target, str | bytes):
        raise TypeError(f"explain: {name} must be a text or an id, got {target!r}")
    if isinstance(target, str) and target.startswith(ID) and target[len(ID) :].isdecimal():
        return read_target(model, tokenizer, name, int(target[len(ID) :]))
    if tokenizer is None:
        raise ValueError(f"explain: {name} must be an id for a model without a tokenizer, got {target!r}")
    ids = tokenizer.encode(target, place=Place.INSIDE).tolist()
    if len(ids) != 1:
        parts = ", ".join(repr(token_of(tokenizer, id).text) for id in ids[:4])
        found = f"{len(ids)}: {parts}{', ...' if len(ids) > 4 else ''}" if ids else "none"
        raise ValueError(
            f"explain: {name} must be one token of the vocabulary, got {target!r}, which is {found}"
        )
    return token_of(tokenizer, ids[0])


def read_labels(
    model: GPT, tokenizer: Tokenizer | None, text: Any, labels: Iterable[str | bytes]
) -> tuple[list[str], Integers, list[list[int]]]:
    """Return the labels, the ids (T,) before each as an answer to `text`, and those of each up to its end.

    They are those of classify(). ValueError where classify() refuses them, or text and label are longer than
    the context together.
    """
    found = check_labels("explain", tokenizer, labels)
    if not isinstance(text, str | bytes):
        raise TypeError(f"explain: text must be a text where there are labels, got {type(text).__name__}")
    if not text:
        raise ValueError("explain: text must not be empty")
    assert tokenizer
    before, after = zip(*answers(tokenizer, text, found), strict=True)
    if any(other != before[0] for other in before):
        raise ValueError("explain: the chat template must write the same before each label")
    T, n = model.config.block_size, len(before[0]) + max(map(len, after)) - 1
    if n > T:
        raise ValueError(
            f"explain: text and label must have at most {T} tokens, the model's context, got {n}"
        )
    names = [one if isinstance(one, str) else one.decode("utf-8", "backslashreplace") for one in found]
    return names, np.array(before[0], np.int32), list(after)


def pick_labels(labels: list[str], scores: Floats, target: Any, against: Any) -> tuple[Token, Token | None]:
    """Return the labels that target and against mean, with their places.

    None is the one of the highest score (K,), and none at all. ValueError for one that is none of the labels,
    and where both are the same.
    """

    def label(name: str, one: Any) -> Token:
        text = one.decode("utf-8", "backslashreplace") if isinstance(one, bytes) else one
        if text not in labels:
            raise ValueError(f"explain: {name} must be one of the labels {', '.join(labels)}, got {one!r}")
        return Token(labels.index(text), text)

    chosen = Token(best := int(scores.argmax()), labels[best]) if target is None else label("target", target)
    other = None if against is None else label("against", against)
    if other == chosen:
        raise ValueError(
            f"explain: against must be another label than the target, got {other.text!r} for both"
        )
    return chosen, other
