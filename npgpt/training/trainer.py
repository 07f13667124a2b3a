"""The training loop: batches in, checkpoints and metrics.csv out.

Same text, plan and seed give the same weights, bit for bit, on any number of threads: the batch, the dropout
masks and the learning rate of a step are functions of its number.
"""

import math
import os
import time
from collections import deque
from pathlib import Path

import numpy as np

from npgpt.engine.optim import AdamW, Muon
from npgpt.text.data import Batches, Dataset
from npgpt.training import checkpoint
from npgpt.training.evaluation import mean_loss
from npgpt.training.plan import Plan
from npgpt.training.progress import Progress

METRICS = "step,epoch,tokens,train_loss,val_loss,lr,grad_norm,tokens_per_second,seconds"


class TrainingFailed(RuntimeError):
    """The run cannot go on; the message says why and what is kept."""


class Trainer:
    """Trains `model` on `dataset` by `plan`."""

    def __init__(self, model, dataset: Dataset, plan: Plan, seed: int = 0):
        self.model, self.dataset, self.plan, self.seed = model, dataset, plan, seed
        self.end_of_text = dataset.tokenizer.end_of_text
        self.batches = Batches(dataset.train, plan.block_size, plan.batch_size, seed, self.end_of_text)
        kind = {"adamw": AdamW, "muon": Muon}[plan.optimizer]
        self.optimizer = kind(model, lr=plan.lr, weight_decay=plan.weight_decay)
        self.best = math.inf  # the lowest validation loss so far

    def memory_needed(self) -> int:
        """Bytes that training will hold, the model included."""
        return self.model.training_bytes(self.plan.batch_size, self.plan.block_size)

    def seconds_needed(self) -> float:
        """How long the whole plan takes here and now, by up to four trial steps that leave no trace."""
        self.optimizer.lr = 0.0  # so the weights stay as they are
        times = []
        while len(times) < 4 and sum(times) < 2.0:
            start = time.perf_counter()
            x, y = self.batches.batch(0)
            self.model.forward(x, y)
            self.model.backward()
            self.optimizer.step(max_grad_norm=self.plan.clip)
            times.append(time.perf_counter() - start)
        self.optimizer.load_state({name: np.zeros_like(a) for name, a in self.optimizer.state().items()}, 0)
        step = min(times)  # the first ones also fetch memory

        # Validation runs the forward pass alone, a third of the arithmetic.
        whole = len(self.dataset.validation)
        tokens = min(whole, self.plan.eval_tokens) * (self.plan.steps // self.plan.eval_every) + whole
        return step * (self.plan.steps + tokens / x.size / 3)

    def train(self, run: Path, keep: int = 2, should_stop=lambda: False) -> dict:
        """Run the plan to its end or its target, with checkpoints and metrics.csv in the folder `run`.

        The last `keep` checkpoints and the best are kept. should_stop() is asked after each step: True ends
        the run with a checkpoint. Returns how it went. TrainingFailed where the loss or a gradient is no
        longer finite: the checkpoints before that are left as they are.
        """
        self.run, self.keep = Path(run), keep
        plan, start = self.plan, time.perf_counter()
        recent = deque(maxlen=max(10, self.batches.per_epoch))  # losses of the last epoch
        tokens, ended, val_loss = 0, None, None
        with (
            open(self.run / "metrics.csv", "w", encoding="utf-8") as metrics,
            Progress(plan.steps) as progress,
        ):
            metrics.write(METRICS + "\n")
            for step in range(1, plan.steps + 1):
                began = time.perf_counter()
                x, y = self.batches.batch(step - 1)
                loss, grad_norm = self._step(step, x, y)
                n = int((y >= 0).sum())
                speed = n / (time.perf_counter() - began)
                tokens += n
                recent.append(loss)

                if plan.memorise and step >= recent.maxlen and _reached(plan, sum(recent) / len(recent)):
                    ended = "memorised"
                elif should_stop():
                    ended = "interrupted"
                last = bool(ended) or step == plan.steps
                val_loss = self._validate() if last or step % plan.eval_every == 0 else None
                if not plan.memorise and val_loss is not None and _reached(plan, val_loss):
                    ended, last = ended or "target reached", True

                epoch, seconds = step / self.batches.per_epoch, time.perf_counter() - start
                shown = "" if val_loss is None else repr(val_loss)
                row = (step, f"{epoch:.4f}", tokens, loss, shown, self.optimizer.lr, grad_norm)
                metrics.write(",".join(map(str, (*row, f"{speed:.0f}", f"{seconds:.3f}"))) + "\n")
                progress.step(step, loss, val_loss, speed, seconds)
                better = val_loss is not None and val_loss < self.best
                if last or better or step % plan.save_every == 0:
                    metrics.flush()
                    os.fsync(metrics.fileno())  # the rows up to a checkpoint are as safe as the checkpoint
                    self._save(step, tokens, loss, val_loss)
                if last:
                    break
        return {
            "run": str(self.run),
            "steps": step,
            "ended": ended or "done",
            "train_loss": sum(recent) / len(recent),
            "val_loss": self._whole_validation(val_loss),
            "seconds": time.perf_counter() - start,
        }

    def _step(self, step: int, x, y) -> tuple[float, float]:
        """One update of the weights; returns loss and gradient norm, both finite."""
        self.model.step = step  # which dropout masks
        self.optimizer.lr = self.plan.learning_rate(step)
        loss = self.model.forward(x, y)
        grad_norm = math.nan
        if math.isfinite(loss):
            self.model.backward()
            grad_norm = self.optimizer.step(max_grad_norm=self.plan.clip)
        if not math.isfinite(grad_norm):
            what = f"the loss is {loss}" if not math.isfinite(loss) else f"the gradient's norm is {grad_norm}"
            kept = checkpoint.checkpoints(self.run)
            kept = f"the last good checkpoint is {kept[0]}" if kept else "no checkpoint was saved before"
            raise TrainingFailed(f"step {step}: {what}, so training stopped; {kept}. A lower --lr may help")
        return float(loss), float(grad_norm)

    def _validate(self) -> float | None:
        """Loss on the fixed subset of the validation part that all steps are compared by."""
        if not len(self.dataset.validation):
            return None
        return self._validation_loss(self.plan.eval_tokens)

    def _whole_validation(self, val_loss: float | None) -> float | None:
        """The final loss, over the whole validation part."""
        if val_loss is None or len(self.dataset.validation) <= self.plan.eval_tokens:
            return val_loss
        return self._validation_loss()

    def _validation_loss(self, max_tokens: int | None = None) -> float:
        ids, B = (
            self.dataset.validation,
            self.plan.batch_size,
        )  # the shape of training fits the memory there is
        return mean_loss(self.model, ids, B, self.end_of_text, max_tokens)

    def _save(self, step: int, tokens: int, loss: float, val_loss: float | None) -> None:
        epoch, position = divmod(step, self.batches.per_epoch)
        best = val_loss is not None and val_loss < self.best
        self.best = val_loss if best else self.best
        state = {
            "step": step,
            "optimizer_steps": self.optimizer.steps,
            # All randomness is counted, so these numbers are its whole state.
            "data": {"epoch": epoch, "position": position},
            "rng": {"seed": self.seed, "step": step},
            "tokens": tokens,
            "train_loss": loss,
            "val_loss": val_loss,
            "best_val_loss": None if math.isinf(self.best) else self.best,
        }
        folder = checkpoint.save(self.run, step, self.model, self.dataset.tokenizer, self.optimizer, state)
        if best:
            checkpoint.point(self.run, "BEST", folder.name)
        checkpoint.prune(self.run, self.keep)


def _reached(plan: Plan, loss: float) -> bool:
    return plan.target_loss is not None and loss <= plan.target_loss
