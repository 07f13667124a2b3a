"""OpenAI's HTTP API over the engine: routes, answers, streams, and who may ask.

Shapes are those of the openai client's types; an error is always OpenAI's error object.
"""

import asyncio
import base64
import contextlib
import csv
import hmac
import json
import math
import os
import resource
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn, TypeAlias

import numpy as np
from starlette.applications import Starlette
from starlette.datastructures import State, UploadFile
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import FileResponse, PlainTextResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from npgpt.engine.types import Fields
from npgpt.runtime import binding
from npgpt.runtime.sampling import Sampling, prompt_ids
from npgpt.server import openapi, schema
from npgpt.server.answers import Change, Changes, Chat, Completion, EventStream, Json, dumps, failure
from npgpt.server.engine import Busy, Engine, Finish, Sequence, Token
from npgpt.server.jobs import Files, Jobs, identity, page
from npgpt.server.schema import ApiError
from npgpt.text import tasks
from npgpt.text.tokenizer import Tokenizer

Open: TypeAlias = Callable[[Path], tuple[binding.Model, Tokenizer]]
PAGE = Path(__file__).with_name("index.html")
LOCAL = {"localhost", "127.0.0.1", "[::1]"}
INLINE = "'unsafe-inline'"  # the page is one file
POLICY = f"default-src 'none'; style-src {INLINE}; script-src {INLINE}; connect-src 'self'; img-src data:"
BUCKETS = (0.01, 0.03, 0.1, 0.3, 1, 3, 10, 30)  # seconds to the first token
CURVE = 300  # points of the loss curve
SLOW_TEXT = 1 << 14  # characters that are encoded beside the event loop
OPEN = {"/", "/health", "/openapi.json"}  # for those without the key too


@dataclass(frozen=True)
class Settings:
    """The bounds; seconds, bytes, tokens."""

    api_key: str | None = None
    loopback: bool = True  # only this machine's browsers and programs are meant
    sessions: int = 64  # texts that are computed at once
    queue: int = 256  # texts that wait
    requests: int = 512  # that are answered at once, what they send is held in memory
    max_tokens: int = 4096  # of an answer
    max_body: int = 4 << 20
    max_upload: int = 64 << 20
    connections: int = 2000
    header_seconds: float = 10
    body_seconds: float = 30
    write_seconds: float = 30  # for a client to take what it asked for
    keep_alive_seconds: int = 5
    grace: float = 30  # between SIGTERM and the end of what runs


@dataclass
class Served:
    """A model by its name."""

    id: str
    path: Path  # what the worker tunes
    opened: Engine | None = None  # None: of a tuned one that nobody has asked for yet
    created: int = field(default_factory=lambda: int(time.time()))

    @property
    def engine(self) -> Engine:
        """Of a model that is open."""
        assert self.opened, "find() opens it"
        return self.opened

    def about(self) -> Fields:
        """OpenAI's model object."""
        return {"id": self.id, "object": "model", "created": self.created, "owned_by": "npgpt"}


def create(path: Path, name: str, open_model: Open, settings: Settings, version: str) -> Starlette:
    """The application that serves the model `path` as `name`.

    open_model(path) -> (binding.Model, tokenizer); ValueError and OSError where there is none.
    """
    server = Server(path, name, open_model, settings, version)
    routes = [
        Route("/", server.page),
        Route("/health", server.health),
        Route("/metrics", server.metrics),
        Route("/run", server.run),
        Route("/openapi.json", server.openapi),
        Route("/v1/models", server.list_models),
        Route("/v1/models/{id:path}", server.model, methods=["GET", "DELETE"]),
        Route("/v1/completions", server.completions, methods=["POST"]),
        Route("/v1/chat/completions", server.chat, methods=["POST"]),
        Route("/v1/embeddings", server.embeddings, methods=["POST"]),
        Route("/v1/files", server.files_, methods=["GET", "POST"]),
        Route("/v1/files/{id}", server.file, methods=["GET", "DELETE"]),
        Route("/v1/files/{id}/content", server.file_content),
        Route("/v1/fine_tuning/jobs", server.jobs_, methods=["GET", "POST"]),
        Route("/v1/fine_tuning/jobs/{id}", server.job),
        Route("/v1/fine_tuning/jobs/{id}/events", server.job_events),
        Route("/v1/fine_tuning/jobs/{id}/cancel", server.job_cancel, methods=["POST"]),
    ]

    async def refused(request: Request, error: Any) -> Response:
        return failure(error)

    async def no_such(request: Request, error: Any) -> Response:
        return failure(ApiError(error.status_code, error.detail, headers=error.headers))

    async def gone(request: Request, error: Any) -> Response:
        return Response(status_code=499)

    async def broken(request: Request, error: Any) -> Response:
        return failure(ApiError(500, "the server failed; its log says how"))

    handlers = {ApiError: refused, HTTPException: no_such, ClientDisconnect: gone, Exception: broken}
    app = Starlette(routes=routes, exception_handlers=handlers, lifespan=server.lifespan)
    server.state = app.state
    app.state.closing, app.state.stop = False, server.stop
    app.add_middleware(Guard, server=server)
    return app


class Guard:
    """Around everything: who may ask, whether there is room; counts requests."""

    def __init__(self, app: ASGIApp, server: "Server") -> None:
        self.app, self.server = app, server

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request, or refuse it (ASGI)."""
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        status = 0

        async def counted(message: Message) -> None:
            nonlocal status
            status = message.get("status", status)
            await send(message)

        server = self.server
        server.in_flight += 1
        try:
            self.check(scope)
            await self.app(scope, receive, counted)
        except ApiError as error:
            await failure(error)(scope, receive, counted)
        finally:
            server.in_flight -= 1
            server.answers[status] = server.answers.get(status, 0) + 1

    def check(self, scope: Scope) -> None:
        """ApiError 401, 403, 429 or 503 for a request that is not let in."""
        settings, headers = self.server.settings, dict(scope["headers"])
        host = headers.get(b"host", b"").decode("latin-1").lower()
        open_to_all = settings.loopback and not settings.api_key
        if open_to_all and host.rsplit(":", 1)[0] not in LOCAL and host not in LOCAL:
            # another site's name for this address: a page there must not reach us through its visitors
            raise ApiError(403, "the Host must be localhost or 127.0.0.1", "Host", "forbidden_host")
        origin = headers.get(b"origin", b"").decode("latin-1").lower()
        if origin and origin.partition("://")[2] != host:
            raise ApiError(403, "pages of other sites may not ask", "Origin", "forbidden_origin")
        if settings.api_key and scope["path"] not in OPEN:
            scheme, _, key = headers.get(b"authorization", b"").partition(b" ")
            known = hmac.compare_digest(key.strip(), settings.api_key.encode())
            if scheme.lower() != b"bearer" or not known:
                challenge = {"WWW-Authenticate": "Bearer"}
                raise ApiError(401, "Incorrect API key provided", None, "invalid_api_key", challenge)
        if self.server.state.closing and scope["path"] != "/health":
            raise ApiError(503, "the server is shutting down", None, "unavailable", {"Retry-After": "10"})
        if self.server.in_flight > settings.requests and scope["method"] == "POST":  # no body is read
            message = "too many requests are being answered"
            raise ApiError(429, message, None, "rate_limit_exceeded", {"Retry-After": "1"})


class Server:
    """The state of the server, and a handler for each route."""

    state: State  # the application's

    def __init__(self, path: Path, name: str, open_model: Open, settings: Settings, version: str) -> None:
        self.settings, self.version, self._open = settings, version, open_model
        self.models = {name: Served(name, Path(path), self._engine(path))}
        self.main = self.models[name]
        self.in_flight = 0
        self.answers: dict[int, int] = {}  # by their status
        self.first_tokens, self.first_seconds = [0] * (len(BUCKETS) + 1), 0.0
        self._opening = asyncio.Lock()

    def _engine(self, path: Path) -> Engine:
        return Engine(*self._open(path), self.settings.sessions, self.settings.queue)

    @contextlib.asynccontextmanager
    async def lifespan(self, app: Starlette) -> AsyncIterator[None]:
        """Starts the engine and the jobs; ends them."""
        self.main.engine.start(asyncio.get_running_loop())
        self.files = Files()
        self.jobs = Jobs(self.files, self.tuned)
        try:
            yield
        finally:
            await self.jobs.close()
            await asyncio.to_thread(self.stop)
            self.files.close()

    def stop(self) -> None:
        """The grace time is over."""
        for served in self.models.values():
            if served.opened:
                served.opened.close(ApiError(503, "the server is shutting down", None, "unavailable"))

    # ------------------------------------------------------------------------ models

    def tuned(self, name: str, folder: Path) -> None:
        """A job has made the model in `folder`."""
        self.models[name] = Served(name, folder)

    async def find(self, name: str) -> Served:
        """The model of a request, opened where it is not yet."""
        if name not in self.models:
            message = f"The model {name[:100]!r} does not exist"
            raise ApiError(404, message, "model", "model_not_found")
        served = self.models[name]
        async with self._opening:
            if served.opened is None:
                try:
                    served.opened = await asyncio.to_thread(self._engine, served.path)
                except (OSError, ValueError, MemoryError) as error:
                    raise ApiError(500, f"the model cannot be opened: {error}", "model") from None
                served.engine.start(asyncio.get_running_loop())
        return served

    async def list_models(self, request: Request) -> Response:
        """GET /v1/models."""
        return Json({"object": "list", "data": [served.about() for served in self.models.values()]})

    async def model(self, request: Request) -> Response:
        """GET, DELETE /v1/models/{id}."""
        name = request.path_params["id"]
        if name not in self.models:
            message = f"The model {name[:100]!r} does not exist"
            raise ApiError(404, message, "model", "model_not_found")
        served = self.models[name]
        if request.method == "GET":
            return Json(served.about())
        if served is self.main:
            raise ApiError(403, "this is the model that is served; only tuned ones can go", "model")
        del self.models[name]
        if served.opened:
            await asyncio.to_thread(served.opened.close, ApiError(404, "the model was deleted", "model"))
        return Json({"id": name, "object": "model", "deleted": True})

    # ------------------------------------------------------------------------ texts

    async def body(self, request: Request) -> Fields:
        """The fields of a JSON request, checked."""
        data = await self.read(request, self.settings.max_body)
        try:
            found = json.loads(data.decode("utf-8"), parse_constant=_no_number)
        except UnicodeDecodeError as error:
            raise ApiError(
                400, f"the body must be UTF-8, byte {error.start} is not", None, "invalid_body"
            ) from None
        except (ValueError, RecursionError) as error:
            raise ApiError(400, f"the body must be JSON: {str(error)[:100]}", None, "invalid_body") from None
        return schema.check(request.url.path, found)

    async def read(self, request: Request, most: int) -> bytearray:
        """The body of a request; ApiError 413 beyond `most` bytes, 408 where it does not come in time."""
        too_large = ApiError(413, f"the body must be at most {most} bytes", None, "body_too_large")
        length = request.headers.get("content-length", "0")
        if length.isdigit() and int(length[:18]) > most:
            raise too_large
        data = bytearray()
        try:
            async with asyncio.timeout(self.settings.body_seconds):
                async for chunk in request.stream():
                    data += chunk
                    if len(data) > most:
                        raise too_large
        except TimeoutError:
            closing = {"Connection": "close"}
            raise ApiError(408, "the body did not come in time", None, "timeout", closing) from None
        return data

    async def ids(self, served: Served, prompts: Any, param: str) -> list[list[int]]:
        """The ids of a prompt or of several, in all forms that the API allows."""
        if isinstance(prompts, str) or isinstance(prompts[0], int):
            prompts = [prompts]
        tokenizer, model = served.engine.vocabulary.tokenizer, served.engine.model

        def encode() -> list[list[int]]:
            return [prompt_ids(prompt, tokenizer, model.vocab_size) for prompt in prompts]

        size = sum(map(len, prompts))
        try:
            rows = await asyncio.to_thread(encode) if size > SLOW_TEXT else encode()
        except (ValueError, TypeError) as error:
            raise ApiError(400, str(error).removeprefix("generate: "), param, "invalid_value") from None
        return self.fitting(rows, model, param)

    def fitting(self, rows: list[list[int]], model: binding.Model, param: str) -> list[list[int]]:
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
        rows: list[list[int]],
        max_tokens: int,
        ends: tuple[int, ...],
        top: int | None,
        echo: bool = False,
    ) -> list[Sequence]:
        """n texts of each prompt; the k-th has the seed + k, so that it can be had by itself."""
        if "stream_options" in fields and not fields.get("stream"):
            raise ApiError(
                400, "stream_options is allowed only with stream", "stream_options", "invalid_value"
            )
        stop = fields.get("stop", [])
        how = Sampling(
            fields.get("temperature", 1.0),
            fields.get("top_k") or None,
            fields.get("top_p", 1.0),
            fields.get("min_p", 0.0),
            fields.get("repetition_penalty", 1.0),
            fields.get("presence_penalty", 0.0),
            fields.get("frequency_penalty", 0.0),
        )
        more = {
            "sampling": how,
            "ends": ends,
            "ignore_eos": fields.get("ignore_eos", False),
            "stop": [stop] if isinstance(stop, str) else stop,
            "top": top,
            "echo": echo,
        }
        n, seed = fields.get("n", 1), fields.get("seed")
        seeds = [None if seed is None else seed + k for k in range(n)]
        return [Sequence(ids, max_tokens, seed=seed, **more) for ids in rows for seed in seeds]

    async def completions(self, request: Request) -> Response:
        """POST /v1/completions."""
        fields = await self.body(request)
        served = await self.find(fields["model"])
        rows = await self.ids(served, fields["prompt"], "prompt")
        end = served.engine.vocabulary.tokenizer.end_of_text
        most = self.max_tokens(fields.get("max_tokens"), 16)
        top, echo = fields.get("logprobs"), fields.get("echo", False)
        sequences = self.sequences(fields, rows, most, (end,), top, echo)
        return await self.answer(
            request, fields, served, sequences, Completion(served.engine.vocabulary, top)
        )

    async def chat(self, request: Request) -> Response:
        """POST /v1/chat/completions."""
        fields = await self.body(request)
        served = await self.find(fields["model"])
        tokenizer = served.engine.vocabulary.tokenizer
        if not tasks.has_roles(tokenizer):
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
            ids = await asyncio.to_thread(lambda: list(map(int, tasks.encode_chat(tokenizer, messages))))
        except ValueError as error:
            raise ApiError(400, str(error), "messages", "invalid_value") from None
        rows = self.fitting([ids], served.engine.model, "messages")
        name = "max_completion_tokens" if "max_completion_tokens" in fields else "max_tokens"
        most = self.max_tokens(fields.get(name), served.engine.model.block_size, name)
        top = fields.get("top_logprobs", 0) if fields.get("logprobs") else None
        ends = (tasks.end_token(tokenizer), tokenizer.end_of_text)
        sequences = self.sequences(fields, rows, most, ends, top)
        return await self.answer(request, fields, served, sequences, Chat(served.engine.vocabulary, top))

    async def embeddings(self, request: Request) -> Response:
        """POST /v1/embeddings."""
        fields = await self.body(request)
        served = await self.find(fields["model"])
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
        self,
        request: Request,
        fields: Fields,
        served: Served,
        sequences: list[Sequence],
        form: Completion | Chat,
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

        return await EventStream.begin(
            self.attached(request, served, sequences), events, self.settings.write_seconds
        )

    def measure(self, sequence: Sequence) -> None:
        """Count how long the first token took."""
        if sequence.first:
            seconds = sequence.first - sequence.submitted
            self.first_seconds += seconds
            self.first_tokens[sum(seconds > bound for bound in BUCKETS)] += 1

    # ------------------------------------------------------------------------ files, jobs

    async def files_(self, request: Request) -> Response:
        """GET, POST /v1/files."""
        if request.method == "GET":
            return Json(page(self.files.all(), *_page(request)))
        self.files.room()
        length = request.headers.get("content-length", "")
        if not length.isdigit():
            raise ApiError(400, "an upload must say its Content-Length", None, "invalid_body")
        if int(length[:18]) > self.settings.max_upload:
            message = f"the body must be at most {self.settings.max_upload} bytes"
            raise ApiError(413, message, "file", "body_too_large")
        try:
            async with asyncio.timeout(self.settings.body_seconds * 4):
                async with request.form(max_files=1, max_fields=4, max_part_size=1 << 16) as form:
                    upload, purpose = form.get("file"), form.get("purpose")
                    if unknown := set(form) - {"file", "purpose"}:
                        raise ApiError(400, f"Unrecognized request argument supplied: {min(unknown)[:100]}")
                    if not isinstance(upload, UploadFile):
                        raise ApiError(400, "file must be a file", "file", "missing_required_parameter")
                    if purpose != "fine-tune":
                        raise ApiError(400, "purpose must be 'fine-tune'", "purpose", "invalid_value")
                    return Json(await asyncio.to_thread(self.files.add, upload.filename or "", upload.file))
        except TimeoutError:
            raise ApiError(408, "the body did not come in time", None, "timeout") from None
        except (HTTPException, UnicodeDecodeError, AssertionError):
            raise ApiError(400, "the body must be multipart/form-data", None, "invalid_body") from None

    async def file(self, request: Request) -> Response:
        """GET, DELETE /v1/files/{id}."""
        id = request.path_params["id"]
        return Json(self.files.get(id) if request.method == "GET" else self.files.delete(id))

    async def file_content(self, request: Request) -> Response:
        """GET /v1/files/{id}/content."""
        id = self.files.get(request.path_params["id"])["id"]
        return FileResponse(self.files.path(id), media_type="application/octet-stream")

    async def jobs_(self, request: Request) -> Response:
        """GET, POST /v1/fine_tuning/jobs."""
        if request.method == "GET":
            return Json(page(self.jobs.all(), *_page(request)))
        fields = await self.body(request)
        name = fields["model"]
        if name not in self.models:
            raise ApiError(404, f"The model {name[:100]!r} does not exist", "model", "model_not_found")
        base = self.models[name].path
        if not base.is_dir():
            message = "only a run or a Hugging Face folder can be fine-tuned, and this model is a file"
            raise ApiError(400, message, "model", "invalid_value")
        return Json(self.jobs.create(fields, base.resolve()))

    async def job(self, request: Request) -> Response:
        """GET /v1/fine_tuning/jobs/{id}."""
        return Json(self.jobs.get(request.path_params["id"]))

    async def job_events(self, request: Request) -> Response:
        """GET /v1/fine_tuning/jobs/{id}/events."""
        return Json(page(self.jobs.events(request.path_params["id"]), *_page(request)))

    async def job_cancel(self, request: Request) -> Response:
        """POST /v1/fine_tuning/jobs/{id}/cancel."""
        return Json(await self.jobs.cancel(request.path_params["id"]))

    # ------------------------------------------------------------------------ about itself

    async def page(self, request: Request) -> Response:
        """GET /: the page to try the model."""
        headers = {"Content-Security-Policy": POLICY, "X-Content-Type-Options": "nosniff"}
        return FileResponse(PAGE, media_type="text/html; charset=utf-8", headers=headers)

    async def health(self, request: Request) -> Response:
        """GET /health: 503 once the server is shutting down."""
        if self.state.closing:
            raise ApiError(503, "the server is shutting down", None, "unavailable")
        return Json({"status": "ok"})

    async def openapi(self, request: Request) -> Response:
        """GET /openapi.json."""
        return Json(openapi.describe(self.version, list(self.models)))

    async def run(self, request: Request) -> Response:
        """GET /run: what the page shows of the model."""
        engine = self.main.engine
        tokenizer = engine.vocabulary.tokenizer
        return Json(
            {
                "model": self.main.id,
                "context": engine.model.block_size,
                "vocabulary": engine.model.vocab_size,
                "max_tokens": self.settings.max_tokens,
                "roles": tasks.has_roles(tokenizer),
                "loss": loss_curve(self.main.path / "metrics.csv"),
            }
        )

    async def metrics(self, request: Request) -> Response:
        """GET /metrics, in Prometheus's text format."""
        engines = [served.opened for served in self.models.values() if served.opened]
        pages = int(Path("/proc/self/statm").read_text().split()[1])
        rows = [
            ("npgpt_sessions", "gauge", sum(engine.running for engine in engines)),
            ("npgpt_waiting", "gauge", sum(engine.waiting for engine in engines)),
            ("npgpt_requests_in_flight", "gauge", self.in_flight),
            ("npgpt_tokens_total", "counter", sum(engine.tokens for engine in engines)),
            ("npgpt_prompt_tokens_total", "counter", sum(engine.prompt_tokens for engine in engines)),
            ("npgpt_steps_total", "counter", sum(engine.steps for engine in engines)),
            ("process_resident_memory_bytes", "gauge", pages * resource.getpagesize()),
            ("process_open_fds", "gauge", len(os.listdir("/proc/self/fd"))),
        ]
        lines = [f"# TYPE {name} {kind}\n{name} {value}" for name, kind, value in rows]
        lines.append("# TYPE npgpt_answers_total counter")
        lines += [f'npgpt_answers_total{{status="{s}"}} {n}' for s, n in sorted(self.answers.items())]
        lines.append("# TYPE npgpt_first_token_seconds histogram")
        total = 0
        for bound, n in zip((*BUCKETS, "+Inf"), self.first_tokens, strict=True):
            total += n
            lines.append(f'npgpt_first_token_seconds_bucket{{le="{bound}"}} {total}')
        lines.append(f"npgpt_first_token_seconds_sum {self.first_seconds}")
        lines.append(f"npgpt_first_token_seconds_count {total}")
        return PlainTextResponse("\n".join(lines) + "\n")


def _as_error(finish: Finish) -> str | ApiError | None:
    """What ended a sequence as the API says it."""
    if not isinstance(finish, Exception) or isinstance(finish, ApiError):
        return finish
    if isinstance(finish, MemoryError):
        return ApiError(503, "the server is out of memory", None, "unavailable")
    return ApiError(500, str(finish))


def _text_of(content: Any) -> str:
    return content if isinstance(content, str) else "".join(part["text"] for part in content)


def _no_number(name: str) -> NoReturn:
    raise ValueError(f"{name} is no number")


def _page(request: Request) -> tuple[str | None, str | None]:
    return request.query_params.get("after"), request.query_params.get("limit")


def loss_curve(path: Path) -> list[list[float | None]]:
    """[step, training loss, validation loss or null] of a run, at most about CURVE of them."""
    rows = []
    with contextlib.suppress(OSError, KeyError, ValueError), open(path, encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file):
            rows.append([int(row["step"]), float(row["train_loss"]), float(row["val_loss"] or "nan")])
    stride = max(1, len(rows) // CURVE)
    kept = [row for i, row in enumerate(rows) if i % stride == 0 or i == len(rows) - 1 or row[2] == row[2]]
    return [[value if math.isfinite(value) else None for value in row] for row in kept]
