"""What a training leaves in its run's folder: metrics, samples, schedule, checkpoints and their pointers."""

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
from npgpt.training.memorising import History
from npgpt.training.schedule import Knot

P = ParamSpec("P")
METRICS = "step,epoch,tokens,train_loss,val_loss,lr,grad_norm,tokens_per_second,seconds,skipped"
SCHEDULE = "schedule.json"  # the knots of a run with --minutes, written down as they are set


def _rank_0(
    method: Callable[Concatenate["Recorder", P], None],
) -> Callable[Concatenate["Recorder", P], None]:
    """Have rank 0 alone do it, for all."""

    @functools.wraps(method)
    def guarded(self: "Recorder", /, *args: P.args, **more: P.kwargs) -> None:
        if not self.world.rank:
            method(self, *args, **more)

    return guarded


class Recorder:
    """Writes the files of a run. Of several ranks, rank 0 writes and the others do nothing."""

    def __init__(self, run: Path, keep: int, world: World, listener: Listener) -> None:
        """Keep the last `keep` checkpoints and the best; the listener hears of what cannot be written."""
        self.run, self.keep, self.world, self.listener = run, keep, world, listener
        self.metrics = Journal(run / "metrics.csv", step_of_row, METRICS)
        self.samples = Journal(run / "samples.jsonl", lambda line: int(json.loads(line)["step"]))
        self.history = History()
        self._flushed_at = time.perf_counter()

    @_rank_0
    def start(self, step: int) -> None:
        """Cut the files back to a step, or begin them."""
        self.history = History(self.metrics.start(step))
        self.samples.start(step)

    @_rank_0
    def add_row(self, step: int, loss: float, val_loss: float | None, row: str) -> None:
        """Add a step's row to metrics.csv, which is on the disk within about a second."""
        self.metrics.add(row)
        self.history.add(step, loss, val_loss)
        if time.perf_counter() - self._flushed_at > 1:  # who looks at the file sees it grow
            self.attempt(step, self.metrics.flush)
            self._flushed_at = time.perf_counter()

    @_rank_0
    def add_sample(self, step: int, text: str) -> None:
        """Add what the model wrote after a step."""
        self.samples.add(json.dumps({"step": step, "text": text}, ensure_ascii=False))

    @_rank_0
    def write_schedule(self, step: int, knots: list[Knot]) -> None:
        """Write down the knots of a schedule that moved; where that fails, training goes on."""
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
        """Write a checkpoint, after all that it rests on; OSError where that fails. For rank 0."""
        self.metrics.flush(sync=True)  # the rows up to a checkpoint are as safe as the checkpoint
        self.samples.flush(sync=True)
        if knots:  # never older than a checkpoint: a resume believes it
            self._write_knots(knots)
        checkpoint.save(self.run, step, model, tokenizer, moments, state)
        point_to_best(self.run, best_step)
        checkpoint.prune(self.run, self.keep)

    def attempt(self, step: int, write: Callable[[], None]) -> bool:
        """Return whether write() did: a failure is no reason to stop, as what matters is written again."""
        try:
            write()
            return True
        except OSError as error:
            self.listener.warn(f"step {step}: {error.filename}: {error.strerror}; training goes on")
            return False

    def _write_knots(self, knots: list[Knot]) -> None:
        checkpoint.write_atomically(self.run / SCHEDULE, json.dumps(knots) + "\n")


def take_up(run: Path, folder: Path, best_step: int) -> None:
    """Mend what a killed process left in a run that goes on from the checkpoint `folder`."""
    checkpoint.clean_up(run)
    if checkpoint.pointed(run, "LATEST") != folder:  # killed before it was moved
        checkpoint.point(run, "LATEST", folder.name)
    point_to_best(run, best_step)


def point_to_best(run: Path, step: int) -> None:
    """Have BEST name the checkpoint of a step, where that was saved."""
    name = f"step-{step:06d}"
    if (run / name).is_dir() and checkpoint.pointed(run, "BEST") != run / name:
        checkpoint.point(run, "BEST", name)


def step_of_row(line: str) -> int:
    """Return the step of a line of metrics.csv; ValueError for half a line."""
    step, *rest = line.split(",")
    if len(rest) != METRICS.count(","):
        raise ValueError(line)
    return int(step)


def read_knots(run: Path) -> list[Knot] | None:
    """Return what a run with --minutes wrote down of its schedule, None where nothing is."""
    try:
        knots: list[Knot] = json.loads((run / SCHEDULE).read_text(encoding="utf-8"))
        return knots
    except (OSError, ValueError):
        return None
