"""The progress of a training: one live line on a terminal or in a notebook, some plain lines in a pipe."""

import contextlib
import sys
from importlib.util import find_spec
from typing import Any

from tqdm import tqdm

from npgpt.console.language import _, fill
from npgpt.console.messages import overfitting_message
from npgpt.training.listener import Listener, Step
from npgpt.training.overfitting import Verdict


def in_notebook() -> bool:
    """Return whether this is the kernel of a notebook, which is no terminal but shows a bar."""
    ipython = sys.modules.get("IPython")
    return ipython is not None and hasattr(ipython.get_ipython(), "kernel")


class Progress(Listener):
    """Shows the steps of a training and its warnings; with quiet=True the warnings alone."""

    def __init__(self, quiet: bool = False) -> None:
        self.val_loss: float | None = None
        self.quiet, self.live = quiet, (sys.stderr.isatty() or in_notebook()) and not quiet
        self.bar: Any = tqdm(disable=True)

    def begin(self, step: int, steps: int) -> None:
        """Show an empty bar on a terminal or in a notebook."""
        layout = _("{percentage:3.0f}% {bar:20} step {n}/{total}, {remaining} left{postfix}")
        options = {"total": steps, "initial": step, "dynamic_ncols": True, "disable": not self.live}
        if in_notebook() and find_spec("ipywidgets"):  # else the bar is text there too
            from tqdm.notebook import tqdm as widget

            self.bar = widget(bar_format=layout.replace("{bar:20}", "{bar}"), **options)
        else:
            self.bar = tqdm(bar_format=layout, **options)

    def step(self, step: Step) -> None:
        """Show a step: each on a terminal; in a pipe those with a validation, or ten of all without any."""
        self.val_loss = self.val_loss if step.val_loss is None else step.val_loss
        seen = _("loss {loss:.4f}, {speed:,.0f} tokens/s")
        if self.val_loss is not None:
            seen = _("loss {loss:.4f}, val loss {val_loss:.4f}, {speed:,.0f} tokens/s")
        seen = fill(seen, loss=step.loss, val_loss=self.val_loss, speed=step.tokens_per_second)
        self.bar.total = step.steps
        self.bar.set_postfix_str(seen, refresh=False)
        self.bar.update()
        tenth = max(1, step.steps // 10)
        regular = self.val_loss is None and step.step % tenth == 0  # where there is no validation
        due = step.val_loss is not None or regular or step.step == step.steps
        if due and not (self.live or self.quiet):
            line = _("step {step}/{total}: {seen}, {left:.0f} s left")
            left = step.seconds / step.step * (step.steps - step.step)
            with contextlib.suppress(OSError):  # a full disk or a closed pipe must not end the training
                print(fill(line, step=step.step, total=step.steps, seen=seen, left=left), flush=True)

    def warn(self, line: str) -> None:
        """Show a warning on a line of its own, on stderr."""
        line = f"warning: {line}"
        with contextlib.suppress(OSError):
            self.bar.write(line, file=sys.stderr) if self.live else print(line, file=sys.stderr, flush=True)

    def overfitting(self, verdict: Verdict, repeated: bytes) -> None:
        """Show the warning that the model overfits."""
        self.warn(overfitting_message(verdict, repeated))

    def end(self) -> None:
        """Close the bar and leave it on the terminal."""
        self.bar.close()
