"""lm-evaluation-harness's model class: its tasks on a model of npgpt, without a server and without PyTorch.

Importing this registers the model as "npgpt" there (`pip install lm-eval`, at least 0.4.13).

    import lm_eval
    from npgpt.compat.lm_eval import NpgptLM

    lm_eval.simple_evaluate(NpgptLM("runs/mine"), tasks=["arc_easy"])
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from lm_eval import utils
from lm_eval.api.model import TemplateLM
from lm_eval.api.registry import register_model
from lm_eval.models.utils import normalize_gen_kwargs
from tqdm import tqdm

from npgpt.api import load
from npgpt.runtime.scoring import predictions
from npgpt.text.chat_template import ChatTemplate
from npgpt.text.examples import has_roles
from npgpt.text.tokenizer_json import CHAT_TEMPLATE

if TYPE_CHECKING:
    from npgpt.engine.types import Fields, PathLike

SAMPLING = ("temperature", "top_k", "top_p", "min_p", "repetition_penalty")  # what generate_until passes on


@register_model("npgpt")
class NpgptLM(TemplateLM):  # type: ignore[misc]
    """A run, a checkpoint, a Hugging Face folder or a GGUF file in lm-evaluation-harness.

    Its numbers are those of the harness's model "hf" for the same weights in float32.
    """

    def __init__(
        self,
        pretrained: PathLike,
        adapter: PathLike | None = None,
        max_gen_toks: int = 256,
        batch_size: object = None,
        device: str | None = None,
        **more: object,
    ) -> None:
        """Read the model; `adapter` is a folder as PEFT writes it.

        max_gen_toks: tokens of a reply where a task does not say. batch_size changes nothing: rows are
        computed together as they fit. ValueError for another device than cpu, and for unknown arguments.
        """
        super().__init__()
        more.pop("max_batch_size", None)  # the harness's own command gives it
        if more:
            raise ValueError(f"NpgptLM: {', '.join(sorted(more))} is not an argument")
        if device not in (None, "cpu"):
            raise ValueError(f"NpgptLM: device must be cpu, got {device!r}")
        self.model = load(pretrained, adapter)
        if self.model.tokenizer is None:
            raise ValueError(f"NpgptLM: {pretrained}: must have a tokenizer")
        self.own = self.model.tokenizer
        self.max_gen_toks, self.max_length = max_gen_toks, self.model.config.block_size

    @property
    def eot_token_id(self) -> int:
        """The id that ends a text."""
        return self.own.end_of_text

    @property
    def prefix_token_id(self) -> int:
        """The id before a text that has nothing before it."""
        return self.own.begin[0] if self.own.begin else self.own.end_of_text

    @property
    def tokenizer_name(self) -> str:
        """What tells the harness's caches which tokenizer and chat template this is."""
        return f"{self.own.name}-{self.own.fingerprint}"

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **kwargs: object) -> list[int]:
        """Return the ids of a text, of special tokens that it spells too, behind those that begin a text.

        add_special_tokens=False leaves out the latter; None does where the text spells the first of them.
        """
        ids: list[int] = self.own.encode(string, special_tokens=True).tolist()
        begin = [*self.own.begin]
        if add_special_tokens is False or (add_special_tokens is None and ids[: len(begin)] == begin):
            return ids
        return begin + ids

    def _loglikelihood_tokens(
        self, requests: list[tuple[Any, list[int], list[int]]], disable_tqdm: bool = False, **kwargs: object
    ) -> list[tuple[float, bool]]:
        windows = []
        for n, (_, before, after) in enumerate(requests):
            if len(after) > self.max_length:
                raise ValueError(
                    f"NpgptLM: a continuation must have at most {self.max_length} tokens, got {len(after)}"
                )
            ids = (before + after)[-(self.max_length + 1) :]
            windows.append((n, ids[:-1], after))
        found: list[tuple[float, bool]] = [(0.0, True)] * len(requests)
        with tqdm(total=len(windows), desc="log-likelihoods", disable=disable_tqdm) as progress:
            for n, log_p, after in predictions(self.model, windows):
                greedy = bool((log_p.argmax(axis=1) == after).all())
                found[n] = float(log_p[range(len(after)), after].sum()), greedy
                progress.update()
        for (asked, *_), answer in zip(requests, found, strict=True):
            if asked is not None:
                self.cache_hook.add_partial("loglikelihood", asked, answer)
        return found

    def loglikelihood_rolling(self, requests: list[Any], disable_tqdm: bool = False) -> list[float]:
        """Return the log-probability of each text, read in windows that do not overlap in what they score."""
        windows, owner = [], []
        for n, request in enumerate(requests):
            (text,) = request.args
            rolling = utils.get_rolling_token_windows(
                self.tok_encode(text), self.prefix_token_id, self.max_length, 1
            )
            for pair in map(utils.make_disjoint_window, rolling):
                windows.append((None, *pair))
                owner.append(n)
        totals = [0.0] * len(requests)
        for n, (log_p, _) in zip(owner, self._loglikelihood_tokens(windows, disable_tqdm), strict=True):
            totals[n] += log_p
        for request, total in zip(requests, totals, strict=True):
            self.cache_hook.add_partial("loglikelihood_rolling", request.args, total)
        return totals

    def generate_until(self, requests: list[Any], disable_tqdm: bool = False) -> list[str]:
        """Return what the model writes behind each text, up to its first stop or its number of tokens.

        Greedy unless a task samples; then a request's number is its seed. ValueError for settings that
        npgpt does not have, and for replies as long as the context.
        """
        texts = []
        for n, request in enumerate(tqdm(requests, desc="replies", disable=disable_tqdm)):
            text, asked = request.args
            settings = normalize_gen_kwargs(asked, self.max_gen_toks)
            until, most = [stop for stop in settings.pop("until") if stop], settings.pop("max_gen_toks")
            settings.pop("do_sample", None)
            if unknown := set(settings) - set(SAMPLING):
                raise ValueError(f"NpgptLM: generate_until has no {', '.join(sorted(unknown))}")
            if most >= self.max_length:
                raise ValueError(
                    f"NpgptLM: max_gen_toks must be below the context of {self.max_length} tokens, got {most}"
                )
            ids = self.tok_encode(text)[most - self.max_length :]
            reply = self.model.generate(ids, max_new_tokens=most, stop=until, seed=n, **settings)
            self.cache_hook.add_partial("generate_until", request.args, reply)
            texts.append(reply)
        return texts

    def apply_chat_template(
        self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True
    ) -> str:
        """Return a conversation as the model's chat template writes it. ValueError where it has none."""
        source = self.chat_template()
        if not source:
            raise ValueError("NpgptLM: the model must have a chat template or roles")
        vocabulary = self.own.vocabulary
        named = {"eos_token": vocabulary.end_of_text} | vocabulary.names
        template = ChatTemplate(source, tuple(vocabulary.special), tuple(named.items()))
        messages: list[Fields] = [dict(message) for message in chat_history]
        return template.render(messages, add_generation_prompt)

    def chat_template(self, chat_template: bool | str = False) -> str:
        """Return the source of the chat template, or of npgpt's for its roles; '' where there is neither."""
        return self.own.vocabulary.chat_template or (CHAT_TEMPLATE if has_roles(self.own) else "")
