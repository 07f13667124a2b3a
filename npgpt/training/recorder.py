"""The files of a run that training writes: metrics, samples, schedule, checkpoints and their pointers."""

import functools
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Concatenate, ParamSpec

from npgpt.distributed.world import World
from npgpt.engine.model import GPT
from npgpt.engine.types import Fields, Tensors
from npgpt.text.tokenizer import Tokenizer
from npgpt.training import checkpoint
from npgpt.training.journal import Journal
from npgpt.training.listener import Listener
from npgpt.training.overfitting import History
from npgpt.training.schedule import Knot

P = ParamSpec("P")
METRICS = "step,epoch,tokens,train_loss,val_loss,lr,grad_norm,tokens_per_second,seconds,skipped"
SCHEDULE = "schedule.json"  # the knots of a run with --minutes, written as they are set


def _rank_0(
    method: Callable[Concatenate["Recorder", P], None],
) -> Callable[Concatenate["Recorder", P], None]:
    """Return a method that acts on rank 0 alone."""

    @functools.wraps(method)
    def guarded(self: "Recorder", /, *args: P.args, **more: P.kwargs) -> None:
        if not self.world.rank:
            method(self, *args, **more)

    return guarded


class Recorder:
    """Writes the files of a run. With several ranks, rank 0 writes and the others do nothing."""

    def __init__(self, run: Path, keep: int, world: World, listener: Listener) -> None:
        """Keep the last `keep` checkpoints and the best; the listener is warned of failed writes."""
        self.run, self.keep, self.world, self.listener = run, keep, world, listener
        self.metrics, self.samples = journals(run)
        self.history = History()
        self._flushed_at = time.perf_counter()

    @_rank_0
    def start(self, step: int) -> None:
        """Cut metrics and samples back to `step`, or begin them."""
        self.history = History(self.metrics.start(step))
        self.samples.start(step)

    @_rank_0
    def add_row(self, step: int, loss: float, val_loss: float | None, row: str) -> None:
        """Add the row of a step to metrics.csv; the file has it within about a second."""
        self.metrics.add(row)
        self.history.add(step, loss, val_loss)
        if time.perf_counter() - self._flushed_at > 1:  # so that a reader sees the file grow
            self.attempt(step, self.metrics.flush)
            self._flushed_at = time.perf_counter()

    @_rank_0
    def add_sample(self, step: int, text: str) -> None:
        """Add the text that the model wrote after a step to samples.jsonl."""
        self.samples.add(json.dumps({"step": step, "text": text}, ensure_ascii=False, allow_nan=False))

    @_rank_0
    def write_schedule(self, step: int, knots: list[Knot]) -> None:
        """Write the knots of a schedule that moved; where that fails, warn and go on."""
        self.attempt(step, lambda: self._write_knots(knots))

    def save(
        self,
        step: int,
        model: GPT,
        tokenizer: Tokenizer,
        moments: Tensors,
        state: Fields,
        best_step: int,
        knots: list[Knot] | None,
    ) -> None:
        """Write metrics, samples and schedule, then a checkpoint, on rank 0. OSError where that fails."""
        self.metrics.flush(sync=True)  # the rows up to a checkpoint are as safe as the checkpoint
        self.samples.flush(sync=True)
        if knots:  # never older than a checkpoint: a resume believes it
            self._write_knots(knots)
        checkpoint.save(self.run, step, model, tokenizer, moments, state)
        point_to_best(self.run, best_step)
        checkpoint.prune(self.run, self.keep)

    def attempt(self, step: int, write: Callable[[], None]) -> bool:
        """Call write() and return whether it succeeded; a failure is a warning, as a later write follows."""
        try:
            write()
            return True
        except OSError as error:
            self.listener.warn(f"step {step}: {error.filename}: {error.strerror}; training goes on")
            return False

    def _write_knots(self, knots: list[Knot]) -> None:
        checkpoint.write_atomically(self.run / SCHEDULE, json.dumps(knots, allow_nan=False) + "\n")


def journals(run: Path) -> tuple[Journal, Journal]:
    """Return metrics.csv and samples.jsonl of a run."""
    return Journal(run / "metrics.csv", step_of_row, METRICS), Journal(run / "samples.jsonl", step_of_sample)


def check(run: Path, step: int) -> None:
    """Raise ValueError where a file that a resume at `step` reads and writes anew was changed by hand."""
    for journal in journals(run):
        journal.read(step)
    read_knots(run)


def repair(run: Path, folder: Path, best_step: int) -> None:
    """Repair the pointers and folders of a killed run that is resumed from the checkpoint `folder`."""
    checkpoint.clean_up(run)
    if checkpoint.pointed(run, "LATEST") != folder:  # killed before the pointer was written
        checkpoint.point(run, "LATEST", folder.name)
    point_to_best(run, best_step)


def point_to_best(run: Path, step: int) -> None:
    """Point BEST at the checkpoint of a step, where that was saved."""
    name = f"step-{step:06d}"
    if (run / name).is_dir() and checkpoint.pointed(run, "BEST") != run / name:
        checkpoint.point(run, "BEST", name)


def step_of_row(line: str) -> int:
    """Return the step of a line of metrics.csv; ValueError where a cell is missing or no number."""
    step, *rest = line.split(",")
    if len(rest) != METRICS.count(","):
        raise ValueError(line)
    for name, cell in zip(METRICS.split(",")[1:], rest, strict=True):
        if cell or name != "val_loss":
            float(cell)
    return int(step)


def step_of_sample(line: str) -> int:
    """Return the step of a line of samples.jsonl; ValueError, KeyError or TypeError for another line."""
    sample = json.loads(line)
    if not isinstance(sample["text"], str):
        raise TypeError(line)
    return int(sample["step"])


def read_knots(run: Path) -> list[Knot] | None:
    """Return the schedule's knots that a run with --minutes wrote, None where it has none.

    ValueError for a file that holds something else.
    """
    try:
        text = (run / SCHEDULE).read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        return None
    try:
        knots = [(int(at), float(here), int(end)) for at, here, end in json.loads(text)]
        if not knots:
            raise ValueError("[]")
    except (ValueError, TypeError, RecursionError):
        raise ValueError(
            f"{run / SCHEDULE}: must hold [[step, progress, last step], ...], got {text.strip()[:100]!r}"
        ) from None
    return knots
