"""The training loop: a recorder writes its files, a listener receives its events.

The same text, plan and seed give the same weights, bit for bit, on any number of threads and however often
the run was stopped: batch, dropout masks and learning rate of a step are functions of its number.
"""

import math
import time
import zlib
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from npgpt.distributed.world import SINGLE, World
from npgpt.engine import kernels
from npgpt.engine.config import GPTConfig
from npgpt.engine.model import GPT
from npgpt.engine.types import Fields, Floats, Integers
from npgpt.text.dataset import Dataset, evaluation_batches
from npgpt.training import checkpoint, overfitting
from npgpt.training.cost import memory_needed, steps_in
from npgpt.training.ending import Ending
from npgpt.training.evaluation import mean_loss
from npgpt.training.listener import Listener, OnStep, Step
from npgpt.training.memory import check_memory
from npgpt.training.plan import Plan, make_plan
from npgpt.training.recorder import Recorder, read_knots, repair
from npgpt.training.run import read_config
from npgpt.training.schedule import Budget, Schedule
from npgpt.training.updater import TrainingData, Updater

MAX_SKIPPED = 3  # bad steps in a row: one odd batch must not end a long run
SAVE_SECONDS = 300  # a kill loses no more than this, however far apart the plan's checkpoints are
# attributes of a Trainer that a checkpoint stores as they are
COUNTED = ("step", "tokens", "seconds", "skipped", "bad_in_a_row", "best_step", "since_best")


class TrainingFailed(RuntimeError):
    """The error of a run that cannot go on; the message gives the reason and the last checkpoint."""


@dataclass
class RunContext:
    """The files, the listener and the clock of a training while it runs."""

    recorder: Recorder
    listener: Listener
    should_stop: Callable[[], bool]
    sample: Callable[[], str] | None
    begun: float  # on the clock of time.perf_counter(), earlier processes' seconds included
    reserved: float  # seconds of the plan's minutes that are needed after training
    saved_at: float
    validating: float = 0.0  # seconds of the last validation
    warned: bool = False  # of overfitting, once
    on_step: OnStep | None = None
    raised: Exception | None = None  # by on_step


def prepare(
    dataset: Dataset,
    flags: Fields,
    seed: int,
    model: GPT | None = None,
    spent: float = 0.0,
    world: World = SINGLE,
) -> "Trainer":
    """Return a trainer for `dataset` by the default plan and `flags`; without `model` a new one is made.

    ValueError, before anything large is allocated, for a plan that does not fit into memory. With minutes and
    no steps, their number is first estimated from a measured step; `spent` seconds are already used.
    """
    plan = make_plan(len(dataset), **flags)
    config = model.config if model else plan.model_config(dataset.tokenizer.vocab_size)

    def needed(config: GPTConfig, plan: Plan) -> int:
        return world.local_size * memory_needed(config, plan, len(dataset.train), world)

    check_memory(config, plan, needed)
    if model:
        model.seed, model.config = seed, replace(config, dropout=plan.dropout)
    trainer = Trainer(model or GPT(config, seed), dataset, plan, seed, world)
    trainer.step_seconds()
    if plan.minutes and not flags.get("steps"):
        steps = steps_in(trainer, 60 * plan.minutes - world.broadcast(spent))
        plan = make_plan(len(dataset), **flags | {"steps": steps})
        trainer.plan, trainer.schedule = plan, Schedule(plan)
    return trainer


class Trainer(Updater):
    """Trains a model on a dataset by a plan. All ranks of `world` do the same steps.

    Each rank computes its rows of every batch; rank 0 writes.
    """

    def __init__(
        self, model: GPT, dataset: TrainingData, plan: Plan, seed: int = 0, world: World = SINGLE
    ) -> None:
        super().__init__(model, dataset, plan, seed, world)
        self.schedule = Schedule(plan)
        self.budget = Budget(60 * plan.minutes) if plan.minutes else None
        self.step = self.tokens = self.skipped = self.bad_in_a_row = 0
        self.seconds = 0.0  # of training, those of earlier processes included
        self.best, self.best_step, self.since_best = math.inf, 0, 0  # validation loss; validations since
        self.kept, self.kept_step = math.inf, 0  # the best loss whose checkpoint was saved
        epoch = self.batches.per_epoch
        kept = max(10, epoch if plan.memorise else min(epoch, 1000))
        self.recent: deque[float] = deque(maxlen=kept)  # losses
        self.ended: Ending | None = None
        self.gone_on = False  # after the end of a shorter run

    # ------------------------------------------------------------------------ the loop

    def train(
        self,
        run: Path,
        keep: int = 2,
        should_stop: Callable[[], bool] = lambda: False,
        sample: Callable[[], str] | None = None,
        spent: float = 0.0,
        reserved: float = 0.0,
        listener: Listener | None = None,
        on_step: OnStep | None = None,
    ) -> Fields:
        """Train to the plan's end or target, write the files of a Recorder into `run`, and return the result.

        The last `keep` checkpoints and the best are kept. should_stop() is called after each step: True ends
        the run with a checkpoint. sample() returns a text, every eval_every steps. `spent` seconds of the
        plan's minutes are already used, and `reserved` seconds are kept for the time after training.
        on_step(Step) is called after each step, on rank 0; an exception in it ends the run with a checkpoint
        of that step, as an interrupt does, and is raised again.
        TrainingFailed where the loss or a gradient stays not finite, OSError where the last checkpoint cannot
        be written. Both leave earlier checkpoints as they are.
        """
        listener = listener or Listener()
        recorder, now = Recorder(Path(run), keep, self.world, listener), time.perf_counter()
        context = RunContext(
            recorder,
            listener,
            should_stop,
            sample,
            now - self.seconds - spent,
            reserved,
            now,
            on_step=on_step,
        )
        recorder.start(self.step)
        if self.plan.minutes:
            recorder.write_schedule(self.step, self.schedule.knots)
        val_loss = None
        listener.begin(self.step, self.schedule.steps)
        try:
            while not self.ended and self.step < self.schedule.steps:
                val_loss = self._one_step(context)
        finally:
            listener.end()
        if context.raised:
            raise context.raised
        val_loss = self._final_validation(val_loss, should_stop)
        _check_validation(self, recorder.run, val_loss)
        return self.result(recorder.run) | {
            "val_loss": val_loss,
            "falling": recorder.history.falling() if self.ended is None else None,
            "seconds": time.perf_counter() - context.begun,
        }

    def result(self, run: Path) -> Fields:
        """Return the result of the training so far, from what a checkpoint stores."""
        return {
            "run": str(run),
            "steps": self.step,
            "ended": str(self.ended or Ending.DONE),
            "train_loss": sum(self.recent) / max(1, len(self.recent)),
            "val_loss": None,
            "best_val_loss": None if math.isinf(self.kept) else self.kept,
            "best_step": self.kept_step or None,
            "tokens": self.tokens,
            "skipped": self.skipped,
            "seconds": self.seconds,
        }

    def _one_step(self, context: RunContext) -> float | None:
        """Do a step with its validation, sample and checkpoint; return the validation loss or None."""
        plan, began = self.plan, time.perf_counter()
        self.step += 1
        loss, grad_norm, n = self._update(self.step, context)
        took = time.perf_counter() - began
        self.tokens += n
        if not self.bad_in_a_row:
            self.recent.append(loss)

        if self._training_target_reached():
            self.ended = Ending.MEMORISED if plan.memorise else Ending.TARGET
        last = bool(self.ended) or self.step == self.schedule.steps
        evaluated = last or self.step % plan.eval_every == 0
        val_loss = self._timed_validation(context) if evaluated else None
        if val_loss is not None:
            self._compare(val_loss)
        now = time.perf_counter()
        self.seconds, rate = now - context.begun, self.optimizer.lr
        step = Step(self.step, self.schedule.steps, loss, val_loss, n / took, self.seconds, rate)
        worth = val_loss is not None and val_loss < self.kept
        stop, overdue, worth = self.world.any(
            _stopped(self, context, step), now - context.saved_at > SAVE_SECONDS, worth
        )
        if not last and not self.ended and stop:
            self.ended = Ending.INTERRUPTED

        self._write_row(context.recorder, loss, val_loss, grad_norm, n / took)
        context.listener.step(step)
        _check_validation(self, context.recorder.run, val_loss)
        if evaluated and not self.world.rank:
            _sample_and_warn(self, context)
        final = last or bool(self.ended)
        if final or overdue or ((worth or self.step % plan.save_every == 0) and not self.bad_in_a_row):
            self._save(context, final, val_loss)
        if self.budget:
            total = time.perf_counter() - began
            self.budget.saw_step(took if evaluated else total)
            if evaluated:
                self.budget.saw_evaluation(total - took)
            self._keep_to_budget(self.budget, context)
        return val_loss

    def _training_target_reached(self) -> bool:
        """Return whether the mean training loss of an epoch reached a target that it decides."""
        by_training = self.plan.memorise or not len(self.dataset.validation)
        full_epoch = len(self.recent) == self.recent.maxlen
        return by_training and full_epoch and _reached(self.plan, sum(self.recent) / len(self.recent))

    def _compare(self, val_loss: float) -> None:
        """Update the best validation loss, and end the run at its target or after its patience."""
        plan, better = self.plan, val_loss < self.best
        self.since_best = 0 if better else self.since_best + 1
        if better:
            self.best, self.best_step = val_loss, self.step
        if not plan.memorise and _reached(plan, val_loss):
            self.ended = self.ended or Ending.TARGET
        elif plan.patience and self.since_best >= plan.patience:
            self.ended = self.ended or Ending.PATIENCE

    def _update(self, step: int, context: RunContext) -> tuple[float, float, int]:
        """Update the weights once; return loss, gradient norm and tokens. Not finite, it changes nothing."""
        self.model.step = step  # selects the dropout masks
        self.optimizer.lr, self.sampled = self.schedule.rate(step), self.schedule.sampled(step)
        loss, n = self._forward_backward(step - 1)
        grad_norm = math.nan
        if math.isfinite(loss):
            grad_norm = self._change_weights()
        else:
            self.model.zero_grads()
        if math.isfinite(grad_norm):
            self.bad_in_a_row = 0
        else:
            self.bad_in_a_row += 1
            what = f"the loss is {loss}" if not math.isfinite(loss) else f"the gradient's norm is {grad_norm}"
            if self.bad_in_a_row > MAX_SKIPPED:
                raise _failure(self, context.recorder.run, what)
            self.skipped += 1
            context.listener.warn(f"step {step} is skipped: {what}")
        return float(loss), float(grad_norm), n

    def _keep_to_budget(self, budget: Budget, context: RunContext) -> None:
        """Move the last step where the minutes would be missed, and write the new schedule."""
        if self.ended or not self.schedule.knots[-1][0] < self.step < self.schedule.steps:
            return
        n_validation = len(self.dataset.validation)
        closing = context.reserved + context.validating * max(1.0, n_validation / self.plan.eval_tokens)
        spent = time.perf_counter() - context.begun
        end = budget.new_end(self.step, self.schedule.steps, self.plan.eval_every, spent, closing)
        if end := int(self.world.broadcast(end or 0)):
            self.schedule.end_at(self.step, end)
            context.recorder.write_schedule(self.step, self.schedule.knots)

    # ------------------------------------------------------------------------ validation and metrics

    def _timed_validation(self, context: RunContext) -> float | None:
        start = time.perf_counter()
        loss = self._validate()
        if loss is not None:
            context.validating = time.perf_counter() - start
        return loss

    def _validate(self) -> float | None:
        """Return the loss on the subset of the validation part that is the same at every step."""
        if not len(self.dataset.validation):
            return None
        return mean_loss(self.model, self.validation_batches(self.plan.eval_tokens), self.world.map)

    def _final_validation(self, val_loss: float | None, should_stop: Callable[[], bool]) -> float | None:
        """Return the loss over the complete validation part; where that is stopped, the subset's loss."""
        seen = len(self.dataset.validation) <= self.plan.eval_tokens
        if val_loss is None or seen or self.ended == Ending.INTERRUPTED:
            return val_loss

        def until_stopped(function: Callable[[Any], Floats], batches: Iterable[Any]) -> Iterator[Floats]:
            for batch in batches:  # a large text takes hours; the model is already saved
                if should_stop():
                    raise KeyboardInterrupt
                yield function(batch)

        try:
            map = self.world.map if self.world.size > 1 else until_stopped
            return mean_loss(self.model, self.validation_batches(None), map)
        except KeyboardInterrupt:
            return val_loss

    def validation_batches(self, max_tokens: int | None) -> Iterable[tuple[Integers, ...]]:
        """Return the batches of the validation part, or of a fixed subset of about max_tokens."""
        ids, T = self.dataset.validation, self.model.config.block_size
        return evaluation_batches(ids, T, self.rows, self.end_of_text, max_tokens, self.dataset.apart)

    def _write_row(
        self, recorder: Recorder, loss: float, val_loss: float | None, grad_norm: float, speed: float
    ) -> None:
        epoch = self.step / self.batches.per_epoch
        row = [self.step, f"{epoch:.4f}", self.tokens, loss, "" if val_loss is None else repr(val_loss)]
        row += [self.optimizer.lr, grad_norm, f"{speed:.0f}", f"{self.seconds:.3f}", self.skipped]
        recorder.add_row(self.step, loss, val_loss, ",".join(map(str, row)))

    # ------------------------------------------------------------------------ saving and resuming

    def _save(self, context: RunContext, final: bool, val_loss: float | None) -> None:
        """Save a checkpoint. A failed write is a warning, or an OSError where it is the final one."""
        _check_weights(self, context.recorder.run)

        former = self.kept, self.kept_step
        if val_loss is not None and val_loss < self.kept:
            self.kept, self.kept_step = val_loss, self.step
        if self.world.size > 1:
            try:
                self.world.check_equal(weights=zlib.crc32(self.optimizer.model.flat_params.data))
            except ValueError as error:  # for example memory that fails on one rank
                raise TrainingFailed(f"step {self.step}: {error}; nothing was saved") from None
        moments = self.world.gather(self.optimizer.state()) if self.cuts else self.optimizer.state()
        if self.world.rank:
            context.saved_at = time.perf_counter()
            return

        def write() -> None:
            knots = self.schedule.knots if self.plan.minutes else None
            tokenizer, state = self.dataset.tokenizer, self._state()
            context.recorder.save(self.step, self.model, tokenizer, moments, state, self.kept_step, knots)

        if final:
            write()
        elif not context.recorder.attempt(self.step, write):
            self.kept, self.kept_step = former
            context.saved_at = time.perf_counter() - 0.8 * SAVE_SECONDS  # not tried at every step
            return
        context.saved_at = time.perf_counter()

    def _state(self) -> Fields:
        epoch, position = divmod(self.step, self.batches.per_epoch)
        ended = self.ended or (Ending.DONE if self.step == self.schedule.steps else None)
        return {
            **{name: getattr(self, name) for name in COUNTED},
            "ended": None if ended == Ending.INTERRUPTED else ended,
            "optimizer_steps": self.optimizer.steps,
            # All random numbers are functions of counters, so these are their complete state.
            "data": {"epoch": epoch, "position": position},
            "rng": {"seed": self.seed, "step": self.step},
            "schedule": self.schedule.knots,
            "minutes": self.plan.minutes,
            "budget": self.budget.seen if self.budget else [],
            "best_val_loss": None if math.isinf(self.best) else self.best,
            "kept_val_loss": None if math.isinf(self.kept) else self.kept,
            "kept_step": self.kept_step,
            "recent_losses": list(self.recent),
        }

    def resume(self, run: Path, folder: Path) -> None:
        """Restore the state of the checkpoint that self.model was in; ValueError for a plan that is over."""
        state, moments = checkpoint.load(folder)
        self.optimizer.load_state(moments, state["optimizer_steps"])
        for name in COUNTED:
            setattr(self, name, state[name])
        self.ended = Ending.read(state["ended"])
        self.best = math.inf if state["best_val_loss"] is None else state["best_val_loss"]
        kept = state.get("kept_val_loss", state["best_val_loss"])
        self.kept = math.inf if kept is None else kept
        self.kept_step = state.get("kept_step", self.best_step)
        self.recent.extend(state["recent_losses"])
        _restore_schedule(self, run, state)
        if not self.world.rank:
            repair(run, folder, self.kept_step)


def _stopped(trainer: Trainer, context: RunContext, step: Step) -> bool:
    """Call on_step, and return whether training is to stop after this step."""
    if context.on_step and not trainer.world.rank:
        try:
            context.on_step(step)
        except Exception as error:
            context.raised = error
    return context.should_stop() or context.raised is not None


def _sample_and_warn(trainer: Trainer, context: RunContext) -> None:
    """Record a sample, and warn once where the model overfits."""
    try:
        text = context.sample() if context.sample else ""
    except ValueError as error:  # its logits are not finite
        raise _failure(trainer, context.recorder.run, str(error)) from None
    if context.sample:
        context.recorder.add_sample(trainer.step, text)
    if not trainer.plan.memorise and (verdict := context.recorder.history.verdict()) and not context.warned:
        context.warned = True
        train = overfitting.training_text(trainer.dataset.train, trainer.dataset.tokenizer)
        context.listener.overfitting(verdict, overfitting.longest_overlap(text.encode(), train))


def val_bytes_per_token(trainer: Trainer) -> float | None:
    """Return the bytes of a token where the training validates, on average; None without a validation."""
    tokenizer, n, size = trainer.dataset.tokenizer, 0, 0
    if not len(trainer.dataset.validation):
        return None
    for _x, y, *_starts in trainer.validation_batches(trainer.plan.eval_tokens):
        n, size = n + int((y >= 0).sum()), size + len(tokenizer.decode_bytes(y[y >= 0]))
    return size / n


def _restore_schedule(trainer: Trainer, run: Path, state: Fields) -> None:
    """Restore schedule and budget, longer where the plan has other steps or minutes than the run had."""
    plan = trainer.plan
    # npgpt 0.1.0 has the minutes in config.toml alone
    minutes = state["minutes"] if "minutes" in state else read_config(run).get("minutes")
    trainer.schedule = Schedule(plan, (minutes and read_knots(run)) or state["schedule"])
    if plan.minutes:
        trainer.budget = Budget(60 * plan.minutes, state["budget"])
    if plan.minutes == minutes and (minutes or plan.steps == trainer.schedule.steps):
        return
    done, spent = trainer.step, trainer.seconds / 60
    if trainer.ended in (Ending.TARGET, Ending.MEMORISED):
        raise ValueError(f"--resume: this run reached its target after {done} steps, so it cannot be longer")
    if plan.minutes and plan.minutes <= spent:
        raise ValueError(f"--resume: minutes must be above the {spent:.2f} that are done, got {plan.minutes}")
    steps = done + steps_in(trainer, 60 * (plan.minutes - spent)) if plan.minutes else plan.steps
    if steps <= done:
        raise ValueError(f"--resume: steps must be above the {done} that are done, got {steps}")
    # after a kill, the newest checkpoint that is whole may lie before the former end
    trainer.schedule.go_on(done if trainer.ended else trainer.schedule.steps, steps)
    trainer.ended, trainer.since_best, trainer.gone_on = None, 0, True


def _reached(plan: Plan, loss: float) -> bool:
    return plan.target_loss is not None and loss <= plan.target_loss


def _check_validation(trainer: Trainer, run: Path, val_loss: float | None) -> None:
    if val_loss is not None and not math.isfinite(val_loss):
        raise _failure(trainer, run, f"the validation loss is {val_loss}")


def _check_weights(trainer: Trainer, run: Path) -> None:
    norm = kernels.ops_for(trainer.model.dtype).global_norm
    trained = trainer.optimizer.model  # the model, or adapters, which need not be merged into it
    if not all(math.isfinite(norm(flat)) for flat in (trainer.model.flat_params, trained.flat_params)):
        raise _failure(trainer, run, "the weights are not finite")


def _failure(trainer: Trainer, run: Path, what: str) -> TrainingFailed:
    """Return the error that ends a run whose numbers are not finite."""
    saved = checkpoint.checkpoints(run)
    kept = f"the last good checkpoint is {saved[0]}" if saved else "no checkpoint was saved before"
    if before := max(0, trainer.bad_in_a_row - 1):
        what = f"{what}, as {before} step{'s' * (before > 1)} before it, which were skipped"
    lower = f"{trainer.plan.lr / 3:.2g}"
    return TrainingFailed(
        f"step {trainer.step}: {what}, so training stopped; {kept}. "
        f"Begin again with a lower learning rate (--lr {lower}) or a longer --warmup"
    )
