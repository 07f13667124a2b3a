"""The shapes of responses, as the openai client's types have them: JSON, lists, events, texts, chats."""

import asyncio
import contextlib
import json
import secrets
from collections.abc import AsyncIterator
from typing import Any, NamedTuple, TypeAlias

from starlette.requests import ClientDisconnect
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from npgpt.engine.types import Fields
from npgpt.server.schema import ApiError
from npgpt.server.tokens import Token, TokenNames


class Change(NamedTuple):
    """The new output of one text of a request."""

    choice: int  # index of the text
    text: str
    tokens: list[Token]
    finish: str | None  # "stop", "length", "cancelled"; None: the text goes on


Changes: TypeAlias = AsyncIterator[Change]  # raises ApiError where a text fails


class Json(Response):
    """A response of JSON in UTF-8; half a surrogate pair is written as an escape."""

    media_type = "application/json"

    def render(self, content: Any) -> bytes:
        """Return the body."""
        return dumps(content)


def dumps(content: Any) -> bytes:
    """Return `content` as JSON; raise ValueError for a number that is not finite."""
    try:
        return json.dumps(content, ensure_ascii=False, allow_nan=False).encode()
    except UnicodeEncodeError:  # half a surrogate pair that somebody sent
        return json.dumps(content, allow_nan=False).encode()


def failure(error: ApiError) -> Json:
    """Return the response that reports an error."""
    return Json(error.object(), error.status, error.headers)


def new_id(kind: str) -> str:
    """Return a new id as OpenAI writes them: "kind-..."."""
    return f"{kind}-{secrets.token_hex(12)}"


def list_page(items: list[Fields], query: Fields, size: int = 20) -> Fields:
    """Return OpenAI's list: `limit` of the items that follow the one with id `after`, both in the query.

    `size` is how many there are without a limit.
    """
    size = query.get("limit", size)
    if (after := query.get("after")) is not None:
        places = [i for i, item in enumerate(items) if item["id"] == after]
        if not places:
            raise ApiError(400, "after must be the id of an item of the list", "after", "invalid_value")
        items = items[places[0] + 1 :]
    return {"object": "list", "data": items[:size], "has_more": len(items) > size}


def new_request_id() -> str:
    """Return a new id of a request, as OpenAI writes it."""
    return f"req_{secrets.token_hex(16)}"


class EventStream(Response):
    """A response of server-sent events; a client that does not take one within `seconds` is dropped."""

    media_type = "text/event-stream"

    def __init__(
        self, source: contextlib.AsyncExitStack, events: AsyncIterator[bytes], seconds: float
    ) -> None:
        """`source` holds the contexts, entered already, that the events need; they are left at the end."""
        super().__init__(headers={"Cache-Control": "no-store"})
        del self.headers["content-length"]
        self.source, self.events, self.seconds = source, events, seconds

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the events as they come (ASGI)."""

        async def write(body: bytes, more: bool = True) -> None:
            async with asyncio.timeout(self.seconds):
                await send({"type": "http.response.body", "body": body, "more_body": more})

        async with self.source:
            try:
                await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
                async for body in self.events:
                    await write(body)
                await write(b"", more=False)
            except ClientDisconnect:
                pass
            except TimeoutError:
                scope["state"]["abort"]()


class CompletionShape:
    """The shape of /v1/completions."""

    prefix, whole, chunk = "cmpl", "text_completion", "text_completion"

    def __init__(self, names: TokenNames, top: int | None) -> None:
        """List `top` alternatives with each token; None: no log-probabilities at all."""
        self.names, self.top = names, top

    def first(self, index: int) -> Fields | None:
        """Return what a stream begins with: nothing."""
        return None

    def choice(self, index: int, text: str, tokens: list[Token], finish: str | None) -> Fields:
        """Return a whole text as a choice."""
        logprobs = None if self.top is None else self.logprobs(tokens)
        return {"index": index, "text": text, "logprobs": logprobs, "finish_reason": finish}

    def chunks(self, change: Change) -> list[Fields]:
        """Return a change as choices of a stream's events."""
        return [self.choice(*change)]

    def logprobs(self, tokens: list[Token]) -> Fields:
        """Return the log-probabilities of tokens and of their alternatives."""
        name = self.names.name
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


class ChatShape:
    """The shape of /v1/chat/completions."""

    prefix, whole, chunk = "chatcmpl", "chat.completion", "chat.completion.chunk"

    def __init__(self, names: TokenNames, top: int | None) -> None:
        """List `top` alternatives with each token; None: no log-probabilities at all."""
        self.names, self.top = names, top

    def first(self, index: int) -> Fields | None:
        """Return what a stream begins with: whose turn it is."""
        return self._chunk(index, {"role": "assistant", "content": "", "refusal": None}, [], None)

    def choice(self, index: int, text: str, tokens: list[Token], finish: str | None) -> Fields:
        """Return a whole reply as a choice."""
        message, logprobs = {"role": "assistant", "content": text, "refusal": None}, self.logprobs(tokens)
        return {"index": index, "message": message, "logprobs": logprobs, "finish_reason": finish}

    def chunks(self, change: Change) -> list[Fields]:
        """Return a change as choices of a stream's events; the end of a reply is one of its own."""
        index, text, tokens, finish = change
        chunks = [self._chunk(index, {"content": text}, tokens, None)] if text or tokens else []
        return chunks + ([self._chunk(index, {}, [], finish)] if finish else [])

    def _chunk(self, index: int, delta: Fields, tokens: list[Token], finish: str | None) -> Fields:
        logprobs = self.logprobs(tokens) if tokens else None
        return {"index": index, "delta": delta, "logprobs": logprobs, "finish_reason": finish}

    def logprobs(self, tokens: list[Token]) -> Fields | None:
        """Return the log-probabilities of tokens and of their alternatives; None if nobody asked for them."""
        if self.top is None:
            return None
        return {"content": [{**self._token(t.id, t.logprob), "top_logprobs": self._top(t)} for t in tokens]}

    def _top(self, token: Token) -> list[Fields]:
        return [self._token(id, logprob) for id, logprob in token.top]

    def _token(self, id: int, logprob: float | None) -> Fields:
        return {"token": self.names.name(id), "logprob": logprob, "bytes": list(self.names.bytes(id))}


Shape: TypeAlias = CompletionShape | ChatShape
