"""What commands print: results in the locale's language, warnings in English."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, TextIO

from npgpt.console.language import _

if TYPE_CHECKING:
    from npgpt.engine.types import Fields, PathLike
    from npgpt.text.corpus import Corpus
    from npgpt.training.trainer import Trainer


def log(message: str, to: Any = None, **values: object) -> None:
    """Print a message of the catalogue with its values, to stdout or another stream."""
    print(_(message).format(**values), file=to, flush=True)


def log_finished(folder: PathLike, trainer: Trainer) -> None:
    """That a run which was to be resumed has ended already."""
    log(
        "{run} is finished: {how} after {steps} steps",
        run=folder,
        how=(trainer.ended or ""),
        steps=trainer.step,
    )


def log_result(result: Fields, losses: str) -> None:
    """How a training ended; `losses` may name fields of the result."""
    how, losses = (result["ended"]), losses.format(**result)
    log("{how} after {steps} steps, {seconds:.1f} s: {losses}", **result | {"how": how, "losses": losses})


def log_saved(folder: PathLike) -> None:
    """Where a run is."""
    log("saved to {run}, drawn in {run}/report.html", run=folder)


def log_next(*commands: str) -> None:
    """What to run next, a command a line."""
    word = _("next:")
    for command in commands:
        print(word, command, flush=True)
        word = " " * len(word)


def log_warnings(lines: Iterable[str]) -> None:
    """Each line on stderr, as a warning."""
    for line in lines:
        print(_("warning: {line}").format(line=line), file=sys.stderr)


def start_command(threads: int | None, out: TextIO | None = None) -> None:
    """Set the threads and print the first line of every run: the kernels in use, or how to get them."""
    from npgpt.engine import kernels

    if threads:
        kernels.set_num_threads(threads)
    log("running on {kernels}", to=out, kernels=(kernels.describe()))


def corpus_report(corpus: Corpus) -> list[str]:
    """Lines that say what was read, what cleaning changed and which texts are there twice."""
    read = (
        _("text: {bytes:,} bytes in {files} files")
        if len(corpus.documents) > 1
        else _("text: {bytes:,} bytes in 1 file")
    )
    done = ", ".join(f"{n:,} {_(what)}" for what, n in corpus.changed.items())
    effect = _("{done}; {left:,} bytes are left") if done else _("changed nothing")
    if corpus.n_clean is None:  # nobody went through it: its tokens were there
        effect = _("done before")
    line = f"{read}; {_('cleaning')} ({corpus.clean}) {effect}"
    counts = {"bytes": corpus.n_bytes, "files": len(corpus.documents), "left": corpus.n_clean}
    lines = [line.format(done=done, **counts)]
    if odd := [document.name for document in corpus.documents if not document.is_utf8]:
        lines.append(_("not UTF-8, so kept byte for byte: {files}").format(files=_few(odd)))
    seen = Counter(document.sha256 for document in corpus.documents)
    if twice := [document.name for document in corpus.documents if seen[document.sha256] > 1]:
        line = _("warning: the same text several times: {files}; the test would be too easy")
        lines.append(line.format(files=_few(twice)))
    return lines


def _few(names: list[str]) -> str:
    return ", ".join(names[:3]) + (_(" and {n} more").format(n=len(names) - 3) if len(names) > 3 else "")
