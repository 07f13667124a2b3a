"""The messages of the commands: results in the locale's language, warnings in English."""

from __future__ import annotations

import os
import shlex
import sys
from collections import Counter
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any, TextIO

from npgpt.console.language import N_, _, fill, number

if TYPE_CHECKING:
    from npgpt.engine.types import Fields, PathLike, Text
    from npgpt.text.corpus import Corpus
    from npgpt.text.distinct import DistinctCorpus
    from npgpt.text.forms.notes import Notes
    from npgpt.text.tokenizer import Tokenizer
    from npgpt.training.overfitting import Verdict
    from npgpt.training.trainer import Trainer

LONG_LINE = 40  # bytes: shorter lines recur by chance
ENDINGS = {  # how a run ended -> the beginning of "... after 60 steps"
    "done": N_("done"),
    "memorised": N_("memorised"),
    "target reached": N_("target reached"),
    "patience": N_("stopped, {n} validations without a better one,"),
    "interrupted": N_("interrupted"),
}


def log(message: str, to: Any = None, **values: object) -> None:
    """Translate a message, fill in its values, and print it to stdout or another stream."""
    print(fill(_(message), **values), file=to, flush=True)


def log_finished(result: Fields, patience: int | None) -> None:
    """Print that a run has already ended, for --resume."""
    log("{run} is finished: {how} after {steps} steps", **result, how=_how(result, patience))


def log_result(result: Fields, losses: str, patience: int | None) -> None:
    """Print how a training ended; `losses` is a template of the result's fields."""
    how, losses = _how(result, patience), fill(losses, **result)
    log("{how} after {steps} steps, {seconds:.1f} s: {losses}", **result, how=how, losses=losses)


def _how(result: Fields, patience: int | None) -> str:
    ended: str = result["ended"]
    return _(ENDINGS.get(ended, ended)).format(n=patience)  # npgpt 0.1.0 saved the sentence of patience


def log_going_on(trainer: Trainer) -> None:
    """Print after which step a run goes on, and the learning rate that follows the end of a shorter run."""
    if trainer.step:
        log("going on after step {step}", step=trainer.step)
    if trainer.gone_on:
        schedule = trainer.schedule
        log(
            "the learning rate is now that of a run of {steps} steps: from {rate:.2g} to {last:.2g}, {shape}",
            steps=schedule.steps,
            rate=schedule.rate(trainer.step + 1),
            last=schedule.rate(schedule.steps),
            shape=schedule.plan.schedule,
        )


def log_falling(result: Fields, command: str) -> None:
    """Print that a run ended while it still got better, and the command that trains it for longer."""
    if result["falling"]:
        before, now = result["falling"]
        log(
            "it still got better: the validation loss fell from {before:.4f} to {now:.4f} in the last fifth",
            before=before,
            now=now,
        )
        log("for longer: {command}", command=command)


def log_found(text: str | None) -> None:
    """Print where the text of a run was found, if that is not where it was."""
    if text:
        log("the text of the run is not where it was; found by its sha256: {text}", text=text)


UNITS = N_("page"), N_("paragraph"), N_("record")  # of a file that say where a text is in it


def place(file: str, line: int, unit: str) -> str:
    """Return where a text is in a file: file:line, or `file, page 3` where it has no lines."""
    return f"{file}:{line}" if unit == "line" else f"{file}, {_(unit)} {line}"


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


def log_cleaned(tokenizer: Tokenizer | None, *texts: Text) -> bool:
    """Print on stderr what a model's normalizer changes in these texts; return True if it does."""
    changed: Counter[str] = Counter()
    if tokenizer:
        for text in texts:
            tokenizer.normalize(text, changed)
        log_changed(tokenizer.normalizer, changed)
    return bool(changed)


def log_changed(how: str, changed: Counter[str]) -> None:
    """Print on stderr what cleaning (light or full) changed in the text that the user gave, if anything."""
    if changed:
        log("cleaned ({how}), as the model's own text was: {done}", sys.stderr, how=how, done=listed(changed))


def listed(changed: Counter[str]) -> str:
    """Return counts as `2 byte-order marks removed, 3 ...`."""
    return ", ".join(f"{number(n, ',')} {_(what)}" for what, n in changed.items())


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


def overfitting_message(
    verdict: Verdict, repeated: bytes = b"", translate: Callable[[str], str] = str
) -> str:
    """Return the warning that a run is overfitting; `repeated` is a stretch of text that a sample repeats.

    It is English, as warnings are; translate=_ is for pages.
    """
    line = translate(
        "it is overfitting: from step {v.best_step} to {v.step} the training loss fell from {v.train[0]:.3f} "
        "to {v.train[1]:.3f} while the validation loss rose from {v.val[0]:.3f} to {v.val[1]:.3f}; step "
        "{v.best_step} is kept as the best. More text, more --dropout, a smaller model or --patience 3 would "
        "help"
    )
    line = _filled(line, translate, v=verdict)
    if repeated:
        shown = repeated.decode("utf-8", "ignore")
        line = f"{line}. A sample of it repeats {len(repeated)} bytes of the text: {shown!r}"
    return line


def _filled(line: str, translate: Callable[[str], str], **values: object) -> str:
    return line.format(**values) if translate is str else fill(line, **values)


def overlap_message(overlap: Fields) -> str:
    """Return the result of overfitting.overlap() as a sentence."""
    line = _("Longest stretch of the training text in {n_samples} samples: {bytes} bytes, {text!r}")
    if overlap["held_out_bytes"] is not None:
        line += _("; in as much text that it never saw: {held_out_bytes} bytes")
    return fill(line, **overlap)


def tuning_message(verdict: Fields, translate: Callable[[str], str] = _) -> str:
    """Return the result of a search as a sentence; translate=str keeps it English."""
    line = translate(
        "Validation loss {loss:.4f} instead of the default's {default_loss:.4f} in the same {minutes:.1f} "
        "minutes, with {changes}; {epochs:.1f} epochs."
    )
    if verdict["is_default"]:
        line = translate("The default was best: validation loss {loss:.4f} after {minutes:.1f} minutes.")
    # settings, as flags take them
    changes = ", ".join(f"{name} {value:g}" for name, value in verdict["changed"].items())
    return _filled(line, translate, **verdict, changes=changes or translate("half the time"))


def corpus_report(corpus: DistinctCorpus, shown: bool = True) -> list[str]:
    """Return the lines that report the text read, the changes by cleaning, and texts that occur twice."""
    read = (
        _("text: {bytes:,} bytes in {files} files")
        if len(corpus.documents) > 1
        else _("text: {bytes:,} bytes in 1 file")
    )
    done = listed(corpus.changed)
    effect = _("{done}; {left:,} bytes are left") if done else _("changed nothing")
    if corpus.n_clean is None:  # its tokens were stored, so it was not read again
        effect = _("done before")
    line = f"{read}; {_('cleaning')} ({corpus.clean}) {effect}"
    counts = {"bytes": corpus.n_bytes, "files": len(corpus.documents), "left": corpus.n_clean}
    lines = [fill(line, done=done, **counts), *forms_report(corpus)]
    lines += duplicates_report(corpus, shown)
    seen = Counter(document.sha256 for document in corpus.documents)
    if twice := [document.name for document in corpus.documents if seen[document.sha256] > 1]:
        lines.append(f"warning: the same text several times: {_few(twice)}")
    return lines


def forms_report(corpus: Corpus) -> list[str]:
    """Return a line for each form and encoding that was converted: how many files, what was left out."""
    groups: dict[tuple[str, str], list[Notes]] = {}
    for notes in filter(None, (document.notes for document in corpus.documents)):
        groups.setdefault((notes.form, notes.encoding), []).append(notes)
    lines = []
    for (form, encoding), group in groups.items():
        line = _("files read as {form}, {encoding}: {files}; documents in them: {documents:,}")
        line = fill(
            line, form=_(form), encoding=encoding, files=len(group), documents=sum(n.documents for n in group)
        )
        dropped = sum((notes.dropped for notes in group), Counter[str]())
        lines.append(f"{line}; {listed(dropped)}" if dropped else line)
    return lines


def duplicates_report(corpus: DistinctCorpus, shown: bool) -> list[str]:
    """Return what was left out as duplicates of documents before them, with examples if `shown`."""
    if not any(corpus.n_left_out.values()):
        return []
    line = _(
        "duplicates left out: {exact:,} exact and {near:,} near ones; {kept:,} documents are left; "
        "--dedupe none keeps all"
    )
    lines = [fill(line, kept=corpus.n_documents, **corpus.n_left_out)]
    for one in corpus.repeated() if shown else ():
        line = (
            _("  {place} repeats {first_place}: {beginning!r}")
            if one.exact
            else _("  {place} is near to {first_place}: {beginning!r}, {first_beginning!r}")
        )
        places = {"place": place(*one.place), "first_place": place(*one.first_place)}
        lines.append(fill(line, **one._asdict() | places))
    return lines


def val_warnings(val: Corpus, corpus: Corpus) -> list[str]:
    """Return a warning where more than a few long lines of the validation text are in the training text."""
    lines = Counter(line for line in _lines(val) if len(line) >= LONG_LINE)
    known = {line for line in _lines(corpus) if line in lines}
    n, of = sum(lines[line] for line in known), lines.total()
    name = _few([document.name for document in val.documents])
    if n <= of / 100:
        return []
    return [
        f"{name}: {n:,} of {of:,} lines of {LONG_LINE} bytes or more are in the training text too; "
        "validation is too easy"
    ]


def spelt_end_warnings(corpus: Corpus) -> list[str]:
    """Return a warning for each text that spells <|endoftext|>, as some that hold many documents do."""
    found = {
        document.name: sum(block.count(b"<|endoftext|>") for block in document.blocks())
        for document in corpus.documents
    }
    return [
        f"{name}: <|endoftext|> is spelt {n:,} times, which is learnt as letters; "
        "a document in a file of its own has its end by itself"
        for name, n in found.items()
        if n
    ]


def _lines(corpus: Corpus) -> Iterable[bytes]:
    for _number, chunk in corpus.chunks():
        yield from map(bytes.strip, chunk.split(b"\n"))


def _few(names: list[str]) -> str:
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return ", ".join(names[:3]) + more
