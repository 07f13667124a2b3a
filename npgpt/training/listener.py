"""The events of a training, for a listener that shows them."""

from collections.abc import Callable
from typing import NamedTuple, TypeAlias

from npgpt.training.overfitting import Verdict


class Step(NamedTuple):
    """The figures of one training step."""

    step: int  # 1, 2, ...
    steps: int  # the number of the last step, as planned now
    loss: float  # nats per token
    val_loss: float | None  # None where no validation followed this step
    tokens_per_second: float
    seconds: float  # of training so far, those of earlier processes included
    rate: float  # the learning rate of this step


OnStep: TypeAlias = Callable[[Step], None]


class Listener:
    """Receives the events of a training. These methods do nothing: a subclass overrides those it needs."""

    def begin(self, step: int, steps: int) -> None:
        """Receive the start of training: `step` steps are done, `steps` is the number of the last one."""

    def step(self, step: Step) -> None:
        """Receive the figures of a step that is done."""

    def warn(self, line: str) -> None:
        """Receive a warning of one line; training goes on."""

    def overfitting(self, verdict: Verdict, repeated: bytes) -> None:
        """Receive, at most once, the warning that the model overfits.

        `repeated` is the longest stretch of the training text that the last sample repeats.
        """

    def end(self) -> None:
        """Receive the end of training, also where it failed."""
