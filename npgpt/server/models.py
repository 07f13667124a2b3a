"""The models that are served, by their names; tuned ones open when they are asked for."""

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeAlias

from starlette.requests import Request
from starlette.responses import Response

from npgpt.engine.types import Fields
from npgpt.runtime import libnpgpt
from npgpt.server.responses import Json
from npgpt.server.scheduler import Engine
from npgpt.server.schema import ApiError
from npgpt.text.tokenizer import Tokenizer

Open: TypeAlias = Callable[[Path], tuple[libnpgpt.Model, Tokenizer]]


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


class Models:
    """Opens them, finds them, and answers for /v1/models."""

    def __init__(self, path: Path, name: str, open_engine: Callable[[Path], Engine]) -> None:
        self._open, self._opening = open_engine, asyncio.Lock()
        self.main = Served(name, Path(path), open_engine(path))
        self.all = {name: self.main}

    @property
    def engines(self) -> list[Engine]:
        """Of those that are open."""
        return [served.opened for served in self.all.values() if served.opened]

    def stop(self) -> None:
        """End what still runs."""
        for engine in self.engines:
            engine.close(ApiError(503, "the server is shutting down", None, "unavailable"))

    def tuned(self, name: str, folder: Path) -> None:
        """A job has made the model in `folder`."""
        self.all[name] = Served(name, folder)

    def named(self, name: str) -> Served:
        """ApiError 404 where there is none."""
        if name not in self.all:
            raise ApiError(404, f"The model {name[:100]!r} does not exist", "model", "model_not_found")
        return self.all[name]

    async def find(self, name: str) -> Served:
        """The model of a request, opened where it is not yet."""
        if (served := self.named(name)).opened:
            return served  # it need not wait for another to open
        async with self._opening:
            served = self.named(name)  # it may be gone by now
            if served.opened is None:
                try:
                    served.opened = await asyncio.to_thread(self._open, served.path)
                except (OSError, ValueError, MemoryError) as error:
                    raise ApiError(500, f"the model cannot be opened: {error}", "model") from None
                served.engine.start(asyncio.get_running_loop())
        return served

    async def list(self, request: Request) -> Response:
        """GET /v1/models."""
        return Json({"object": "list", "data": [served.about() for served in self.all.values()]})

    async def one(self, request: Request) -> Response:
        """GET, DELETE /v1/models/{id}."""
        name = request.path_params["id"]
        served = self.named(name)
        if request.method != "DELETE":
            return Json(served.about())
        if served is self.main:
            raise ApiError(403, "this is the model that is served; only tuned ones can go", "model")
        async with self._opening:  # find() may be about to start it
            self.all.pop(name, None)
        if served.opened:
            await asyncio.to_thread(served.opened.close, ApiError(404, "the model was deleted", "model"))
        return Json({"id": name, "object": "model", "deleted": True})
