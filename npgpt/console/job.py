"""The one way into a run: functions find its folder, settings and parent; a Job trains and reports."""

from __future__ import annotations

import contextlib
import itertools
import json
from abc import ABC, abstractmethod
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from npgpt.console.messages import log_finished, log_warnings
from npgpt.console.process import errors_as_lines, interruptible
from npgpt.console.settings import flag

if TYPE_CHECKING:
    from npgpt.distributed.world import World
    from npgpt.engine.types import Fields, PathLike
    from npgpt.interop.layout import Pretrained
    from npgpt.training.listener import OnStep
    from npgpt.training.trainer import Trainer


# ---------------------------------------------------------------------------- before training


@dataclass(frozen=True)
class RunFolder:
    """The folder of a run, with the config and checkpoint of a run that is resumed."""

    path: Path
    config: Fields | None = None  # its config.toml; None for a new run
    checkpoint: Path | None = None  # the one to resume from; None where training begins
    ended: bool = False  # after its last step, or by its patience or target
    broken: tuple[str, ...] = ()  # a line for each broken checkpoint that was skipped
    text: str | None = None  # of a new run in runs/, which takes the next free name from it


def open_folder(
    out: str | None, text: str, resume: bool, world: World, lock: contextlib.ExitStack
) -> RunFolder:
    """Return the folder that --out names, or one named after the text; lock it where a run is resumed.

    Nothing is created. FileExistsError where the folder exists and is not to be resumed, BlockingIOError
    while another process trains in it.
    """
    from npgpt.training import checkpoint, recorder
    from npgpt.training import run as runs

    path = runs.find_folder(out, text, resume)
    if not (resume and (path / runs.CONFIG).exists()):
        return RunFolder(path, text=None if out or (resume and path.exists()) else text)
    _lock(path, False, world, lock)
    config = runs.read_config(path)
    found, broken = checkpoint.last(path) or (None, [])
    ended = found is not None and checkpoint.read_state(found)["ended"] is not None
    if not world.rank:
        recorder.check(path, checkpoint.step_of(found) if found else 0)
    return RunFolder(path, config, found, ended, tuple(broken))


def make_folder(folder: RunFolder, world: World, lock: contextlib.ExitStack) -> RunFolder:
    """Return the folder of a new run, made and locked until the stack is closed.

    In runs/ it gets the first name that is free now, as others may have started since open_folder() looked.
    Rank 0 takes it, and tells the other ranks.
    """
    from npgpt.training import run as runs

    path = folder.path
    if folder.text is not None:
        taken = runs.make_numbered(folder.text)[0] if world.rank == 0 else 0
        names = runs.numbered(folder.text)
        path = next(itertools.islice(names, int(world.broadcast(taken)), None))
    _lock(path, True, world, lock)
    return RunFolder(path)


def _lock(path: Path, new: bool, world: World, lock: contextlib.ExitStack) -> None:
    from npgpt.training import run as runs

    if world.rank == 0:
        lock.enter_context(runs.locked(path, new=new))


def kept_settings(given: Fields, saved: Fields, may_change: Iterable[str]) -> Fields:
    """Return the settings of a resumed run: the saved ones, with given ones where they may change."""
    return dict.fromkeys(given) | saved | {name: given[name] or saved.get(name) for name in may_change}


def set_threads(world: World, wanted: int | None) -> None:
    """Set the threads of each rank; warn where all together are more than the CPUs."""
    if warning := world.set_threads(wanted):
        log_warnings([warning])


def check_ranks(world: World, settings: Fields, **facts: object) -> None:
    """Raise ValueError where a rank has other settings, facts or libraries than rank 0, naming both."""
    if world.size > 1:
        from npgpt.distributed.mpi import library_versions

        named = {flag(name): settings[name] or "default" for name in settings if name != "threads"}
        world.check_equal(**named, **facts, **library_versions())


def stored_name(model: PathLike) -> str:
    """Return the name by which a config.toml names a model: its full path, or the name on the Hub."""
    return str(Path(model).resolve()) if Path(model).exists() else str(model)


def read_parent(path: PathLike, what_for: str, adapter: PathLike | None = None) -> Pretrained:
    """Return the model that a run begins with, an adapter merged; ValueError where it has no tokenizer."""
    from npgpt.training import pretrained

    found = pretrained.read(path, adapter)
    if found.tokenizer is None:
        raise ValueError(f"{path}: must have a tokenizer to be {what_for}")
    return found


# ---------------------------------------------------------------------------- training


class Job(ABC):
    """A run that is ready to train: its input was checked, and its folder is locked."""

    command: str  # train, finetune
    trainer: Trainer
    closing = 0.0  # seconds of the plan's minutes that are needed after the last step

    def __init__(self, folder: RunFolder, settings: Fields, trainer: Trainer, world: World) -> None:
        self.folder, self.settings, self.trainer, self.world = folder, settings, trainer, world
        self.plan = trainer.plan

    @abstractmethod
    def write_config(self) -> None:
        """Write the first files of a new run's folder."""

    @abstractmethod
    def announce(self) -> None:
        """Print the data, the model, and the memory and time that training will need."""

    @abstractmethod
    def sample(self) -> str:
        """Return a text that the model writes at this step."""

    @abstractmethod
    def finish(self) -> Fields:
        """Do the work that follows training, and return its fields for --json; it can be repeated."""

    @abstractmethod
    def show(self, result: Fields) -> Fields:
        """Print how training ended and what to run next; return further fields for --json."""

    def spent(self) -> float:
        """Return the seconds of the plan's minutes that are used before training."""
        return 0.0

    def exit_code(self, result: Fields) -> int:
        """Return 130 for an interrupted run, else 0."""
        from npgpt.training.ending import Ending

        return 130 if result["ended"] == Ending.INTERRUPTED else 0

    def run(self, as_json: bool, on_step: OnStep | None = None) -> int:
        """Train, or print that the run has already ended; return the exit code, 1 for a failure.

        on_step(Step) is called after each step; an exception in it is raised, behind a checkpoint.
        """
        result = self._already_ended(as_json) if self.trainer.ended else self._train(as_json, on_step)
        if as_json:
            print(json.dumps(result, allow_nan=False))
        return self.exit_code(result)

    def _write_first_files(self) -> None:
        """Write the settings of a run that begins, or that is made longer; a resumed one has them."""
        if self.trainer.gone_on:
            for name in ("report.html", "test.json"):  # of the shorter run
                (self.folder.path / name).unlink(missing_ok=True)
        if self.trainer.gone_on or self.folder.config is None:
            self.write_config()

    def _already_ended(self, as_json: bool) -> Fields:
        """Print how a finished run ended; write the report if a kill after the last step prevented it."""
        from npgpt.console import report

        result = self.trainer.result(self.folder.path)
        log_finished(result, self.plan.patience)
        if not self.world.rank and not (self.folder.path / "report.html").exists():
            with errors_as_lines(self.command, 1, (OSError, MemoryError), as_json):
                result |= self.finish()
                report.write(self.folder.path)
        return result

    def _train(self, as_json: bool, on_step: OnStep | None) -> Fields:
        from npgpt.console.progress import Progress
        from npgpt.engine import kernels
        from npgpt.training.listener import Listener
        from npgpt.training.trainer import TrainingFailed

        failures, path = (OSError, MemoryError, TrainingFailed), self.folder.path
        with errors_as_lines(self.command, 1, failures, as_json), interruptible() as interrupted:
            if not self.world.rank:
                self._write_first_files()
            self.announce()
            listener = Listener() if self.world.rank else Progress()
            result = self.trainer.train(
                path,
                self.settings["keep"],
                interrupted,
                self.sample,
                self.spent(),
                self.closing,
                listener,
                on_step,
            )
            del self.trainer  # frees memory to read the best model back
            kernels.release_memory()
            if not self.world.rank:
                result |= self.show(result)
        return result
