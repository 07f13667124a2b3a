"""What a training tells of itself while it goes on, to whoever wants to show it."""

from typing import NamedTuple

from npgpt.training.memorising import Verdict


class Step(NamedTuple):
    """One step of a training."""

    step: int  # 1, 2, ...
    steps: int  # in all, as things stand
    loss: float  # nats per token
    val_loss: float | None  # where this step was followed by a validation
    tokens_per_second: float
    seconds: float  # of training up to now, those of stopped processes included


class Listener:
    """Hears of a training. Its methods do nothing: a subclass has those that it needs."""

    def begin(self, step: int, steps: int) -> None:
        """Hear that training begins after `step`, for `steps` in all."""

    def step(self, step: Step) -> None:
        """Hear of a step that is done."""

    def warn(self, line: str) -> None:
        """Hear of something that did not go well; training goes on."""

    def overfitting(self, verdict: Verdict, repeated: bytes) -> None:
        """Hear, once, that the model memorises; `repeated` is what a sample repeats of the training text."""

    def end(self) -> None:
        """Hear that training is over, however it ended."""
