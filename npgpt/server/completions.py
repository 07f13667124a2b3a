"""Texts and vectors: the handlers of /v1/completions, /v1/chat/completions and /v1/embeddings."""

import asyncio
import base64
import contextlib
import dataclasses
import time
from collections.abc import AsyncIterator, Collection
from typing import Any, TypeAlias

import numpy as np
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response

from npgpt.engine.types import Fields
from npgpt.runtime.guide import bias_of
from npgpt.runtime.sampling import Sampling, prompt_ids
from npgpt.server import bodies
from npgpt.server.guard import Settings, owner_of
from npgpt.server.guided import masks_of
from npgpt.server.models import Models, ServedModel
from npgpt.server.responses import (
    Change,
    Changes,
    ChatShape,
    CompletionShape,
    EventStream,
    Json,
    Shape,
    dumps,
    new_id,
)
from npgpt.server.scheduler import Busy, Scheduler
from npgpt.server.schema import GUIDED, ApiError
from npgpt.server.sequence import EmbeddingRequest, Sequence, TextRequest
from npgpt.server.tokens import Token
from npgpt.text import examples
from npgpt.text.messages import role_of, text_of
from npgpt.text.tokenizer import Tokenizer

Prompts: TypeAlias = list[tuple[int, ...]]  # the ids of each
BUCKETS = (0.01, 0.03, 0.1, 0.3, 1, 3, 10, 30)  # seconds to the first token
SAMPLING_FIELDS = [field.name for field in dataclasses.fields(Sampling)]  # the API's names, too
MAX_INPUT_TOKENS = 300_000  # of a request for embeddings, as OpenAI has it
ROOM_SECONDS = 0.05  # between two looks for room in the queue
SLOW_TEXT = 1 << 14  # characters that are encoded beside the event loop


class Completions:
    """The handlers of the routes that compute, and a histogram of the time to the first token."""

    def __init__(self, models: Models, settings: Settings, version: str) -> None:
        self.models, self.settings, self.version = models, settings, version
        self.first_token_counts = [0] * (len(BUCKETS) + 1)  # by BUCKETS, the last for what took longer
        self.first_token_seconds = 0.0  # in all

    async def completions(self, request: Request) -> Response:
        """Answer POST /v1/completions."""
        fields = await bodies.checked(request, self.settings)
        served = await self.models.find(fields["model"])
        prompts = await encode_prompts(served.scheduler, fields["prompt"], "prompt")
        most, warnings = self.max_tokens(fields, 16)
        ends = served.scheduler.tokenizer.ends
        top, echo = fields.get("logprobs"), fields.get("echo", False)
        reported = echo and top is not None  # the last token's probability needs those before it alone
        check_context(prompts, served.scheduler, "prompt", room=int(reported))
        more = {**await self.guided(fields, served), "sharer": self.sharer(request)}
        requests = text_requests(fields, prompts, max_tokens=most, ends=ends, top=top, echo=echo, **more)
        shape = CompletionShape(served.scheduler.token_names, top)
        return await self.answer(request, fields, served, requests, shape, warnings)

    async def chat(self, request: Request) -> Response:
        """Answer POST /v1/chat/completions."""
        fields = await bodies.checked(request, self.settings)
        served = await self.models.find(fields["model"])
        scheduler, tokenizer = served.scheduler, served.scheduler.tokenizer
        await require_roles(served)
        if fields.get("top_logprobs") and not fields.get("logprobs"):
            raise ApiError(400, "top_logprobs is allowed only with logprobs", "top_logprobs", "invalid_value")
        if len({fields[name] for name in ("max_tokens", "max_completion_tokens") if name in fields}) > 1:
            raise ApiError(400, "max_tokens is the old name of max_completion_tokens: give one", "max_tokens")
        prompt = await asyncio.to_thread(encode_chat, fields["messages"], tokenizer, "messages")
        check_context([prompt], scheduler, "messages")
        name = "max_completion_tokens" if "max_completion_tokens" in fields else "max_tokens"
        most, warnings = self.max_tokens(fields, scheduler.model.block_size, name)
        top = fields.get("top_logprobs", 0) if fields.get("logprobs") else None
        ends = await asyncio.to_thread(examples.chat_ends, tokenizer)
        more = {**await self.guided(fields, served), "sharer": self.sharer(request)}
        requests = text_requests(fields, [prompt], max_tokens=most, ends=ends, top=top, **more)
        shape = ChatShape(scheduler.token_names, top)
        return await self.answer(request, fields, served, requests, shape, warnings)

    async def embeddings(self, request: Request) -> Response:
        """Answer POST /v1/embeddings."""
        fields = await bodies.checked(request, self.settings)
        served = await self.models.find(fields["model"])
        scheduler = served.scheduler
        check_dimensions(fields.get("dimensions"), scheduler)
        prompts = await encode_prompts(scheduler, fields["input"], "input")
        tokens = sum(map(len, prompts))
        if tokens > MAX_INPUT_TOKENS:
            message = f"the inputs must be at most {MAX_INPUT_TOKENS} tokens in all, got {tokens}"
            raise ApiError(400, message, "input", "max_tokens_per_request")
        requests, sequences = [EmbeddingRequest(ids) for ids in prompts], list[Sequence]()
        at_once = min(self.settings.sessions, self.settings.queue)
        for begin in range(0, len(requests), at_once):
            part = requests[begin : begin + at_once]
            async with self.computed(request, scheduler, part, patient=begin > 0) as (some, changes):
                async for _ in changes:
                    pass
            sequences += some
        in_bytes = fields.get("encoding_format") == "base64"
        data: list[Fields] = []
        for i, sequence in enumerate(sequences):
            vector = np.asarray(sequence.vector, "<f4")
            shown = base64.b64encode(vector.tobytes()).decode() if in_bytes else vector.tolist()
            data.append({"object": "embedding", "index": i, "embedding": shown})
        usage = {"prompt_tokens": tokens, "total_tokens": tokens}
        answer: Fields = {"object": "list", "data": data, "model": served.id, "usage": usage}
        context = scheduler.model.block_size
        if n := sum(len(ids) > context for ids in prompts):
            how = f"they were read in windows of {context} tokens, the context, and averaged"
            answer["warnings"] = [f"{n} of {len(prompts)} inputs are longer than the context: {how}"]
        return Json(answer)

    async def guided(self, fields: Fields, served: ServedModel) -> Fields:
        """Return the fields of TextRequest that say which tokens may come; raise ApiError 400 for bad."""
        scheduler, found = served.scheduler, dict[str, Any]()
        try:
            found["bias"] = bias_of(fields.get("logit_bias"), scheduler.model.vocab_size)
        except ValueError as error:
            raise ApiError(400, str(error), "logit_bias", "invalid_value") from None
        if not (GUIDED.keys() | {"text"}).isdisjoint(fields):
            found["masks"] = await asyncio.to_thread(masks_of, fields, scheduler.tokenizer)
        return found

    def sharer(self, request: Request) -> str:
        """Return whose prompts share what is read of them with those of this request."""
        return "" if self.settings.shared_cache else owner_of(request)

    def max_tokens(self, fields: Fields, default: int, name: str = "max_tokens") -> tuple[int, list[str]]:
        """Return how many tokens a text may have, and what to say where more are asked for."""
        most, given = self.settings.max_tokens, fields.get(name, default)
        if given > most and name in fields:
            return most, [f"{name} is {given}, and this server writes at most {most} tokens"]
        return min(given, most), []

    async def answer(
        self,
        request: Request,
        fields: Fields,
        served: ServedModel,
        requests: list[TextRequest],
        shape: Shape,
        warnings: list[str],
    ) -> Response:
        """Compute texts and return them in the given shape, whole or as a stream of events."""
        async with contextlib.AsyncExitStack() as stack:
            # a stream enters it before its header is sent, so that a full queue is an answer, too
            computed = self.computed(request, served.scheduler, requests)
            sequences, changes = await stack.enter_async_context(computed)
            answer = _Answer(fields, served.id, self.version, shape, sequences, warnings)
            if not fields.get("stream"):
                return await answer.whole(changes)
            return EventStream(stack.pop_all(), answer.events(changes), self.settings.write_seconds)

    @contextlib.asynccontextmanager
    async def computed(
        self,
        request: Request,
        scheduler: Scheduler,
        requests: Collection[TextRequest | EmbeddingRequest],
        patient: bool = False,
    ) -> AsyncIterator[tuple[list[Sequence], Changes]]:
        """Submit the requests, and where `patient` wait for room; give their sequences and the changes.

        The sequences are cancelled at the end of the context. The changes raise ApiError where a sequence
        fails, and ClientDisconnect once the client has gone.
        """
        news, gone = asyncio.Event(), asyncio.Event()
        if len(requests) > self.settings.queue:
            message = f"n times the prompts must be at most {self.settings.queue}, got {len(requests)}"
            raise ApiError(400, message, "n", "invalid_value")
        sequences = [Sequence(one, news.set) for one in requests]
        while True:
            try:
                scheduler.submit(sequences)
                break
            except Busy:
                if not patient:
                    wait, message = {"Retry-After": "1"}, "too many requests wait already"
                    raise ApiError(429, message, None, "rate_limit_exceeded", wait) from None
            await asyncio.sleep(ROOM_SECONDS)

        async def watch() -> None:
            while (await request.receive())["type"] != "http.disconnect":
                pass
            gone.set()
            news.set()

        async def changes() -> Changes:
            unfinished = set(range(len(sequences)))
            while unfinished:
                await news.wait()
                news.clear()
                if gone.is_set():
                    raise ClientDisconnect
                for i in sorted(unfinished):
                    text, tokens, finish = sequences[i].take()
                    if finish:
                        unfinished.discard(i)
                        self._measure(sequences[i])
                    if isinstance(finish, Exception):
                        raise _api_error(finish)
                    if text or tokens or finish:
                        yield Change(i, text, tokens, finish)

        watcher = asyncio.create_task(watch())
        try:
            yield sequences, changes()
        finally:
            watcher.cancel()
            scheduler.cancel(sequences)

    def _measure(self, sequence: Sequence) -> None:
        """Add the time to the first token of a sequence, if it had one, to the histogram."""
        if sequence.first_token_at:
            seconds = sequence.first_token_at - sequence.submitted_at
            self.first_token_seconds += seconds
            self.first_token_counts[sum(seconds > bound for bound in BUCKETS)] += 1


async def encode_prompts(scheduler: Scheduler, prompts: Any, param: str) -> Prompts:
    """Return the ids of one prompt or of several, in all forms that the API allows.

    Raise ApiError 400, which names `param`, for an id that the model does not have.
    """
    if isinstance(prompts, str) or isinstance(prompts[0], int):
        prompts = [prompts]
    tokenizer, vocab_size = scheduler.tokenizer, scheduler.model.vocab_size

    def encode() -> Prompts:
        return [_encode(prompt, tokenizer, vocab_size, param) for prompt in prompts]

    size = sum(map(len, prompts))
    return await asyncio.to_thread(encode) if size > SLOW_TEXT else encode()


def _encode(prompt: str | list[int], tokenizer: Tokenizer, vocab_size: int, param: str) -> tuple[int, ...]:
    if not isinstance(prompt, str) and max(prompt) >= vocab_size:  # the schema has checked the rest
        message = f"prompt ids must be in 0..{vocab_size - 1}, got {min(prompt)}..{max(prompt)}"
        raise ApiError(400, message, param, "invalid_value")
    if isinstance(prompt, str) and (head := _head(prompt, tokenizer)):
        id = tokenizer.vocabulary.special[head]
        begin = [i for i in tokenizer.begin if i != id]
        return (*begin, *map(int, tokenizer.encode_parts([id, prompt.removeprefix(head)])))
    return tuple(prompt_ids(prompt, tokenizer, vocab_size))


def _head(prompt: str, tokenizer: Tokenizer) -> str | None:
    """Return the token, an end or a beginning of text, that a prompt spells at its head, None for no such.

    Evaluation programs and other servers mean the token by it, and not its letters.
    """
    names = [*tokenizer.end_names, *filter(None, [tokenizer.vocabulary.begin])]
    return next((name for name in names if prompt.startswith(name)), None)


async def require_roles(served: ServedModel) -> None:
    """Raise ApiError 400 for a model that cannot chat."""
    if why := await asyncio.to_thread(examples.why_no_chat, served.scheduler.tokenizer):
        message = (
            f"the model {served.id}: {why}; make one that has roles with "
            "`python -m npgpt.finetune RUN DIALOGUES.jsonl -o NEW`, or use /v1/completions"
        )
        raise ApiError(400, message, "model", "model_has_no_roles")


def encode_chat(messages: list[Fields], tokenizer: Tokenizer, param: str) -> tuple[int, ...]:
    """Return the ids of a conversation and of what begins its reply.

    Raise ApiError 400, which names `param`, for one that the model's template refuses.
    """
    turns = [{"role": role_of(one), "content": text_of(one["content"])} for one in messages]
    try:
        return tuple(map(int, examples.encode_chat(tokenizer, turns)))
    except ValueError as error:
        raise ApiError(400, str(error), param, "invalid_value") from None


def check_dimensions(given: int | None, scheduler: Scheduler) -> None:
    """Raise ApiError 400 for vectors of another size than the model's."""
    size = scheduler.model.n_embd
    if given not in (None, size):
        message = f"dimensions is not supported by this server, but for {size}, the model's"
        raise ApiError(400, message, "dimensions", "unsupported_parameter")


def check_context(prompts: Prompts, scheduler: Scheduler, param: str, room: int = 0) -> None:
    """Raise ApiError 400, which names `param`, for a prompt that is longer than the model's context.

    `room` is how many tokens more it may have.
    """
    longest, context = max(map(len, prompts)), scheduler.model.block_size
    if longest > context + room:
        message = f"This model's maximum context length is {context} tokens, got {longest}"
        raise ApiError(400, message, param, "context_length_exceeded")


def text_requests(fields: Fields, prompts: Prompts, **more: Any) -> list[TextRequest]:
    """Return n requests for each prompt, with the settings in `fields` and `more` fields of TextRequest.

    The k-th of a prompt has the seed + k, so that a client can have it by itself.
    """
    if any(fields.get("stream_options", {}).values()) and not fields.get("stream"):
        message = "stream_options is allowed only with stream"
        raise ApiError(400, message, "stream_options", "invalid_value")
    settings: Fields = {"temperature": 1.0}  # OpenAI's default
    settings |= {name: fields[name] for name in SAMPLING_FIELDS if name in fields}
    settings["top_k"] = fields.get("top_k") or None  # 0: all, as other servers have it
    stop, seed = fields.get("stop", ()), fields.get("seed")
    more["sampling"] = Sampling(**settings)
    more["stop"] = tuple(filter(None, [stop] if isinstance(stop, str) else stop))
    more["ignore_eos"] = fields.get("ignore_eos", False)
    seeds = [None if seed is None else seed + k for k in range(fields.get("n", 1))]
    return [TextRequest(ids, seed=seed, **more) for ids in prompts for seed in seeds]


class _Answer:
    """The response to a request for texts, made of the changes of its sequences."""

    def __init__(
        self,
        fields: Fields,
        model: str,
        version: str,
        shape: Shape,
        sequences: list[Sequence],
        warnings: list[str],
    ) -> None:
        """`warnings`: what was asked for and is met as far as it goes."""
        self.warnings: Fields = {"warnings": warnings} if warnings else {}
        self.shape, self.sequences, self.n = shape, sequences, fields.get("n", 1)
        self.with_usage = (fields.get("stream_options") or {}).get("include_usage", False)
        self.head = {
            "id": new_id(shape.prefix),
            "created": int(time.time()),
            "model": model,
            "system_fingerprint": f"npgpt-{version}",
        }

    async def whole(self, changes: Changes) -> Json:
        """Return all texts at once, when they have ended."""
        texts, finishes = [""] * len(self.sequences), [""] * len(self.sequences)
        tokens: list[list[Token]] = [[] for _ in self.sequences]
        async for i, text, new, finish in changes:
            texts[i] += text
            tokens[i] += new
            finishes[i] = finish or finishes[i]
        each = zip(range(len(texts)), texts, tokens, finishes, strict=True)
        choices = [self.shape.choice(*one) for one in each]
        answer = {**self.head, "object": self.shape.whole, "choices": choices, "usage": self._usage()}
        return Json(answer | self.warnings)

    async def events(self, changes: Changes) -> AsyncIterator[bytes]:
        """Yield the texts as server-sent events; an error is the last of them."""
        usage: Fields = {"usage": None} if self.with_usage else {}
        for i in range(len(self.sequences)):
            if first := self.shape.first(i):
                yield self._event([first], **usage)
        try:
            async for change in changes:
                said = usage | (self.warnings if change.finish else {})  # where a text ends
                yield b"".join(self._event([chunk], **said) for chunk in self.shape.chunks(change))
        except ApiError as error:
            yield b"data: " + dumps(error.object()) + b"\n\n"
            return
        if self.with_usage:
            yield self._event([], usage=self._usage())
        yield b"data: [DONE]\n\n"

    def _event(self, choices: list[Fields], **more: Any) -> bytes:
        return (
            b"data: " + dumps({**self.head, "object": self.shape.chunk, "choices": choices, **more}) + b"\n\n"
        )

    def _usage(self) -> Fields:
        first = self.sequences[:: self.n]  # each prompt counts once
        prompt, cached = sum(len(s.request.ids) for s in first), sum(s.n_cached for s in first)
        drawn = sum(s.n_drawn for s in self.sequences)
        return {
            "prompt_tokens": prompt,
            "completion_tokens": drawn,
            "total_tokens": prompt + drawn,
            "prompt_tokens_details": {"cached_tokens": cached},
        }


def _api_error(error: Exception) -> ApiError:
    """Return the error of a sequence as the API reports it."""
    if isinstance(error, ApiError):
        return error
    if isinstance(error, MemoryError):
        return ApiError(503, "the server is out of memory", None, "unavailable")
    return ApiError(500, str(error))
