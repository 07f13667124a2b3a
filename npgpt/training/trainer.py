"""The training loop: batches in, checkpoints and metrics.csv out.

Same text, plan and seed give the same weights, bit for bit, on any number of threads and however often the
run was stopped: the batch, the dropout masks and the learning rate of a step are functions of its number.
"""

import functools
import json
import math
import time
import zlib
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, Concatenate, ParamSpec, Protocol

from npgpt.console.progress import Progress
from npgpt.distributed.mpi import GradientSum, shard_cuts
from npgpt.distributed.world import SINGLE, World
from npgpt.engine import kernels
from npgpt.engine.config import GPTConfig, count_parameters, training_floats
from npgpt.engine.model import GPT
from npgpt.engine.optim import AdamW, Muon
from npgpt.engine.types import Fields, Floats, Integers
from npgpt.text.dataset import Batches, Dataset, evaluation_batches, n_windows
from npgpt.text.tokenizer import Tokenizer
from npgpt.training import checkpoint, memorising
from npgpt.training.evaluation import mean_loss
from npgpt.training.journal import Journal
from npgpt.training.memory import check_memory
from npgpt.training.plan import Plan, make_plan
from npgpt.training.schedule import Budget, Knot, Schedule

P = ParamSpec("P")
METRICS = "step,epoch,tokens,train_loss,val_loss,lr,grad_norm,tokens_per_second,seconds,skipped"
SKIPPED_AT_MOST = 3  # bad steps in a row: one odd batch is no reason to end a night's work
SAVE_SECONDS = 300  # a kill costs no more than this, however far apart the plan's checkpoints are
PROGRAM = 8 << 20  # bytes: what is imported late, the threads' own buffers
# of a Trainer, that a checkpoint keeps as they are
COUNTED = ("step", "tokens", "seconds", "skipped", "bad_in_a_row", "best_step", "since_best")
SCHEDULE = "schedule.json"  # the knots of a run with --minutes, written down as they are set


def one_rank(method: Callable[Concatenate["Trainer", P], None]) -> Callable[Concatenate["Trainer", P], None]:
    """Rank 0 does it, for all."""

    @functools.wraps(method)
    def guarded(self: "Trainer", /, *args: P.args, **more: P.kwargs) -> None:
        if not self.world.rank:
            method(self, *args, **more)

    return guarded


class TrainingData(Protocol):
    """What is trained on: a text, or examples."""

    @property
    def train(self) -> Integers:
        """The ids of the training part (N,)."""

    @property
    def validation(self) -> Integers:
        """The ids of the validation part (N,)."""

    @property
    def tokenizer(self) -> Tokenizer:
        """The tokenizer of these ids."""

    def __len__(self) -> int: ...


class TrainingBatches(Protocol):
    """The batches of training as a function of the step."""

    @property
    def per_epoch(self) -> int:
        """The number of batches of an epoch."""

    def batch(self, step: int) -> tuple[Integers, ...]:
        """Return x, y int32 (B,T) of step 0, 1, ..., and `first` (B,T) where examples are packed."""


class TrainingFailed(RuntimeError):
    """The run cannot go on; the message says why and what is kept."""


def prepare(
    dataset: Dataset,
    flags: Fields,
    seed: int,
    model_class: type[GPT],
    model: GPT | None = None,
    spent: float = 0.0,
    world: World = SINGLE,
) -> "Trainer":
    """A trainer for `dataset` by the default plan and `flags`; the model is new unless one is given.

    ValueError, before anything large is allocated, for a plan that does not fit. With minutes and no steps,
    the first guess at their number is measured; `spent` seconds of the minutes are gone already.
    """
    plan = make_plan(len(dataset), **flags)
    config = model.config if model else plan.model_config(dataset.tokenizer.vocab_size)

    def needed(config: GPTConfig, plan: Plan) -> int:
        return world.local_size * Trainer.memory_needed(config, plan, len(dataset.train), world)

    check_memory(config, plan, needed)
    if model:
        model.seed, model.config = seed, replace(config, dropout=plan.dropout)
    trainer = Trainer(model or model_class(config, seed), dataset, plan, seed, world)
    trainer.step_seconds()
    if plan.minutes and not flags.get("steps"):
        steps = trainer.steps_in(60 * plan.minutes - world.broadcast(spent))
        plan = make_plan(len(dataset), **flags | {"steps": steps})
        trainer.plan, trainer.schedule = plan, Schedule(plan)
    return trainer


class Trainer:
    """Trains `model` on `dataset` by `plan`, with the other ranks of `world`: all of them do the same steps.

    Each has its rows of every batch; one of them writes.
    """

    def __init__(
        self, model: GPT, dataset: TrainingData, plan: Plan, seed: int = 0, world: World = SINGLE
    ) -> None:
        self.model, self.dataset, self.plan, self.seed = model, dataset, plan, seed
        self.world, self.rows = world, rows_of(plan, world)
        self.end_of_text = dataset.tokenizer.end_of_text
        self.batches = self._training_batches()
        kinds: dict[str, type[AdamW | Muon]] = {"adamw": AdamW, "muon": Muon}
        self.optimizer = kinds[plan.optimizer](model, lr=plan.lr, weight_decay=plan.weight_decay)
        self.cuts = shard_cuts(model, world.size) if world.zero else None
        if self.cuts:
            self.optimizer.own(*self.cuts[world.rank : world.rank + 2])
        self.schedule = Schedule(plan)
        self.budget = Budget(60 * plan.minutes) if plan.minutes else None
        self.step = self.tokens = self.skipped = self.bad_in_a_row = 0
        self.seconds = 0.0  # of training, those of stopped processes included
        self.best, self.best_step, self.since_best = math.inf, 0, 0  # validation loss; validations since
        self.kept, self.kept_step = math.inf, 0  # the best of those that could be saved
        epoch = self.batches.per_epoch
        kept = max(10, epoch if plan.memorise else min(epoch, 1000))
        self.recent: deque[float] = deque(maxlen=kept)  # losses
        self.ended: str | None = None
        self._warned = False

    def _training_batches(self) -> TrainingBatches:
        plan = self.plan
        return Batches(self.dataset.train, plan.block_size, plan.windows, self.seed, self.end_of_text)

    # ------------------------------------------------------------------------ cost

    @staticmethod
    def memory_needed(config: GPTConfig, plan: Plan, n_train: int, world: World = SINGLE) -> int:
        """Bytes that training holds: model, optimizer, what a batch needs, the order of the windows."""
        windows = n_windows(n_train, plan.block_size)
        model = 4 * training_floats(config, min(windows, rows_of(plan, world)), plan.block_size)
        if world.zero:  # both moments, but for this rank's part of them
            model -= 8 * count_parameters(config) * (world.size - 1) // world.size
        return model + 8 * windows + PROGRAM

    def seconds_needed(self) -> float:
        """How long what is left of the plan takes here and now."""
        whole, plan = len(self.dataset.validation), self.plan
        evaluations = (self.schedule.steps - self.step) // plan.eval_every
        tokens = min(whole, plan.eval_tokens) * evaluations + whole
        windows = tokens / plan.block_size
        # Validation runs the forward pass alone, a third of the arithmetic.
        return self.step_seconds() * (self.schedule.steps - self.step + windows / plan.windows / 3)

    def steps_in(self, seconds: float) -> int:
        """About how many steps `seconds` are enough for, validation included."""
        tokens = min(len(self.dataset.validation), self.plan.eval_tokens) * 10 + len(self.dataset.validation)
        validation = self.step_seconds() / 3 * tokens / (self.plan.windows * self.plan.block_size)
        return max(1, int(max(0.5 * seconds, seconds - validation) / self.step_seconds()))

    def step_seconds(self) -> float:
        """One step, by up to four trials that leave no trace; measured once, before anything is trained."""
        if not hasattr(self, "_step_seconds"):
            self.optimizer.lr = 0.0  # so the weights stay
            times: list[float] = []
            while len(times) < 4 and sum(times) < 2.0:
                start = time.perf_counter()
                self._forward_backward(0)
                self._change_weights()
                times.append(self.world.broadcast(time.perf_counter() - start))
            for moment in self.optimizer.moments:
                moment[...] = 0
            self.optimizer.steps = 0
            self._step_seconds = min(times)  # the first ones also fetch memory
        return self._step_seconds

    # ------------------------------------------------------------------------ the loop

    def train(
        self,
        run: Path,
        keep: int = 2,
        should_stop: Callable[[], bool] = lambda: False,
        sample: Callable[[], str] | None = None,
        spent: float = 0.0,
        reserved: float = 0.0,
        quiet: bool = False,
    ) -> Fields:
        """Run the plan to its end or its target, with checkpoints, metrics.csv and samples.jsonl in `run`.

        The last `keep` checkpoints and the best are kept. should_stop() is asked after each step: True ends
        the run with a checkpoint. sample() -> text, asked every eval_every steps. Of the plan's minutes
        `spent` seconds are gone and `reserved` ones are for what comes afterwards. Returns how it went.
        TrainingFailed where the loss or a gradient stays not finite, OSError where the last checkpoint cannot
        be written: those before that are left as they are.
        """
        self.run, self.keep, self.sample, self._reserved = Path(run), keep, sample, reserved
        self.metrics = Journal(self.run / "metrics.csv", step_of_row, METRICS)
        self.samples = Journal(self.run / "samples.jsonl", lambda line: json.loads(line)["step"])
        self._start_journals()
        self._saved_at = self._flushed_at = time.perf_counter()
        self._begun = self._saved_at - self.seconds - spent
        self._validating = 0.0  # seconds of the last validation
        if self.plan.minutes:
            self._write_schedule()
        val_loss = None
        with Progress(self.schedule.steps, self.step, quiet or self.world.rank > 0) as self.progress:
            while not self.ended and self.step < self.schedule.steps:
                val_loss = self._one_step(should_stop)
        val_loss = self._whole_validation(val_loss, should_stop)
        return self.result(self.run) | {"val_loss": val_loss, "seconds": time.perf_counter() - self._begun}

    def result(self, run: Path) -> Fields:
        """How it went, as far as a checkpoint knows."""
        return {
            "run": str(run),
            "steps": self.step,
            "ended": self.ended or "done",
            "train_loss": sum(self.recent) / max(1, len(self.recent)),
            "val_loss": None,
            "best_val_loss": None if math.isinf(self.kept) else self.kept,
            "best_step": self.kept_step or None,
            "tokens": self.tokens,
            "skipped": self.skipped,
            "seconds": self.seconds,
        }

    @one_rank
    def _start_journals(self) -> None:
        self.history = memorising.History(self.metrics.start(self.step))
        self.samples.start(self.step)

    def _one_step(self, should_stop: Callable[[], bool]) -> float | None:
        """-> the validation loss, where this step has one."""
        plan, began = self.plan, time.perf_counter()
        self.step += 1
        loss, grad_norm, n = self._update(self.step)
        took = time.perf_counter() - began
        self.tokens += n
        if not self.bad_in_a_row:
            self.recent.append(loss)

        whole_epoch = len(self.recent) == self.recent.maxlen
        by_training = plan.memorise or not len(self.dataset.validation)
        if by_training and whole_epoch and _reached(plan, sum(self.recent) / len(self.recent)):
            self.ended = "memorised" if plan.memorise else "target reached"
        last = bool(self.ended) or self.step == self.schedule.steps
        evaluated = last or self.step % plan.eval_every == 0
        val_loss = self._validate() if evaluated else None
        better = val_loss is not None and val_loss < self.best
        if val_loss is not None:
            self.since_best = 0 if better else self.since_best + 1
            if better:
                self.best, self.best_step = val_loss, self.step
            if not plan.memorise and _reached(plan, val_loss):
                self.ended = self.ended or "target reached"
            elif plan.patience and self.since_best >= plan.patience:
                self.ended = self.ended or "patience"
        now = time.perf_counter()
        worth = val_loss is not None and val_loss < self.kept
        stop, overdue, worth = self.world.any(should_stop(), now - self._saved_at > SAVE_SECONDS, worth)
        if not last and not self.ended and stop:
            self.ended = "interrupted"

        self.seconds = now - self._begun
        self._write_row(loss, val_loss, grad_norm, n / took)
        self.progress.step(self.step, loss, val_loss, n / took, self.seconds)
        if evaluated:
            self._sample_and_warn()
        final = last or bool(self.ended)
        if final or overdue or ((worth or self.step % plan.save_every == 0) and not self.bad_in_a_row):
            self._save(final, val_loss)
        if self.budget:
            whole = time.perf_counter() - began
            self.budget.saw_step(took if evaluated else whole)
            if evaluated:
                self.budget.saw_evaluation(whole - took)
            self._keep_to_budget(self.budget)
        return val_loss

    def _update(self, step: int) -> tuple[float, float, int]:
        """One update of the weights -> loss, gradient norm, tokens. What is not finite changes nothing."""
        self.model.step = step  # which dropout masks
        self.optimizer.lr = self.schedule.rate(step)
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
            if self.bad_in_a_row > SKIPPED_AT_MOST:
                raise TrainingFailed(self._diverged(what))
            self.skipped += 1
            self.progress.tell(f"warning: step {step} is skipped: {what}")
        return float(loss), float(grad_norm), n

    def _change_weights(self) -> float:
        """-> the gradient's norm before clipping. Of several ranks with --zero, each changes its part."""
        grad_norm = self.optimizer.step(max_grad_norm=self.plan.clip)
        if self.cuts:
            self.world.all_gather_shards(self.model.flat_params, self.cuts)
        return grad_norm

    def _forward_backward(self, batch: int) -> tuple[float, int]:
        """Gradients of the mean loss over all windows of a step, in parts that fit -> that loss, tokens.

        A loss that is not finite ends it: no gradient counts then.
        """
        first: list[Integers]  # of examples packed side by side
        x, y, *first = self.batches.batch(batch)
        model, world, all_tokens = self.model, self.world, int((y >= 0).sum())
        mine, gradients = world.shard(len(x)), GradientSum(world, model)
        total, before = 0.0, 0
        for model.first_sample in range(mine.start, mine.stop, self.rows):
            part = slice(model.first_sample, min(model.first_sample + self.rows, mine.stop))
            n = int((y[part] >= 0).sum())
            if n == 0:
                continue
            if before and n != before:  # each part's gradient is a mean over its own tokens
                gradients.flat[...] *= before / n
            loss = model.forward(x[part], y[part], *(rows[part] for rows in first))
            total, before = total + loss * n, n
            if world.size == 1 and not math.isfinite(loss):
                break
            gradients.factor = n / all_tokens
            model.backward(*[gradients.layer_done] if part.stop == mine.stop else [])
        gradients.finish()
        model.first_sample = 0
        return sum(loss for (loss,) in world.all_gather(total)) / all_tokens, all_tokens

    def _diverged(self, what: str) -> str:
        saved = checkpoint.checkpoints(self.run)
        kept = f"the last good checkpoint is {saved[0]}" if saved else "no checkpoint was saved before"
        if self.bad_in_a_row:
            what = f"{what}, as {SKIPPED_AT_MOST} steps before it, which were skipped"
        lower = f"{self.plan.lr / 3:.2g}"
        return (
            f"step {self.step}: {what}, so training stopped; {kept}. "
            f"Begin again with a lower learning rate (--lr {lower}) or a longer --warmup"
        )

    def _keep_to_budget(self, budget: Budget) -> None:
        """Move the last step where the minutes would be missed, and write that down."""
        if self.ended or not self.schedule.knots[-1][0] < self.step < self.schedule.steps:
            return
        whole = len(self.dataset.validation)
        closing = self._reserved + self._validating * max(1.0, whole / self.plan.eval_tokens)
        spent = time.perf_counter() - self._begun
        end = budget.new_end(self.step, self.schedule.steps, self.plan.eval_every, spent, closing)
        if end := int(self.world.broadcast(end or 0)):
            self.schedule.end_at(self.step, end)
            self._write_schedule()
            self.progress.total = end

    @one_rank
    def _write_schedule(self) -> None:
        knots = json.dumps(self.schedule.knots) + "\n"
        self._or_warn(checkpoint.write_atomically, self.run / SCHEDULE, knots)

    def _or_warn(self, write: Callable[..., None], *args: Any) -> bool:
        """write(...), where a failure is told but no reason to stop: what matters is written again later."""
        try:
            write(*args)
            return True
        except OSError as error:
            self.progress.tell(
                f"warning: step {self.step}: {error.filename}: {error.strerror}; training goes on"
            )
            return False

    # ------------------------------------------------------------------------ what is measured and told

    def _validate(self) -> float | None:
        """Loss on the fixed subset of the validation part that all steps are compared by."""
        if not len(self.dataset.validation):
            return None
        start = time.perf_counter()
        batches = self._validation_batches(self.plan.eval_tokens)
        loss = mean_loss(self.model, batches, self.world.map)
        self._validating = time.perf_counter() - start
        return loss

    def _whole_validation(self, val_loss: float | None, should_stop: Callable[[], bool]) -> float | None:
        """The final loss, over the whole validation part; that of the subset where it is stopped."""
        seen = len(self.dataset.validation) <= self.plan.eval_tokens
        if val_loss is None or seen or self.ended == "interrupted":
            return val_loss

        def until_stopped(function: Callable[[Any], Floats], batches: Iterable[Any]) -> Iterator[Floats]:
            for batch in batches:  # of a large text this takes hours; the model is saved by now
                if should_stop():
                    raise KeyboardInterrupt
                yield function(batch)

        try:
            map = self.world.map if self.world.size > 1 else until_stopped
            return mean_loss(self.model, self._validation_batches(None), map)
        except KeyboardInterrupt:
            return val_loss

    def _validation_batches(self, max_tokens: int | None) -> Iterable[tuple[Integers, ...]]:
        """Of the validation part, or a fixed subset of about max_tokens; their shape is that of training."""
        ids, T = self.dataset.validation, self.model.config.block_size
        return evaluation_batches(ids, T, self.rows, self.end_of_text, max_tokens)

    @one_rank
    def _write_row(self, loss: float, val_loss: float | None, grad_norm: float, speed: float) -> None:
        epoch = self.step / self.batches.per_epoch
        row = [self.step, f"{epoch:.4f}", self.tokens, loss, "" if val_loss is None else repr(val_loss)]
        row += [self.optimizer.lr, grad_norm, f"{speed:.0f}", f"{self.seconds:.3f}", self.skipped]
        self.metrics.add(",".join(map(str, row)))
        self.history.add(self.step, loss, val_loss)
        if time.perf_counter() - self._flushed_at > 1:  # who looks at the file sees it grow
            self._or_warn(self.metrics.flush)
            self._flushed_at = time.perf_counter()

    @one_rank
    def _sample_and_warn(self) -> None:
        """Keep a sample; say so once where the model begins to learn by heart what it should understand."""
        try:
            text = self.sample() if self.sample else ""
        except ValueError as error:  # its logits are not finite
            raise TrainingFailed(self._diverged(str(error))) from None
        if self.sample:
            self.samples.add(json.dumps({"step": self.step, "text": text}, ensure_ascii=False))
        if not self.plan.memorise and (verdict := self.history.verdict()) and not self._warned:
            self._warned = True
            train = memorising.training_text(self.dataset.train, self.dataset.tokenizer)
            self.progress.memorising(verdict, memorising.longest_overlap(text.encode(), train))

    # ------------------------------------------------------------------------ stopping and going on

    def _save(self, final: bool, val_loss: float | None) -> None:
        """A checkpoint. One that cannot be written is told of, and an error if it was to be the last."""
        if not math.isfinite(kernels.ops_for(self.model.dtype).global_norm(self.model.flat_params)):
            raise TrainingFailed(self._diverged("the weights are not finite"))

        former = self.kept, self.kept_step
        if val_loss is not None and val_loss < self.kept:
            self.kept, self.kept_step = val_loss, self.step
        if self.world.size > 1:
            try:
                self.world.check_equal(weights=zlib.crc32(self.model.flat_params.data))
            except ValueError as error:  # memory that fails on one of them, say
                raise TrainingFailed(f"step {self.step}: {error}; nothing was saved") from None
        moments = self.world.gather(self.optimizer.state()) if self.cuts else self.optimizer.state()
        if self.world.rank:
            self._saved_at = time.perf_counter()
            return

        def write() -> None:
            self.metrics.flush(sync=True)  # the rows up to a checkpoint are as safe as the checkpoint
            self.samples.flush(sync=True)
            if self.plan.minutes:  # never older than a checkpoint: a resume believes it
                checkpoint.write_atomically(self.run / SCHEDULE, json.dumps(self.schedule.knots) + "\n")
            checkpoint.save(self.run, self.step, self.model, self.dataset.tokenizer, moments, self._state())
            self._point_to_best()
            checkpoint.prune(self.run, self.keep)

        if final:
            write()
        elif not self._or_warn(write):
            self.kept, self.kept_step = former
            self._saved_at = time.perf_counter() - 0.8 * SAVE_SECONDS  # not again at every step
            return
        self._saved_at = time.perf_counter()

    @one_rank
    def _point_to_best(self) -> None:
        name = f"step-{self.kept_step:06d}"
        if (self.run / name).is_dir() and checkpoint.pointed(self.run, "BEST") != self.run / name:
            checkpoint.point(self.run, "BEST", name)

    def _state(self) -> Fields:
        epoch, position = divmod(self.step, self.batches.per_epoch)
        ended = self.ended or ("done" if self.step == self.schedule.steps else None)
        return {
            **{name: getattr(self, name) for name in COUNTED},
            "ended": None if ended == "interrupted" else ended,
            "optimizer_steps": self.optimizer.steps,
            # All randomness is counted, so these numbers are its whole state.
            "data": {"epoch": epoch, "position": position},
            "rng": {"seed": self.seed, "step": self.step},
            "schedule": self.schedule.knots,
            "budget": self.budget.seen if self.budget else [],
            "best_val_loss": None if math.isinf(self.best) else self.best,
            "kept_val_loss": None if math.isinf(self.kept) else self.kept,
            "kept_step": self.kept_step,
            "recent_losses": list(self.recent),
        }

    def go_on(self, run: Path, folder: Path) -> None:
        """Take up where the checkpoint `folder` of `run`, which self.model was read from, left off."""
        state, moments = checkpoint.load(folder)
        self.optimizer.load_state(moments, state["optimizer_steps"])
        for name in (*COUNTED, "ended"):
            setattr(self, name, state[name])
        self.best = math.inf if state["best_val_loss"] is None else state["best_val_loss"]
        kept = state.get("kept_val_loss", state["best_val_loss"])
        self.kept = math.inf if kept is None else kept
        self.kept_step = state.get("kept_step", self.best_step)
        self.recent.extend(state["recent_losses"])
        self.schedule = Schedule(self.plan, read_knots(run) or state["schedule"])
        if self.plan.minutes:
            self.budget = Budget(60 * self.plan.minutes, state["budget"])
        self.run = run
        if not self.world.rank:
            checkpoint.clean_up(run)
            if checkpoint.pointed(run, "LATEST") != folder:  # killed before it was moved
                checkpoint.point(run, "LATEST", folder.name)
        self._point_to_best()


def rows_of(plan: Plan, world: World) -> int:
    """Windows that a rank has in memory at a time."""
    return -(-plan.batch_size // world.size)


def step_of_row(line: str) -> int:
    """The step of a line of metrics.csv; ValueError for half a line."""
    step, *rest = line.split(",")
    if len(rest) != METRICS.count(","):
        raise ValueError(line)
    return int(step)


def read_knots(run: Path) -> list[Knot] | None:
    """What a run with --minutes wrote down of its schedule."""
    try:
        knots: list[Knot] = json.loads((run / SCHEDULE).read_text(encoding="utf-8"))
        return knots
    except (OSError, ValueError):
        return None


def _reached(plan: Plan, loss: float) -> bool:
    return plan.target_loss is not None and loss <= plan.target_loss
