"""The printed form of training/where.py: what a text repeats from a run's training text and its prompt."""

from __future__ import annotations

from typing import TYPE_CHECKING

from npgpt.console.language import N_, _, fill
from npgpt.console.messages import log, log_found, place

if TYPE_CHECKING:
    from collections.abc import Sequence

    from npgpt.training.where import Repeat, Where

IN_TRAINING = N_(
    "{share:.0%} of the {n:,} characters are in the training text too, in stretches of {shortest} or more"
)
IN_PROMPT = N_(
    "{share:.0%} of the {n:,} characters are in the prompt too, in stretches of {shortest} or more"
)
AT_MOST = 10  # stretches that are printed of each list
SHOWN = 100  # characters of a stretch that are printed


def log_where(found: Where) -> None:
    """Print the stretches of a text that repeat the training text and the prompt, longest first."""
    log_found(found.found_at)
    _log_repeats(IN_TRAINING, found.training, found)
    if found.prompt:
        _log_repeats(IN_PROMPT, found.prompt, found)


def _log_repeats(line: str, repeats: Sequence[Repeat], found: Where) -> None:
    share = sum(repeat.length for repeat in repeats) / len(found.text)
    log(line, share=share, n=len(found.text), shortest=found.shortest)
    for repeat in repeats[:AT_MOST]:
        print(_line(repeat), flush=True)
    if len(repeats) > AT_MOST:
        log("... and {n:,} more", n=len(repeats) - AT_MOST)


def _line(repeat: Repeat) -> str:
    """Return `length  count times, where it is first: the stretch`."""
    times = _("once") if repeat.count == 1 else fill(_("{count:,} times"), count=repeat.count)
    file = repeat.file
    where = place(file, repeat.line, repeat.unit) if file else fill(_("line {line}"), line=repeat.line)
    shown = repeat.text if repeat.length <= SHOWN else repeat.text[:SHOWN] + "..."
    return f"{repeat.length:6}  {times}, {where}: {shown!r}"
