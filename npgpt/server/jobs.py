"""Fine-tuning jobs: one process at a time, which the function that serve.py hands in starts.

A tuned model is a folder beside the one that is served. It stays when the server goes, and so do jobs: the
next server of the model lists those that succeeded, and goes on with those that waited or ran.
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
import signal
import time
import traceback
from asyncio.subprocess import Process
from collections.abc import Awaitable, Callable, Iterable
from pathlib import Path
from typing import TypeAlias

from npgpt.engine.types import Fields
from npgpt.server import results
from npgpt.server.files import Files
from npgpt.server.guard import may_read
from npgpt.server.job import DATA, JOB_FILE, FinetuneArguments, FinetuneJob, folder_of
from npgpt.server.responses import new_id
from npgpt.server.schema import ApiError

MAX_JOBS = 100  # kept
STOP_SECONDS = 20  # for a process to end by itself
AGAIN_SECONDS = 1  # until a process that a signal ended begins again, if the server has not ended too
REFUSED = 2  # exit code of a process that refuses what it is given
STOPPED = (130, -signal.SIGINT, -signal.SIGTERM)  # those of one that a signal has ended; it can go on
COMMAND = "python -m npgpt"  # in what a process says to people at a terminal
PATH = re.compile(r"(?:(?<![\w/.:~-])/|\b[A-Za-z]:\\)(?:[^\s'\",;:()/\\]+[/\\])+([^\s'\",;:()/\\]*)")
LINE_LIMIT = 2**20  # bytes of a line that a process may print: the buffer of its pipe

# starts the process, or goes on with what is in its `out`; stdin, stdout and stderr are pipes. It stops as by
# SIGTERM when stdin ends, as the server has then ended. The last line of stdout is a JSON object: the result,
# or {"error": ...} where the exit code is not 0
StartFinetune: TypeAlias = Callable[[FinetuneArguments], Awaitable[Process]]


class Jobs:
    """The jobs by their ids, and the task of the event loop that runs one after the other."""

    def __init__(
        self, files: Files, start: StartFinetune, done: Callable[[str, Path], None], n_embd: int = 0
    ) -> None:
        """`done` is called with the name and the folder of each model that a job has made.

        n_embd is the number of channels of the model that is served, and of those that come of it.
        """
        self.files, self._start, self._done, self._n_embd = files, start, done, n_embd
        self._jobs: dict[str, FinetuneJob] = {}
        self._queue: asyncio.Queue[FinetuneJob] = asyncio.Queue()
        self._task: asyncio.Task[None] | None = None
        self._process: Process | None = None

    def create(self, fields: Fields, base: Path, owner: str = "") -> Fields:
        """Queue an owner's job, of a checked request, on the model in `base`; return OpenAI's job object.

        Raise ApiError 404 if there is no such file, 429 if there are too many jobs, 500 if there is no room.
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
        run = base.parent if (base.parent / JOB_FILE).is_file() else base  # of a checkpoint
        out = run.parent / f"{run.name}-{suffix or 'tuned'}-{id[-8:]}"
        folder = folder_of(out)
        arguments = FinetuneArguments(
            base=base,
            data=folder / "training_file",
            out=out,
            seed=fields.get("seed", secrets.randbelow(2**31)),
            epochs=hyper.get("n_epochs"),
            batch_size=hyper.get("batch_size"),
            validation=folder / "validation_file" if "validation_file" in given else None,
            multiplier=hyper.get("learning_rate_multiplier"),
            n_embd=self._n_embd,
        )
        tuned_name = f"ft:{fields['model'][:100]}::{suffix or ''}:{id[-8:]}"
        job = FinetuneJob(_job_object(id, fields, hyper, arguments.seed), arguments, tuned_name, owner=owner)
        job.add_event("Created fine-tuning job")
        try:
            job.begin({name: self.files.path(fields[name]) for name in given})
        except OSError as error:
            job.forget()
            raise ApiError(500, f"the job cannot be kept beside its model: {error.strerror}") from None
        self._jobs[id] = job
        self._queue.put_nowait(job)
        self.start()
        return job.about

    def start(self) -> None:
        """Begin with the jobs that wait, if there are any (in the event loop)."""
        if self._task is None and not self._queue.empty():
            self._task = asyncio.create_task(self._work())

    def restore(self, base: Path, name: str) -> None:
        """List the jobs again whose models lie beside `base`, which is served as `name`, and serve these.

        Queue those that an end of the server stopped; start() begins with them.
        """
        beside = glob.escape(base.name)
        found = _load_all(base.parent.glob(f"{beside}-*/{JOB_FILE}"), FinetuneJob.load, name)
        for job in found:
            self._jobs[job.about["id"]] = job
            self._publish(job)
        waiting = _load_all(base.parent.glob(f".{beside}-*.job/{JOB_FILE}"), FinetuneJob.load_waiting, name)
        for job in sorted(waiting, key=lambda job: job.status != "running"):
            if not job.claim():  # another server of the model goes on with it
                continue
            if job.about["id"] in self._jobs:  # it had just succeeded
                job.about = self._jobs[job.about["id"]].about
                job.forget()
            elif job.ended:
                job.forget()
            else:
                self._jobs[job.about["id"]] = job
                self._queue.put_nowait(job)

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
        with contextlib.suppress(OSError):
            job.save()  # so that no other server goes on with it
        if was == "running":
            await self._stop_process()
        return job.about

    async def close(self) -> None:
        """End the process that runs, and start no other; the next server goes on with the jobs."""
        if self._task:
            self._task.cancel()
            await asyncio.wait([self._task])
        for job in self._jobs.values():
            if job.ended and job.folder.exists():  # cancelled, and the queue had not come to it
                job.forget()
            job.release()

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
                if not job.ended:
                    await self._run(job)
            except Exception as error:  # of this job alone: the others wait
                traceback.print_exc()
                if job.status != "cancelled":
                    job.fail(without_paths(f"the worker could not be run: {error}", job)[:500])
            finally:
                await self._stop_process()  # of a task that was cancelled: nothing is written after this
                if job.ended:
                    job.forget()
                else:  # the server ends
                    with contextlib.suppress(OSError):
                        job.save()

    async def _run(self, job: FinetuneJob) -> None:
        before = "The server has started again; the job goes on from its last checkpoint"
        job.add_event(before if job.status == "running" else "Fine-tuning job started")
        job.about["status"] = "running"
        job.save()
        code, last, errors = await self._follow(job)
        while code in STOPPED and job.status == "running":
            await asyncio.sleep(AGAIN_SECONDS)
            job.add_event("The worker was stopped by a signal; it goes on from its last checkpoint")
            code, last, errors = await self._follow(job)
        if job.status == "cancelled":
            return
        if code:
            message = _error_of(last) or (errors.splitlines() or [f"the worker ended with {code}"])[-1]
            message = without_paths(message, job)
            named = next((name for name in DATA if code == REFUSED and message.startswith(name)), None)
            return job.fail(message[:500], *((f"invalid_{named}", named) if named else ()))
        self._succeed(job, last)

    async def _follow(self, job: FinetuneJob) -> tuple[int, str, str]:
        """Run the process of a job; return its exit code, the last line of its stdout, and its stderr."""
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
                job.save_progress()
        return await process.wait(), last, (await reading).decode("utf-8", "replace").strip()

    def _succeed(self, job: FinetuneJob, last: str) -> None:
        """End the job of a process that has succeeded and whose last line this is."""
        result = json.loads(last)
        job.about["trained_tokens"], job.about["fine_tuned_model"] = result.get("tokens"), job.tuned_name
        numbers = {name: v for name, v in result.items() if isinstance(v, (int, float)) and math.isfinite(v)}
        job.add_event("metrics", data=numbers)
        if results.losses(job.arguments.out):
            job.about["result_files"] = [new_id("file")]
        job.end("succeeded", "The job has successfully completed")
        job.save()
        self._publish(job)


def _load_all(files: Iterable[Path], load: Callable[[Path], FinetuneJob], model: str) -> list[FinetuneJob]:
    """Return the jobs in the folders of these files that tune the model of this name, the oldest first."""
    found = []
    for file in files:
        try:
            job = None if file.parent.is_symlink() else load(file.parent)
            if job and re.sub("^(ft:)*", "", job.tuned_name).partition("::")[0] == model:
                found.append(job)
        except (OSError, ValueError) as error:
            logging.getLogger(__name__).warning("%s: %s; its model is not served", file, error)
    return sorted(found, key=lambda job: int(job.about["created_at"]))


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
