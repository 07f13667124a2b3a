"""Transformers' names: GPT2LMHeadModel and GPT2Tokenizer, with their arguments, defaults and results."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, Self

import numpy as np
from numpy.typing import ArrayLike

from npgpt.api import GPT
from npgpt.runtime.batch import GenerationConfig, generate_rows
from npgpt.runtime.sampling import Sampling
from npgpt.training import pretrained

if TYPE_CHECKING:
    from npgpt.engine.types import Integers, PathLike
    from npgpt.text.tokenizer import Tokenizer


class GPT2LMHeadModel(GPT):
    """A GPT under the names of Transformers' class; it reads every model of the family."""

    @classmethod
    def from_pretrained(cls, path: PathLike) -> Self:
        """Return the model of a folder, or of anything else that npgpt.load reads."""
        return cls.of(pretrained.read(path))

    def generate(  # type: ignore[override]
        self,
        input_ids: Any = None,
        attention_mask: ArrayLike | None = None,
        max_length: int | None = None,
        max_new_tokens: int | None = None,
        do_sample: bool = False,
        num_beams: int = 1,
        num_return_sequences: int = 1,
        temperature: float = 1.0,
        top_k: int | None = 50,
        top_p: float = 1.0,
        min_p: float | None = None,
        repetition_penalty: float = 1.0,
        length_penalty: float = 1.0,
        early_stopping: bool | str = False,
        eos_token_id: int | None = None,
        pad_token_id: int | None = None,
        seed: int | None = None,
    ) -> Any:
        """Return the rows of input_ids (B,n) with their continuations.

        Arguments, defaults and result are those of Transformers: ids (B * num_return_sequences, up to
        max_length). Each row is a prompt and its continuation, cut after the end of text and filled with
        pad_token_id. attention_mask is 0 for padding, on the left. max_length counts the prompt,
        max_new_tokens does not; the default is 20 ids in all. do_sample draws by temperature, top_k, top_p
        and min_p; num_beams searches. eos_token_id None is the tokenizer's, -1 is none. A full context goes
        on with its newer half. The same seed gives the same ids. Arrays and lists give an array, a tensor
        gives a tensor.
        """
        end = eos_token_id
        if end is None and self.tokenizer:
            end = self.tokenizer.end_of_text
        ids = _checked(input_ids, end, self.config.vocab_size)
        mask = np.ones_like(ids) if attention_mask is None else np.asarray(attention_mask)
        pad = pad_token_id if pad_token_id is not None else 0 if end in (None, -1) else end
        if max_length is not None and max_new_tokens is not None:
            raise ValueError("generate: max_length must be left out where max_new_tokens is given")
        if max_length is None:
            max_length = 20 if max_new_tokens is None else ids.shape[1] + max_new_tokens
        if do_sample and not temperature:
            raise ValueError("generate: temperature must be above 0 with do_sample, got 0")
        config = GenerationConfig(
            max_length, do_sample, num_beams, num_return_sequences, length_penalty, early_stopping, end, pad
        )
        how = Sampling(repetition_penalty=repetition_penalty, temperature=0)
        if do_sample:
            how = Sampling(temperature, top_k or None, top_p, min_p or 0.0, repetition_penalty)
        rows = generate_rows(self, ids, mask, config, how, seed)
        return input_ids.new_tensor(rows) if hasattr(input_ids, "new_tensor") else rows


def _checked(input_ids: Any, end: int | None, vocab_size: int) -> Integers:
    """Return the ids of a prompt as int64 (B,n); None becomes one row with the end of text.

    ValueError for ids of another shape or type, or outside the vocabulary.
    """
    if input_ids is None:
        if end in (None, -1):
            raise ValueError("generate: input_ids must be given where there is no end of text to begin with")
        input_ids = [[end]]
    ids = np.asarray(input_ids)
    if ids.ndim != 2 or ids.size == 0 or ids.dtype.kind not in "iu":
        raise ValueError(f"generate: input_ids must be integers (B, n), got {ids.dtype} {ids.shape}")
    low, high = ids.min(), ids.max()
    if not 0 <= low <= high < vocab_size:
        raise ValueError(f"generate: input_ids must be in 0..{vocab_size - 1}, got {low}..{high}")
    return ids.astype(np.int64)


class Encoding(dict[str, Any]):
    """The input_ids and attention_mask of texts, as keys and as attributes."""

    def __getattr__(self, name: str) -> Any:
        if name not in self:
            raise AttributeError(name)
        return self[name]


class GPT2Tokenizer:
    """A tokenizer of npgpt under the names of Transformers' class, for every model of the family.

    As in Transformers, a special token that is spelt out in a text becomes its id. Padding is the end of
    text, on the left, where generation needs it.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self.vocab_size = tokenizer.vocab_size
        self.bos_token_id = self.eos_token_id = self.pad_token_id = tokenizer.end_of_text

    @classmethod
    def from_pretrained(cls, path: PathLike) -> GPT2Tokenizer:
        """Return the tokenizer of a run, a checkpoint, a Hugging Face folder, or a name on the Hub."""
        return cls(pretrained.read_tokenizer(path))

    def __len__(self) -> int:
        return self.vocab_size

    def encode(self, text: str, return_tensors: str | None = None) -> Any:
        """Return a list of ids; with return_tensors "np" or "pt" an array or a tensor (1, N)."""
        ids = self._tokenizer.encode(text, special_tokens=True).astype(np.int64)
        return _tensor(ids[None], return_tensors) if return_tensors else ids.tolist()

    def __call__(
        self, text: str | Iterable[str], padding: bool = False, return_tensors: str | None = None
    ) -> Encoding:
        """Return the ids of a text or of a list of texts, and the mask that is 0 for padding."""
        texts = [text] if isinstance(text, str) else list(text)
        rows = [self.encode(one) for one in texts]
        longest = max(map(len, rows), default=0)
        if return_tensors and not padding and any(len(row) < longest for row in rows):
            raise ValueError("GPT2Tokenizer: padding must be True for texts of unequal length in one tensor")
        missing = [longest - len(row) if padding else 0 for row in rows]
        ids: list[Any] = [[self.pad_token_id] * n + row for n, row in zip(missing, rows, strict=True)]
        mask: list[Any] = [[0] * n + [1] * len(row) for n, row in zip(missing, rows, strict=True)]
        if isinstance(text, str) and not return_tensors:
            ids, mask = ids[0], mask[0]
        return Encoding(input_ids=_tensor(ids, return_tensors), attention_mask=_tensor(mask, return_tensors))

    def decode(self, ids: ArrayLike, skip_special_tokens: bool = False) -> str:
        """Return the text of a row of ids: list, array or tensor."""
        return self._tokenizer.decode(np.asarray(ids), skip_special_tokens)

    def batch_decode(self, rows: Iterable[ArrayLike], skip_special_tokens: bool = False) -> list[str]:
        """Return decode() of each row."""
        return [self.decode(row, skip_special_tokens) for row in rows]


def _tensor(rows: Any, kind: str | None) -> Any:
    if kind is None:
        return rows
    rows = np.array(rows, np.int64)
    if kind == "np":
        return rows
    if kind != "pt":
        raise ValueError(f"GPT2Tokenizer: return_tensors must be None, 'np' or 'pt', got {kind!r}")
    try:
        import torch
    except ImportError:
        raise ValueError("GPT2Tokenizer: return_tensors='pt' needs torch: pip install torch") from None
    return torch.from_numpy(rows)
