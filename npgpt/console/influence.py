"""The printed form of training/influence.py: its time, told first, its progress, and what it found."""

from __future__ import annotations

import sys
import time
from typing import TYPE_CHECKING, Any

from tqdm import tqdm

from npgpt.console.explanation import quoted, table
from npgpt.console.language import _, number
from npgpt.console.messages import log, log_found, place

if TYPE_CHECKING:
    from npgpt.training.influence import Influence

MEASURED = 3.0  # seconds after which the time is told
SHOWN = 60  # characters of a window that are printed


class Told:
    """Tells how long the gradients take, once some are done, and shows their progress on a terminal."""

    def __init__(self) -> None:
        self._bar: Any = tqdm(disable=True)
        self._begun, self._first = 0.0, 0

    def __call__(self, done: int, all: int) -> None:
        """Receive that so many of all gradients are done."""
        now = time.perf_counter()
        if done == 1:  # it also fetched memory
            self._begun = now
        elif not self._first and (now - self._begun > MEASURED or done == all):
            self._first = done
            minutes = (now - self._begun) / (done - 1) * (all - done) / 60
            log("{all:,} gradients of windows, about {minutes:.1f} minutes", all=all, minutes=minutes)
            self._bar = tqdm(total=all, initial=done, disable=not sys.stderr.isatty(), dynamic_ncols=True)
        self._bar.update(done - self._bar.n)
        if done == all:
            self._bar.close()


def log_influence(found: Influence) -> None:
    """Print the windows that taught a model a text, the most important first."""
    log_found(found.found_at)
    steps = ", ".join(str(step) for step, _weight in found.checkpoints)
    log(
        "what taught it this, of {windows:,} windows, by gradients of all weights at steps {steps}:",
        windows=found.windows,
        steps=steps,
    )
    rows = [
        (
            number(lesson.score, "+.3g"),
            str(lesson.step),
            place(lesson.file, lesson.line, lesson.unit),
            quoted(lesson.text[:SHOWN] + "..." * (len(lesson.text) > SHOWN)),
        )
        for lesson in found.lessons
    ]
    table((_("score"), _("step"), _("place"), _("window")), rows, 3)
