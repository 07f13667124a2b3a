"""Texts, and vectors of texts: /v1/completions, /v1/chat/completions, /v1/embeddings."""

import asyncio
import base64
import contextlib
import dataclasses
import time
from collections.abc import AsyncIterator
from typing import Any, TypeAlias

import numpy as np
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response

from npgpt.engine.types import Fields
from npgpt.runtime import libnpgpt
from npgpt.runtime.sampling import Sampling, prompt_ids
from npgpt.server import bodies
from npgpt.server.guard import Settings
from npgpt.server.jobs import identity
from npgpt.server.models import Models, Served
from npgpt.server.responses import Change, Changes, Chat, Completion, EventStream, Form, Json, dumps
from npgpt.server.scheduler import Busy, Finish, Sequence, Token
from npgpt.server.schema import ApiError
from npgpt.text import examples

Rows: TypeAlias = list[list[int]]  # of ids
BUCKETS = (0.01, 0.03, 0.1, 0.3, 1, 3, 10, 30)  # seconds to the first token
SAMPLING = [field.name for field in dataclasses.fields(Sampling)]  # the API's names, too
SLOW_TEXT = 1 << 14  # characters that are encoded beside the event loop


class Texts:
    """A handler for each route, and how long first tokens took."""

    def __init__(self, models: Models, settings: Settings, version: str) -> None:
        self.models, self.settings, self.version = models, settings, version
        self.first_tokens, self.first_seconds = [0] * (len(BUCKETS) + 1), 0.0

    async def ids(self, served: Served, prompts: Any, param: str) -> Rows:
        """The ids of a prompt or of several, in all forms that the API allows."""
        if isinstance(prompts, str) or isinstance(prompts[0], int):
            prompts = [prompts]
        tokenizer, model = served.engine.vocabulary.tokenizer, served.engine.model

        def encode() -> Rows:
            return [prompt_ids(prompt, tokenizer, model.vocab_size) for prompt in prompts]

        size = sum(map(len, prompts))
        try:
            rows = await asyncio.to_thread(encode) if size > SLOW_TEXT else encode()
        except (ValueError, TypeError) as error:
            raise ApiError(400, str(error).removeprefix("generate: "), param, "invalid_value") from None
        return self.fitting(rows, model, param)

    def fitting(self, rows: Rows, model: libnpgpt.Model, param: str) -> Rows:
        """The same rows of ids; ApiError 400 for one that is longer than the context."""
        longest = max(map(len, rows))
        if longest > model.block_size:
            message = f"This model's maximum context length is {model.block_size} tokens, got {longest}"
            raise ApiError(400, message, param, "context_length_exceeded")
        return rows

    def max_tokens(self, given: int | None, default: int, name: str = "max_tokens") -> int:
        """As many as were asked for; ApiError 400 for more than the server gives."""
        most = self.settings.max_tokens
        if given is not None and given > most:
            raise ApiError(400, f"{name} must be at most {most}, got {given}", name, "invalid_value")
        return min(default, most) if given is None else given

    def sequences(
        self,
        fields: Fields,
        rows: Rows,
        most: int,
        ends: tuple[int, ...],
        top: int | None,
        echo: bool = False,
    ) -> list[Sequence]:
        """n texts of each prompt; the k-th has the seed + k, so that it can be had by itself."""
        if "stream_options" in fields and not fields.get("stream"):
            message = "stream_options is allowed only with stream"
            raise ApiError(400, message, "stream_options", "invalid_value")
        given = {name: fields[name] for name in SAMPLING if name in fields}
        how = Sampling(**{"temperature": 1.0} | given | {"top_k": fields.get("top_k") or None})
        stop, ignore_eos = fields.get("stop", []), fields.get("ignore_eos", False)
        stop, seed = [stop] if isinstance(stop, str) else stop, fields.get("seed")
        seeds = [None if seed is None else seed + k for k in range(fields.get("n", 1))]
        return [
            Sequence(ids, most, how, seed, ends, ignore_eos, stop, top, echo)
            for ids in rows
            for seed in seeds
        ]

    async def completions(self, request: Request) -> Response:
        """POST /v1/completions."""
        fields = await bodies.checked(request, self.settings)
        served = await self.models.find(fields["model"])
        rows = await self.ids(served, fields["prompt"], "prompt")
        end = served.engine.vocabulary.tokenizer.end_of_text
        most = self.max_tokens(fields.get("max_tokens"), 16)
        top, echo = fields.get("logprobs"), fields.get("echo", False)
        sequences = self.sequences(fields, rows, most, (end,), top, echo)
        form = Completion(served.engine.vocabulary, top)
        return await self.answer(request, fields, served, sequences, form)

    async def chat(self, request: Request) -> Response:
        """POST /v1/chat/completions."""
        fields = await bodies.checked(request, self.settings)
        served = await self.models.find(fields["model"])
        tokenizer = served.engine.vocabulary.tokenizer
        if not examples.has_roles(tokenizer):
            message = (
                f"the model {served.id} has no roles, so it cannot chat; make one that has with "
                "`python -m npgpt.finetune RUN DIALOGUES.jsonl -o NEW`, or use /v1/completions"
            )
            raise ApiError(400, message, "model", "model_has_no_roles")
        if fields.get("top_logprobs") and not fields.get("logprobs"):
            raise ApiError(400, "top_logprobs is allowed only with logprobs", "top_logprobs", "invalid_value")
        if "max_tokens" in fields and "max_completion_tokens" in fields:
            raise ApiError(400, "max_tokens is the old name of max_completion_tokens: give one", "max_tokens")
        messages = [
            {"role": m["role"].replace("developer", "system"), "content": _text_of(m["content"])}
            for m in fields["messages"]
        ]
        try:
            ids = await asyncio.to_thread(lambda: list(map(int, examples.encode_chat(tokenizer, messages))))
        except ValueError as error:
            raise ApiError(400, str(error), "messages", "invalid_value") from None
        rows = self.fitting([ids], served.engine.model, "messages")
        name = "max_completion_tokens" if "max_completion_tokens" in fields else "max_tokens"
        most = self.max_tokens(fields.get(name), served.engine.model.block_size, name)
        top = fields.get("top_logprobs", 0) if fields.get("logprobs") else None
        ends = (examples.end_token(tokenizer), tokenizer.end_of_text)
        sequences = self.sequences(fields, rows, most, ends, top)
        return await self.answer(request, fields, served, sequences, Chat(served.engine.vocabulary, top))

    async def embeddings(self, request: Request) -> Response:
        """POST /v1/embeddings."""
        fields = await bodies.checked(request, self.settings)
        served = await self.models.find(fields["model"])
        rows = await self.ids(served, fields["input"], "input")
        sequences = [Sequence(ids, embed=True) for ids in rows]
        async with self.attached(request, served, sequences) as changes:
            async for _, _, _, finish in changes:
                if isinstance(finish, Exception):
                    raise finish
        in_bytes = fields.get("encoding_format") == "base64"
        data: list[Fields] = []
        for i, sequence in enumerate(sequences):
            vector = np.asarray(sequence.vector, "<f4")
            shown = base64.b64encode(vector.tobytes()).decode() if in_bytes else vector.tolist()
            data.append({"object": "embedding", "index": i, "embedding": shown})
        tokens = sum(map(len, rows))
        usage = {"prompt_tokens": tokens, "total_tokens": tokens}
        return Json({"object": "list", "data": data, "model": served.id, "usage": usage})

    @contextlib.asynccontextmanager
    async def attached(
        self, request: Request, served: Served, sequences: list[Sequence]
    ) -> AsyncIterator[Changes]:
        """The sequences, computed while the client is there: an iterator of (index, text, tokens, finish)."""
        news, gone = asyncio.Event(), False
        if len(sequences) > self.settings.queue:
            message = f"n times the prompts must be at most {self.settings.queue}, got {len(sequences)}"
            raise ApiError(400, message, "n", "invalid_value")
        for sequence in sequences:
            sequence.wake = news.set
        try:
            served.engine.submit(sequences)
        except Busy:
            wait = {"Retry-After": "1"}
            raise ApiError(429, "too many requests wait already", None, "rate_limit_exceeded", wait) from None

        async def watch() -> None:
            nonlocal gone
            while (await request.receive())["type"] != "http.disconnect":
                pass
            gone = True
            news.set()

        async def changes() -> AsyncIterator[Change]:
            unfinished = set(range(len(sequences)))
            while unfinished:
                await news.wait()
                news.clear()
                if gone:
                    raise ClientDisconnect
                for i in sorted(unfinished):
                    text, tokens, finish = sequences[i].take()
                    if finish:
                        unfinished.discard(i)
                        self.measure(sequences[i])
                    if text or tokens or finish:
                        yield i, text, tokens, _as_error(finish)

        watcher = asyncio.create_task(watch())
        try:
            yield changes()
        finally:
            watcher.cancel()
            served.engine.cancel(sequences)

    async def answer(
        self, request: Request, fields: Fields, served: Served, sequences: list[Sequence], form: Form
    ) -> Response:
        """The sequences in the shape of `form`: whole, or as a stream of events."""
        with_usage = (fields.get("stream_options") or {}).get("include_usage", False)
        n = fields.get("n", 1)

        def usage() -> Fields:
            prompt, drawn = (sum(s.prompt_tokens for s in sequences[::n]), sum(s.drawn for s in sequences))
            return {"prompt_tokens": prompt, "completion_tokens": drawn, "total_tokens": prompt + drawn}

        head = {"id": identity(form.prefix), "created": int(time.time()), "model": served.id}
        head["system_fingerprint"] = f"npgpt-{self.version}"
        if not fields.get("stream"):
            texts, finishes = [""] * len(sequences), [""] * len(sequences)
            tokens: list[list[Token]] = [[] for _ in sequences]
            async with self.attached(request, served, sequences) as changes:
                async for i, text, new, finish in changes:
                    if isinstance(finish, Exception):
                        raise finish
                    texts[i], finishes[i] = texts[i] + text, finish or finishes[i]
                    tokens[i] += new
            choices = [
                form.choice(*each) for each in zip(range(len(texts)), texts, tokens, finishes, strict=True)
            ]
            return Json({**head, "object": form.whole, "choices": choices, "usage": usage()})

        more: Fields = {"usage": None} if with_usage else {}

        def event(choices: list[Fields], **more: Any) -> bytes:
            return b"data: " + dumps({**head, "object": form.piece, "choices": choices, **more}) + b"\n\n"

        async def events(changes: Changes) -> AsyncIterator[bytes]:
            for i in range(len(sequences)):
                if first := form.first(i):
                    yield event([first], **more)
            async for i, text, tokens, finish in changes:
                if isinstance(finish, Exception):
                    yield b"data: " + dumps(finish.object()) + b"\n\n"
                    return
                pieces = form.pieces(i, text, tokens, finish)
                yield b"".join(event([piece], **more) for piece in pieces)
            if with_usage:
                yield event([], usage=usage())
            yield b"data: [DONE]\n\n"

        attached = self.attached(request, served, sequences)
        changes = await attached.__aenter__()  # before the header is sent: a full queue is an answer, too
        return EventStream(attached, events(changes), self.settings.write_seconds)

    def measure(self, sequence: Sequence) -> None:
        """Count how long the first token took."""
        if sequence.first:
            seconds = sequence.first - sequence.submitted
            self.first_seconds += seconds
            self.first_tokens[sum(seconds > bound for bound in BUCKETS)] += 1


def _as_error(finish: Finish) -> str | ApiError | None:
    """What ended a sequence as the API says it."""
    if not isinstance(finish, Exception) or isinstance(finish, ApiError):
        return finish
    if isinstance(finish, MemoryError):
        return ApiError(503, "the server is out of memory", None, "unavailable")
    return ApiError(500, str(finish))


def _text_of(content: Any) -> str:
    return content if isinstance(content, str) else "".join(part["text"] for part in content)
