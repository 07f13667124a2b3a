"""One fine-tuning job, and the files that keep it.

While it waits and runs, a folder beside its model, ".MODEL.job", has the examples and JOB_FILE: a server that
starts again goes on with it. Once it has succeeded, JOB_FILE lies in the folder of the model.
"""

import contextlib
import json
import os
import re
import shutil
import time
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from npgpt.engine.disk import sync, sync_names
from npgpt.engine.locks import open_locked
from npgpt.engine.types import Fields
from npgpt.server.responses import new_id

MAX_EVENTS = 1000  # kept
DATA = ("training_file", "validation_file")  # fields of a request, and the names of a job's files
JOB_FILE = "job.json"
SAVE_SECONDS = 1.0  # between two writings of what a job says
FILE_ID = "file-[0-9a-f]{24}"


@dataclass(frozen=True)
class FinetuneArguments:
    """The arguments of a process of fine-tuning."""

    base: Path  # the folder of the model to begin with
    data: Path  # the examples, in a folder of their own; its name is the one that errors should have
    out: Path  # the folder of the new model, with which the process goes on where it is there
    seed: int
    epochs: int | None  # None, here and below: what the command finds best
    batch_size: int | None
    validation: Path | None = None  # examples beside `data`; None: a share of those
    multiplier: float | None = None  # of the learning rate that the command finds best
    n_embd: int = 0  # channels of the model, by which it finds that rate


@dataclass
class FinetuneJob:
    """A job, the arguments of its process and its events."""

    about: Fields  # OpenAI's job object
    arguments: FinetuneArguments
    tuned_name: str  # of the new model
    events: deque[Fields] = field(default_factory=lambda: deque(maxlen=MAX_EVENTS))
    owner: str = ""
    _lock: int | None = None  # descriptor of a file that this server alone has locked
    _saved_at: float = 0.0

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

    @property
    def ended(self) -> bool:
        """True once it neither waits nor runs."""
        return self.about["finished_at"] is not None

    @property
    def status(self) -> str:
        """The status as OpenAI writes it."""
        return str(self.about["status"])

    # ------------------------------------------------------------------------ its files

    @property
    def folder(self) -> Path:
        """The folder of a job that waits or runs."""
        return folder_of(self.arguments.out)

    def begin(self, files: Mapping[str, Path]) -> None:
        """Make the folder with copies of the files, which may be deleted while the job waits.

        `files` has their names in DATA. All is on the disk on return: the client is told that the job is
        accepted. Raise OSError where that cannot be; forget() removes what there is.
        """
        self.folder.mkdir(0o700)
        self.claim()
        for name, path in files.items():
            shutil.copyfile(path, self.folder / name)
            sync(self.folder / name)  # before JOB_FILE: what that names is whole
        self.save()
        sync_names(self.folder.parent)

    def claim(self) -> bool:
        """Lock the folder until the end of this process; return False if another server has it."""
        descriptor, error = open_locked(self.folder / "lock")
        self._lock = descriptor
        if error:
            self.release()
        return error is None

    def release(self) -> None:
        """Leave the folder to another server."""
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def forget(self) -> None:
        """Remove what a job needs until it ends, and the new model if it has not succeeded."""
        self.release()
        if self.status != "succeeded":
            shutil.rmtree(self.arguments.out, ignore_errors=True)
        shutil.rmtree(self.folder, ignore_errors=True)

    def save(self) -> None:
        """Write the job into its folder, that of its model once it has succeeded; OSError where it cannot."""
        given = self.arguments
        kept = {"name": self.tuned_name, "job": self.about, "events": list(self.events), "owner": self.owner}
        kept["work"] = {
            "base": Path(os.path.relpath(given.base, given.out.parent)).as_posix(),
            **{name: getattr(given, name) for name in ("epochs", "batch_size", "multiplier", "n_embd")},
        }
        folder = given.out if self.status == "succeeded" else self.folder
        new = folder / f"{JOB_FILE}.new"
        with open(new, "w", encoding="utf-8") as file:
            file.write(json.dumps(kept, ensure_ascii=False, allow_nan=False) + "\n")
            file.flush()
            os.fsync(file.fileno())
        new.replace(folder / JOB_FILE)
        sync_names(folder)  # before forget() removes the other one
        self._saved_at = time.monotonic()

    def save_progress(self) -> None:
        """Write the job now and then; where that fails, a later writing may not."""
        if time.monotonic() - self._saved_at >= SAVE_SECONDS:
            with contextlib.suppress(OSError):
                self.save()

    @staticmethod
    def load(folder: Path) -> "FinetuneJob":
        """Return the job that made the model in a folder; raise ValueError or OSError where there is none."""
        job = _load(folder, folder)
        if (job.status, job.about["fine_tuned_model"]) != ("succeeded", job.tuned_name):
            raise ValueError(f"the job of {job.tuned_name} must have succeeded")
        return job

    @staticmethod
    def load_waiting(folder: Path) -> "FinetuneJob":
        """Return the job of a folder_of(); raise ValueError or OSError where there is none."""
        job = _load(folder, folder.with_name(folder.name[1:].removesuffix(".job")))
        if not job.ended and (job.status not in ("queued", "running") or not job.arguments.data.is_file()):
            raise ValueError("the job must be queued or running, and have its examples")
        return job


def folder_of(out: Path) -> Path:
    """Return the folder that keeps the job of a model in `out` until it ends."""
    return out.with_name(f".{out.name}.job")


def _load(folder: Path, out: Path) -> FinetuneJob:
    """Return the job of a folder, whose model is that in `out`; ValueError or OSError where there is none."""
    try:
        kept = json.loads((folder / JOB_FILE).read_text(encoding="utf-8"))
        about, name = dict(kept["job"]), str(kept["name"])
        events = deque(map(dict, kept["events"]), maxlen=MAX_EVENTS)
        names = ("id", "status", "created_at", "finished_at", "model", "fine_tuned_model", "metadata")
        if missing := {*names, "result_files", "seed", "error"} - set(about):
            raise ValueError(f"the job must have {', '.join(sorted(missing))}")
        files, _ = list(about["result_files"]), int(about["finished_at"] or 0) + int(about["created_at"])
        if not all(isinstance(id, str) and re.fullmatch(FILE_ID, id) for id in files):
            raise ValueError("result_files must be ids of files")
        work = dict(kept["work"])
        base = (out.parent / work["base"]).resolve()
        if folder != out and out.parent.resolve() not in base.parents:
            raise ValueError(f"base must lie beside the job, got {work['base']!r:.80}")
        training, validation = (folder / name for name in DATA)
        arguments = FinetuneArguments(
            base=base,
            data=training,
            out=out,
            seed=int(about["seed"]),
            epochs=_number(work, "epochs"),
            batch_size=_number(work, "batch_size"),
            validation=validation if validation.is_file() else None,
            multiplier=work.get("multiplier") and float(work["multiplier"]),
            n_embd=_number(work, "n_embd") or 0,
        )
    except (KeyError, TypeError, RecursionError) as error:
        raise ValueError(f"must be a job, got {error!r:.80}") from None
    return FinetuneJob(about, arguments, name, events, str(kept.get("owner", "")))


def _number(work: Fields, name: str) -> int | None:
    return None if work.get(name) is None else int(work[name])
