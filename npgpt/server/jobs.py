"""Fine-tuning jobs: one process at a time, which the function that serve.py hands in starts.

A tuned model is a folder beside the one that is served. It stays when the server goes, with its job in
JOB_FILE, and the next server of the model lists both again.
"""

import asyncio
import contextlib
import glob
import json
import logging
import math
import os
import re
import secrets
import shlex
import shutil
import time
import traceback
from asyncio.subprocess import Process
from collections import deque
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeAlias

from npgpt.engine.types import Fields
from npgpt.server import results
from npgpt.server.files import Files
from npgpt.server.guard import may_read
from npgpt.server.responses import new_id
from npgpt.server.schema import ApiError

MAX_JOBS, MAX_EVENTS = 100, 1000  # kept: jobs in all, events of each
STOP_SECONDS = 20  # for a process to end by itself
REFUSED = 2  # exit code of a process that refuses what it is given
DATA = ("training_file", "validation_file")  # fields of a request, and the names of a job's files
JOB_FILE = "job.json"  # in the folder of a model that a job has made
COMMAND = "python -m npgpt"  # in what a process says to people at a terminal
PATH = re.compile(r"(?:(?<![\w/.:~-])/|\b[A-Za-z]:\\)(?:[^\s'\",;:()/\\]+[/\\])+([^\s'\",;:()/\\]*)")
LINE_LIMIT = 2**20  # bytes of a line that a process may print: the buffer of its pipe


@dataclass(frozen=True)
class FinetuneArguments:
    """The arguments of a process of fine-tuning."""

    base: Path  # the folder of the model to begin with
    data: Path  # the examples, in a folder of their own; its name is the one that errors should have
    out: Path  # the folder of the new model
    seed: int
    epochs: int | None  # None, here and below: what the command finds best
    batch_size: int | None
    validation: Path | None = None  # examples beside `data`; None: a share of those


# starts the process; stdout and stderr are pipes, and the last line of stdout is a JSON object: the result,
# or {"error": ...} where the exit code is not 0
StartFinetune: TypeAlias = Callable[[FinetuneArguments], Awaitable[Process]]


@dataclass
class FinetuneJob:
    """A job, the arguments of its process and its events."""

    about: Fields  # OpenAI's job object
    arguments: FinetuneArguments
    tuned_name: str  # of the new model
    events: deque[Fields] = field(default_factory=lambda: deque(maxlen=MAX_EVENTS))
    owner: str = ""

    def add_event(self, message: str, level: str = "info", data: Fields | None = None) -> None:
        """Add OpenAI's event object to the events."""
        event = {"id": new_id("ftevent"), "object": "fine_tuning.job.event", "created_at": int(time.time())}
        event |= {"level": level, "message": message, "data": data, "type": "metrics" if data else "message"}
        self.events.append(event)

    def end(self, status: str, message: str, level: str = "info") -> None:
        """Set the last status, "succeeded", "failed" or "cancelled", and add the last event."""
        self.about["status"], self.about["finished_at"] = status, int(time.time())
        self.add_event(message, level)

    def fail(self, message: str, code: str = "failed", param: str | None = None) -> None:
        """End the job with an error."""
        self.about["error"] = {"code": code, "message": message, "param": param}
        self.about["fine_tuned_model"] = None
        self.end("failed", message, "error")

    def save(self) -> None:
        """Write the job into the folder of its model; raise OSError where that cannot be."""
        kept = {"name": self.tuned_name, "job": self.about, "events": list(self.events), "owner": self.owner}
        new = self.arguments.out / f"{JOB_FILE}.new"
        new.write_text(json.dumps(kept, ensure_ascii=False, allow_nan=False) + "\n", encoding="utf-8")
        new.replace(self.arguments.out / JOB_FILE)

    @staticmethod
    def load(folder: Path) -> "FinetuneJob":
        """Return the job that made the model in a folder; raise ValueError or OSError where there is none."""
        try:
            kept = json.loads((folder / JOB_FILE).read_text(encoding="utf-8"))
            about, name = dict(kept["job"]), str(kept["name"])
            events = deque(map(dict, kept["events"]), maxlen=MAX_EVENTS)
            if (about["status"], about["fine_tuned_model"]) != ("succeeded", name):
                raise ValueError(f"the job of {name} must have succeeded")
            arguments = FinetuneArguments(folder, folder, folder, int(about["seed"]), None, None)
            files, _ = list(about["result_files"]), int(about["finished_at"])
            if not all(isinstance(id, str) and re.fullmatch("file-[0-9a-f]{24}", id) for id in files):
                raise ValueError("result_files must be ids of files")
            if missing := {"id", "created_at", "model", "metadata", "result_files"} - set(about):
                raise ValueError(f"the job must have {', '.join(sorted(missing))}")
        except (KeyError, TypeError, RecursionError) as error:
            raise ValueError(f"must be a job, got {error!r:.80}") from None
        return FinetuneJob(about, arguments, name, events, str(kept.get("owner", "")))

    @property
    def ended(self) -> bool:
        """True once it neither waits nor runs."""
        return self.about["finished_at"] is not None

    @property
    def status(self) -> str:
        """The status as OpenAI writes it."""
        return str(self.about["status"])


class Jobs:
    """The jobs by their ids, and the task of the event loop that runs one after the other."""

    def __init__(self, files: Files, start: StartFinetune, done: Callable[[str, Path], None]) -> None:
        """`done` is called with the name and the folder of each model that a job has made."""
        self.files, self._start, self._done = files, start, done
        self._jobs: dict[str, FinetuneJob] = {}
        self._queue: asyncio.Queue[FinetuneJob] = asyncio.Queue()
        self._task: asyncio.Task[None] | None = None
        self._process: Process | None = None

    def create(self, fields: Fields, base: Path, owner: str = "") -> Fields:
        """Queue an owner's job, of a checked request, on the model in `base`; return OpenAI's job object.

        Raise ApiError 404 if there is no such file, 429 if there are too many jobs.
        """
        given = [name for name in DATA if name in fields]
        for name in given:
            self.files.get(fields[name], owner)
        if len(self._jobs) >= MAX_JOBS:
            self._forget_one()
        if len(self._jobs) >= MAX_JOBS:
            raise ApiError(429, "there are too many jobs", None, "rate_limit_exceeded", {"Retry-After": "60"})
        hyper = fields.get("method", {}).get("supervised", {}).get("hyperparameters") or {}
        hyper = fields.get("hyperparameters") or hyper
        hyper = {key: value for key, value in hyper.items() if value != "auto"}
        id, suffix = new_id("ftjob"), fields.get("suffix")
        # copies of our own, as the files may be deleted while the job waits
        folder = self.files.folder / id
        folder.mkdir()
        for name in given:
            shutil.copyfile(self.files.path(fields[name]), folder / name)
        run = base.parent if (base.parent / JOB_FILE).is_file() else base  # of a checkpoint
        arguments = FinetuneArguments(
            base=base,
            data=folder / "training_file",
            out=run.parent / f"{run.name}-{suffix or 'tuned'}-{id[-8:]}",
            seed=fields.get("seed", secrets.randbelow(2**31)),
            epochs=hyper.get("n_epochs"),
            batch_size=hyper.get("batch_size"),
            validation=folder / "validation_file" if "validation_file" in given else None,
        )
        tuned_name = f"ft:{fields['model'][:100]}::{suffix or ''}:{id[-8:]}"
        job = FinetuneJob(_job_object(id, fields, hyper, arguments.seed), arguments, tuned_name, owner=owner)
        self._jobs[id] = job
        job.add_event("Created fine-tuning job")
        self._queue.put_nowait(job)
        if self._task is None:
            self._task = asyncio.create_task(self._work())
        return job.about

    def restore(self, base: Path, name: str) -> None:
        """List the jobs again whose models lie beside `base`, which is served as `name`, and serve these."""
        found = []
        for file in base.parent.glob(f"{glob.escape(base.name)}-*/{JOB_FILE}"):
            try:
                if not file.parent.is_symlink():
                    found.append(FinetuneJob.load(file.parent))
            except (OSError, ValueError) as error:
                logging.getLogger(__name__).warning("%s: %s; its model is not served", file, error)
        for job in sorted(found, key=lambda job: int(job.about["created_at"])):
            if re.sub("^(ft:)*", "", job.tuned_name).partition("::")[0] == name:
                self._jobs[job.about["id"]] = job
                self._publish(job)

    def is_base(self, folder: Path) -> bool:
        """Return True if a job that waits or runs begins with the model in this folder or its checkpoints."""
        bases = (job.arguments.base for job in self._jobs.values() if not job.ended)
        return any(folder in (base, base.parent) for base in bases)

    def get(self, id: str, asker: str | None = None) -> Fields:
        """Return OpenAI's job object; raise ApiError 404 if there is none of this id."""
        return self._find(id, asker).about

    def all(self, asker: str | None = None) -> list[Fields]:
        """Return all job objects that are there for who asks, the newest first."""
        return [job.about for job in self._jobs.values() if may_read(asker, job.owner)][::-1]

    def events(self, id: str, asker: str | None = None) -> list[Fields]:
        """Return the events of a job, the latest first; raise ApiError 404 if there is none of this id."""
        return list(self._find(id, asker).events)[::-1]

    def checkpoints(self, id: str, asker: str | None = None) -> list[Fields]:
        """Return the checkpoints of a job that has succeeded, the latest first, and none of another.

        Raise ApiError 404 if there is no job of this id.
        """
        job = self._find(id, asker)
        done = results.checkpoints(job.arguments.out, id, job.tuned_name) if job.status == "succeeded" else []
        return [about for about, _ in done]

    async def cancel(self, id: str, asker: str | None = None) -> Fields:
        """End a job that waits or runs; raise ApiError 400 for another, 404 if there is none of this id."""
        job = self._find(id, asker)
        was = job.status
        if was not in ("queued", "running"):
            raise ApiError(400, f"Job has already completed: {id}", "id", "invalid_state")
        job.end("cancelled", "The job was cancelled")
        if was == "running":
            await self._stop_process()
        return job.about

    async def close(self) -> None:
        """End the process that runs, and start no other."""
        if self._task:
            self._task.cancel()
            await asyncio.wait([self._task])

    def _publish(self, job: FinetuneJob) -> None:
        """List the result file of a job that has succeeded, and serve its model and its checkpoints."""
        out, created = job.arguments.out, int(job.about["finished_at"])
        for id in job.about["result_files"]:
            losses = results.as_csv(results.losses(out))
            self.files.add_result(id, "step_metrics.csv", losses, created, job.owner)
        self._done(job.tuned_name, out)
        for about, folder in results.checkpoints(out, job.about["id"], job.tuned_name)[::-1]:
            self._done(about["fine_tuned_model_checkpoint"], folder)

    def _forget_one(self) -> None:
        """Forget the oldest job that has ended and has no model, if there is one."""
        ended = (id for id, job in self._jobs.items() if job.ended and not job.arguments.out.exists())
        if id := next(ended, None):
            del self._jobs[id]

    def _find(self, id: str, asker: str | None) -> FinetuneJob:
        if id not in self._jobs or not may_read(asker, self._jobs[id].owner):
            raise ApiError(404, f"Could not find fine tune: {id[:100]}", "id", "fine_tune_not_found")
        return self._jobs[id]

    async def _stop_process(self) -> None:
        process = self._process
        if process and process.returncode is None:
            process.terminate()
            try:
                await asyncio.wait_for(process.wait(), STOP_SECONDS)
            except TimeoutError:
                process.kill()

    async def _work(self) -> None:
        while True:
            job = await self._queue.get()
            try:
                if job.status == "queued":
                    await self._run(job)
            except Exception as error:  # of this job alone: the others wait
                traceback.print_exc()
                if job.status != "cancelled":
                    job.fail(without_paths(f"the worker could not be run: {error}", job)[:500])
            finally:
                await self._stop_process()  # of a task that was cancelled: nothing is written after this
                shutil.rmtree(job.arguments.data.parent, ignore_errors=True)
                if job.status != "succeeded":
                    shutil.rmtree(job.arguments.out, ignore_errors=True)

    async def _run(self, job: FinetuneJob) -> None:
        job.about["status"] = "running"
        job.add_event("Fine-tuning job started")
        process = self._process = await self._start(job.arguments)
        if job.status == "cancelled":  # while it started
            process.terminate()
        assert process.stdout and process.stderr  # pipes
        with contextlib.suppress(OSError, AttributeError):  # streams go first, but on Windows
            os.setpriority(os.PRIO_PROCESS, process.pid, 10)
        reading = asyncio.create_task(process.stderr.read())
        last = ""
        async for line in process.stdout:
            last = line.decode("utf-8", "replace").strip() or last
            if job.status == "running" and last and not last.startswith("{") and COMMAND not in last:
                job.add_event(without_paths(last, job)[:500], data=results.of_line(last))
        code, errors = await process.wait(), (await reading).decode("utf-8", "replace").strip()
        if job.status == "cancelled":
            return
        if code:
            message = _error_of(last) or (errors.splitlines() or [f"the worker ended with {code}"])[-1]
            message = without_paths(message, job)
            named = next((name for name in DATA if message.startswith(name)), "training_file")
            return job.fail(message[:500], *((f"invalid_{named}", named) if code == REFUSED else ()))
        result = json.loads(last)
        job.about["trained_tokens"], job.about["fine_tuned_model"] = result.get("tokens"), job.tuned_name
        numbers = {name: v for name, v in result.items() if isinstance(v, (int, float)) and math.isfinite(v)}
        job.add_event("metrics", data=numbers)
        if results.losses(job.arguments.out):
            job.about["result_files"] = [new_id("file")]
        job.end("succeeded", "The job has successfully completed")
        job.save()
        self._publish(job)


def _job_object(id: str, fields: Fields, hyper: Fields, seed: int) -> Fields:
    names = ("n_epochs", "batch_size", "learning_rate_multiplier")
    shown = {name: hyper.get(name, "auto") for name in names}
    return {
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
        "validation_file": fields.get("validation_file"),
        "hyperparameters": shown,
        "method": {"type": "supervised", "supervised": {"hyperparameters": shown}},
        "trained_tokens": None,
        "seed": seed,
        "metadata": fields.get("metadata"),
        "error": None,
    }


def without_paths(text: str, job: FinetuneJob) -> str:
    """Return what a process said without paths of this machine: the model's name, or the last part alone."""
    arguments = job.arguments
    for path, name in ((arguments.out, job.tuned_name), (arguments.base, job.about["model"])):
        for spelt in (shlex.quote(str(path)), str(path)):
            text = re.sub(re.escape(spelt) + r"(?![\w-])", name.replace("\\", r"\\"), text)
    return PATH.sub(r"\1", text)


def remove_model(folder: Path) -> None:
    """Remove the folder of a model that a job has made, and nothing else; raise OSError where it stays whole.

    It has another name at once, so that half a folder is never taken for a model.
    """
    if folder.is_symlink() or not (folder / JOB_FILE).is_file():
        return
    shutil.rmtree(folder.rename(folder.with_name(f".{folder.name}.deleted")), ignore_errors=True)


def _error_of(line: str) -> str | None:
    """Return the error in the last line of a process; None if a bug or a signal kept it from writing one."""
    try:
        result = json.loads(line)
    except ValueError:
        return None
    return result.get("error") if isinstance(result, dict) else None
