"""A request for one text or one vector, from its arrival to its end; one class for each owner of the state.

TextRequest and EmbeddingRequest never change. A Sequence is what the event loop and the scheduler's thread
share; each of its attributes is written by one of the two. A RunningText or RunningEmbedding belongs to the
scheduler's thread alone, from the first step to the last. V = vocabulary, C = channels.
"""

import time
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Hashable
from dataclasses import dataclass, field
from typing import NamedTuple, TypeAlias

import numpy as np

from npgpt.engine.types import Floats
from npgpt.runtime import libnpgpt
from npgpt.runtime.guide import Guide, Masks
from npgpt.runtime.sampling import Sampling, TextStream, log_softmax
from npgpt.server.prefixes import PREFILL, PrefixCache, Prompt
from npgpt.server.tokens import CountingDecoder, Token
from npgpt.text.tokenizer import Tokenizer

LOADED = 16  # tokens that are loaded from the cache in the time in which one is read
Finish: TypeAlias = str | Exception | None  # "stop", "length", "cancelled", what went wrong; None: not yet


class Output(NamedTuple):
    """The output that a sequence adds to its result at once."""

    text: str
    tokens: list[Token]
    finish: Finish


@dataclass(frozen=True)
class TextRequest:
    """A request for one text that continues a prompt."""

    ids: tuple[int, ...]  # (N,) the prompt, N in 1..context, one more where each token is reported
    max_tokens: int
    sampling: Sampling = field(default_factory=Sampling)
    seed: int | None = None  # None: another text each time
    ends: tuple[int, ...] = ()  # ids that end the text
    ignore_eos: bool = False  # the first of `ends` is never drawn, and the others end nothing
    stop: tuple[str, ...] = ()
    top: int | None = None  # how many alternatives come with each token; None: no probabilities at all
    echo: bool = False  # the text begins with the prompt
    masks: Masks | None = None  # of the grammar that the text cannot leave
    bias: Floats | None = field(default=None, compare=False)  # (V,) added to the logits
    sharer: str = ""  # who shares what was read of the prompt: requests of the same

    @property
    def is_reported(self) -> bool:
        """True if each token of the prompt comes with probabilities, which takes reading it."""
        return self.echo and self.top is not None


@dataclass(frozen=True)
class EmbeddingRequest:
    """A request for the vector of one text."""

    ids: tuple[int, ...]  # (N,) the text, N at least 1


class Sequence:
    """A request and its result so far, shared by the event loop and the scheduler's thread.

    No attribute is written by both, and outputs go through a deque, whose append and popleft are atomic.
    """

    def __init__(
        self, request: TextRequest | EmbeddingRequest, wake: Callable[[], None] | None = None
    ) -> None:
        """`wake` is called in the event loop's thread when there is something to take."""
        self.request, self.wake = request, wake
        # written by the event loop, seconds on the monotonic clock
        self.submitted_at = 0.0
        self.cancelled = False
        # written by the scheduler's thread
        self.first_token_at = 0.0  # 0: there is none yet
        self.woken_at = 0.0
        self.n_drawn = 0
        self.n_cached = 0  # ids of the prompt that were not read again
        self.n_kept = 0  # and those that were read and kept
        self.vector: Floats | None = None  # (C,) of length 1, the result of an EmbeddingRequest
        self.finish: Finish = None
        self._outputs: deque[Output] = deque()

    @property
    def has_output(self) -> bool:
        """True if take() would return something."""
        return bool(self._outputs)

    def put(self, output: Output) -> None:
        """Add to the result (the scheduler's thread)."""
        self._outputs.append(output)
        self.finish = output.finish

    def take(self) -> Output:
        """Return all that is new, as one output (the event loop)."""
        whole = Output("", [], None)
        while self._outputs:
            text, tokens, finish = self._outputs.popleft()
            whole = Output(whole.text + text, whole.tokens + tokens, finish)
        return whole


class Running(ABC):
    """A sequence that is being computed: the session of the model and the ids that it has yet to read."""

    def __init__(self, sequence: Sequence, model: libnpgpt.Model) -> None:
        """Open a session; raise MemoryError if there is no memory for one."""
        self.sequence, self.session = sequence, libnpgpt.Session(model, slide=False)
        self.unread = list(sequence.request.ids)

    @property
    def is_ready(self) -> bool:
        """True if one id is to be fed and one drawn, which is done for many sequences at once."""
        return False

    @abstractmethod
    def read(self, most: int) -> int:
        """Read at most so many of the unread ids; return how many."""

    def draw(self) -> None:
        """Draw the next id, once all ids have been read; an embedding has none to draw."""
        return

    def end(self, finish: Finish) -> None:
        """Put the last output: `finish` is "stop", "length", "cancelled" or an exception."""
        self._finish(Output("", [], finish))

    def _finish(self, output: Output) -> None:
        self.sequence.put(output)
        del self.session  # an exception's traceback may keep this object alive, but not the session


class RunningEmbedding(Running):
    """A text whose vector is computed: the mean of the states that the head would read, made of length 1.

    One that is longer than the context is read in windows of it, and the mean is that of all states.
    """

    def __init__(self, sequence: Sequence, model: libnpgpt.Model) -> None:
        super().__init__(sequence, model)
        self._sum: Floats = np.zeros(model.n_embd)  # (C,) float64

    def read(self, most: int) -> int:
        """Read at most so many of the unread ids, and end if those were the last; return how many."""
        context = self.session.model.block_size
        if len(self.session) == context:
            self.session.forget()
        most = min(most, context - len(self.session))
        chunk, self.unread = self.unread[:most], self.unread[most:]
        self._sum += self.session.feed_hidden(chunk).sum(0, np.float64)
        if not self.unread:
            self.sequence.vector = self._sum / (np.linalg.norm(self._sum) or 1.0)
            self.end("stop")
        return len(chunk)


class RunningText(Running):
    """A text that grows by a token each step."""

    def __init__(
        self,
        sequence: Sequence,
        request: TextRequest,
        model: libnpgpt.Model,
        tokenizer: Tokenizer,
        prefixes: tuple[PrefixCache, Hashable],
    ) -> None:
        """`prefixes`: the cache of what was read, and what stands for the model there."""
        super().__init__(sequence, model)
        cache, root = prefixes
        self._prompt: Prompt | None = None  # until the first draw
        if cache.most and not request.is_reported:
            self._prompt = Prompt(cache, (root, request.sharer), request.ids)
        self.request, self.ids = request, list(request.ids)  # the ids grow by what is drawn
        banned = request.ends[0] if request.ignore_eos else None
        self._sampling = libnpgpt.sampling_struct(request.sampling, banned, request.seed)
        self._guide = Guide(request.masks, model.vocab_size, request.ends) if request.masks else None
        self.session.bias(request.bias)
        self.session.allow(None)
        self._decoder = CountingDecoder(tokenizer)
        self._stream = TextStream(self._decoder, [tokenizer.normalize_part(s) for s in request.stop])
        self._held: list[Token] = []  # those whose text is not decided yet
        self._sent = 0.0  # characters of text that were put; infinite once all tokens may go
        self._row: Floats | None = None  # (V,) logits before the next id of a prompt that is reported
        self._reports = request.is_reported  # False once the whole prompt is
        if request.echo and request.top is None:
            self._put("".join(map(self._decoder.push, self.ids)))

    @property
    def is_ready(self) -> bool:
        """True if one id is to be fed and one drawn; a prompt that is echoed goes through read()."""
        return len(self.unread) == 1 and not (self.request.echo and not self.sequence.n_drawn)

    def read(self, most: int) -> int:
        """Read at most so many of the unread ids, and draw if those were the last; return what that costs."""
        loaded = 0
        if self._prompt and not len(self.session):
            loaded = self.sequence.n_cached = self._prompt.load(self.session)
            del self.unread[:loaded]
        most = min(most, PREFILL - len(self.session) % PREFILL)  # cut as without the cache
        if self._reports:  # the last id of a prompt need not fit the context
            most = min(most, self.session.model.block_size - len(self.session) or 1)
        chunk, self.unread = self.unread[:most], self.unread[most:]
        if self._reports:
            self._read_reported(chunk)
        elif chunk:
            self.session.feed(chunk)
            if self._prompt:
                self._prompt.save(self.session)
        if not self.unread:
            self.draw()
        return len(chunk) + loaded // LOADED

    def _read_reported(self, chunk: list[int]) -> None:
        """Feed ids of a prompt, and put them with their probabilities."""
        full = len(self.session) == self.session.model.block_size
        logits = None if full else self.session.feed(chunk, every=True)  # (n, V)
        for i, id in enumerate(chunk):
            before = self._decoder.characters
            self._report(id, self._row, before, self._decoder.push(id))
            self._row = None if logits is None else logits[i]
        self._reports = bool(self.unread)
        if full and self.request.max_tokens:
            self._forget()

    def _forget(self) -> None:
        """Forget the older half of a full context; the rest is read again like a prompt."""
        self.session.forget()
        self.unread = self.ids[-max(1, self.session.model.block_size // 2) :]

    def draw(self) -> None:
        """Draw the next id, and end the text if this is its end."""
        sequence = self.sequence
        if sequence.n_drawn == self.request.max_tokens:  # 0: only the prompt is reported
            return self.end("length")
        if self._guide:
            self.session.allow(self._guide.allowed())
        logits = None if self.request.top is None and not self._prompt else self.session.logits()
        if self._prompt:
            self._prompt.save(self.session, logits)
            sequence.n_kept = self._prompt.kept
            self._prompt, logits = None, logits if self.request.top is not None else None
        id = self.session.sample(self._sampling)
        sequence.first_token_at = sequence.first_token_at or time.monotonic()
        if id in self.request.ends and not self.request.ignore_eos:
            if self.request.top is not None:  # it has no text, but it was drawn
                self._hold(id, logits, self._decoder.characters)
            return self.end("stop")
        sequence.n_drawn += 1
        before = self._decoder.characters
        self._report(id, logits, before, self._stream.push(id))
        if self._stream.stopped or (self._guide and self._guide.ends_with(id)):
            return self.end("stop")
        if sequence.n_drawn == self.request.max_tokens:
            return self.end("length")
        self.ids.append(id)
        self.unread = [id]
        if len(self.session) == self.session.model.block_size:
            self._forget()

    def end(self, finish: Finish) -> None:
        """Put the last output: what the decoder still holds, unless `finish` is an exception."""
        if isinstance(finish, Exception):
            return super().end(finish)
        text = "" if self._guide else self._stream.close()  # a reply that is cut ends with a whole character
        if self._stream.stopped:  # the text does not hold the tokens of a stop string
            finish = "stop"
        else:
            self._sent = float("inf")
        self._finish(Output(text, self._ready_tokens(text), finish))

    def _report(self, id: int, logits: Floats | None, before: int, text: str) -> None:
        """Put the text that an id completed; `before`: the characters of the whole text before this id."""
        if self.request.top is not None:
            self._hold(id, logits, before)
        self._put(text)

    def _hold(self, id: int, logits: Floats | None, before: int) -> None:
        assert self.request.top is not None
        self._held.append(Token(id, before, *_log_probabilities(id, logits, self.request.top)))

    def _put(self, text: str) -> None:
        tokens = self._ready_tokens(text)
        if text or tokens:
            self.sequence.put(Output(text, tokens, None))

    def _ready_tokens(self, text: str) -> list[Token]:
        """Return the held tokens that begin in the text that was put, `text` included; hold them no more."""
        self._sent += len(text)
        ready = [token for token in self._held if token.offset < self._sent]
        del self._held[: len(ready)]
        return ready


def _log_probabilities(
    id: int, logits: Floats | None, top: int
) -> tuple[float | None, list[tuple[int, float]]]:
    """Return the log-probability of an id, and (id, log-probability) of the `top` most likely ones."""
    if logits is None:
        return None, []
    z = log_softmax(logits)
    best = np.argpartition(-z, min(top, len(z) - 1))[:top]
    best = best[np.lexsort((best, -z[best]))]
    return float(z[id]), [(int(i), float(z[i])) for i in best]
