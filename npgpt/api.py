"""The face: the engine's model with a tokenizer, that generates, scores and saves; and load, to get one."""

import warnings
from pathlib import Path

import numpy as np

from npgpt.engine import model as engine
from npgpt.engine.model import GPTConfig


class GPT(engine.GPT):
    """The engine's GPT that also knows its tokenizer.

    A model over 257 ids has the byte tokenizer unless told otherwise; one without a tokenizer takes ids only.
    """

    def __init__(self, config: GPTConfig, seed: int = 0, dtype=np.float32, tokenizer=None):
        from npgpt.text.tokenizer import ByteTokenizer

        super().__init__(config, seed=seed, dtype=dtype)
        if tokenizer is None and config.vocab_size == ByteTokenizer.vocab_size:
            tokenizer = ByteTokenizer()
        self.tokenizer = tokenizer

    def generate(
        self,
        prompt="",
        max_new_tokens: int = 200,
        temperature: float = 0.8,
        top_k: int | None = None,
        top_p: float = 1.0,
        min_p: float = 0.0,
        repetition_penalty: float = 1.0,
        stop=(),
        seed: int | None = None,
        ignore_eos: bool = False,
        stream: bool = False,
        return_ids: bool = False,
    ):
        """What the model writes after `prompt` (text, bytes or ids); the prompt itself is not repeated.

        Ends at max_new_tokens, at the end of text (which ignore_eos bans) or before the first of the `stop`
        strings. temperature 0 is greedy. The same seed gives the same text.
        Returns str; with stream=True an iterator of pieces of it, none of which breaks a character; with
        return_ids=True the list of new ids, those of a stop string included.
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
        new_ids = binding.generate_ids(self, ids, max_new_tokens, how, end, ignore_eos, seed)
        if self.tokenizer is None:
            if not return_ids or stop:
                raise ValueError("generate: return_ids must be True, stop empty, without a tokenizer")
            return list(new_ids)
        drawn = []
        recorded = (drawn.append(token) or token for token in new_ids)
        pieces = sampling.text_pieces(recorded, self.tokenizer, stop)
        if stream and not return_ids:
            return pieces
        text = "".join(pieces)
        return drawn if return_ids else text

    def score(self, text, prompt="") -> float:
        """The natural logarithm of the probability that `text` follows `prompt` (text, bytes or ids each).

        Divided by the number of tokens and negated it is the loss. Each token is predicted from at most
        block_size tokens before it; text longer than the context is read in halves that overlap.
        """
        from npgpt.runtime import sampling

        before = sampling.prompt_ids(prompt, self.tokenizer, self.config.vocab_size)
        if not len(text):
            return 0.0
        ids = before + sampling.prompt_ids(text, self.tokenizer, self.config.vocab_size)
        T, total, at = self.config.block_size, 0.0, len(before)
        while at < len(ids):  # ids[at:] are not scored yet
            first = max(0, min(at - 1, at - T // 2))
            window = ids[first : first + T + 1]
            logits = self.logits(np.array([window[:-1]], np.int32))[0].astype(np.float64)  # (t,V)
            rows = np.arange(at - first - 1, len(window) - 1)
            z = logits[rows]
            top = z.max(axis=1)
            picked = z[np.arange(len(rows)), np.array(window)[rows + 1]]
            total += float((picked - top - np.log(np.exp(z - top[:, None]).sum(axis=1))).sum())
            at = first + len(window)
        return total

    def save_pretrained(self, folder) -> None:
        """Write the Hugging Face form of this model, tokenizer included, into `folder`."""
        from npgpt.interop.huggingface import write_pretrained

        write_pretrained(folder, self, self.tokenizer)


def load(path) -> GPT:
    """The model that `path` holds: a run, a checkpoint folder, a Hugging Face folder or a .gguf file.

    A run gives its best checkpoint, or its last where nothing was validated. A broken checkpoint is warned of
    and passed over for the one before. ValueError where there is no such model, OSError where nothing is.
    """
    from npgpt.interop.huggingface import read_pretrained
    from npgpt.training import checkpoint

    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(2, "No such file or directory", str(path))
    if path.suffix == ".gguf":
        from npgpt.interop.gguf import read_gguf

        model, tokenizer = read_gguf(path, GPT)
        model.tokenizer = tokenizer
        return model
    if checkpoint.is_run(path):
        path, broken = checkpoint.choose(path)
        for line in broken:
            warnings.warn(line, stacklevel=2)
    elif (path / checkpoint.MANIFEST).exists():
        checkpoint.verify(path)
    elif not (path / "config.json").exists():
        raise ValueError(f"load: path must be a run, a checkpoint or a Hugging Face GPT-2 folder, got {path}")
    model, tokenizer = read_pretrained(path, GPT)
    model.tokenizer = tokenizer
    return model
