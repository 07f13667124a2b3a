"""The face: the engine's model with a tokenizer, that generates, scores and saves; and load, to get one."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias, TypeVar

import numpy as np
from numpy.typing import ArrayLike, DTypeLike

from npgpt.engine import model as engine
from npgpt.engine.config import ENGINES, GPTConfig

if TYPE_CHECKING:
    from npgpt.engine.types import Floats, PathLike, Text
    from npgpt.text.data import Dataset
    from npgpt.text.tokenizer import Tokenizer

AT_ONCE = 32  # rows that are scored, or embedded, together


M = TypeVar("M", bound="GPT")
Texts: TypeAlias = str | bytes | Iterable[str | bytes]  # one, or several


class GPT(engine.GPT):
    """The engine's GPT that also knows its tokenizer.

    A model over 257 ids has the byte tokenizer unless told otherwise; one without a tokenizer takes ids only.
    """

    def __init__(
        self,
        config: GPTConfig,
        seed: int = 0,
        dtype: DTypeLike = np.float32,
        tokenizer: Tokenizer | None = None,
    ) -> None:
        from npgpt.text.tokenizer import ByteTokenizer

        super().__init__(config, seed=seed, dtype=dtype)
        if tokenizer is None and config.vocab_size == ByteTokenizer.vocab_size:
            tokenizer = ByteTokenizer()
        self.tokenizer = tokenizer

    def generate(
        self,
        prompt: Text | ArrayLike = "",
        max_new_tokens: int = 200,
        temperature: float = 0.8,
        top_k: int | None = None,
        top_p: float = 1.0,
        min_p: float = 0.0,
        repetition_penalty: float = 1.0,
        stop: str | Iterable[str] = (),
        seed: int | None = None,
        ignore_eos: bool = False,
        stream: bool = False,
        return_ids: bool = False,
        speculate: bool = False,
    ) -> Any:
        """What the model writes after `prompt` (text, bytes or ids); the prompt itself is not repeated.

        Ends at max_new_tokens, at the end of text (which ignore_eos bans) or before the first of the `stop`
        strings. temperature 0 is greedy. The same seed gives the same text.
        Returns str; with stream=True an iterator of pieces of it, none of which breaks a character; with
        return_ids=True the list of new ids, those of a stop string included. speculate=True gives the same,
        sooner where a large model repeats what is in its text already.
        """
        from npgpt.runtime import binding, sampling

        how = sampling.Sampling(temperature, top_k, top_p, min_p, repetition_penalty)
        if isinstance(max_new_tokens, bool) or not isinstance(max_new_tokens, (int, np.integer)):
            raise TypeError(f"generate: max_new_tokens must be a whole number, got {max_new_tokens!r}")
        if max_new_tokens < 0:
            raise ValueError(f"generate: max_new_tokens must be at least 0, got {max_new_tokens}")
        stop = (stop,) if isinstance(stop, str) else tuple(stop or ())
        if not all(isinstance(s, str) and s for s in stop):
            raise ValueError(f"generate: stop must be strings that are not empty, got {stop!r}")
        ids = sampling.prompt_ids(prompt, self.tokenizer, self.config.vocab_size)
        end = self.tokenizer.end_of_text if self.tokenizer else None
        new_ids = binding.generate_ids(self, ids, max_new_tokens, how, end, ignore_eos, seed, speculate)
        if self.tokenizer is None:
            if not return_ids or stop:
                raise ValueError("generate: return_ids must be True, stop empty, without a tokenizer")
            return list(new_ids)
        drawn: list[int] = []

        def recorded() -> Iterator[int]:
            for token in new_ids:
                drawn.append(token)
                yield token

        pieces = sampling.text_pieces(recorded(), self.tokenizer, stop)
        if stream and not return_ids:
            return pieces
        text = "".join(pieces)
        return drawn if return_ids else text

    def score(self, prompt: Text | ArrayLike, completions: Any = None) -> Any:
        """The natural logarithm of the probability that a completion follows the prompt.

        Both are text, bytes or ids. One completion gives a float, a list of them a list; None: that of
        `prompt` itself, from the beginning of a document. Divided by the number of tokens and negated it is
        the loss. Each token is predicted from at most block_size tokens before it; longer text is read in
        halves that overlap.
        """
        from npgpt.runtime import sampling

        def ids(text: Any) -> list[int]:
            return sampling.prompt_ids(text, self.tokenizer, self.config.vocab_size) if len(text) else []

        if completions is None:
            prompt, completions = "", prompt
        before = sampling.prompt_ids(prompt, self.tokenizer, self.config.vocab_size)
        if isinstance(completions, list) and not all(isinstance(c, (int, np.integer)) for c in completions):
            return self._log_probabilities([(before, ids(completion)) for completion in completions])
        return self._log_probabilities([(before, ids(completions))])[0]

    def _log_probabilities(self, pairs: Sequence[tuple[list[int], list[int]]]) -> list[float]:
        """Of each pair of ids (before, after): the log-probability that the one follows the other."""
        from npgpt.runtime import sampling

        T, parts = self.config.block_size, []
        for n, (before, after) in enumerate(pairs):
            ids, at = list(before) + list(after), len(before)
            while at < len(ids):  # ids[at:] are not scored yet
                first = 0 if len(ids) <= T + 1 else max(0, min(at - 1, at - T // 2))
                window = ids[first : first + T + 1]
                parts.append((n, window[:-1], ids[at : first + len(window)]))
                at = first + len(window)
        totals = [0.0] * len(pairs)
        for n, h, scored in self._read(parts):
            log_p = sampling.log_softmax(h[-len(scored) :] @ self.params["wte.weight"].T)  # (scored,V)
            totals[n] += float(log_p[np.arange(len(scored)), scored].sum())
        return totals

    def _read(self, parts: list[tuple[int, list[int], list[int]]]) -> Iterator[tuple[int, Floats, list[int]]]:
        """Of parts (number, ids, more): yield number, what the head reads of each id (t,C), more."""
        parts.sort(key=lambda part: len(part[1]))  # rows of like length go together
        for begin in range(0, len(parts), AT_ONCE):
            rows = parts[begin : begin + AT_ONCE]
            padded = np.zeros((len(rows), len(rows[-1][1])), np.int32)  # (B,t), zeros behind the ids
            for row, (_, ids, _) in zip(padded, rows, strict=True):
                row[: len(ids)] = ids
            for h, (n, ids, more) in zip(self.hidden(padded), rows, strict=True):
                yield n, h[: len(ids)], more

    def classify(self, text: Texts, labels: Iterable[str | bytes]) -> Any:
        """{label: probability}, the likeliest first: how the model would answer `text` with one of `labels`.

        A list of texts gives a list. A model with roles (npgpt.finetune makes them) is asked in a
        conversation; another one finds the label behind the text and a line end.
        """
        from npgpt.text import tasks

        names = [] if isinstance(labels, (str, bytes)) else list(labels)
        if len(names) < 2:
            raise ValueError(f"classify: labels must be two at least, got {names or labels!r}")
        if self.tokenizer is None:
            raise ValueError("classify: the model must have a tokenizer")
        tokenizer, end = self.tokenizer, [tasks.end_token(self.tokenizer)]
        after = [[*tokenizer.encode(label).tolist(), *end] for label in names]
        room = max(1, self.config.block_size + 1 - max(map(len, after)))
        pairs = []
        for one in [text] if isinstance(text, (str, bytes)) else text:
            if tasks.has_roles(tokenizer):
                before = tasks.encode_chat(tokenizer, [{"role": "user", "content": one}])
            else:
                line = one + "\n" if isinstance(one, str) else one + b"\n"
                before = tokenizer.encode(line).tolist()
            pairs += [(before[-room:], label) for label in after]
        scores = np.array(self._log_probabilities(pairs)).reshape(-1, len(names))
        shares = np.exp(scores - scores.max(axis=1, keepdims=True))
        shares /= shares.sum(axis=1, keepdims=True)
        order = np.argsort(-shares, axis=1, kind="stable").tolist()
        found = [{names[i]: float(p[i]) for i in best} for best, p in zip(order, shares, strict=True)]
        return found[0] if isinstance(text, (str, bytes)) else found

    def embed(self, text: Texts) -> Floats:
        """What the head reads, averaged over the tokens of `text`, of length 1 (C,); a list of n gives (n,C).

        What of a text is beyond the context is averaged in windows of it.
        """
        from npgpt.runtime import sampling

        T = self.config.block_size
        parts: list[tuple[int, list[int], list[int]]] = []
        texts = [text] if isinstance(text, (str, bytes)) else list(text)
        for n, one in enumerate(texts):
            ids = sampling.prompt_ids(one, self.tokenizer, self.config.vocab_size)
            parts += [(n, ids[begin : begin + T], []) for begin in range(0, len(ids), T)]
        sums: Floats = np.zeros((len(texts), self.config.n_embd), np.float32)
        for n, h, _ in self._read(parts):
            sums[n] += h.sum(axis=0)
        sums /= np.maximum(np.linalg.norm(sums, axis=1, keepdims=True), 1e-30)
        return sums[0] if isinstance(text, (str, bytes)) else sums

    def save_pretrained(self, folder: PathLike) -> None:
        """Write the Hugging Face form of this model, tokenizer included, into `folder`."""
        from npgpt.interop.huggingface import write_pretrained

        write_pretrained(folder, self, self.tokenizer)


class ModelEngine:
    """The engines, by the names that the pseudo-API has for them."""

    gpt, gpt2, gpt3 = ENGINES


def Train(
    engine: str | None = None,
    dataset: Dataset | PathLike | None = None,
    model_engine: str | None = None,
    batch_size: int | None = None,
    epochs: int | None = None,
    out: str | None = None,
    seed: int = 0,
    **flags: Any,
) -> GPT:
    """Train a GPT on a Dataset, or on a file -> the model, which generates; its run is kept in runs/train.

    engine, or model_engine, is one of ModelEngine's, gpt-2 unless told. `out` is another folder for the run,
    `flags` are further settings of `python -m npgpt.train` (steps, n_layer, lr ...). What is not given is
    planned by the size of the text, and a small text is learnt by heart, all of it.
    """
    from npgpt.text.data import Dataset
    from npgpt.training import plan, run
    from npgpt.training.trainer import prepare

    if engine and model_engine and engine != model_engine:
        raise ValueError(f"Train: model_engine must be the engine, {engine!r}, got {model_engine!r}")
    if dataset is None:
        raise ValueError("Train: dataset must be a Dataset or the path of a text, got None")
    if unknown := [name for name in flags if name not in plan.FLAGS]:
        raise TypeError(f"Train: {unknown[0]} must be one of {', '.join(plan.FLAGS)}")
    if not isinstance(dataset, Dataset):
        dataset = Dataset.from_text(dataset)
    flags |= {"engine": engine or model_engine, "batch_size": batch_size, "epochs": epochs}
    ids = np.concatenate([dataset.train, dataset.validation, dataset.test])
    dataset = Dataset.from_ids(ids, plan.make_plan(len(ids), **flags).split, dataset.tokenizer)
    trainer = prepare(dataset, flags, seed, GPT)
    model: Any = trainer.model
    model.tokenizer = dataset.tokenizer
    folder = run.find_folder(out, "train", resume=False)
    with run.locked(folder):
        about = {"memorise": trainer.plan.memorise, "text": "a Dataset"}
        run.write_config(folder, {**trainer.plan.settings(), "seed": seed}, about)
        trainer.train(folder)
    return load(folder)


class GPT2LMHeadModel(GPT):
    """GPT under the names of Transformers' class; a folder of any of the family will do."""

    @classmethod
    def from_pretrained(cls, path: PathLike) -> GPT2LMHeadModel:
        """As load(path)."""
        return _load(path, cls)

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
        """Rows of ids (B,n), padded on the left where attention_mask is 0, with what comes after each.

        Transformers' arguments, defaults and result: (B * num_return_sequences, up to max_length) ids, the
        prompts at their beginning, cut after the end of text and filled with pad_token_id. Their length is
        max_length with the prompt, or max_new_tokens without it; 20 in all unless told. do_sample draws, by
        temperature, top_k, top_p and min_p; num_beams searches. eos_token_id None is the tokenizer's, -1 is
        none. A context that is full goes on with its newer half. The same seed gives the same ids. Arrays
        and lists give an array, a tensor a tensor.
        """
        from npgpt.runtime.batch import Search, generate_rows
        from npgpt.runtime.sampling import Sampling

        end = eos_token_id
        if end is None and self.tokenizer:
            end = self.tokenizer.end_of_text
        if input_ids is None:
            if end in (None, -1):
                raise ValueError(
                    "generate: input_ids must be given where there is no end of text to begin with"
                )
            input_ids = [[end]]
        ids = np.asarray(input_ids)
        if ids.ndim != 2 or ids.size == 0 or ids.dtype.kind not in "iu":
            raise ValueError(f"generate: input_ids must be integers (B, n), got {ids.dtype} {ids.shape}")
        low, high, last = ids.min(), ids.max(), self.config.vocab_size - 1
        if not 0 <= low <= high <= last:
            raise ValueError(f"generate: input_ids must be in 0..{last}, got {low}..{high}")
        mask = np.ones_like(ids) if attention_mask is None else np.asarray(attention_mask)
        pad = pad_token_id if pad_token_id is not None else 0 if end in (None, -1) else end
        if max_length is not None and max_new_tokens is not None:
            raise ValueError("generate: max_length must be left out where max_new_tokens is given")
        if max_length is None:
            max_length = 20 if max_new_tokens is None else ids.shape[1] + max_new_tokens
        if do_sample and not temperature:
            raise ValueError("generate: temperature must be above 0 with do_sample, got 0")
        search = Search(
            max_length, do_sample, num_beams, num_return_sequences, length_penalty, early_stopping, end, pad
        )
        how = Sampling(repetition_penalty=repetition_penalty, temperature=0)
        if do_sample:
            how = Sampling(temperature, top_k or None, top_p, min_p or 0.0, repetition_penalty)
        rows = generate_rows(self, ids.astype(np.int64), mask, search, how, seed)
        return input_ids.new_tensor(rows) if hasattr(input_ids, "new_tensor") else rows


class Encoding(dict[str, Any]):
    """What GPT2Tokenizer makes of texts: input_ids and attention_mask, as keys and as attributes."""

    def __getattr__(self, name: str) -> Any:
        if name not in self:
            raise AttributeError(name)
        return self[name]


class GPT2Tokenizer:
    """A tokenizer of npgpt under the names of Transformers' class; any that a folder of the family has.

    As there, a special token that is spelt out in a text becomes its id; padding is the end of text, on the
    left, where generation needs it.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self.vocab_size = tokenizer.vocab_size
        self.bos_token_id = self.eos_token_id = self.pad_token_id = tokenizer.end_of_text

    @classmethod
    def from_pretrained(cls, path: PathLike) -> GPT2Tokenizer:
        """Of a run, a checkpoint, a Hugging Face folder, or a name on the Hub."""
        from npgpt.text.tokenizer import load_tokenizer

        return cls(load_tokenizer(_folder(path)))

    def __len__(self) -> int:
        return self.vocab_size

    def encode(self, text: str, return_tensors: str | None = None) -> Any:
        """A list of ids; with return_tensors "np" or "pt" an array or a tensor (1, N)."""
        ids = self._tokenizer.encode(text, special_tokens=True).astype(np.int64)
        return _tensor(ids[None], return_tensors) if return_tensors else ids.tolist()

    def __call__(
        self, text: str | Iterable[str], padding: bool = False, return_tensors: str | None = None
    ) -> Encoding:
        """The ids of a text, or of a list of texts, and the mask of what is no padding."""
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
        """The text of a row of ids: list, array or tensor."""
        return self._tokenizer.decode(np.asarray(ids), skip_special_tokens)

    def batch_decode(self, rows: Iterable[ArrayLike], skip_special_tokens: bool = False) -> list[str]:
        """decode() of each row."""
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


def load(path: PathLike, **fields: Any) -> GPT:
    """The model that `path` holds or names.

    A run folder, a checkpoint folder, a Hugging Face folder of the family, OpenAI's release of GPT-2 for
    TensorFlow; a .gguf file; a state_dict in a .safetensors file, nanoGPT's ckpt.pt; or, where nothing is
    there, a name on the Hugging Face Hub. `fields` of GPTConfig are what a state_dict (n_head) or an old
    ckpt.pt (activation="gelu_new") does not tell.
    A run gives its best checkpoint, or its last where nothing was validated. A broken checkpoint is warned of
    and passed over for the one before. ValueError where there is no such model, OSError where nothing is.
    """
    return _load(path, GPT, **fields)


def _load(path: PathLike, model_class: type[M], **fields: Any) -> M:
    from npgpt.interop import huggingface, pytorch, tensorflow

    path = Path(path)
    kind = path.suffix if path.is_file() else ""
    if kind == ".safetensors":
        return pytorch.read_state_dict(path, model_class, **fields)
    if kind in (".pt", ".pth"):
        return pytorch.read_checkpoint(path, model_class, **fields)
    if fields:
        raise ValueError(f"load: {', '.join(fields)} must be left out, but for a .safetensors or .pt file")
    if kind == ".gguf":
        from npgpt.interop.gguf import read_gguf
        from npgpt.runtime import binding

        model, tokenizer = read_gguf(path, model_class)
        model.tokenizer = tokenizer
        if binding.is_compiled_for(model):
            model._runtime = binding.Model.open(path, model.flat_params)
        return model
    folder = _folder(path)
    if (folder / "config.json").exists():
        model, tokenizer = huggingface.read_pretrained(folder, model_class)
    elif (folder / "hparams.json").exists():
        model, tokenizer = tensorflow.read_release(folder, model_class)
    else:
        raise ValueError(f"load: path must be a run, a checkpoint or a Hugging Face folder, got {path}")
    model.tokenizer = tokenizer
    return model


def _folder(path: PathLike) -> Path:
    """The folder of files that a path stands for: of a run its best checkpoint, of a Hub's name what came."""
    from npgpt.interop import hub
    from npgpt.training import checkpoint

    path = Path(path)
    if not path.exists():
        if hub.is_name(path):
            return hub.fetch(str(path))
        raise FileNotFoundError(2, "No such file or directory", str(path))
    if checkpoint.is_run(path):
        path, broken = checkpoint.choose(path)
        for line in broken:
            warnings.warn(line, stacklevel=3)
    elif (path / checkpoint.MANIFEST).exists():
        checkpoint.verify(path)
    return path
