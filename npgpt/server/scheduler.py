"""The thread that computes: a token for every sequence of every request, step by step.

A sequence that arrives joins the next step; a prompt is read PREFILL tokens at a time between the steps of
the others, so that no stream stalls. What a sequence becomes depends on its own ids and seed alone: libnpgpt
computes the same bits in any company. V = vocabulary, C = channels.
"""

import asyncio
import threading
import time
import traceback
from collections import deque
from collections.abc import Callable, Collection, Iterable
from typing import NamedTuple, TypeAlias, TypeVar

import numpy as np

from npgpt.engine.types import Floats
from npgpt.runtime import libnpgpt
from npgpt.runtime.sampling import Sampling, TextStream, log_softmax
from npgpt.text.tokenizer import StreamDecoder, Tokenizer

T = TypeVar("T")
Finish: TypeAlias = str | Exception | None  # "stop", "length", "cancelled", what went wrong; None: not yet
PIECE = 0.015  # seconds between two pieces of a stream at least, and
PIECES = 200  # of them a second in all: to send one costs as much as a token of a small model
PREFILL = 64  # tokens of prompts between two steps: about as long as a few steps of eight streams


class Busy(Exception):
    """The queue is full."""


class Token(NamedTuple):
    """A token with what the model thought of it, before any setting of the sampler."""

    id: int
    offset: int  # characters of the text before it
    logprob: float | None  # None: the first of a text, which nothing comes before
    top: list[tuple[int, float]]  # (id, logprob) of the likeliest, best first


class Vocabulary:
    """Bytes and names of ids."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.tokenizer = tokenizer
        self._bytes: dict[int, bytes] = {}

    def bytes(self, id: int) -> bytes:
        """Of a special token its name; of an id that only fills up the vocabulary nothing."""
        if id not in self._bytes:
            known = id < self.tokenizer.vocab_size
            self._bytes[id] = self.tokenizer.decode_bytes([id], skip_special_tokens=False) if known else b""
        return self._bytes[id]

    def name(self, id: int) -> str:
        """How a token is written: its text, or as OpenAI does its bytes where they are no characters."""
        data = self.bytes(id)
        try:
            return data.decode()
        except UnicodeDecodeError:
            return "bytes:" + "".join(f"\\x{byte:02x}" for byte in data)


class Decoder(StreamDecoder):
    """The tokenizer's own, with its characters counted."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        super().__init__(tokenizer)
        self._stream, self.characters = tokenizer.stream(), 0

    def push(self, *ids: int) -> str:
        """The text that these ids complete."""
        return self._count(self._stream.push(*ids))

    def close(self) -> str:
        """What is left: U+FFFD for half a character."""
        return self._count(self._stream.close())

    def _count(self, text: str) -> str:
        self.characters += len(text)
        return text


class Sequence:
    """One text that grows. Made and read by the event loop, computed by the engine's thread."""

    def __init__(
        self,
        ids: list[int],
        max_tokens: int = 0,
        sampling: Sampling | None = None,
        seed: int | None = None,
        ends: tuple[int, ...] = (),
        ignore_eos: bool = False,
        stop: Iterable[str] = (),
        top: int | None = None,
        echo: bool = False,
        embed: bool = False,
    ) -> None:
        """ids (N,), N >= 1, of at most the context.

        ends: ids that end the text, the first is banned by ignore_eos. top: so many alternatives are told
        with each token, None: no probabilities at all.
        """
        self.ids, self.prompt_tokens, self.max_tokens = list(ids), len(ids), max_tokens
        self.ends, self.top, self.echo, self.embed = frozenset(ends), top, echo, embed
        banned = ends[0] if ignore_eos else None
        self.how = None if embed else libnpgpt.sampling_struct(sampling or Sampling(), banned, seed)
        self.stop = tuple(stop)
        self.finish: Finish = None
        self.vector: Floats | None = None  # (C,) the mean of what the head reads, of length 1
        self.cancelled = False
        self.drawn = 0
        self.submitted, self.first = 0.0, 0.0  # seconds on the monotonic clock
        self.woken = 0.0  # when last
        self.wake: Callable[[], None] | None = None  # called by the event loop when there is something new
        self._out: deque[tuple[str, list[Token], Finish]] = deque()

    def take(self) -> tuple[str, list[Token], Finish]:
        """(text, tokens, finish): all that is new."""
        whole: tuple[str, list[Token], Finish] = "", [], None
        while self._out:
            text, tokens, finish = self._out.popleft()
            whole = whole[0] + text, whole[1] + tokens, finish
        return whole

    # ------------------------------------------------ the engine's thread

    def begin(self, model: libnpgpt.Model, tokenizer: Tokenizer) -> None:
        """Take a session of the model."""
        self.session, self.unread = libnpgpt.Session(model, slide=False), self.ids
        self.decoder = Decoder(tokenizer)
        self.stream = TextStream(self.decoder, self.stop)
        self._held: list[Token] = []
        self._sent = 0.0
        self._row: Floats | None = None  # (V,) logits before the next id
        self._sum: Floats | float = 0.0
        if self.echo and self.top is None:
            self._say("".join(map(self.decoder.push, self.ids)), None)

    def read(self, room: int) -> int:
        """Read some of what is unread, and draw if that was all; how many ids it read."""
        part, self.unread = self.unread[:room], self.unread[room:]
        if self.embed:
            self._sum = self._sum + self.session.feed_hidden(part).sum(0, np.float64)
            if not self.unread:
                self.vector = np.asarray(self._sum / (np.linalg.norm(self._sum) or 1.0))
                self.end("stop")
        elif self.echo and self.top is not None and not self.drawn:
            logits = self.session.feed(part, every=True)
            for i, id in enumerate(part):
                before = self.decoder.characters
                self._tell(id, self._row, before, self.decoder.push(id))
                self._row = logits[i]
        else:
            self.session.feed(part)
        if not self.unread and not self.finish:
            self.draw()
        return len(part)

    def draw(self) -> None:
        """The next id; it ends the text where it is to end."""
        if self.drawn == self.max_tokens:  # 0: there is only a prompt to tell of
            return self.end("length")
        logits = None if self.top is None else self.session.logits()
        id = self.session.sample(self.how)
        self.first = self.first or time.monotonic()
        if id in self.ends:
            return self.end("stop")
        self.drawn += 1
        before = self.decoder.characters
        self._tell(id, logits, before, self.stream.push(id))
        if self.stream.stopped:
            return self.end("stop")
        if self.drawn == self.max_tokens:
            return self.end("length")
        self.ids.append(id)
        self.unread = [id]
        context = self.session.model.block_size
        if len(self.session) == context:  # forget the older half, and read the rest again like a prompt
            self.session.forget()
            self.unread = self.ids[-max(1, context // 2) :]

    def end(self, finish: Finish) -> None:
        """finish: "stop", "length", "cancelled" or an exception."""
        if not isinstance(finish, Exception) and not self.embed:
            text = self.stream.close()
            finish = "stop" if self.stream.stopped else finish
            if not self.stream.stopped:  # the tokens of a stop string are no part of the text
                self._sent = float("inf")
            self._say(text, finish)
        else:
            self._out.append(("", [], finish))
        self.finish = finish
        vars(self).pop("session", None)  # which frees it

    def _tell(self, id: int, logits: Floats | None, before: int, text: str) -> None:
        if self.top is not None:
            self._held.append(Token(id, before, *_log_probabilities(id, logits, self.top)))
        self._say(text, None)

    def _say(self, text: str, finish: Finish) -> None:
        self._sent += len(text)
        ready = [token for token in self._held if token.offset < self._sent]
        del self._held[: len(ready)]
        if text or ready or finish:
            self._out.append((text, ready, finish))


def _log_probabilities(
    id: int, logits: Floats | None, top: int
) -> tuple[float | None, list[tuple[int, float]]]:
    """(logprob of id, the `top` likeliest)."""
    if logits is None:
        return None, []
    z = log_softmax(logits)
    best = np.argpartition(-z, min(top, len(z) - 1))[:top]
    best = best[np.lexsort((best, -z[best]))]
    return float(z[id]), [(int(i), float(z[i])) for i in best]


class Engine:
    """Sequences in, texts out."""

    def __init__(self, model: libnpgpt.Model, tokenizer: Tokenizer, sessions: int, queue: int) -> None:
        self.model, self.vocabulary = model, Vocabulary(tokenizer)
        self.sessions, self.queue = sessions, queue
        self.tokens = self.prompt_tokens = self.steps = 0  # so far
        self._changed = threading.Condition()
        self._waiting: deque[Sequence] = deque()
        self._running: list[Sequence] = []
        self._closed: Exception | None = None
        self._thread = threading.Thread(target=self._work, name="engine", daemon=True)

    def start(self, loop: asyncio.AbstractEventLoop) -> None:
        """loop: the event loop that wakes those who wait."""
        self._loop = loop
        self._thread.start()

    @property
    def running(self) -> int:
        """Texts that are computed now."""
        return len(self._running)

    @property
    def waiting(self) -> int:
        """Texts in the queue."""
        return len(self._waiting)

    def submit(self, sequences: Collection[Sequence]) -> None:
        """Busy if they would wait behind more than the queue may hold."""
        with self._changed:
            if self._closed:
                raise self._closed
            free = self.sessions - len(self._running)
            if len(self._waiting) + len(sequences) > self.queue + max(0, free):
                raise Busy
            for sequence in sequences:
                sequence.submitted = time.monotonic()
                self._waiting.append(sequence)
            self._changed.notify()

    def cancel(self, sequences: Iterable[Sequence]) -> None:
        """Nobody waits for them any more; those that have ended are left alone."""
        with self._changed:
            for sequence in sequences:
                sequence.cancelled = True
            self._waiting = deque(s for s in self._waiting if not s.cancelled)
            self._changed.notify()

    def close(self, error: Exception) -> None:
        """End every sequence with this error, and the thread."""
        with self._changed:
            self._closed = error
            self._changed.notify()
        self._thread.join()

    def _work(self) -> None:
        while True:
            with self._changed:
                while not (self._waiting or self._running or self._closed):
                    self._changed.wait()
                new: list[Sequence] = []
                while self._waiting and len(self._running) + len(new) < self.sessions:
                    new.append(self._waiting.popleft())
                self._running += new
                if self._closed:
                    for sequence in [*self._running, *self._waiting]:
                        sequence.end(self._closed)
                    self._wake([*self._running, *self._waiting])
                    self._running, self._waiting = [], deque()
                    return
            for sequence in new:
                self._guarded(sequence, lambda s: s.begin(self.model, self.vocabulary.tokenizer))
            try:
                self._step()
            except Exception as error:  # a bug ends what runs, not the thread
                traceback.print_exc()
                for sequence in self._running:
                    if not sequence.finish:
                        sequence.end(error)
                ended, self._running = self._running, []
                self._wake(ended)

    def _step(self) -> None:
        """A token for each text that is read, then some of the prompts that are not."""
        for sequence in self._running:
            if sequence.cancelled and not sequence.finish:
                sequence.end("cancelled")
        active = [s for s in self._running if not s.finish]
        ready = [s for s in active if len(s.unread) == 1 and not (s.embed or (s.echo and not s.drawn))]
        if ready:
            try:
                libnpgpt.feed_many([s.session for s in ready], [s.unread[0] for s in ready])
            except (ValueError, MemoryError) as error:
                for sequence in ready:
                    sequence.end(error)
            for sequence in ready:
                sequence.unread = []
                self._guarded(sequence, lambda s: s.draw())
            self.steps += 1
        room, drawn = PREFILL, set(ready)
        for sequence in active:
            if room > 0 and sequence not in drawn:
                room -= self._guarded(sequence, lambda s: s.read(PREFILL)) or 0
        for sequence in self._running:
            if sequence.finish:
                self.tokens += sequence.drawn
                self.prompt_tokens += sequence.prompt_tokens
        stepped, self._running = self._running, [s for s in self._running if not s.finish]
        self._wake(stepped)

    def _guarded(self, sequence: Sequence, do: Callable[[Sequence], T]) -> T | None:
        """do(sequence); what goes wrong is this sequence's alone."""
        if not sequence.finish:
            try:
                return do(sequence)
            except (ValueError, MemoryError) as error:
                sequence.end(error)
        return None

    def _wake(self, sequences: Iterable[Sequence]) -> None:
        now = time.monotonic()
        since = now - max(PIECE, len(self._running) / PIECES)
        told = [s for s in sequences if s.wake and (s.finish or (s._out and s.woken < since))]
        for sequence in told:
            sequence.woken = now
        if calls := {s.wake for s in told}:  # one for each request
            self._loop.call_soon_threadsafe(lambda: [call() for call in calls if call])
