"""OpenAI's HTTP API for one model and those tuned from it: the routes and their handlers.

Shapes are those of the openai client's types; an error is always OpenAI's error object.
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any, TypeAlias

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import Message, Receive, Scope, Send

from npgpt.runtime import libnpgpt
from npgpt.server import schema
from npgpt.server.about import About
from npgpt.server.answers import Answers
from npgpt.server.completions import Completions
from npgpt.server.explaining import Explaining, StartExplain
from npgpt.server.guard import Guard, Settings, Status
from npgpt.server.jobs import StartFinetune
from npgpt.server.models import Models
from npgpt.server.origins import told
from npgpt.server.prefixes import PrefixCache
from npgpt.server.responses import failure, new_request_id
from npgpt.server.scheduler import Scheduler
from npgpt.server.schema import ApiError
from npgpt.server.store import Store
from npgpt.server.tuning import Tuning
from npgpt.text.tokenizer import Tokenizer

Handler: TypeAlias = Callable[[Request], Awaitable[Response]]
OpenModel: TypeAlias = Callable[[Path], tuple[libnpgpt.Model, Tokenizer]]  # raises ValueError or OSError


class App(Starlette):
    """The ASGI application."""

    def __init__(
        self,
        path: Path,
        name: str,
        settings: Settings,
        version: str,
        *,
        installed: dict[str, Path],
        open_model: OpenModel,
        start_finetune: StartFinetune,
        start_explain: StartExplain,
    ) -> None:
        """Open the model `path` to serve it as `name`; errors of open_model(path) pass through.

        `installed` are files of more models by their names, opened when somebody asks for them.
        start_finetune starts the process of a fine-tuning job, start_explain that of an explanation.
        """

        def open_scheduler(path: Path) -> Scheduler:
            return Scheduler(*open_model(path), settings.sessions, settings.queue, prefixes)

        prefixes = PrefixCache(settings.cache_bytes)
        self.settings, self.status = settings, Status()
        self.models = Models(path, name, open_scheduler, installed)
        self.tuning = Tuning(self.models, settings, start_finetune)
        completions = Completions(self.models, settings, version)
        self.store = Store(settings.store, settings.store_bytes, settings.store_seconds)
        answers = Answers(completions, self.store)
        about = About(self.models, completions, self.status, settings, version)
        explaining = Explaining(self.models, settings, start_explain)
        super().__init__(
            routes=[
                *_routes(about, self.models, completions, answers, self.tuning),
                _api("/explain", explaining.page, ("POST",)),
            ],
            middleware=[Middleware(Guard, settings=settings, status=self.status)],
            exception_handlers={
                ApiError: _api_error,
                HTTPException: _http_error,
                ClientDisconnect: _disconnect,
                Exception: _bug,
            },
            lifespan=_lifespan,
        )
        self.router.redirect_slashes = False

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request (ASGI); each answer has an x-request-id, which logs of clients name."""
        if scope["type"] != "http":
            return await super().__call__(scope, receive, send)
        headers = [(b"x-request-id", new_request_id().encode()), *told(scope, self.settings.origins)]

        async def send_named(message: Message) -> None:
            if message["type"] == "http.response.start":
                message = {**message, "headers": [*message["headers"], *headers]}
            await send(message)

        await super().__call__(scope, receive, send_named)


def _routes(
    about: About, models: Models, completions: Completions, answers: Answers, tuning: Tuning
) -> list[Route]:
    get_or_post, get_or_delete, post = ("GET", "POST"), ("GET", "DELETE"), ("POST",)
    return [
        Route("/", about.page),
        Route("/health", about.health),
        Route("/metrics", about.metrics),
        Route("/run", about.run),
        Route("/openapi.json", about.openapi),
        _api("/v1/models", models.list),
        _api("/v1/models/{id:path}", models.one, get_or_delete),
        _api("/v1/completions", completions.completions, post),
        _api("/v1/chat/completions", completions.chat, post),
        _api("/v1/responses", answers.create, post),
        _api("/v1/responses/{id}", answers.one, get_or_delete),
        _api("/v1/responses/{id}/input_items", answers.input_items),
        _api("/v1/embeddings", completions.embeddings, post),
        _api("/v1/files", tuning.all_files, get_or_post),
        _api("/v1/files/{id}", tuning.one_file, get_or_delete),
        _api("/v1/files/{id}/content", tuning.file_content),
        _api("/v1/fine_tuning/jobs", tuning.all_jobs, get_or_post),
        _api("/v1/fine_tuning/jobs/{id}", tuning.one_job),
        _api("/v1/fine_tuning/jobs/{id}/events", tuning.job_events),
        _api("/v1/fine_tuning/jobs/{id}/checkpoints", tuning.job_checkpoints),
        _api("/v1/fine_tuning/jobs/{id}/cancel", tuning.cancel_job, post),
    ]


def _api(path: str, handler: Handler, methods: tuple[str, ...] = ("GET",)) -> Route:
    """Return the route of a path whose query is checked; the handler finds it in request.state.query."""

    async def answer(request: Request) -> Response:
        asked_of = path if request.method in ("GET", "HEAD") else ""
        request.state.query = schema.check_query(asked_of, request.query_params.multi_items())
        return await handler(request)

    return Route(path, answer, methods=methods)


@contextlib.asynccontextmanager
async def _lifespan(app: App) -> AsyncIterator[None]:
    app.models.main.scheduler.start(asyncio.get_running_loop())
    app.tuning.jobs.start()
    try:
        yield
    finally:
        await app.tuning.jobs.close()
        await asyncio.to_thread(app.models.stop)
        app.tuning.files.close()
        app.store.close()


async def _api_error(request: Request, error: Any) -> Response:
    return failure(error)


async def _http_error(request: Request, error: Any) -> Response:
    """Answer with an error object where Starlette would answer with plain text: 404, 405."""
    path, what = request.url.path[:100], f"({request.method} {request.url.path[:100]})"
    messages = {404: f"Invalid URL {what}", 405: f"Not allowed to {request.method} on {path}"}
    message = messages.get(error.status_code, error.detail)
    if error.status_code == 404 and f"/v1{path}" in schema.REQUESTS:
        message += f"; did you mean /v1{path}? A base_url ends with /v1"
    return failure(ApiError(error.status_code, message, headers=error.headers))


async def _disconnect(request: Request, error: Any) -> Response:
    return Response(status_code=499)  # nobody reads it: for the figures alone


async def _bug(request: Request, error: Any) -> Response:
    return failure(ApiError(500, "the server failed; its log says how"))
