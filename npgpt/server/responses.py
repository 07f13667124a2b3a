"""The shapes of answers, as the openai client's types have them: JSON, events, completions, chats."""

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator
from typing import Any, TypeAlias

from starlette.requests import ClientDisconnect
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from npgpt.engine.types import Fields
from npgpt.server.scheduler import Token, Vocabulary
from npgpt.server.schema import ApiError

Change: TypeAlias = tuple[int, str, list[Token], str | ApiError | None]  # index, text, tokens, finish
Changes: TypeAlias = AsyncIterator[Change]
Attached: TypeAlias = contextlib.AbstractAsyncContextManager[Changes]


class Json(Response):
    """JSON in UTF-8; half a surrogate pair as an escape."""

    media_type = "application/json"

    def render(self, content: Any) -> bytes:
        """The body."""
        return dumps(content)


def dumps(content: Any) -> bytes:
    """`content` as JSON; ValueError for a number that is not finite."""
    try:
        return json.dumps(content, ensure_ascii=False, allow_nan=False).encode()
    except UnicodeEncodeError:  # half a surrogate pair that somebody sent
        return json.dumps(content, allow_nan=False).encode()


def failure(error: ApiError) -> Json:
    """The answer that tells of an error."""
    return Json(error.object(), error.status, error.headers)


class EventStream(Response):
    """Server-sent events. A client that does not take them within `seconds` is dropped.

    attached: the context that they come from, entered already; it is left when they end.
    """

    media_type = "text/event-stream"

    def __init__(self, attached: Attached, events: AsyncIterator[bytes], seconds: float) -> None:
        super().__init__(headers={"Cache-Control": "no-store"})
        del self.headers["content-length"]
        self.attached, self.events, self.seconds = attached, events, seconds

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the events as they come (ASGI)."""

        async def write(body: bytes, more: bool = True) -> None:
            async with asyncio.timeout(self.seconds):
                await send({"type": "http.response.body", "body": body, "more_body": more})

        try:
            await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
            async for body in self.events:
                await write(body)
            await write(b"", more=False)
        except ClientDisconnect:
            pass
        except TimeoutError:
            scope["state"]["abort"]()
        finally:
            await self.attached.__aexit__(None, None, None)


class Completion:
    """The shape of /v1/completions."""

    prefix, whole, piece = "cmpl", "text_completion", "text_completion"

    def __init__(self, vocabulary: Vocabulary, top: int | None) -> None:
        self.vocabulary, self.top = vocabulary, top

    def first(self, index: int) -> Fields | None:
        """What a stream begins with: nothing."""
        return None

    def choice(self, index: int, text: str, tokens: list[Token], finish: str | None) -> Fields:
        """A whole text."""
        logprobs = None if self.top is None else self.logprobs(tokens)
        return {"index": index, "text": text, "logprobs": logprobs, "finish_reason": finish}

    def pieces(self, index: int, text: str, tokens: list[Token], finish: str | None) -> list[Fields]:
        """A piece of a stream."""
        return [self.choice(index, text, tokens, finish)]

    def logprobs(self, tokens: list[Token]) -> Fields:
        """What the model thought of the tokens."""
        name = self.vocabulary.name
        tops = [
            None if t.logprob is None else {**{name(i): p for i, p in t.top}, name(t.id): t.logprob}
            for t in tokens
        ]
        return {
            "tokens": [name(t.id) for t in tokens],
            "token_logprobs": [t.logprob for t in tokens],
            "top_logprobs": tops,
            "text_offset": [t.offset for t in tokens],
        }


class Chat:
    """The shape of /v1/chat/completions."""

    prefix, whole, piece = "chatcmpl", "chat.completion", "chat.completion.chunk"

    def __init__(self, vocabulary: Vocabulary, top: int | None) -> None:
        self.vocabulary, self.top = vocabulary, top

    def first(self, index: int) -> Fields:
        """What a stream begins with: whose turn it is."""
        return self._piece(index, {"role": "assistant", "content": "", "refusal": None}, [], None)

    def choice(self, index: int, text: str, tokens: list[Token], finish: str | None) -> Fields:
        """A whole reply."""
        message, logprobs = {"role": "assistant", "content": text, "refusal": None}, self.logprobs(tokens)
        return {"index": index, "message": message, "logprobs": logprobs, "finish_reason": finish}

    def pieces(self, index: int, text: str, tokens: list[Token], finish: str | None) -> list[Fields]:
        """A piece of a stream; its end comes apart."""
        pieces = [self._piece(index, {"content": text}, tokens, None)] if text or tokens else []
        return pieces + ([self._piece(index, {}, [], finish)] if finish else [])

    def _piece(self, index: int, delta: Fields, tokens: list[Token], finish: str | None) -> Fields:
        logprobs = self.logprobs(tokens) if tokens else None
        return {"index": index, "delta": delta, "logprobs": logprobs, "finish_reason": finish}

    def logprobs(self, tokens: list[Token]) -> Fields | None:
        """What the model thought of the tokens, None unless it was asked for."""
        if self.top is None:
            return None
        return {"content": [{**self._token(t.id, t.logprob), "top_logprobs": self._top(t)} for t in tokens]}

    def _top(self, token: Token) -> list[Fields]:
        return [self._token(id, logprob) for id, logprob in token.top]

    def _token(self, id: int, logprob: float | None) -> Fields:
        data = list(self.vocabulary.bytes(id))
        return {"token": self.vocabulary.name(id), "logprob": logprob, "bytes": data}


Form: TypeAlias = Completion | Chat
