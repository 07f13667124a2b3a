"""Transformers' names: GPT2LMHeadModel and GPT2Tokenizer, with their arguments, defaults and results."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Self

import numpy as np
from numpy.typing import ArrayLike

from npgpt.api import GPT
from npgpt.engine.names import hint
from npgpt.runtime.batch import GenerationConfig, generate_rows
from npgpt.runtime.sampling import Sampling
from npgpt.text.json_file import read_json_if_any
from npgpt.text.tokenizer_json import pad_token
from npgpt.training import pretrained

if TYPE_CHECKING:
    from npgpt.engine.types import Fields, Integers, PathLike
    from npgpt.text.tokenizer import Tokenizer


# The settings of generate() and Transformers' defaults. Those of None are: 20 new ids within the context, no
# filter, the tokenizer's end of text, the first of eos_token_id.
DEFAULTS: Fields = {
    "max_length": None,
    "max_new_tokens": None,
    "do_sample": False,
    "num_beams": 1,
    "num_return_sequences": 1,
    "temperature": 1.0,
    "top_k": 50,
    "top_p": 1.0,
    "min_p": None,
    "repetition_penalty": 1.0,
    "length_penalty": 1.0,
    "early_stopping": False,
    "bos_token_id": None,
    "eos_token_id": None,
    "pad_token_id": None,
}
NEW_IDS = 20  # where no length is given
VERY_LARGE = int(1e30)  # a tokenizer's model_max_length where the folder has none


class GPT2LMHeadModel(GPT):
    """A GPT under the names of Transformers' class; it reads every model of the family.

    from_pretrained, generate and save_pretrained are those of Transformers; what else it has is npgpt.GPT's.
    """

    # what the folder's generation_config.json says instead of DEFAULTS
    _generation: Mapping[str, Any] = MappingProxyType({})

    @classmethod
    def from_pretrained(cls, path: PathLike) -> Self:
        """Return the model of a folder, or of anything else that npgpt.load reads, with float32 weights."""
        folder = Path(path) if path != "" and Path(path).exists() else pretrained.find_folder(path)
        model = cls.of(pretrained.read(folder))
        told, names, said = read_json_if_any(folder / "generation_config.json"), tuple(DEFAULTS), {}
        if told:
            said = {"eos_token_id": None}  # where the file is there and has no end, a text has none
        else:
            told, names = (
                read_json_if_any(folder / "config.json"),
                ("bos_token_id", "eos_token_id", "pad_token_id"),
            )
        model._generation = said | {name: told[name] for name in names if told.get(name) is not None}
        return model

    def generate(  # type: ignore[override]
        self, input_ids: Any = None, attention_mask: ArrayLike | None = None, **settings: Any
    ) -> Any:
        """Return the rows of input_ids (B,n) with their continuations.

        Result, settings and their defaults are those of Transformers: ids (B * num_return_sequences, up to
        max_length). Each row is a prompt and its continuation, cut after an end of text and filled with
        pad_token_id. attention_mask is 0 for padding, on the left; without it the ids that equal a
        pad_token_id, where that ends no text, are padding. A setting that is not given is the folder's, in
        generation_config.json, else Transformers' default.

        max_length counts the prompt, max_new_tokens does not; without both come 20 ids, or those that still
        fit the context. do_sample draws by temperature 1.0, top_k 50, top_p 1.0 and min_p; num_beams
        searches, with length_penalty and early_stopping. repetition_penalty weighs ids that were there.
        num_return_sequences continues each prompt several times. eos_token_id is an id or a list, None is
        none; where no file of the folder names one it is the tokenizer's end of text. A given length beyond
        the context goes on with its newer half. The same `seed` (npgpt's own) gives the same ids. Arrays and
        lists give an array, a tensor gives a tensor. TypeError for a setting of another name, ValueError for
        a wrong value.
        """
        seed = settings.pop("seed", None)
        if unknown := [name for name in settings if name not in DEFAULTS]:
            end = hint(unknown[0], DEFAULTS) or f", but {', '.join(DEFAULTS)} are"
            raise TypeError(f"generate: there is no {unknown[0]}{end}")
        own = {"eos_token_id": self.tokenizer.ends} if self.tokenizer else {}
        how = DEFAULTS | own | dict(self._generation) | settings
        ends = _ends(how["eos_token_id"])
        begin = how["bos_token_id"] if how["bos_token_id"] is not None else next(iter(ends), None)
        ids = _checked(input_ids, begin, self.config.vocab_size)
        pad = how["pad_token_id"]
        if attention_mask is None:
            attention_mask = ids != pad if pad is not None and pad not in ends else np.ones_like(ids)
        config = GenerationConfig(
            self._max_length(how, settings, ids.shape[1]),
            bool(how["do_sample"]),
            how["num_beams"],
            how["num_return_sequences"],
            how["length_penalty"],
            how["early_stopping"],
            ends,
            pad if pad is not None else next(iter(ends), 0),
        )
        rows = generate_rows(self, ids, np.asarray(attention_mask), config, _sampling(how), seed)
        return input_ids.new_tensor(rows) if hasattr(input_ids, "new_tensor") else rows

    def _max_length(self, how: Fields, given: Fields, prompt: int) -> Any:
        """Return the number of ids of a row, by what was given; ValueError where that adds none."""
        if given.get("max_length") is not None and given.get("max_new_tokens") is not None:
            raise ValueError("generate: max_length must be left out where max_new_tokens is given")
        length, new = how["max_length"], how["max_new_tokens"]
        if new is not None:
            length = prompt + _whole("max_new_tokens", new)
        elif length is None:
            length = min(prompt + NEW_IDS, self.config.block_size)
        if _whole("max_length", length) <= prompt:
            what = f"more than the {prompt} ids of the prompt, or max_new_tokens must be given"
            raise ValueError(f"generate: max_length must be {what}, got {length}")
        return length


def _whole(name: str, value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)) or value < 1:
        raise ValueError(f"generate: {name} must be a whole number, at least 1, got {value!r}")
    return int(value)


def _ends(eos_token_id: Any) -> tuple[Any, ...]:
    """Return the ids that end a row: of None or -1 none, of an id or a list these."""
    ids = np.ravel(np.array([] if eos_token_id is None else eos_token_id, dtype=object)).tolist()
    return tuple(end for end in ids if end != -1)


def _sampling(how: Fields) -> Sampling:
    """Return how a token is chosen; a filter of None is off."""
    penalty = 1.0 if how["repetition_penalty"] is None else how["repetition_penalty"]
    if not how["do_sample"]:
        return Sampling(repetition_penalty=penalty, temperature=0)
    temperature = 1.0 if how["temperature"] is None else how["temperature"]
    if not temperature:
        raise ValueError("generate: temperature must be above 0 with do_sample, got 0")
    top_p = 1.0 if how["top_p"] is None else how["top_p"]
    return Sampling(temperature, how["top_k"] or None, top_p, how["min_p"] or 0.0, penalty)


def _checked(input_ids: Any, begin: int | None, vocab_size: int) -> Integers:
    """Return the ids of a prompt as int64 (B,n); None becomes one row with the id that begins a text.

    ValueError for ids of another shape or type, or outside the vocabulary.
    """
    if input_ids is None:
        if begin is None:
            raise ValueError("generate: input_ids must be given where there is no end of text to begin with")
        input_ids = [[begin]]
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

    As in Transformers, a special token that is spelt out in a text becomes its id, and padding stands on the
    right until padding_side is "left", where generation needs it. It is the folder's pad_token, or where old
    folders name none, and Transformers refuses to pad, the one that npgpt writes today. An attribute of
    Transformers' class that this one lacks cannot be set either.
    """

    __slots__ = ("_pad_token", "_tokenizer", "model_max_length", "padding_side")

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._pad_token = pad_token(tokenizer.vocabulary)
        self.padding_side = "right"
        self.model_max_length = VERY_LARGE

    @classmethod
    def from_pretrained(cls, path: PathLike) -> GPT2Tokenizer:
        """Return the tokenizer of a run, a checkpoint, a Hugging Face folder, or a name on the Hub."""
        folder = pretrained.find_folder(path)
        tokenizer = cls(pretrained.read_tokenizer(path))
        told = read_json_if_any(folder / "special_tokens_map.json") | read_json_if_any(
            folder / "tokenizer_config.json"
        )
        pad = told.get("pad_token")
        pad = pad.get("content") if isinstance(pad, dict) else pad
        if pad in tokenizer._tokenizer.vocabulary.tokens:  # another one has no row in the model
            tokenizer.pad_token = pad
        tokenizer.padding_side = told.get("padding_side", tokenizer.padding_side)
        tokenizer.model_max_length = told.get("model_max_length", tokenizer.model_max_length)
        return tokenizer

    @property
    def vocab_size(self) -> int:
        """The number of tokens."""
        return self._tokenizer.vocab_size

    @property
    def eos_token(self) -> str:
        """The token that ends a text, and begins one."""
        return self._tokenizer.vocabulary.end_of_text

    @property
    def eos_token_id(self) -> int:
        """The id of eos_token."""
        return self._tokenizer.end_of_text

    bos_token, bos_token_id = eos_token, eos_token_id

    @property
    def pad_token(self) -> str:
        """The token that fills rows; one that is set must be in the vocabulary."""
        return self._pad_token

    @pad_token.setter
    def pad_token(self, token: str) -> None:
        if token not in self._tokenizer.vocabulary.tokens:
            raise ValueError(f"GPT2Tokenizer: pad_token must be a token of the vocabulary, got {token!r}")
        self._pad_token = token

    @property
    def pad_token_id(self) -> int:
        """The id of pad_token."""
        return self._tokenizer.vocabulary.tokens[self._pad_token]

    def __len__(self) -> int:
        return self.vocab_size

    def __repr__(self) -> str:
        return f"<GPT2Tokenizer of {self._tokenizer.name}: {self.vocab_size:,} tokens>"

    def encode(self, text: str, return_tensors: str | None = None) -> Any:
        """Return a list of ids; with return_tensors "np" or "pt" an array or a tensor (1, N)."""
        ids = self._tokenizer.encode(text, special_tokens=True).astype(np.int64)
        return _tensor(ids[None], return_tensors) if return_tensors else ids.tolist()

    def __call__(
        self, text: str | Iterable[str], padding: bool | str = False, return_tensors: str | None = None
    ) -> Encoding:
        """Return the ids of a text or of a list of texts, and the mask that is 0 for padding.

        padding is False or "do_not_pad", True or "longest". Nothing is cut off.
        """
        if padding not in (False, True, "do_not_pad", "longest"):
            what = "True, 'longest', False or 'do_not_pad'"
            raise ValueError(f"GPT2Tokenizer: padding must be {what}, got {padding!r}")
        if self.padding_side not in ("left", "right"):
            raise ValueError(
                f"GPT2Tokenizer: padding_side must be 'left' or 'right', got {self.padding_side!r}"
            )
        texts = [text] if isinstance(text, str) else list(text)
        rows = [self.encode(one) for one in texts]
        longest, pads = max(map(len, rows), default=0), padding in (True, "longest")
        if return_tensors and not pads and any(len(row) < longest for row in rows):
            raise ValueError("GPT2Tokenizer: padding must be True for texts of unequal length in one tensor")
        ids: list[Any] = []
        mask: list[Any] = []
        for row in rows:
            missing, ones = (longest - len(row)) * pads, [1] * len(row)
            fill, zeros = [self.pad_token_id] * missing, [0] * missing
            left = self.padding_side == "left"
            ids.append(fill + row if left else row + fill)
            mask.append(zeros + ones if left else ones + zeros)
        if isinstance(text, str) and not return_tensors:
            ids, mask = ids[0], mask[0]
        return Encoding(input_ids=_tensor(ids, return_tensors), attention_mask=_tensor(mask, return_tensors))

    def decode(self, token_ids: Any, skip_special_tokens: bool = False) -> Any:
        """Return the text of an id or of a row of ids: list, array or tensor; a list of texts for rows."""
        ids = token_ids.tolist() if hasattr(token_ids, "tolist") else token_ids
        if not isinstance(ids, int) and len(ids) and not np.isscalar(ids[0]):
            return self.batch_decode(ids, skip_special_tokens)
        return self._tokenizer.decode(np.ravel(ids), skip_special_tokens)

    def batch_decode(self, sequences: Iterable[Any], skip_special_tokens: bool = False) -> list[str]:
        """Return decode() of each row."""
        return [self.decode(row, skip_special_tokens) for row in sequences]


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
