"""The learning rate and the softmax of each step, and how a budget of time becomes a number of steps.

Progress is 0 where the warm-up ends and 1 at the last step. From a knot (step, progress, end) it rises
linearly to 1 at `end`, until the next knot. A plan by steps has one knot. A plan by minutes begins with a
guess. It adds a knot whenever the measured speed shows that the end would miss the budget. A run that goes
on after its end gets one too. No knot changes a bit of what lies before it, so the knots are enough to repeat
the run at any speed.
"""

import math
from collections.abc import Iterable
from typing import TypeAlias

from npgpt.training.plan import Plan

FULL_FROM = 0.9  # the last tenth is full: that takes half of what a sampled softmax costs in loss
Knot: TypeAlias = tuple[int, float, int]  # step, progress, end


class Schedule:
    """The learning rate of each step of a plan.

    >>> from npgpt.training.plan import make_plan
    >>> schedule = Schedule(make_plan(10**6, steps=100, lr=1.0, warmup=10, schedule="linear"))
    >>> [round(schedule.rate(step), 3) for step in (1, 10, 55, 100)]
    [0.1, 1.0, 0.51, 0.02]
    """

    def __init__(self, plan: Plan, knots: Iterable[Knot] | None = None) -> None:
        """Begin with the plan's own knot, or with the knots of a run that is resumed."""
        self.plan = plan
        first = (plan.warmup, 0.0, plan.steps)
        self.knots: list[Knot] = [(at, here, end) for at, here, end in knots or [first]]

    @property
    def steps(self) -> int:
        """Return the number of the last step, as planned now."""
        return self.knots[-1][2]

    def progress(self, step: int) -> float:
        """Return the progress at a step: 0 where the warm-up ends, 1 at the last step."""
        at, here, end = max((knot for knot in self.knots if knot[0] <= step), default=self.knots[0])
        return here + (1 - here) * (step - at) / max(1, end - at)

    def rate(self, step: int) -> float:
        """Return the learning rate of step 1, 2, ...

        It rises linearly to lr while warming up, then follows the plan's schedule down to min_lr.
        """
        plan = self.plan
        if step <= plan.warmup:
            return plan.lr * step / plan.warmup
        done = self.progress(step)
        if plan.schedule == "constant":
            return plan.lr
        if plan.schedule == "cosine":
            done = (1 - math.cos(math.pi * done)) / 2
        return plan.lr + (plan.min_lr - plan.lr) * done

    def sampled(self, step: int) -> bool:
        """Return whether the softmax of step 1, 2, ... goes over a part of the vocabulary."""
        return self.plan.softmax == "sampled" and self.progress(step) < FULL_FROM

    def end_at(self, step: int, steps: int) -> None:
        """Change the progress from `step` on so that step number `steps` is the last."""
        warm = step > self.plan.warmup
        self.knots.append((step, self.progress(step), steps) if warm else (self.plan.warmup, 0.0, steps))
        if not warm:
            del self.knots[0]

    def go_on(self, step: int, steps: int) -> None:
        """Go on after the end at `step`, with the progress that a plan of `steps` has there.

        So the rate rises again. Nothing else that was tried gave a lower loss: benchmarks/README.md.
        """
        at = max(step + 1, self.plan.warmup)  # no rate up to `step` changes
        self.knots.append((at, (at - self.plan.warmup) / max(1, steps - self.plan.warmup), steps))


class Budget:
    """A run's budget of seconds, which decides when the end of the schedule must move to meet it."""

    MISSED = 0.03  # of the budget: a larger error of the end makes it move
    FIRST, LAST = 0.02, 0.9  # of the budget: the end does not move before, and moves less readily after
    PAUSE = 0.01  # of the budget: the minimum between two moves
    MEMORY = 0.1  # of the budget: the speed is an average over about this long

    def __init__(self, seconds: float, seen: Iterable[float] = ()) -> None:
        """Begin with the measurements `seen` of a run that is resumed."""
        self.seconds = seconds
        # Steps, decaying with age, and their seconds; evaluations and their seconds; time of the last move.
        self.seen = [float(number) for number in seen] or [0.0] * 5

    def saw_step(self, seconds: float) -> None:
        """Add the seconds that a step took."""
        fade = math.exp(-seconds / (self.MEMORY * self.seconds))
        self.seen[:2] = self.seen[0] * fade + 1, self.seen[1] * fade + seconds

    def saw_evaluation(self, seconds: float) -> None:
        """Add the seconds that an evaluation took, its sample and checkpoint included."""
        self.seen[2:4] = self.seen[2] + 1, self.seen[3] + seconds

    def new_end(self, step: int, steps: int, eval_every: int, spent: float, closing: float) -> int | None:
        """Return the step to end at instead of `steps`, None where `steps` meets the budget.

        `spent` is the seconds up to now, `closing` the seconds needed after the last step.
        """
        steps_seen, stepping, evaluations, evaluating, moved_at = self.seen
        if spent < moved_at + self.PAUSE * self.seconds or spent < self.FIRST * self.seconds:
            return None
        a_step = stepping / steps_seen
        if evaluations:
            a_step += evaluating / evaluations / eval_every
        left = self.seconds - spent - closing
        missed = abs(left - (steps - step) * a_step) / self.seconds
        if missed < self.MISSED * (1 if spent < self.LAST * self.seconds else 2):
            return None
        self.seen[4] = spent
        return step + max(1, round(left / a_step))
