"""Files and fine-tuning jobs: the door npgpt.finetune in a process of its own, one at a time.

Files lie under names of ours in a private folder that goes when the server does; a tuned model is a folder
beside the one that is served, and stays.
"""

import asyncio
import contextlib
import json
import os
import secrets
import shutil
import sys
import tempfile
import time
import traceback
from asyncio.subprocess import PIPE
from collections import deque
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import IO, Any

from npgpt.engine.types import Fields
from npgpt.server.schema import ApiError

FILES, JOBS, EVENTS = 100, 100, 1000  # kept at most
STOP_SECONDS = 20  # for a worker to end by itself


def identity(kind: str) -> str:
    """A new id, "kind-..." as OpenAI's."""
    return f"{kind}-{secrets.token_hex(12)}"


def page(items: list[Fields], query: Mapping[str, str]) -> Fields:
    """OpenAI's list: `limit` of the items that come behind the one with id `after`, both in the query."""
    after, limit = query.get("after"), query.get("limit")
    number = limit is None or (limit.isascii() and limit.isdigit() and len(limit) < 9)
    if limit is not None and not (number and 1 <= int(limit) <= 100):
        raise ApiError(
            400, f"limit must be a whole number in 1..100, got {limit[:20]}", "limit", "invalid_value"
        )
    size = int(limit or 20)
    if after is not None:
        places = [i for i, item in enumerate(items) if item["id"] == after]
        if not places:
            raise ApiError(400, "after must be the id of an item of the list", "after", "invalid_value")
        items = items[places[0] + 1 :]
    return {"object": "list", "data": items[:size], "has_more": len(items) > size}


class Files:
    """The files that were uploaded."""

    def __init__(self) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="npgpt-serve-"))  # mode 0700
        self._files: dict[str, Fields] = {}

    def room(self) -> None:
        """ApiError where there is none for another."""
        if len(self._files) >= FILES:
            raise ApiError(400, f"there are {FILES} files; delete some", "file", "too_many_files")

    def add(self, name: str, temporary: IO[bytes]) -> Fields:
        """temporary: an open file, which is copied."""
        self.room()
        id = identity("file")
        with open(self.path(id), "wb") as file:
            shutil.copyfileobj(temporary, file)
        about = {
            "id": id,
            "object": "file",
            "bytes": self.path(id).stat().st_size,
            "created_at": int(time.time()),
            "filename": Path(name or "file").name[:200],
            "purpose": "fine-tune",
            "status": "processed",
        }
        self._files[id] = about
        return about

    def get(self, id: str) -> Fields:
        """OpenAI's file object; ApiError 404 where there is none."""
        if id not in self._files:
            raise ApiError(404, f"No such File object: {id[:100]}", "id", "not_found")
        return self._files[id]

    def path(self, id: str) -> Path:
        """Of an id that get() knows."""
        return self.folder / id

    def delete(self, id: str) -> Fields:
        """Remove a file -> what the API answers."""
        self.get(id)
        del self._files[id]
        self.path(id).unlink(missing_ok=True)
        return {"id": id, "object": "file", "deleted": True}

    def all(self) -> list[Fields]:
        """All, the newest first."""
        return list(self._files.values())[::-1]

    def close(self) -> None:
        """Remove them all."""
        shutil.rmtree(self.folder, ignore_errors=True)


class Jobs:
    """done(id, folder): what is called with a model that was tuned."""

    def __init__(self, files: Files, done: Callable[[str, Path], None]) -> None:
        self.files, self._done = files, done
        self._jobs: dict[str, Fields] = {}
        self._events: dict[str, deque[Fields]] = {}
        self._plans: dict[str, Any] = {}
        self._queue: asyncio.Queue[str] = asyncio.Queue()
        self._task: asyncio.Task[None] | None = None
        self._process: asyncio.subprocess.Process | None = None

    def create(self, fields: Fields, base: Path) -> Fields:
        """Queue the job of a checked request on the model in the folder `base`."""
        self.files.get(fields["training_file"])
        if len(self._jobs) >= JOBS:
            raise ApiError(429, "there are too many jobs", None, "rate_limit_exceeded", {"Retry-After": "60"})
        hyper = fields.get("method", {}).get("supervised", {}).get("hyperparameters") or {}
        hyper = fields.get("hyperparameters") or hyper
        hyper = {key: value for key, value in hyper.items() if value != "auto"}
        id, seed = identity("ftjob"), fields.get("seed", secrets.randbelow(2**31))
        suffix = fields.get("suffix")
        names = ("n_epochs", "batch_size", "learning_rate_multiplier")
        shown = {name: hyper.get(name, "auto") for name in names}
        job = {
            "id": id,
            "object": "fine_tuning.job",
            "created_at": int(time.time()),
            "finished_at": None,
            "model": fields["model"],
            "fine_tuned_model": None,
            "organization_id": "npgpt",
            "result_files": [],
            "status": "queued",
            "training_file": fields["training_file"],
            "validation_file": None,
            "hyperparameters": shown,
            "method": {"type": "supervised", "supervised": {"hyperparameters": shown}},
            "trained_tokens": None,
            "seed": seed,
            "error": None,
        }
        out = base.parent / f"{base.name}-{suffix or 'tuned'}-{id[-8:]}"
        # a copy of our own: the file may be deleted while the job waits
        data = self.files.folder / id
        shutil.copyfile(self.files.path(fields["training_file"]), data)
        flags = ["--seed", seed]
        for name, flag in zip(names, ("--epochs", "--batch-size"), strict=False):
            flags += [flag, hyper[name]] if name in hyper else []
        self._jobs[id], self._events[id] = job, deque(maxlen=EVENTS)
        self._plans[id] = (base, data, out, flags, f"ft:{job['model'][:100]}::{suffix or ''}:{id[-8:]}")
        self._say(id, "Created fine-tuning job")
        self._queue.put_nowait(id)
        if self._task is None:
            self._task = asyncio.create_task(self._work())
        return job

    def get(self, id: str) -> Fields:
        """OpenAI's job object; ApiError 404 where there is none."""
        if id not in self._jobs:
            raise ApiError(404, f"Could not find fine tune: {id[:100]}", "id", "fine_tune_not_found")
        return self._jobs[id]

    def all(self) -> list[Fields]:
        """All, the newest first."""
        return list(self._jobs.values())[::-1]

    def events(self, id: str) -> list[Fields]:
        """What a job said, the latest first."""
        self.get(id)
        return list(self._events[id])[::-1]

    async def cancel(self, id: str) -> Fields:
        """End a job that waits or runs; ApiError 400 for another."""
        job = self.get(id)
        if job["status"] not in ("queued", "running"):
            raise ApiError(400, f"Job has already completed: {id}", "id", "invalid_state")
        was, job["status"] = job["status"], "cancelled"
        self._finished(id, "The job was cancelled")
        if was == "running":
            await self._stop_worker()
        return job

    async def close(self) -> None:
        """End the worker."""
        if self._task:
            self._task.cancel()
            await asyncio.wait([self._task])

    async def _stop_worker(self) -> None:
        process = self._process
        if process and process.returncode is None:
            process.terminate()
            try:
                await asyncio.wait_for(process.wait(), STOP_SECONDS)
            except TimeoutError:
                process.kill()

    def _say(self, id: str, message: str, level: str = "info", data: Fields | None = None) -> None:
        event = {"id": identity("ftevent"), "object": "fine_tuning.job.event", "created_at": int(time.time())}
        event |= {"level": level, "message": message, "data": data, "type": "metrics" if data else "message"}
        self._events[id].append(event)

    def _finished(self, id: str, message: str, level: str = "info") -> None:
        self._jobs[id]["finished_at"] = int(time.time())
        self._say(id, message, level)

    async def _work(self) -> None:
        while True:
            id = await self._queue.get()
            try:
                if self._jobs[id]["status"] == "queued":
                    await self._run(id)
            except Exception as error:  # of this job alone: the others wait
                traceback.print_exc()
                if self._jobs[id]["status"] != "cancelled":
                    message = f"the worker could not be run: {error}"[:500]
                    self._jobs[id]["status"] = "failed"
                    self._jobs[id]["error"] = {"code": "failed", "message": message, "param": None}
                    self._finished(id, message, "error")
            finally:
                await self._stop_worker()  # of a task that was cancelled: nothing is written after this
                _, data, out, _, _ = self._plans.pop(id)
                data.unlink(missing_ok=True)
                if self._jobs[id]["status"] != "succeeded":
                    shutil.rmtree(out, ignore_errors=True)

    async def _run(self, id: str) -> None:
        job, (base, data, out, flags, name) = self._jobs[id], self._plans[id]
        job["status"] = "running"
        self._say(id, "Fine-tuning job started")
        command = [sys.executable, "-m", "npgpt.finetune", base, data, "-o", out, "--json", *flags]
        english = os.environ | {"LANGUAGE": "en"}  # which clients of the API read
        process = await asyncio.create_subprocess_exec(
            *map(str, command), stdout=PIPE, stderr=PIPE, limit=2**20, env=english
        )
        self._process = process
        if job["status"] == "cancelled":  # while it started
            process.terminate()
        assert process.stdout and process.stderr  # pipes
        with contextlib.suppress(OSError, AttributeError):  # streams go first, but on Windows
            os.setpriority(os.PRIO_PROCESS, process.pid, 10)
        reading = asyncio.create_task(process.stderr.read())
        last = ""
        async for line in process.stdout:
            last = line.decode("utf-8", "replace").strip() or last
            if job["status"] == "running" and last and not last.startswith("{"):
                self._say(id, last[:500])
        code, errors = await process.wait(), (await reading).decode("utf-8", "replace").strip()
        if job["status"] == "cancelled":
            return
        if code:
            job["status"] = "failed"
            lines = errors.splitlines() or [f"the worker ended with {code}"]
            message = lines[-1].removeprefix("npgpt finetune: ").replace(str(data), "training_file")[:500]
            job["error"] = {"code": "invalid_training_file" if code == 2 else "failed", "message": message}
            job["error"]["param"] = "training_file" if code == 2 else None
            return self._finished(id, message, "error")
        result = json.loads(last)
        job["trained_tokens"], job["fine_tuned_model"] = result.get("tokens"), name
        job["status"] = "succeeded"
        self._done(name, out)
        self._say(id, "metrics", data={k: v for k, v in result.items() if isinstance(v, (int, float))})
        self._finished(id, "The job has successfully completed")
