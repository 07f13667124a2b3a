"""What a plan costs here: bytes before it begins, seconds by the time of a step."""

from typing import Protocol

from npgpt.distributed.world import SINGLE, World
from npgpt.engine.config import GPTConfig, count_parameters, training_floats
from npgpt.text.dataset import n_windows
from npgpt.training.plan import Plan
from npgpt.training.schedule import Schedule
from npgpt.training.updater import TrainingData, rows_of

PROGRAM = 8 << 20  # bytes: what is imported late, the threads' own buffers


class Timed(Protocol):
    """What the estimates ask of a Trainer."""

    dataset: TrainingData
    plan: Plan
    schedule: Schedule
    step: int

    def step_seconds(self) -> float:
        """Return the seconds of a step."""


def memory_needed(config: GPTConfig, plan: Plan, n_train: int, world: World = SINGLE) -> int:
    """Return the bytes that training holds: model, optimizer, a batch, the order of the windows."""
    windows = n_windows(n_train, plan.block_size)
    model = 4 * training_floats(config, min(windows, rows_of(plan, world)), plan.block_size)
    if world.zero:  # both moments, but for this rank's shard of them
        model -= 8 * count_parameters(config) * (world.size - 1) // world.size
    return model + 8 * windows + PROGRAM


def seconds_needed(trainer: Timed) -> float:
    """Return how long what is left of the plan takes on this machine now."""
    whole, plan = len(trainer.dataset.validation), trainer.plan
    evaluations = (trainer.schedule.steps - trainer.step) // plan.eval_every
    tokens = min(whole, plan.eval_tokens) * evaluations + whole
    windows = tokens / plan.block_size
    # Validation runs the forward pass alone, a third of the arithmetic.
    return trainer.step_seconds() * (trainer.schedule.steps - trainer.step + windows / plan.windows / 3)


def steps_in(trainer: Timed, seconds: float) -> int:
    """Return about how many steps `seconds` are enough for, validation included."""
    tokens = min(len(trainer.dataset.validation), trainer.plan.eval_tokens) * 10 + len(
        trainer.dataset.validation
    )
    validation = trainer.step_seconds() / 3 * tokens / (trainer.plan.windows * trainer.plan.block_size)
    return max(1, int(max(0.5 * seconds, seconds - validation) / trainer.step_seconds()))
