"""One update of the weights: a batch forward and backward, the gradients summed, the optimizer."""

import math
import time
from typing import Protocol

from npgpt.distributed.mpi import GradientAllReduce, shard_cuts
from npgpt.distributed.world import World
from npgpt.engine import kernels
from npgpt.engine.model import GPT, HEAD
from npgpt.engine.optim import AdamW, Muon
from npgpt.engine.sampled import Classes, draw_classes
from npgpt.engine.types import Integers
from npgpt.text.dataset import Batches
from npgpt.text.tokenizer import Tokenizer
from npgpt.training.plan import Plan

DRAWN = 512  # classes of a sampled softmax, in the mean, beside those of the batch


class TrainingData(Protocol):
    """The data of a training: a Dataset of text, or Examples."""

    @property
    def train(self) -> Integers:
        """Return the ids of the training part (N,)."""

    @property
    def validation(self) -> Integers:
        """Return the ids of the validation part (N,)."""

    @property
    def tokenizer(self) -> Tokenizer:
        """Return the tokenizer of these ids."""

    @property
    def apart(self) -> bool:
        """Return whether the ids have several documents that windows keep apart."""

    def __len__(self) -> int: ...


class TrainingBatches(Protocol):
    """The training batches, as a function of the step."""

    @property
    def per_epoch(self) -> int:
        """Return the number of batches of an epoch."""

    def batch(self, step: int) -> tuple[Integers, ...]:
        """Return x, y int32 (B,T) of step 0, 1, ..., and `starts` (B,T) where rows hold several texts."""


def rows_of(plan: Plan, world: World) -> int:
    """Return the number of windows that a rank has in memory at a time."""
    return -(-plan.batch_size // world.size)


def step_classes(model: GPT, y: Integers) -> Classes | None:
    """Return what the sampled softmax of the model's present step goes over, None for all classes.

    y (B,T) are the targets of all ranks.
    """
    key = model.seed, model.step, 0, HEAD
    return draw_classes(kernels.ops_for(model.dtype), y, model.config.vocab_size, DRAWN, key)


class Updater:
    """A model with its batches and its optimizer. With several ranks, each has its rows of every batch."""

    def __init__(self, model: GPT, dataset: TrainingData, plan: Plan, seed: int, world: World) -> None:
        self.model, self.dataset, self.plan, self.seed = model, dataset, plan, seed
        self.world, self.rows = world, rows_of(plan, world)
        self.end_of_text = dataset.tokenizer.end_of_text
        self.batches = self._training_batches()
        kinds: dict[str, type[AdamW | Muon]] = {"adamw": AdamW, "muon": Muon}
        self.optimizer = kinds[plan.optimizer](model, lr=plan.lr, weight_decay=plan.weight_decay)
        self.cuts = shard_cuts(model, world.size) if world.zero else None
        if self.cuts:
            self.optimizer.own(*self.cuts[world.rank : world.rank + 2])
        self.sampled = plan.softmax == "sampled"  # whether the present step goes over a part of the classes
        self._step_seconds: float | None = None

    def _training_batches(self) -> TrainingBatches:
        plan, data = self.plan, self.dataset
        return Batches(data.train, plan.block_size, plan.windows, self.seed, self.end_of_text, data.apart)

    def step_seconds(self) -> float:
        """Return the seconds of a step, the minimum of up to four trials that change nothing.

        They are measured at the first call, which must come before training.
        """
        if self._step_seconds is None:
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

    def _forward_backward(self, batch: int) -> tuple[float, int]:
        """Add up the gradients of a step's mean loss over all its windows; return the loss and the tokens.

        The windows are computed in chunks of self.rows. A loss that is not finite ends the loop, as the
        gradients are then discarded.
        """
        starts: list[Integers]  # of examples or documents side by side
        x, y, *starts = self.batches.batch(batch)
        model, world, all_tokens = self.model, self.world, int((y >= 0).sum())
        model.classes = step_classes(model, y) if self.sampled else None
        mine, gradients = world.shard(len(x)), GradientAllReduce(world, model)
        total, before = 0.0, 0
        for model.first_sample in range(mine.start, mine.stop, self.rows):
            chunk = slice(model.first_sample, min(model.first_sample + self.rows, mine.stop))
            n = int((y[chunk] >= 0).sum())
            if n == 0:
                continue
            if before and n != before:  # each chunk's gradient is a mean over its own tokens
                gradients.flat[...] *= before / n
            loss = model.forward(x[chunk], y[chunk], *(rows[chunk] for rows in starts))
            total, before = total + loss * n, n
            if world.size == 1 and not math.isfinite(loss):
                break
            gradients.factor = n / all_tokens
            model.backward(*[gradients.layer_done] if chunk.stop == mine.stop else [])
        gradients.finish()
        model.first_sample, model.classes = 0, None
        return sum(loss for (loss,) in world.all_gather(total)) / all_tokens, all_tokens

    def _change_weights(self) -> float:
        """Do the optimizer's step, sharded with --zero; return the gradient's norm before clipping."""
        grad_norm = self.optimizer.step(max_grad_norm=self.plan.clip)
        if self.cuts:
            with self.model.update() as weights:
                self.world.all_gather_shards(weights, self.cuts)
        return grad_norm
