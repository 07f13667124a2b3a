"""Why a text was written: the page of /explain, computed in a process of its own, one at a time."""

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TypeAlias

from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response

from npgpt.engine.types import Fields
from npgpt.server import bodies
from npgpt.server.completions import encode_prompts
from npgpt.server.guard import Settings
from npgpt.server.models import Models
from npgpt.server.schema import ApiError

# the model's path and what is asked -> the process, and what it reads from stdin; its page comes from stdout
StartExplain: TypeAlias = Callable[[Path, Fields], Awaitable[tuple[asyncio.subprocess.Process, bytes]]]
METHOD = "grad_x_input"  # one pass for each token, so that a page takes a moment


class Explaining:
    """The handler of /explain."""

    def __init__(self, models: Models, settings: Settings, start: StartExplain) -> None:
        self.models, self.settings, self._start, self._busy = models, settings, start, False

    async def page(self, request: Request) -> Response:
        """Answer POST /explain with a page about the last tokens of a text."""
        fields = await bodies.checked(request, self.settings)
        served = await self.models.find(fields["model"])
        if not fields["text"]:
            raise ApiError(400, "text must not be empty", "text", "invalid_value")
        (ids,) = await encode_prompts(served.scheduler, fields["text"], "text")
        read = ids[-min(self.settings.explain_tokens, served.scheduler.model.block_size) :]
        asked: Fields = {"ids": read, "dropped": len(ids) - len(read), "name": served.id, "method": METHOD}
        if self._busy:
            wait, message = {"Retry-After": "1"}, "another text is being explained"
            raise ApiError(429, message, None, "rate_limit_exceeded", wait)
        self._busy = True
        try:
            page = await self._computed(request, *await self._start(served.path, asked))
        finally:
            self._busy = False
        headers = {"X-Content-Type-Options": "nosniff"}  # the page has a policy of its own
        return Response(page, media_type="text/html; charset=utf-8", headers=headers)

    async def _computed(self, request: Request, process: asyncio.subprocess.Process, asked: bytes) -> bytes:
        """Return what the process writes; it ends with the client, or after explain_seconds."""
        work, gone = asyncio.create_task(process.communicate(asked)), asyncio.create_task(_gone(request))
        try:
            tasks, seconds = (work, gone), self.settings.explain_seconds
            await asyncio.wait(tasks, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
            if gone.done():
                raise ClientDisconnect
            if not work.done():
                raise ApiError(503, f"the page was not made in {seconds:g} s", None, "timeout")
        finally:
            gone.cancel()
            if process.returncode is None:
                process.kill()
            page, errors = await work
        if process.returncode:
            message = errors.decode("utf-8", "replace").strip().rpartition("\n")[2]
            raise ApiError(500, message or "the process of the page was ended", None)
        return page


async def _gone(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
