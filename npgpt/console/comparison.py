"""Several runs side by side: the settings that differ, losses with their spread over seeds, curves."""

from __future__ import annotations

import csv
import io
import math
import os
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any, NamedTuple

from npgpt.console import charts, report
from npgpt.console.language import N_, _, fill, number
from npgpt.engine.notebooks import small_table
from npgpt.engine.types import Fields, PathLike
from npgpt.text.json_file import read_json_if_any
from npgpt.training import checkpoint
from npgpt.training.ending import Ending
from npgpt.training.run import CONFIG, read_config

# keys of config.toml that change no weights and no measured figure
APART = ("about", "out", "threads", "keep", "save_every", "text", "val", "skip_bad", "balance")
CONTENTS = {"text": ("text_sha256", "data_sha256"), "val": ("val_sha256",)}  # of files, in [about]
# on what a run is validated, beside the content of its files
VALIDATED = ("split", "clean", "encoding", "field", "dedupe", "documents", "val_fraction", "eval_tokens")
MEASURES = {  # key of a Run -> its column, the format of a cell
    "train_loss": (N_("train loss"), ".4f"),
    "val_loss": (N_("val loss"), ".4f"),
    "val_bits_per_byte": (N_("val bits/byte"), ".4f"),
    "test_loss": (N_("test loss"), ".4f"),
    "test_bits_per_byte": (N_("test bits/byte"), ".4f"),
    "train_minutes": (N_("minutes"), ".2f"),
    "train_steps": (N_("steps done"), ","),
    "train_tokens": (N_("tokens"), ","),
}
LOSSES = tuple(MEASURES)[:5]
OTHER_TEXT = N_(
    "{a} and {b} are validated on different texts, so neither their losses nor their bits per byte compare"
)
OTHER_TOKENIZER = N_("{a} and {b} have different tokenizers: compare bits per byte, not their losses")
UNMEASURED = N_("{a} has no bits per byte; python -m npgpt.evaluate measures it")
UNENDED = N_("{a} has not ended, so its figures are those of its last row")
KINDS = [f"c{n}" for n in range(8)]  # of curves, for 8 runs; beyond, the colours come again
STYLE = """
:root { --c0: #0b62a4; --c1: #c2410c; --c2: #2f7d32; --c3: #7b3fa0; --c4: #8a6d00; --c5: #00796b;
        --c6: #b0005e; --c7: #5d6066; }
@media (prefers-color-scheme: dark) {
  :root { --c0: #6cb2ee; --c1: #f59e63; --c2: #7ccb80; --c3: #c79be6; --c4: #d9bd4b; --c5: #5cc9bb;
          --c6: #f27ab8; --c7: #b4b8be; } }
main { max-width: 1120px; } .wide { overflow-x: auto; } .wide td, .wide th { white-space: nowrap; }
""" + "".join(
    f"polyline.c{n} {{ stroke: var(--c{n}); }} text.c{n} {{ fill: var(--c{n}); }}" for n in range(8)
)
SHOWN = 22  # characters of a run's name beside its curve


class Spread(NamedTuple):
    """The mean of some runs' figures, and their sample standard deviation."""

    mean: float
    deviation: float


class Note(NamedTuple):
    """A line about some runs, which it names."""

    line: str
    runs: dict[str, str]


@dataclass(frozen=True)
class Run:
    """One run: its settings and what was measured of it; a figure that it does not have is None."""

    run: str  #: the folder, as it was given
    settings: Fields  #: of config.toml; text and val are the names of files
    train_loss: float | None  #: nats per token, over the last steps
    val_loss: float | None  #: nats per token, the best
    val_bits_per_byte: float | None  #: of that loss
    test_loss: float | None  #: nats per token, as npgpt.evaluate measured it
    test_bits_per_byte: float | None
    train_minutes: float | None  #: of training alone
    train_steps: int | None
    train_tokens: int | None  #: that were trained on, repeated ones included
    ended: bool  #: whether the training came to its end
    identity: Fields  #: by name, what two settings must share to be equal where their words do not tell
    rows: report.Rows  #: of metrics.csv

    def _repr_html_(self) -> str:
        """Return a table for notebooks: what was measured, then the settings."""
        found = {name: getattr(self, name) for name in MEASURES}
        shown: Fields = {
            _(MEASURES[name][0]): number(value, MEASURES[name][1])
            for name, value in found.items()
            if value is not None
        }
        settings = {name: _word(value) for name, value in self.settings.items() if _word(value)}
        return small_table(self.run if self.ended else f"{self.run} (not ended)", shown | settings)


@dataclass(frozen=True)
class Comparison:
    """Some runs, the settings in which they differ, and which of them differ by their seed alone."""

    runs: list[Run]
    settings: list[str]  #: names of the settings that differ
    groups: list[list[Run]]  #: runs whose settings are equal but for the seed; most are alone
    notes: list[Note]  #: why figures cannot be compared

    @property
    def warnings(self) -> list[str]:
        """The notes as lines of English."""
        return [note.line.format(**note.runs) for note in self.notes]

    def spread(self, group: Sequence[Run], name: str) -> Spread | None:
        """Return the spread of a figure over the runs of a group; None for one run, or where one lacks it."""
        values = [getattr(run, name) for run in group]
        if len(values) < 2 or None in values:
            return None
        return Spread(statistics.fmean(values), statistics.stdev(values))

    def __str__(self) -> str:
        """Return the table as lines of text."""
        head, rows = self._cells()
        widths = [max(map(len, column)) for column in zip(head, *rows, strict=True)]
        lines = []
        for first, *cells in [head, *rows]:
            rest = "".join(f"  {cell:>{width}}" for cell, width in zip(cells, widths[1:], strict=True))
            lines.append((f"{first:{widths[0]}}" + rest).rstrip())
        return "\n".join(lines)

    def _repr_html_(self) -> str:
        return report.table(*self._cells())

    def _measures(self) -> list[str]:
        """Return the names of the figures that some run has."""
        return [name for name in MEASURES if any(getattr(run, name) is not None for run in self.runs)]

    def _cells(self) -> tuple[list[str], list[list[str]]]:
        """Return the head and the rows of the table: each run, and below those of a group their spread."""
        names, measures = self.settings, self._measures()
        head = [_("run"), *names, *(_(MEASURES[name][0]) for name in measures)]
        rows = []
        for group in self.groups:
            for run in group:
                cells = [
                    "" if (value := getattr(run, name)) is None else number(value, MEASURES[name][1])
                    for name in measures
                ]
                rows.append([run.run, *(_word(run.settings.get(name)) for name in names), *cells])
            if len(group) > 1:
                spreads = [_spread_cell(self.spread(group, name), name) for name in measures]
                rows.append([fill(_("mean of {n} seeds"), n=len(group)), *[""] * len(names), *spreads])
        return head, rows

    def fields(self) -> Fields:
        """Return all as fields of JSON."""
        names, measures = self.settings, list(MEASURES)
        runs = [
            {"run": run.run, "settings": {name: run.settings.get(name) for name in names}, "ended": run.ended}
            | {name: getattr(run, name) for name in measures}
            for run in self.runs
        ]
        groups = []
        for group in self.groups:
            found = {name: self.spread(group, name) for name in LOSSES}
            if len(group) > 1:
                spreads = {name: spread._asdict() for name, spread in found.items() if spread}
                groups.append({"runs": [run.run for run in group], **spreads})
        return {"runs": runs, "settings": names, "seeds": groups, "warnings": self.warnings}

    def csv(self) -> str:
        """Return the table as CSV: a line for each run, with the spread of its group behind its own figures.

        Numbers have all digits and a point, in any language.
        """
        names, file = self.settings, io.StringIO()
        spreads = [f"{name}_{what}" for name in LOSSES for what in ("mean", "deviation")]
        lines = csv.writer(file, lineterminator="\n")
        lines.writerow(["run", *names, *MEASURES, "ended", "seeds", *spreads])
        for group in self.groups:
            found = [self.spread(group, name) or (None, None) for name in LOSSES]
            shared = [len(group), *(value for spread in found for value in spread)]
            for run in group:
                own = [getattr(run, name) for name in MEASURES]
                lines.writerow(
                    [run.run, *(_word(run.settings.get(name)) for name in names), *own, run.ended, *shared]
                )
        return file.getvalue()

    def html(self) -> str:
        """Return a page that needs nothing else: the table, and the curves of all runs."""
        head, rows = self._cells()
        lines = [fill(_(note.line), **note.runs) for note in self.notes]
        warnings = "".join(f'<p class="warning">{escape(line)}</p>' for line in lines)
        table = f'<div class="wide">{report.table(head, rows)}</div>'
        sections = [warnings, table]
        sections += self._chart(_("Validation loss"), "val_loss", "step", _("step"))
        sections += self._chart(_("Validation loss, by time"), "val_loss", "seconds", _("minutes"))
        sections += self._chart(_("Training loss"), "train_loss", "step", _("step"))
        about = _("Losses are in nats per token, bits per byte of text; lower is better.")
        return report.page(fill(_("{n} runs"), n=len(self.runs)), about, sections, STYLE)

    def _chart(self, title: str, name: str, by: str, label: str) -> list[str]:
        """Return a heading and the curves of a column of metrics.csv, nothing where no run has it."""
        curves: list[charts.Curve] = []
        for n, run in enumerate(self.runs):
            points = report.averaged(report.points(run.rows, name, by))
            if by == "seconds":
                points = [(x / 60, y) for x, y in points]
            shown = run.run if len(run.run) <= SHOWN else "…" + run.run[1 - SHOWN :]
            curves.append((shown, KINDS[n % len(KINDS)], points))
        chart = charts.line_chart(curves, label, right=190)
        return [f"<h2>{title}</h2>", chart] if chart else []


def compare(runs: PathLike | Iterable[PathLike]) -> Comparison:
    """Return a table of runs: folders that npgpt.train or npgpt.finetune made.

    print() shows it, and notebooks do; csv() and html() return what the command writes. ValueError for a
    folder that is no run, or that is given twice; OSError for one that is not there.
    """
    paths = [runs] if isinstance(runs, (str, os.PathLike)) else list(runs)
    if not paths:
        raise ValueError("compare: runs must be folders of runs, got none")
    found, known = [], set[Path]()
    for path in paths:
        if Path(path).resolve() in known:
            raise ValueError(f"{path}: is given twice")
        known.add(Path(path).resolve())
        found.append(_read(path))
    names = list(dict.fromkeys(name for run in found for name in run.settings))
    differ = [name for name in names if len({_value(run, name) for run in found}) > 1]
    groups: dict[tuple[str, ...], list[Run]] = {}
    for run in found:
        groups.setdefault(tuple(_value(run, name) for name in differ if name != "seed"), []).append(run)
    return Comparison(found, differ, list(groups.values()), _notes(found))


def _read(path: PathLike) -> Run:
    """Return what a run's files hold; its figures are those of metrics.csv, and of test.json."""
    folder = Path(path)
    if not folder.exists():
        raise FileNotFoundError(2, "No such file or directory", str(path))
    if not (folder / CONFIG).is_file() or not (folder / "metrics.csv").is_file():
        raise ValueError(f"{path}: must be the folder of a run, with {CONFIG} and metrics.csv")
    config, rows = read_config(folder), report.metrics(folder)
    test = report.test_result(folder / "test.json") or {}
    about, state = config["about"], _state(folder)
    val_loss = min((loss for _step, loss in report.points(rows, "val_loss")), default=None)
    per_token, bits = about.get("val_bytes_per_token"), None
    if val_loss is not None and isinstance(per_token, float) and per_token > 0:
        bits = val_loss / math.log(2) / per_token
    last = rows[-1] if rows else {}
    return Run(
        str(path),
        _settings(config),
        _mean(
            state.get("recent_losses") or [loss for _step, loss in report.points(rows, "train_loss")][-10:]
        ),
        val_loss,
        bits,
        test.get("loss"),
        test.get("bits_per_byte"),
        float(last["seconds"]) / 60 if last else None,
        int(last["step"]) if last else None,
        int(last["tokens"]) if last else None,
        state.get("ended") not in (None, Ending.INTERRUPTED),
        _identity(folder, config),
        rows,
    )


def _settings(config: Fields) -> Fields:
    """Return the settings that can make runs differ, the names of files in the place of their paths."""
    settings = {name: value for name, value in config.items() if name not in APART}
    for name in ("text", "val"):
        if value := config.get(name):
            settings[name] = [Path(file).name for file in ([value] if isinstance(value, str) else value)]
    about = config["about"]
    return settings | {name: True for name in ("skip_bad", "balance") if about.get(name)}


def _identity(folder: Path, config: Fields) -> Fields:
    """Return what tells apart settings that have the same words: content of files, and the tokenizer."""
    about = config["about"]
    found = {
        name: next((about[key] for key in keys if about.get(key)), None) for name, keys in CONTENTS.items()
    }
    found |= {"init_from": about.get("parent_sha256"), "tokenizer": _tokenizer(folder, config)}
    found["form"] = about.get("form", "text")  # of the examples of npgpt.finetune
    return {name: value for name, value in found.items() if value}


def _tokenizer(folder: Path, config: Fields) -> str | None:
    """Return "bytes", or the fingerprint of a run's tokenizer; before the first checkpoint its name."""
    if config.get("tokenizer") == "bytes":
        return "bytes"
    for saved in checkpoint.checkpoints(folder)[:1]:
        ours = (read_json_if_any(saved / "config.json") or {}).get("npgpt")
        if isinstance(ours, dict) and isinstance(ours.get("tokenizer"), str):
            return str(ours["tokenizer"])
    name = config.get("tokenizer")
    return f"{name} {config['about'].get('text_sha256')}" if str(name).startswith("bpe:") else name


def _state(folder: Path) -> Fields:
    """Return the trainer's state in a run's newest checkpoint, {} where there is none that can be read."""
    for saved in checkpoint.checkpoints(folder):
        try:
            return checkpoint.read_state(saved)
        except (OSError, ValueError):
            continue
    return {}


def _mean(losses: Sequence[float]) -> float | None:
    return sum(losses) / len(losses) if losses and all(map(math.isfinite, losses)) else None


def _value(run: Run, name: str) -> str:
    """Return a text that is equal for equal settings."""
    return str(run.identity.get(name) or run.settings.get(name))


def _word(value: Any) -> str:
    """Return a setting as a cell."""
    if isinstance(value, list):
        return ",".join(map(_word, value))
    return "" if value is None else f"{value:g}" if isinstance(value, float) else str(value)


def _spread_cell(spread: Spread | None, name: str) -> str:
    if name not in LOSSES or not spread:
        return ""
    form = MEASURES[name][1]
    return f"{number(spread.mean, form)} ± {number(spread.deviation, form)}"


def _notes(runs: Sequence[Run]) -> list[Note]:
    """Return why the figures of some runs do not compare, a line for each reason."""
    notes: list[Note] = []
    first, others = runs[0], runs[1:]
    if other := next((run for run in others if _validated_on(run) != _validated_on(first)), None):
        notes.append(Note(OTHER_TEXT, {"a": first.run, "b": other.run}))
    elif other := next((run for run in others if _coded_by(run) != _coded_by(first)), None):
        notes.append(Note(OTHER_TOKENIZER, {"a": first.run, "b": other.run}))
        notes += [
            Note(UNMEASURED, {"a": run.run})
            for run in runs
            if run.val_bits_per_byte is None and run.test_bits_per_byte is None
        ]
    return notes + [Note(UNENDED, {"a": run.run}) for run in runs if not run.ended]


def _validated_on(run: Run) -> tuple[str, ...]:
    return tuple(_value(run, name) for name in ("form", "text", "val", *VALIDATED))


def _coded_by(run: Run) -> str:
    return _value(run, "tokenizer")
