"""The messages of the commands: results in the locale's language, warnings in English."""

from __future__ import annotations

import os
import shlex
import sys
from collections import Counter
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any, TextIO

from npgpt.console.language import N_, _

if TYPE_CHECKING:
    from npgpt.engine.types import Fields, PathLike
    from npgpt.text.corpus import Corpus
    from npgpt.training.overfitting import Verdict

ENDINGS = {  # how a run ended -> the beginning of "... after 60 steps"
    "done": N_("done"),
    "memorised": N_("memorised"),
    "target reached": N_("target reached"),
    "patience": N_("stopped, {n} validations without a better one,"),
    "interrupted": N_("interrupted"),
}


def log(message: str, to: Any = None, **values: object) -> None:
    """Translate a message, fill in its values, and print it to stdout or another stream."""
    print(_(message).format(**values), file=to, flush=True)


def log_finished(result: Fields, patience: int | None) -> None:
    """Print that a run has already ended, for --resume."""
    log("{run} is finished: {how} after {steps} steps", **result, how=_how(result, patience))


def log_result(result: Fields, losses: str, patience: int | None) -> None:
    """Print how a training ended; `losses` is a template of the result's fields."""
    how, losses = _how(result, patience), losses.format(**result)
    log("{how} after {steps} steps, {seconds:.1f} s: {losses}", **result, how=how, losses=losses)


def _how(result: Fields, patience: int | None) -> str:
    ended: str = result["ended"]
    return _(ENDINGS.get(ended, ended)).format(n=patience)  # npgpt 0.1.0 saved the sentence of patience


def log_found(text: str | None) -> None:
    """Print where the text of a run was found, if that is not where it was."""
    if text:
        log("the text of the run is not where it was; found by its sha256: {text}", text=text)


def log_saved(folder: PathLike) -> None:
    """Print the folder of a run and its report."""
    log("saved to {run}, drawn in {run}/report.html", run=folder)


def shell_path(path: PathLike) -> str:
    """Return a path as the argument of a command that is printed: a shell and argparse read it as it is."""
    text = str(path)
    text = f"./{text}" if text.startswith("-") else text
    try:
        text.encode()
        return shlex.quote(text)
    except UnicodeEncodeError:  # a name of other bytes, as bash, zsh and POSIX 2024 write it
        return "$'" + "".join(f"\\x{byte:02x}" for byte in os.fsencode(text)) + "'"


def log_next(*commands: str) -> None:
    """Print the commands to run next, one a line."""
    word = _("next:")
    for command in commands:
        print(word, command, flush=True)
        word = " " * len(word)


def log_warnings(lines: Iterable[str]) -> None:
    """Print each line on stderr as a warning."""
    for line in lines:
        print(f"warning: {line}", file=sys.stderr)


def start_command(threads: int | None, out: TextIO | None = None) -> None:
    """Set the threads and print the first line of every command: the kernels in use, or how to build them."""
    from npgpt.engine import kernels

    if threads:
        kernels.set_num_threads(threads)
    log("running on {kernels}", to=out, kernels=_kernels_message())


def _kernels_message() -> str:
    """Return the translation of kernels.describe()."""
    from npgpt.engine import kernels

    name, threads = kernels.name(), kernels.get_num_threads()
    if name != "numpy":
        line = _("{name} kernels, {threads} threads") if threads > 1 else _("{name} kernels, 1 thread")
        return line.format(name=name, threads=threads)
    if len(kernels.available()) > 1:
        return _("NumPy alone (NPGPT_KERNELS=numpy)")
    return _(
        "NumPy alone, slowly; build the kernels with pip install -e . in the source tree, with g++ installed"
    )


def overfitting_message(verdict: Verdict, repeated: bytes = b"") -> str:
    """Return the warning that a run is overfitting; `repeated` is a stretch of text that a sample repeats."""
    line = (
        f"it is overfitting: from step {verdict.best_step} to {verdict.step} the training loss fell from "
        f"{verdict.train[0]:.3f} to {verdict.train[1]:.3f} while the validation loss rose from "
        f"{verdict.val[0]:.3f} to {verdict.val[1]:.3f}; step {verdict.best_step} is kept as the best. "
        "More text, more --dropout, a smaller model or --patience 3 would help"
    )
    if repeated:
        shown = repeated.decode("utf-8", "ignore")
        line = f"{line}. A sample of it repeats {len(repeated)} bytes of the text: {shown!r}"
    return line


def overlap_message(overlap: Fields, translate: Callable[[str], str] = _) -> str:
    """Return the result of overfitting.overlap() as a sentence; translate=str keeps it English."""
    line = translate("Longest stretch of the training text in {n_samples} samples: {bytes} bytes, {text!r}")
    if overlap["held_out_bytes"] is not None:
        line += translate("; in as much text that it never saw: {held_out_bytes} bytes")
    return line.format(**overlap)


def tuning_message(verdict: Fields, translate: Callable[[str], str] = _) -> str:
    """Return the result of a search as a sentence; translate=str keeps it English."""
    line = translate(
        "Validation loss {loss:.4f} instead of the default's {default_loss:.4f} in the same {minutes:.1f} "
        "minutes, with {changes}; {epochs:.1f} epochs."
    )
    if verdict["is_default"]:
        line = translate("The default was best: validation loss {loss:.4f} after {minutes:.1f} minutes.")
    changes = ", ".join(f"{name} {value:g}" for name, value in verdict["changed"].items())
    return line.format(**verdict, changes=changes or translate("half the time"))


def corpus_report(corpus: Corpus) -> list[str]:
    """Return the lines that report the text read, the changes by cleaning, and texts that occur twice."""
    read = (
        _("text: {bytes:,} bytes in {files} files")
        if len(corpus.documents) > 1
        else _("text: {bytes:,} bytes in 1 file")
    )
    done = ", ".join(f"{n:,} {_(what)}" for what, n in corpus.changed.items())
    effect = _("{done}; {left:,} bytes are left") if done else _("changed nothing")
    if corpus.n_clean is None:  # its tokens were stored, so it was not read again
        effect = _("done before")
    line = f"{read}; {_('cleaning')} ({corpus.clean}) {effect}"
    counts = {"bytes": corpus.n_bytes, "files": len(corpus.documents), "left": corpus.n_clean}
    lines = [line.format(done=done, **counts)]
    if odd := [document.name for document in corpus.documents if not document.is_utf8]:
        lines.append(_("not UTF-8, so kept byte for byte: {files}").format(files=_few(odd, _)))
    seen = Counter(document.sha256 for document in corpus.documents)
    if twice := [document.name for document in corpus.documents if seen[document.sha256] > 1]:
        lines.append(f"warning: the same text several times: {_few(twice, str)}; the test would be too easy")
    return lines


def _few(names: list[str], translate: Callable[[str], str]) -> str:
    more = translate(" and {n} more").format(n=len(names) - 3) if len(names) > 3 else ""
    return ", ".join(names[:3]) + more
