"""OpenAI's HTTP API for one model and those tuned from it: the routes and their handlers.

Shapes are those of the openai client's types; an error is always OpenAI's error object.
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any, TypeAlias

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Route

from npgpt.runtime import libnpgpt
from npgpt.server.about import About
from npgpt.server.completions import Completions
from npgpt.server.guard import Guard, Settings, Status
from npgpt.server.jobs import StartFinetune
from npgpt.server.models import Models
from npgpt.server.responses import failure
from npgpt.server.scheduler import Scheduler
from npgpt.server.schema import ApiError
from npgpt.server.tuning import Tuning
from npgpt.text.tokenizer import Tokenizer

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
        open_model: OpenModel,
        start_finetune: StartFinetune,
    ) -> None:
        """Open the model `path` to serve it as `name`; errors of open_model(path) pass through.

        start_finetune starts the process of a fine-tuning job.
        """

        def open_scheduler(path: Path) -> Scheduler:
            return Scheduler(*open_model(path), settings.sessions, settings.queue)

        self.settings, self.status = settings, Status()
        self.models = Models(path, name, open_scheduler)
        self.tuning = Tuning(self.models, settings, start_finetune)
        completions = Completions(self.models, settings, version)
        about = About(self.models, completions, self.status, settings, version)
        super().__init__(
            routes=_routes(about, self.models, completions, self.tuning),
            middleware=[Middleware(Guard, settings=settings, status=self.status)],
            exception_handlers={
                ApiError: _api_error,
                HTTPException: _http_error,
                ClientDisconnect: _disconnect,
                Exception: _bug,
            },
            lifespan=_lifespan,
        )


def _routes(about: About, models: Models, completions: Completions, tuning: Tuning) -> list[Route]:
    return [
        Route("/", about.page),
        Route("/health", about.health),
        Route("/metrics", about.metrics),
        Route("/run", about.run),
        Route("/openapi.json", about.openapi),
        Route("/v1/models", models.list),
        Route("/v1/models/{id:path}", models.one, methods=["GET", "DELETE"]),
        Route("/v1/completions", completions.completions, methods=["POST"]),
        Route("/v1/chat/completions", completions.chat, methods=["POST"]),
        Route("/v1/embeddings", completions.embeddings, methods=["POST"]),
        Route("/v1/files", tuning.all_files, methods=["GET", "POST"]),
        Route("/v1/files/{id}", tuning.one_file, methods=["GET", "DELETE"]),
        Route("/v1/files/{id}/content", tuning.file_content),
        Route("/v1/fine_tuning/jobs", tuning.all_jobs, methods=["GET", "POST"]),
        Route("/v1/fine_tuning/jobs/{id}", tuning.one_job),
        Route("/v1/fine_tuning/jobs/{id}/events", tuning.job_events),
        Route("/v1/fine_tuning/jobs/{id}/cancel", tuning.cancel_job, methods=["POST"]),
    ]


@contextlib.asynccontextmanager
async def _lifespan(app: App) -> AsyncIterator[None]:
    app.models.main.scheduler.start(asyncio.get_running_loop())
    try:
        yield
    finally:
        await app.tuning.jobs.close()
        await asyncio.to_thread(app.models.stop)
        app.tuning.files.close()


async def _api_error(request: Request, error: Any) -> Response:
    return failure(error)


async def _http_error(request: Request, error: Any) -> Response:
    """Answer with an error object where Starlette would answer with plain text: 404, 405."""
    return failure(ApiError(error.status_code, error.detail, headers=error.headers))


async def _disconnect(request: Request, error: Any) -> Response:
    return Response(status_code=499)  # nobody reads it: for the figures alone


async def _bug(request: Request, error: Any) -> Response:
    return failure(ApiError(500, "the server failed; its log says how"))
