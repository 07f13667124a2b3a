"""Generation of text: a model continues a prompt."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from npgpt.engine.model import GPT
from npgpt.engine.types import Text
from npgpt.runtime import libnpgpt, sampling
from npgpt.runtime.guide import bias_of, guide_of
from npgpt.runtime.sampling import Sampling
from npgpt.text.tokenizer import Tokenizer


def generate(
    model: GPT,
    tokenizer: Tokenizer | None,
    prompt: Text | ArrayLike,
    max_new_tokens: int,
    how: Sampling,
    stop: str | Iterable[str] = (),
    seed: int | None = None,
    ignore_eos: bool = False,
    stream: bool = False,
    return_ids: bool = False,
    speculate: bool = False,
    ends: Sequence[int] | None = None,
    talk: libnpgpt.Talk | None = None,
    logit_bias: Mapping[int, float] | None = None,
    **grammar: Any,
) -> Any:
    """Return the model's continuation of `prompt` (text, bytes or ids), without the prompt.

    It ends at max_new_tokens, at the end of text (which ignore_eos bans) or before the first of the `stop`
    strings. The same seed gives the same text.
    Returns str; with stream=True an iterator of chunks of it, none of which breaks a character; with
    return_ids=True the list of new ids, those of a stop string included. speculate=True gives the same,
    sooner where a large model repeats its earlier text. `ends` are the ids that end it, the tokenizer's by
    default; `talk` is that of libnpgpt.generate_ids. `logit_bias` is added to the logits of its ids;
    `grammar` is one of schema, regex and choice, which the text cannot leave. ValueError or TypeError, before
    anything is computed, for a bad argument.
    """
    _check_counts(max_new_tokens, seed)
    stop = (stop,) if isinstance(stop, str) else tuple(stop or ())
    if not all(isinstance(s, str) and s for s in stop):
        raise ValueError(f"generate: stop must be strings that are not empty, got {stop!r}")
    ids = sampling.prompt_ids(prompt, tokenizer, model.config.vocab_size)
    if ends is None:
        ends = tokenizer.ends if tokenizer else ()
    guide = guide_of(tokenizer, model.config.vocab_size, ends, **grammar)
    if guide and (stop or ignore_eos):
        name = "stop" if stop else "ignore_eos"
        raise ValueError(
            f"generate: {name} cannot be given with a schema, a regex or choices, which end the text"
        )
    bias = bias_of(logit_bias, model.config.vocab_size)
    rest = ends, ignore_eos, seed, speculate, talk, guide, bias
    new_ids = libnpgpt.generate_ids(model, ids, max_new_tokens, how, *rest)
    if tokenizer is None:
        if not return_ids or stop:
            raise ValueError("generate: return_ids must be True, stop empty, without a tokenizer")
        return list(new_ids)
    drawn: list[int] = []

    def recorded() -> Iterator[int]:
        for token in new_ids:
            drawn.append(token)
            yield token

    chunks = sampling.text_chunks(recorded(), tokenizer, stop)
    if stream and not return_ids:
        return chunks
    text = "".join(chunks)
    return drawn if return_ids else text


def _check_counts(max_new_tokens: Any, seed: Any) -> None:
    """Raise TypeError or ValueError for what is no whole number, or a negative number of tokens."""
    whole = {"max_new_tokens": max_new_tokens} | ({} if seed is None else {"seed": seed})
    for name, value in whole.items():
        if isinstance(value, bool) or not isinstance(value, (int, np.integer)):
            raise TypeError(f"generate: {name} must be a whole number, got {value!r}")
    if max_new_tokens < 0:
        raise ValueError(f"generate: max_new_tokens must be at least 0, got {max_new_tokens}")
