"""OpenAI's HTTP API over the engine: the routes and what answers them.

Shapes are those of the openai client's types; an error is always OpenAI's error object.
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Route

from npgpt.server.about import About
from npgpt.server.completions import Texts
from npgpt.server.guard import Guard, Settings, Traffic
from npgpt.server.models import Models, Open
from npgpt.server.responses import failure
from npgpt.server.scheduler import Engine
from npgpt.server.schema import ApiError
from npgpt.server.tuning import Tuning


def create(path: Path, name: str, open_model: Open, settings: Settings, version: str) -> Starlette:
    """The application that serves the model `path` as `name`.

    open_model(path) -> (binding.Model, tokenizer); ValueError and OSError where there is none.
    """
    models = Models(path, name, lambda path: Engine(*open_model(path), settings.sessions, settings.queue))
    texts, tuning, traffic = Texts(models, settings, version), Tuning(models, settings), Traffic()

    @contextlib.asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        models.main.engine.start(asyncio.get_running_loop())
        tuning.start()
        try:
            yield
        finally:
            await tuning.jobs.close()
            await asyncio.to_thread(models.stop)
            tuning.files.close()

    async def refused(request: Request, error: Any) -> Response:
        return failure(error)

    async def no_such(request: Request, error: Any) -> Response:
        return failure(ApiError(error.status_code, error.detail, headers=error.headers))

    async def gone(request: Request, error: Any) -> Response:
        return Response(status_code=499)

    async def broken(request: Request, error: Any) -> Response:
        return failure(ApiError(500, "the server failed; its log says how"))

    handlers = {ApiError: refused, HTTPException: no_such, ClientDisconnect: gone, Exception: broken}
    app = Starlette(exception_handlers=handlers, lifespan=lifespan)
    app.state.closing, app.state.stop = False, models.stop
    app.add_middleware(Guard, settings=settings, traffic=traffic, state=app.state)
    about = About(models, texts, traffic, settings, app.state, version)
    app.router.routes += [
        Route("/", about.page),
        Route("/health", about.health),
        Route("/metrics", about.metrics),
        Route("/run", about.run),
        Route("/openapi.json", about.openapi),
        Route("/v1/models", models.list),
        Route("/v1/models/{id:path}", models.one, methods=["GET", "DELETE"]),
        Route("/v1/completions", texts.completions, methods=["POST"]),
        Route("/v1/chat/completions", texts.chat, methods=["POST"]),
        Route("/v1/embeddings", texts.embeddings, methods=["POST"]),
        Route("/v1/files", tuning.files_, methods=["GET", "POST"]),
        Route("/v1/files/{id}", tuning.file, methods=["GET", "DELETE"]),
        Route("/v1/files/{id}/content", tuning.file_content),
        Route("/v1/fine_tuning/jobs", tuning.jobs_, methods=["GET", "POST"]),
        Route("/v1/fine_tuning/jobs/{id}", tuning.job),
        Route("/v1/fine_tuning/jobs/{id}/events", tuning.job_events),
        Route("/v1/fine_tuning/jobs/{id}/cancel", tuning.job_cancel, methods=["POST"]),
    ]
    return app
