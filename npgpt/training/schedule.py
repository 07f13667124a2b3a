"""The learning rate of each step, and how a budget of time becomes a number of steps.

Progress is 0 where the warm-up ends and 1 at the last step. A knot (step, progress, end) heads from there
straight for 1 at `end`, until the next knot. A plan of so many steps has one knot. A plan of so many minutes
begins with a guess, and sets another knot whenever the measured speed says that its end would miss the
budget. No knot changes a bit of what lies before it, so whoever knows them can repeat the run on any clock.
"""

import math
from collections.abc import Iterable
from typing import TypeAlias

from npgpt.training.plan import Plan

Knot: TypeAlias = tuple[int, float, int]  # step, progress, end


class Schedule:
    """The learning rate by step, for a plan.

    >>> from npgpt.training.plan import make_plan
    >>> schedule = Schedule(make_plan(10**6, steps=100, lr=1.0, warmup=10, schedule="linear"))
    >>> [round(schedule.rate(step), 3) for step in (1, 10, 55, 100)]
    [0.1, 1.0, 0.51, 0.02]
    """

    def __init__(self, plan: Plan, knots: Iterable[Knot] | None = None) -> None:
        """`knots`: those of a run that is resumed."""
        self.plan = plan
        first = (plan.warmup, 0.0, plan.steps)
        self.knots: list[Knot] = [(at, here, end) for at, here, end in knots or [first]]

    @property
    def steps(self) -> int:
        """The last step, as things stand."""
        return self.knots[-1][2]

    def progress(self, step: int) -> float:
        """0 where the warm-up ends, 1 at the last step."""
        at, here, end = max((knot for knot in self.knots if knot[0] <= step), default=self.knots[0])
        return here + (1 - here) * (step - at) / max(1, end - at)

    def rate(self, step: int) -> float:
        """Of step 1, 2, ...: a linear warm-up to lr, then by the plan's schedule down to min_lr."""
        plan = self.plan
        if step <= plan.warmup:
            return plan.lr * step / plan.warmup
        done = self.progress(step)
        if plan.schedule == "constant":
            return plan.lr
        if plan.schedule == "cosine":
            done = (1 - math.cos(math.pi * done)) / 2
        return plan.lr + (plan.min_lr - plan.lr) * done

    def end_at(self, step: int, steps: int) -> None:
        """From `step` on, progress so that step number `steps` is the last."""
        warm = step > self.plan.warmup
        self.knots.append((step, self.progress(step), steps) if warm else (self.plan.warmup, 0.0, steps))
        if not warm:
            del self.knots[0]


class Budget:
    """Seconds that a run may take; tells when the schedule's end must move to keep to them."""

    MISSED = 0.03  # of the budget: so far off may the end be before it is moved
    FIRST, LAST = 0.02, 0.9  # of the budget: no speed is trusted before, and little is moved after
    PAUSE = 0.01  # of the budget: between two moves
    MEMORY = 0.1  # of the budget: the speed is that of about so long

    def __init__(self, seconds: float, seen: Iterable[float] = ()) -> None:
        """`seen`: that of a run that is resumed."""
        self.seconds = seconds
        # Steps, those long past fading, and their seconds; evaluations and theirs; when the end moved last.
        self.seen = [float(number) for number in seen] or [0.0] * 5

    def saw_step(self, seconds: float) -> None:
        """What a step took."""
        fade = math.exp(-seconds / (self.MEMORY * self.seconds))
        self.seen[:2] = self.seen[0] * fade + 1, self.seen[1] * fade + seconds

    def saw_evaluation(self, seconds: float) -> None:
        """With what comes with it: a sample, a checkpoint."""
        self.seen[2:4] = self.seen[2] + 1, self.seen[3] + seconds

    def new_end(self, step: int, steps: int, eval_every: int, spent: float, closing: float) -> int | None:
        """The step to end at instead of `steps`; None where that will do.

        spent: seconds up to now; closing: those needed after the last step.
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
