"""What a run shows while it trains: one live line on a terminal, now and then a plain line in a pipe."""

import contextlib
import sys
from typing import Self

from tqdm import tqdm

from npgpt.console.language import _
from npgpt.console.messages import memorising_in_words
from npgpt.training.memorising import Verdict


class Progress:
    """`total` may change as the run goes; `done` steps were made before; `quiet`: tells of warnings alone."""

    def __init__(self, total: int, done: int = 0, quiet: bool = False) -> None:
        self.total = total
        self.val_loss: float | None = None
        self.quiet, self.live = quiet, sys.stderr.isatty() and not quiet
        layout = _("{percentage:3.0f}% {bar:20} step {n}/{total}, {remaining} left{postfix}")
        options = {"bar_format": layout, "dynamic_ncols": True, "disable": not self.live}
        self.bar = tqdm(total=total, initial=done, **options)

    def step(
        self, step: int, loss: float, val_loss: float | None, tokens_per_second: float, seconds: float
    ) -> None:
        """Tell of step 1, 2, ...; val_loss is None where none was measured; `seconds` of all steps so far."""
        self.val_loss = self.val_loss if val_loss is None else val_loss
        seen = _("loss {loss:.4f}, {speed:,.0f} tokens/s")
        if self.val_loss is not None:
            seen = _("loss {loss:.4f}, val loss {val_loss:.4f}, {speed:,.0f} tokens/s")
        seen = seen.format(loss=loss, val_loss=self.val_loss, speed=tokens_per_second)
        self.bar.total = self.total
        self.bar.set_postfix_str(seen, refresh=False)
        self.bar.update()
        tenth = max(1, self.total // 10)
        now_and_then = self.val_loss is None and step % tenth == 0  # where no validation sets the pace
        due = val_loss is not None or now_and_then or step == self.total
        if due and not (self.live or self.quiet):
            line = _("step {step}/{total}: {seen}, {left:.0f} s left")
            left = seconds / step * (self.total - step)
            with contextlib.suppress(OSError):  # a full disk, a pipe nobody reads: no reason to stop
                print(line.format(step=step, total=self.total, seen=seen, left=left), flush=True)

    def memorising(self, verdict: Verdict, repeated: bytes) -> None:
        """Warn that the run is overfitting; `repeated` is what a sample repeats of the training text."""
        self.tell(f"warning: {memorising_in_words(verdict, repeated)}")

    def tell(self, line: str) -> None:
        """A line of its own, on stderr."""
        with contextlib.suppress(OSError):
            self.bar.write(line, file=sys.stderr) if self.live else print(line, file=sys.stderr, flush=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.bar.close()
