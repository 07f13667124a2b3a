"""/v1/responses: an answer, whole or as OpenAI's stream of events, which is kept for the next turn."""

import asyncio
import bisect
import contextlib
import secrets
import time
from collections.abc import AsyncIterator
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from npgpt.engine.types import Fields
from npgpt.server import bodies
from npgpt.server.completions import Completions, check_context, encode_chat, require_roles, text_requests
from npgpt.server.guard import owner_of
from npgpt.server.models import ServedModel
from npgpt.server.responses import Changes, ChatShape, EventStream, Json, dumps, list_page
from npgpt.server.schema import TEXT_LOGPROBS, ApiError
from npgpt.server.sequence import Sequence
from npgpt.server.store import Store
from npgpt.server.tokens import Token
from npgpt.text import examples
from npgpt.text.messages import MANY_MESSAGES, REFERENCE, text_of

SHOWN: Fields = {  # fields of a request that its answer shows, and what they are where nobody gives them
    "instructions": None,
    "max_output_tokens": None,
    "max_tool_calls": None,
    "parallel_tool_calls": True,
    "previous_response_id": None,
    "prompt_cache_key": None,
    "safety_identifier": None,
    "store": True,
    "temperature": 1.0,
    "tool_choice": "auto",
    "tools": [],
    "top_logprobs": 0,
    "top_p": 1.0,
    "truncation": "disabled",
    "user": None,
    "metadata": {},
}
ALWAYS: Fields = {
    "background": False,
    "reasoning": {"effort": None, "summary": None},
    "service_tier": "default",
    "text": {"format": {"type": "text"}, "verbosity": "medium"},
}


class Answers:
    """The handlers of /v1/responses."""

    def __init__(self, completions: Completions, store: Store) -> None:
        self.completions, self.store = completions, store

    async def create(self, request: Request) -> Response:
        """Answer POST /v1/responses."""
        fields = await bodies.checked(request, self.completions.settings)
        served = await self.completions.models.find(fields["model"])
        await require_roles(served)
        top = fields.get("top_logprobs", 0) if TEXT_LOGPROBS in fields.get("include", ()) else None
        if fields.get("top_logprobs") and top is None:
            message = f"top_logprobs is allowed only where include has {TEXT_LOGPROBS!r}"
            raise ApiError(400, message, "top_logprobs", "invalid_value")
        items = await self._items(fields, owner_of(request))
        ids = await self._prompt(fields, served, items)
        most, warnings = self.completions.max_tokens(
            fields, served.scheduler.model.block_size, "max_output_tokens"
        )
        (one,) = text_requests(
            fields | {"n": 1, "stream_options": {}},
            [ids],
            max_tokens=most,
            ends=await asyncio.to_thread(examples.chat_ends, served.scheduler.tokenizer),
            top=top,
            sharer=self.completions.sharer(request),
            **await self.completions.guided(fields, served),
        )
        async with contextlib.AsyncExitStack() as stack:
            # a stream enters it before its header is sent, so that a full queue is an answer, too
            computed = self.completions.computed(request, served.scheduler, [one])
            (sequence,), changes = await stack.enter_async_context(computed)
            answer = Answer(fields, served, sequence, ChatShape(served.scheduler.token_names, top), warnings)

            async def keep() -> None:
                if answer.about["store"]:
                    await self._keep(answer, items, owner_of(request))

            if not fields.get("stream"):
                async for _ in answer.take(changes):
                    pass
                answer.end()
                await keep()
                return Json(answer.about)
            events = answer.events(changes, keep)
            return EventStream(stack.pop_all(), events, self.completions.settings.write_seconds)

    async def one(self, request: Request) -> Response:
        """Answer GET and DELETE /v1/responses/{id}."""
        id, owner = request.path_params["id"], owner_of(request)
        if request.method != "DELETE":
            return Json((await self._kept(id, owner))["response"])
        if not await asyncio.to_thread(self.store.delete, id, owner):
            raise _unknown(id)
        return Json({"id": id, "object": "response", "deleted": True})

    async def input_items(self, request: Request) -> Response:
        """Answer GET /v1/responses/{id}/input_items: all that the answer was given to, the newest first."""
        items = (await self._kept(request.path_params["id"], owner_of(request)))["items"]
        query = request.state.query
        page = list_page(items if query.get("order") == "asc" else items[::-1], query)
        ends = [page["data"][i]["id"] for i in (0, -1)] if page["data"] else [None, None]
        return Json({**page, "first_id": ends[0], "last_id": ends[1]})

    async def _items(self, fields: Fields, owner: str) -> list[Fields]:
        """Return all items of a conversation, those of the answer before it first."""
        before: list[Fields] = []
        if id := fields.get("previous_response_id"):
            try:
                kept = await self._kept(id, owner)
            except ApiError as error:
                message = f"Previous response with id {id[:100]!r} not found."
                if error.status != 404:
                    raise
                raise ApiError(400, message, "previous_response_id", "previous_response_not_found") from None
            before = kept["items"] + kept["response"]["output"]
        given = fields["input"]
        given = [{"role": "user", "content": given}] if isinstance(given, str) else given
        if len(before) + len(given) > MANY_MESSAGES:
            message = (
                f"a conversation must have at most {MANY_MESSAGES} items, got {len(before) + len(given)}"
            )
            raise ApiError(400, message, "input", "invalid_value")
        return before + [await self._item(one, i, owner) for i, one in enumerate(given)]

    async def _item(self, given: Fields, i: int, owner: str) -> Fields:
        """Return the item at place i of a request, which gives it or its id; ApiError where it does not."""
        if given.get("type") == REFERENCE or given.keys() == {"id"}:
            return await self._referred(given.get("id", ""), i, owner)
        for name in ("role", "content"):
            if name not in given:
                place, code = f"input[{i}].{name}", "missing_required_parameter"
                raise ApiError(400, f"you must provide {place}", place, code)
        return _item(given["role"], text_of(given["content"]), given.get("id"))

    async def _referred(self, id: str, i: int, owner: str) -> Fields:
        """Return the reply of an id, whose answer is kept."""
        try:
            kept = await self._kept(id.replace("msg_", "resp_", 1), owner)
        except ApiError as error:
            if error.status != 404:
                raise
            kept = {"response": {"output": []}}
        for item in kept["response"]["output"]:
            if item["id"] == id:
                return dict(item)
        why = "only replies are kept, and none with store: false"
        message = f"Item with id {id[:100]!r} not found: {why}"
        raise ApiError(404, message, f"input[{i}].id", "item_not_found")

    async def _prompt(self, fields: Fields, served: ServedModel, items: list[Fields]) -> tuple[int, ...]:
        """Return the ids of a conversation; with truncation "auto" the oldest items go until it fits."""
        head = [{"role": "system", "content": fields["instructions"]}] if "instructions" in fields else []
        turns = [{"role": one["role"], "content": one["content"]} for one in items]
        cuts = [0]  # where the conversation may begin
        if fields.get("truncation") == "auto":
            cuts += [i for i, turn in enumerate(turns) if i and turn["role"] == "user"]
        tokenizer, context = served.scheduler.tokenizer, served.scheduler.model.block_size

        def ids_from(cut: int) -> tuple[int, ...]:
            left = [
                turn for i, turn in enumerate(turns) if i >= cut or turn["role"] in ("system", "developer")
            ]
            return encode_chat(head + left, tokenizer, "input")

        def find() -> tuple[int, ...]:
            if len(ids := ids_from(0)) <= context:
                return ids
            first = bisect.bisect_left(cuts, True, key=lambda cut: len(ids_from(cut)) <= context)
            return ids_from(cuts[min(first, len(cuts) - 1)])

        ids = await asyncio.to_thread(find)
        check_context([ids], served.scheduler, "input")
        return ids

    async def _keep(self, answer: "Answer", items: list[Fields], owner: str) -> None:
        about = answer.about
        try:
            kept = {"response": about, "items": items}
            await asyncio.to_thread(self.store.put, about["id"], owner, kept)
        except OSError as error:  # it is an answer all the same
            about["store"] = False
            about["warnings"] = [*about.get("warnings", []), f"it could not be stored: {error.strerror}"]

    async def _kept(self, id: str, owner: str) -> Fields:
        """Return what is kept of an answer; raise ApiError 404 if this owner has none of this id."""
        try:
            kept = await asyncio.to_thread(self.store.get, id, owner)
        except (OSError, ValueError):
            raise ApiError(500, f"the response {id[:100]!r} cannot be read", "id") from None
        if not kept:
            raise _unknown(id)
        return kept


class Answer:
    """OpenAI's response object, which grows by the changes of a sequence."""

    def __init__(
        self, fields: Fields, served: ServedModel, sequence: Sequence, shape: ChatShape, warnings: list[str]
    ) -> None:
        """`warnings`: what was asked for and is met as far as it goes."""
        self.sequence, self.shape, self.sent = sequence, shape, 0
        self.text, self.tokens, self.finish = "", list[Token](), ""
        name = secrets.token_hex(24)  # of both, so that the id of a message leads to the answer
        self.message: Fields = {"id": f"msg_{name}", "type": "message", "role": "assistant"}
        self.about: Fields = {
            "id": f"resp_{name}",
            "object": "response",
            "created_at": int(time.time()),
            "completed_at": None,
            "status": "in_progress",
            "error": None,
            "incomplete_details": None,
            "model": served.id,
            "output": [],
            "usage": None,
            **ALWAYS,
            **SHOWN,
            **{name: value for name, value in fields.items() if name in SHOWN},
        }
        if given := fields.get("text", {}).get("format"):
            self.about["text"] = {**ALWAYS["text"], "format": given}
        if warnings:
            self.about["warnings"] = warnings

    async def take(self, changes: Changes) -> AsyncIterator[tuple[str, list[Token]]]:
        """Add the changes as they come, and yield each."""
        async for _, text, tokens, finish in changes:
            self.text, self.tokens = self.text + text, self.tokens + tokens
            self.finish = finish or self.finish
            yield text, tokens

    def end(self) -> None:
        """Set all that is known at the end."""
        whole = self.finish == "stop"
        status = "completed" if whole else "incomplete"
        read, drawn = len(self.sequence.request.ids), self.sequence.n_drawn
        self.message |= {"status": status, "content": [self._part(self.text, self.tokens)]}
        self.about |= {
            "status": status,
            "completed_at": int(time.time()) if whole else None,
            "incomplete_details": None if whole else {"reason": "max_output_tokens"},
            "output": [self.message],
            "usage": {
                "input_tokens": read,
                "input_tokens_details": {
                    "cached_tokens": self.sequence.n_cached,
                    "cache_write_tokens": self.sequence.n_kept,
                },
                "output_tokens": drawn,
                "output_tokens_details": {"reasoning_tokens": 0},
                "total_tokens": read + drawn,
            },
        }

    async def events(self, changes: Changes, keep: Any) -> AsyncIterator[bytes]:
        """Yield the events of OpenAI's stream, in its order; keep() is awaited before the last."""
        yield self._event("response.created", response=self.about)
        yield self._event("response.in_progress", response=self.about)
        begun = {**self.message, "status": "in_progress", "content": []}
        yield self._event("response.output_item.added", output_index=0, item=begun)
        place = {"item_id": self.message["id"], "output_index": 0, "content_index": 0}
        yield self._event("response.content_part.added", **place, part=self._part("", []))
        try:
            async for text, tokens in self.take(changes):
                if text or tokens:
                    more = {"delta": text, "logprobs": self._logprobs(tokens)}
                    yield self._event("response.output_text.delta", **place, **more)
        except ApiError as error:
            code = "rate_limit_exceeded" if error.status == 429 else "server_error"
            self.about |= {"status": "failed", "error": {"code": code, "message": str(error)}}
            yield self._event("response.failed", response=self.about)
            return
        self.end()
        await keep()
        whole = {"text": self.text, "logprobs": self._logprobs(self.tokens)}
        yield self._event("response.output_text.done", **place, **whole)
        yield self._event("response.content_part.done", **place, part=self.message["content"][0])
        yield self._event("response.output_item.done", output_index=0, item=self.message)
        yield self._event(f"response.{self.about['status']}", response=self.about)

    def _event(self, kind: str, **fields: Any) -> bytes:
        data = dumps({"type": kind, "sequence_number": self.sent, **fields})
        self.sent += 1
        return b"event: " + kind.encode() + b"\ndata: " + data + b"\n\n"

    def _part(self, text: str, tokens: list[Token]) -> Fields:
        return {"type": "output_text", "text": text, "annotations": [], "logprobs": self._logprobs(tokens)}

    def _logprobs(self, tokens: list[Token]) -> list[Fields]:
        found: list[Fields] = (self.shape.logprobs(tokens) or {"content": []})["content"]
        return found


def _item(role: str, text: str, id: str | None) -> Fields:
    """Return an item of input as it is kept."""
    part: Fields = {"type": "input_text", "text": text}
    if role == "assistant":
        part = {"type": "output_text", "text": text, "annotations": [], "logprobs": []}
    item: Fields = {"id": id or f"msg_{secrets.token_hex(24)}", "type": "message", "role": role}
    return {**item, "status": "completed", "content": [part]}


def _unknown(id: str) -> ApiError:
    return ApiError(404, f"Response with id {id[:100]!r} not found.", "id", "not_found")
