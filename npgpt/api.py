"""The face: the engine's model with a tokenizer, that generates, scores and saves; and load, to get one."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias, TypeVar

import numpy as np
from numpy.typing import ArrayLike, DTypeLike

from npgpt.engine import model as engine
from npgpt.engine.config import GPTConfig

if TYPE_CHECKING:
    from npgpt.engine.types import Floats, PathLike, Text
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
        from npgpt.runtime import libnpgpt, sampling

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
        new_ids = libnpgpt.generate_ids(self, ids, max_new_tokens, how, end, ignore_eos, seed, speculate)
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
        from npgpt.text import examples

        names = [] if isinstance(labels, (str, bytes)) else list(labels)
        if len(names) < 2:
            raise ValueError(f"classify: labels must be two at least, got {names or labels!r}")
        if self.tokenizer is None:
            raise ValueError("classify: the model must have a tokenizer")
        tokenizer, end = self.tokenizer, [examples.end_token(self.tokenizer)]
        after = [[*tokenizer.encode(label).tolist(), *end] for label in names]
        room = max(1, self.config.block_size + 1 - max(map(len, after)))
        pairs = []
        for one in [text] if isinstance(text, (str, bytes)) else text:
            if examples.has_roles(tokenizer):
                before = examples.encode_chat(tokenizer, [{"role": "user", "content": one}])
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
        from npgpt.runtime import libnpgpt

        model, tokenizer = read_gguf(path, model_class)
        model.tokenizer = tokenizer
        if libnpgpt.is_compiled_for(model):
            model._runtime = libnpgpt.Model.open(path, model.flat_params)
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
