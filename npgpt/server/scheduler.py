"""The thread that computes: a token for every running sequence of every request, step by step.

A sequence that arrives joins the next step. A prompt is read PREFILL tokens at a time between the steps of
the others, so that no stream stalls. What a sequence becomes depends on its own ids and seed alone: libnpgpt
computes the same bits whatever else is running.
"""

import asyncio
import itertools
import threading
import time
import traceback
from collections import deque
from collections.abc import Callable, Collection, Iterable
from typing import TypeVar

from npgpt.runtime import libnpgpt
from npgpt.server.prefixes import PREFILL, PrefixCache
from npgpt.server.sequence import Output, Running, RunningEmbedding, RunningText, Sequence, TextRequest
from npgpt.server.tokens import TokenNames
from npgpt.text.tokenizer import Tokenizer

T = TypeVar("T")
_NUMBERS = itertools.count()  # of schedulers, for the cache that they share
STALLED = 60.0  # seconds after which a step is taken for one that never ends
EVENT_SECONDS = 0.015  # minimum between two events of a stream, and
EVENT_RATE = 200  # maximum of events a second in all: one costs as much as a token of a small model


class Busy(Exception):
    """The queue is full."""


class Scheduler:
    """The queue and the running sequences of one model, and the thread that computes them.

    The event loop calls start, submit, cancel and close. `_waiting` and `_closed` are shared and guarded by
    the lock of `_changed`. The thread alone writes `running`, the counters and `_active`.
    """

    def __init__(
        self,
        model: libnpgpt.Model,
        tokenizer: Tokenizer,
        sessions: int,
        queue: int,
        prefixes: PrefixCache | None = None,
    ) -> None:
        """`sessions`: how many sequences run at most; `queue`: how many wait at most.

        `prefixes` has what was read of prompts, of this model and of others; None: nothing is kept.
        """
        self.model, self.tokenizer, self.token_names = model, tokenizer, TokenNames(tokenizer)
        self.sessions, self.queue = sessions, queue
        self.running = 0  # sequences that have left the queue and have not ended
        self.prefixes = (PrefixCache(0) if prefixes is None else prefixes, next(_NUMBERS))
        self.tokens = self.prompt_tokens = self.cached_tokens = self.steps = 0  # totals
        self._changed = threading.Condition()
        self._waiting: deque[Sequence] = deque()
        self._closed: Exception | None = None
        self._stepped_at = time.monotonic()
        self._active: list[Running] = []
        self._loop: asyncio.AbstractEventLoop | None = None  # set before the thread begins
        self._thread = threading.Thread(target=self._work, name="scheduler", daemon=True)

    def start(self, loop: asyncio.AbstractEventLoop) -> None:
        """Start the thread; `loop` is the event loop that calls wake() of the sequences."""
        self._loop = loop
        self._thread.start()

    @property
    def goes_on(self) -> bool:
        """True if the thread works, or waits for work, and has ended a step in the last minute."""
        busy = self.running or self._waiting
        return self._thread.is_alive() and (not busy or time.monotonic() - self._stepped_at < STALLED)

    @property
    def waiting(self) -> int:
        """The number of sequences in the queue."""
        return len(self._waiting)

    def submit(self, sequences: Collection[Sequence]) -> None:
        """Queue the sequences; raise Busy if more would wait than the queue may hold."""
        with self._changed:
            if self._closed:
                raise self._closed
            free = self.sessions - self.running
            if len(self._waiting) + len(sequences) > self.queue + max(0, free):
                raise Busy
            for sequence in sequences:
                sequence.submitted_at = time.monotonic()
                self._waiting.append(sequence)
            self._changed.notify()

    def cancel(self, sequences: Iterable[Sequence]) -> None:
        """End the sequences, as nobody waits for them any more; do nothing to those that have ended."""
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

    # ------------------------------------------------ the thread

    def _work(self) -> None:
        while True:
            with self._changed:
                while not (self._waiting or self._active or self._closed):
                    self._changed.wait()
                if self._closed:
                    return self._end_all(self._closed)
                self._stepped_at = time.monotonic()
                new: list[Sequence] = []
                while self._waiting and self.running < self.sessions:
                    new.append(self._waiting.popleft())
                    self.running += 1
            try:
                for sequence in new:
                    self._begin(sequence)
                self._step()
            except Exception as error:  # a bug ends what runs, not the thread
                traceback.print_exc()
                for running in self._active:
                    if not running.sequence.finish:
                        running.end(error)
                for sequence in new:  # those that it kept from beginning
                    if not sequence.finish:
                        sequence.put(Output("", [], error))
                ended = [*new, *(running.sequence for running in self._active)]
                self._active, self.running = [], 0
                self._wake(ended)

    def _end_all(self, error: Exception) -> None:
        for running in self._active:
            running.end(error)
        for sequence in self._waiting:
            sequence.put(Output("", [], error))
        ended = [*(running.sequence for running in self._active), *self._waiting]
        self._active, self._waiting, self.running = [], deque(), 0
        self._wake(ended)

    def _begin(self, sequence: Sequence) -> None:
        """Open the session of a sequence; if there is no memory for one, the sequence has ended."""
        request = sequence.request
        try:
            if isinstance(request, TextRequest):
                self._active.append(RunningText(sequence, request, self.model, self.tokenizer, self.prefixes))
            else:
                self._active.append(RunningEmbedding(sequence, self.model))
        except (ValueError, MemoryError) as error:
            sequence.put(Output("", [], error))
            self.running -= 1
            self._wake([sequence])

    def _step(self) -> None:
        """Draw a token for each text that has been read, then read some of the prompts."""
        for running in self._active:
            if running.sequence.cancelled:
                running.end("cancelled")
        active = [r for r in self._active if not r.sequence.finish]
        ready = [r for r in active if r.is_ready]
        if ready:
            try:
                libnpgpt.feed_many([r.session for r in ready], [r.unread[0] for r in ready])
            except (ValueError, MemoryError) as error:
                for running in ready:
                    running.end(error)
            for running in ready:
                running.unread = []
                self._guarded(running, lambda r: r.draw())
            self.steps += 1
        budget, drawn = PREFILL, set(ready)  # ids of prompts
        for running in active:
            if budget > 0 and running not in drawn:
                budget -= self._guarded(running, lambda r: r.read(PREFILL)) or 0
        stepped = [running.sequence for running in self._active]
        for sequence in stepped:
            if sequence.finish:
                self.tokens += sequence.n_drawn
                self.prompt_tokens += len(sequence.request.ids)
                self.cached_tokens += sequence.n_cached
        self._active = [r for r in self._active if not r.sequence.finish]
        self.running = len(self._active)  # before those who wait are woken: they may submit more
        self._wake(stepped)

    def _guarded(self, running: Running, do: Callable[[Running], T]) -> T | None:
        """Return do(running), unless the sequence has ended; if it fails, only this sequence ends."""
        if not running.sequence.finish:
            try:
                return do(running)
            except (ValueError, MemoryError) as error:
                running.end(error)
        return None

    def _wake(self, sequences: Iterable[Sequence]) -> None:
        """Wake those who wait for the sequences that have ended, or have output and were not woken lately."""
        now = time.monotonic()
        since = now - max(EVENT_SECONDS, len(self._active) / EVENT_RATE)
        woken = [s for s in sequences if s.wake and (s.finish or (s.woken_at < since and s.has_output))]
        for sequence in woken:
            sequence.woken_at = now
        if calls := {s.wake for s in woken}:  # one for each request
            assert self._loop, "start() sets it"
            self._loop.call_soon_threadsafe(lambda: [call() for call in calls if call])
