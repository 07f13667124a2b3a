"""Estimates of what a plan costs on this machine: bytes of memory and seconds."""

from typing import Protocol

from npgpt.distributed.world import SINGLE, World
from npgpt.engine.config import GPTConfig, count_parameters, training_floats
from npgpt.text.dataset import n_windows
from npgpt.training.plan import Plan
from npgpt.training.schedule import Schedule
from npgpt.training.updater import TrainingData, rows_of

PROGRAM = 8 << 20  # bytes: what is imported late, the threads' own buffers


class Timed(Protocol):
    """The attributes of a Trainer that the estimates read."""

    dataset: TrainingData
    plan: Plan
    schedule: Schedule
    step: int

    def step_seconds(self) -> float:
        """Return the measured seconds of one step."""


def memory_needed(config: GPTConfig, plan: Plan, n_train: int, world: World = SINGLE) -> int:
    """Return the bytes that training needs: model, optimizer, one batch and the order of the windows."""
    windows = n_windows(n_train, plan.block_size)
    model = 4 * training_floats(config, min(windows, rows_of(plan, world)), plan.block_size)
    if world.zero:  # this rank holds its shard of both moments alone
        model -= 8 * count_parameters(config) * (world.size - 1) // world.size
    return model + 8 * windows + PROGRAM


def seconds_needed(trainer: Timed) -> float:
    """Return the seconds that the rest of the plan takes on this machine, at its present speed."""
    n_validation, plan = len(trainer.dataset.validation), trainer.plan
    evaluations = (trainer.schedule.steps - trainer.step) // plan.eval_every
    tokens = min(n_validation, plan.eval_tokens) * evaluations + n_validation
    windows = tokens / plan.block_size
    # Validation runs the forward pass alone, a third of the arithmetic.
    return trainer.step_seconds() * (trainer.schedule.steps - trainer.step + windows / plan.windows / 3)


def steps_in(trainer: Timed, seconds: float) -> int:
    """Return the approximate number of steps that fit into `seconds`, validation included."""
    tokens = min(len(trainer.dataset.validation), trainer.plan.eval_tokens) * 10 + len(
        trainer.dataset.validation
    )
    validation = trainer.step_seconds() / 3 * tokens / (trainer.plan.windows * trainer.plan.block_size)
    return max(1, int(max(0.5 * seconds, seconds - validation) / trainer.step_seconds()))
