"""The public API: GPT, the engine's model with a tokenizer, and load, which reads one."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self, TypeAlias

import numpy as np
from numpy.typing import ArrayLike, DTypeLike

from npgpt.engine import model as engine
from npgpt.engine.config import GPTConfig, engine_of
from npgpt.engine.names import names_checked
from npgpt.engine.notebooks import small_table

if TYPE_CHECKING:
    from npgpt.engine.types import Fields, Floats, PathLike, Text
    from npgpt.explaining.attacks import Flips, Reduction
    from npgpt.explaining.explanation import Explanation
    from npgpt.explaining.layers import Lens
    from npgpt.interop.layout import Pretrained
    from npgpt.runtime.scoring import Texts
    from npgpt.text.tokenizer import Tokenizer

FileState: TypeAlias = "tuple[int, int]"  # size, time of the last change


@names_checked
class GPT(engine.GPT):
    """The engine's GPT with its tokenizer; it generates, scores, classifies, embeds, explains and saves.

    A model over 257 ids has the byte tokenizer unless another is given; without a tokenizer it takes ids.
    """

    tokenizer: Tokenizer | None
    _file: tuple[Path, FileState, int] | None = None  # generates until the weights have another version

    def __init__(
        self,
        config: GPTConfig,
        seed: int | None = 0,
        dtype: DTypeLike = np.float32,
        tokenizer: Tokenizer | None = None,
    ) -> None:
        """Draw the weights from `seed`; None leaves them at zero."""
        from npgpt.text.tokenizer import ByteTokenizer

        super().__init__(config, seed, dtype)
        if tokenizer is None and config.vocab_size == ByteTokenizer.vocab_size:
            tokenizer = ByteTokenizer()
        self.tokenizer = tokenizer

    @classmethod
    def of(cls, pretrained: Pretrained) -> Self:
        """Return the model of a reader's result; it uses the weights in place, without a copy."""
        model = cls.__new__(cls)
        engine.GPT.__init__(model, pretrained.config, weights=pretrained.weights)
        model.tokenizer = pretrained.tokenizer
        return model

    def __repr__(self) -> str:
        c, tokenizer = self.config, self.tokenizer.name if self.tokenizer else "none"
        sizes = f"n_layer={c.n_layer}, n_head={c.n_head}, n_embd={c.n_embd}, block_size={c.block_size}"
        more = f"vocab_size={c.vocab_size}, tokenizer {tokenizer}, {self.num_params:,} parameters"
        return f"<{type(self).__name__} {engine_of(c)}: {sizes}, {more}>"

    def _repr_html_(self) -> str:
        """Return a table for notebooks."""
        c = self.config
        rows: Fields = {name: getattr(c, name) for name in ("n_layer", "n_head", "n_embd", "block_size")}
        rows |= {"tokenizer": self.tokenizer.name if self.tokenizer else "none", "vocab_size": c.vocab_size}
        rows |= {"parameters": self.num_params, "bytes of weights": self.flat_params.nbytes}
        return small_table(f"{type(self).__name__} {engine_of(c)}", rows)

    def __setstate__(self, state: Fields) -> None:
        """Make a copy, or the model of a pickle; one of a GGUF file generates by that file too."""
        super().__setstate__(state)
        if self._file and self._file[2] == self.version:
            path, before, _ = self._file
            if path.exists() and _file_state(path) == before:
                self._generate_by(path)
            else:
                self._file = None
                warnings.warn(f"{path}: is not there as it was; its float32 weights generate", stacklevel=2)

    def _generate_by(self, path: Path) -> None:
        """Generate by a GGUF file, quantised as it is, until the weights change."""
        from npgpt.runtime import libnpgpt

        self._file = path.resolve(), _file_state(path), self.version
        if libnpgpt.is_compiled_for(self):
            libnpgpt.Model.open(path).attach_to(self)

    @names_checked
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
        logit_bias: Mapping[int, float] | None = None,
        schema: Any = None,
        regex: str | None = None,
        choice: Iterable[str] | None = None,
    ) -> Any:
        """Return the model's continuation of `prompt` (text, bytes or ids), without the prompt.

        It ends at max_new_tokens, at the end of text (which ignore_eos bans) or before the first of the
        `stop` strings. temperature 0 is greedy. The same seed gives the same text.
        Returns str; with stream=True an iterator of chunks of it, none of which breaks a character; with
        return_ids=True the list of new ids, those of a stop string included. speculate=True gives the same,
        sooner where a large model repeats its earlier text. `logit_bias` {id: number} is added to the logits.
        With a JSON `schema` (a dict or its text), a `regex` or a `choice` of texts the continuation cannot be
        anything else, whatever the weights; where max_new_tokens cuts it, it is a beginning of such a text.
        ValueError, which names it, for a keyword of a schema that is not supported.
        """
        from npgpt.runtime.generation import generate
        from npgpt.runtime.sampling import Sampling

        how = Sampling(temperature, top_k, top_p, min_p, repetition_penalty)
        rest = stop, seed, ignore_eos, stream, return_ids, speculate
        grammar = {"logit_bias": logit_bias, "schema": schema, "regex": regex, "choice": choice}
        return generate(self, self.tokenizer, prompt, max_new_tokens, how, *rest, **grammar)

    @names_checked
    def score(self, prompt: Text | ArrayLike, completions: Any = None) -> Any:
        """Return the natural logarithm of the probability that a completion follows the prompt.

        Both are text, bytes or ids. One completion gives a float, a list of them a list. With None,
        `prompt` itself is scored from the beginning of a document. Negated and divided by the number of
        tokens, it is the loss. Each token is predicted from at most block_size tokens before it; longer text
        is read in halves that overlap.
        """
        from npgpt.runtime.scoring import score

        return score(self, self.tokenizer, prompt, completions)

    @names_checked
    def classify(self, text: Texts, labels: Iterable[str | bytes]) -> Any:
        """Return {label: probability} of the labels as answers to `text`, the most probable first.

        A list of texts gives a list. A model with a chat template or with roles (npgpt.finetune makes them)
        is asked in a conversation; of another one the label is scored after the text and a line end.
        """
        from npgpt.runtime.scoring import classify

        return classify(self, self.tokenizer, text, labels)

    @names_checked
    def embed(self, text: Texts) -> Floats:
        """Return the mean hidden state of `text`, scaled to length 1: (C,), or (n,C) for a list of n.

        A text longer than the context is read in windows of the context's size.
        """
        from npgpt.runtime.scoring import embed

        return embed(self, self.tokenizer, text)

    @names_checked
    def explain(
        self,
        text: Text | ArrayLike,
        target: Any = None,
        against: Any = None,
        method: str = "integrated",
        of: str = "logprob",
        labels: Iterable[str | bytes] | None = None,
    ) -> Explanation:
        """Return how much each token of `text` (text, bytes or ids) speaks for the token `target` behind it.

        target is one token, as text or id; None is the most probable one. With `against`, another token, it
        is explained why the target comes rather than that. `method` is gradient, grad_x_input, integrated,
        smooth or occlusion; captum's names are known too. `of` is what is explained of the target: logprob,
        logit or prob. With `labels`, as classify() takes them, target and against are two of these, and the
        target's probability among them is explained. Each score is the sum over channels at one token, with
        positions held; a negative one speaks against the target. ValueError for an empty text, one longer
        than the context, or a target that is no token, or none of the labels.
        """
        from npgpt.explaining.explanation import explain

        return explain(self, self.tokenizer, text, target, against, method, of, labels)

    @names_checked
    def reduce(self, text: Text | ArrayLike, target: Any = None, against: Any = None) -> Reduction:
        """Return what is left of `text` when all tokens are gone that its prediction does not need.

        That is input reduction: the target, by default the most probable token behind `text`, stays that, or
        with `against` stays more probable than that token. None of the tokens that are left can go alone.
        ValueError for a target that is not predicted.
        """
        from npgpt.explaining.attacks import reduce

        return reduce(self, self.tokenizer, text, target, against)

    @names_checked
    def flip(
        self, text: Text | ArrayLike, target: Any = None, against: Any = None, ignore: Iterable[str] = ()
    ) -> Flips:
        """Return replacements of tokens of `text` after which the target is no longer the next token.

        That is HotFlip. The target is by default the most probable token. With `against` it ends where that
        token is more probable than the target. Tokens whose text is in `ignore` stay. ValueError for a target
        that is not predicted.
        """
        from npgpt.explaining.attacks import flip

        return flip(self, self.tokenizer, text, target, against, ignore)

    @names_checked
    def attention(self, text: Text | ArrayLike) -> Floats:
        """Return how much each token of `text` (text, bytes or ids) looks at each: (L,H,T,T).

        L layers, H heads, T tokens. Each row is of one token that looks, and its weights sum to 1.
        """
        from npgpt.explaining.layers import attention

        return attention(self, self.tokenizer, text)

    @names_checked
    def lens(self, text: Text | ArrayLike) -> Lens:
        """Return what each layer would have said behind each token of `text` (text, bytes or ids).

        That is the logit lens: the last norm and the head read each layer's output. The last layer's
        probabilities are the model's own.
        """
        from npgpt.explaining.layers import lens

        return lens(self, self.tokenizer, text)

    @names_checked
    def save_pretrained(self, folder: PathLike) -> None:
        """Write this model and its tokenizer as a Hugging Face folder."""
        from npgpt.interop.huggingface import write_pretrained

        write_pretrained(folder, self, self.tokenizer)


def load(path: PathLike, adapter: PathLike | None = None, **fields: Any) -> GPT:
    """Return the model that `path` holds or names, with an adapter merged into its weights.

    `path` is a run folder, a checkpoint folder, a Hugging Face folder of the family, OpenAI's release of
    GPT-2 for TensorFlow, a .gguf file, a state_dict in a .safetensors file, or nanoGPT's ckpt.pt. Where no
    such path exists it is the name of an installed model (NAME.gguf of a package npgpt_NAME), else a name on
    the Hugging Face Hub. `adapter` is a folder of LoRA adapters that PEFT or
    npgpt wrote, or a run that holds one; as `path` it is loaded over the base that it names. `fields` of
    GPTConfig are those that a state_dict (n_head) or an old ckpt.pt (activation="gelu_new") does not hold.
    A run gives its best checkpoint, or its last where nothing was validated. A broken checkpoint is skipped
    with a warning, and the one before it is used. ValueError where there is no such model, OSError where
    nothing exists.
    """
    from npgpt.interop.installed import located
    from npgpt.training import pretrained

    path = located(path) if path != "" else path
    model = GPT.of(pretrained.read(path, adapter, **fields))
    if Path(path).suffix == ".gguf" and adapter is None:
        model._generate_by(Path(path))
    return model


def _file_state(path: Path) -> FileState:
    found = path.stat()
    return found.st_size, found.st_mtime_ns
