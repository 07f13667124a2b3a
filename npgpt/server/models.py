"""The models that are served, by their names; a tuned one is opened by the first request for it."""

import asyncio
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from npgpt.engine.types import Fields
from npgpt.server.responses import Json
from npgpt.server.scheduler import Scheduler
from npgpt.server.schema import ApiError


@dataclass
class ServedModel:
    """A model under its name, with the scheduler that computes for it once it is open."""

    id: str
    path: Path  # what a job tunes
    opened: Scheduler | None = None  # None: a model that nobody has asked for yet
    stays: bool = True  # False: made by a job, and may be deleted
    created: int = field(default_factory=lambda: int(time.time()))

    @property
    def scheduler(self) -> Scheduler:
        """The scheduler of a model that is open."""
        assert self.opened, "find() opens it"
        return self.opened

    def about(self) -> Fields:
        """Return OpenAI's model object."""
        return {"id": self.id, "object": "model", "created": self.created, "owned_by": "npgpt"}


class Models:
    """All models that are served, and the handlers of /v1/models."""

    def __init__(
        self,
        path: Path,
        name: str,
        open_scheduler: Callable[[Path], Scheduler],
        installed: Mapping[str, Path] = MappingProxyType({}),
    ) -> None:
        """Open the model `path` and serve it as `name`; errors of open_scheduler(path) pass through.

        The files of `installed` are served under their names, and opened by the first request for them.
        """
        self._open, self._opening = open_scheduler, asyncio.Lock()
        self.is_base: Callable[[Path], bool] = lambda folder: False  # True where a job begins with it
        self.remove: Callable[[Path], None] = lambda folder: None  # the folder of a tuned model
        self.main = ServedModel(name, Path(path), open_scheduler(path))
        self.all = {other: ServedModel(other, file) for other, file in installed.items()}
        self.all = {name: self.main} | {other: one for other, one in self.all.items() if other != name}

    @property
    def schedulers(self) -> list[Scheduler]:
        """The schedulers of the models that are open."""
        return [served.opened for served in self.all.values() if served.opened]

    def stop(self) -> None:
        """End all that still runs with ApiError 503."""
        for scheduler in self.schedulers:
            scheduler.close(ApiError(503, "the server is shutting down", None, "unavailable"))

    def add(self, name: str, folder: Path) -> None:
        """Serve the model in `folder`, which a job has made, as `name`."""
        self.all[name] = ServedModel(name, folder, stays=False)

    def get(self, name: str) -> ServedModel:
        """Return the model of this name, open or not; raise ApiError 404 if there is none."""
        if name not in self.all:
            raise ApiError(404, f"The model {name[:100]!r} does not exist", "model", "model_not_found")
        return self.all[name]

    async def find(self, name: str) -> ServedModel:
        """Return the model of this name, opened if need be; raise ApiError 404 if there is none."""
        if (served := self.get(name)).opened:
            return served  # it need not wait for another to open
        async with self._opening:
            served = self.get(name)  # it may be gone by now
            if served.opened is None:
                try:
                    served.opened = await asyncio.to_thread(self._open, served.path)
                except (OSError, ValueError, MemoryError) as error:
                    why = str(error).replace(str(served.path), served.id)  # not where it lies
                    raise ApiError(500, f"the model cannot be opened: {why}"[:500], "model") from None
                served.scheduler.start(asyncio.get_running_loop())
        return served

    async def list(self, request: Request) -> Response:
        """Answer GET /v1/models."""
        return Json({"object": "list", "data": [served.about() for served in self.all.values()]})

    async def one(self, request: Request) -> Response:
        """Answer GET and DELETE /v1/models/{id}."""
        name = request.path_params["id"]
        if not name:
            raise HTTPException(404)
        served = self.get(name)
        if request.method != "DELETE":
            return Json(served.about())
        if served.stays:
            raise ApiError(403, "this model was not made here; only tuned ones can go", "model")
        if self.is_base(served.path):
            message = "a fine-tuning job begins with this model; cancel it or wait for its end"
            raise ApiError(400, message, "model", "invalid_state")
        inside = [one for one in self.all.values() if one.path.parent == served.path]  # its checkpoints
        if owner := next((one for one in self.all.values() if one.path == served.path.parent), None):
            message = f"this is a checkpoint of {owner.id}, and goes with it"
            raise ApiError(400, message, "model", "invalid_value")
        async with self._opening:  # find() may be about to start it
            if self.all.get(name) is not served:
                raise HTTPException(404)
            try:
                await asyncio.to_thread(self.remove, served.path)
            except OSError as error:
                message = f"the model's folder cannot be removed: {error.strerror}"
                raise ApiError(500, message, "model") from None
            for one in (served, *inside):
                del self.all[one.id]
        for one in (served, *inside):
            if one.opened:
                await asyncio.to_thread(one.opened.close, ApiError(404, "the model was deleted", "model"))
        return Json({"id": name, "object": "model", "deleted": True})
