"""report.html: the results of a run or a search on one self-contained page; loss.png with matplotlib.

The page is made from the files of the run's folder alone, so it can be made again at any time.
"""

import importlib.util
import json
import math
import sys
from collections.abc import Iterable, Sequence
from html import escape
from pathlib import Path
from typing import TypeAlias

from npgpt.console import charts
from npgpt.console.language import _, fill, number
from npgpt.console.messages import log_warnings, overfitting_message, overlap_message
from npgpt.engine.types import Fields
from npgpt.training.checkpoint import write_atomically, written_whole
from npgpt.training.journal import Journal
from npgpt.training.overfitting import History
from npgpt.training.recorder import METRICS, journals
from npgpt.training.run import read_config

Rows: TypeAlias = list[dict[str, str]]  # of metrics.csv, by the columns' names
POINTS = 300  # of the training curve; each is a mean over its chunk of the steps
SHAPE = ("engine", "n_layer", "n_head", "n_embd", "block_size", "dropout", "tokenizer")
TEST_KEYS = {"part", "tokens", "bits_per_byte", "loss", "accuracy@1", "accuracy@5"}
HIDDEN = ("text", "about", "split", "threads", "keep", "save_every", "eval_tokens")

STYLE = """
:root { --page: #fdfdfb; --ink: #1d1f21; --soft: #6c7076; --line: #e4e4df; --fill: #f4f4f0;
        --one: #0b62a4; --two: #c2410c; --three: #8a8f96; color-scheme: light dark; }
@media (prefers-color-scheme: dark) {
  :root { --page: #16181a; --ink: #e6e6e3; --soft: #9a9fa6; --line: #2c3034; --fill: #1e2124;
          --one: #6cb2ee; --two: #f59e63; --three: #7d848c; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--page); color: var(--ink);
       font: 16px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", sans-serif;
       font-variant-numeric: tabular-nums; }
main { max-width: 880px; margin: 0 auto; padding: 56px 24px 96px; }
h1 { font-size: 30px; font-weight: 650; letter-spacing: -.02em; line-height: 1.2; margin: 0 0 6px; }
h2 { font-size: 17px; font-weight: 650; margin: 52px 0 12px; }
p { margin: 0 0 12px; max-width: 68ch; }
.soft { max-width: none; color: var(--soft); font-size: 14px; }
.figures { display: grid; grid-template-columns: repeat(auto-fit, minmax(118px, 1fr)); gap: 16px 24px;
           margin: 30px 0 0; }
.figures div { font-size: 27px; font-weight: 600; letter-spacing: -.01em; line-height: 1.25; }
.figures span { display: block; font-size: 13px; font-weight: 400; letter-spacing: 0; color: var(--soft); }
.warning { border-left: 3px solid var(--two); padding: 2px 0 2px 14px; margin: 28px 0 0; }
polyline.one { stroke: var(--one); } polyline.two { stroke: var(--two); stroke-width: 2.4; }
polyline.three { stroke: var(--three); stroke-width: 1.6; }
text.one.label, circle.one { fill: var(--one); } text.two.label, circle.two { fill: var(--two); }
text.three.label { fill: var(--soft); } .label { font-weight: 500; }
table { border-collapse: collapse; width: 100%; font-size: 15px; margin: 16px 0 0; }
th { text-align: right; font-weight: 500; color: var(--soft); font-size: 13px; padding: 4px 0 6px 16px; }
td { text-align: right; border-top: 1px solid var(--line); padding: 6px 0 6px 16px; }
td.bar { width: 44%; } td.bar i { display: block; height: 14px; background: var(--three); }
tr.best td.bar i { background: var(--one); }
th:first-child, td:first-child { text-align: left; padding-left: 0; } tr.best td { font-weight: 650; }
dl { display: grid; grid-template-columns: repeat(auto-fill, minmax(250px, 1fr)); gap: 0 40px; margin: 0; }
dl div { display: flex; justify-content: space-between; gap: 16px; border-top: 1px solid var(--line);
         padding: 5px 0; font-size: 14px; }
dt { color: var(--soft); } dd { margin: 0; text-align: right; overflow-wrap: anywhere; }
.sample { display: grid; grid-template-columns: 84px 1fr; padding: 10px 0;
          border-top: 1px solid var(--line); }
.sample span { color: var(--soft); font-size: 13px; padding-top: 2px; }
.sample pre { margin: 0; white-space: pre-wrap; overflow-wrap: anywhere; font: 14.5px/1.5 Georgia, serif; }
.two-up { display: grid; grid-template-columns: 1fr 1fr; gap: 40px; } .two-up h2 { margin-top: 40px; }
@media (max-width: 640px) { .two-up { grid-template-columns: 1fr; } .sample { grid-template-columns: 1fr; } }
"""


class Bar(float):
    """A table cell that is drawn as a bar; the value is a share of the cell's width."""


def write(run: Path) -> Path:
    """Write run/report.html, and run/loss.png where matplotlib is installed; return the page's path.

    Where a file of the run was changed by hand, so that it cannot be read, a warning names it and the page
    stays as it is.
    """
    try:
        rows, samples = metrics(run), _lines(journals(run)[1])
        config, test = read_config(run), test_result(run / "test.json")
    except ValueError as error:
        log_warnings([f"{error}; {run / 'report.html'} stays as it is"])
        return run / "report.html"
    curves, marks = _curves(rows)
    if importlib.util.find_spec("matplotlib"):  # first: a run that has its page is done
        with written_whole(run / "loss.png") as new:
            _write_png(new, run.resolve().name, curves)
    sections = [
        _figures(rows, test),
        _warning(rows),
        f"<h2>{_('Loss')}</h2>",
        f'<p class="soft">{_("Nats per token; lower is better.")}</p>',
        charts.line_chart(curves, _("step"), marks=marks),
        _counting(rows, test),
        _test(test),
        _samples(samples),
        _rates(rows),
        _settings(config),
    ]
    write_page(run, _description(config, rows), sections)
    return run / "report.html"


def write_page(folder: Path, about: str, sections: Iterable[str]) -> None:
    """Write folder/report.html: a line `about` its content, and the sections that are not empty."""
    write_atomically(folder / "report.html", page(folder.resolve().name, about, sections))


def page(title: str, about: str, sections: Iterable[str], style: str = "") -> str:
    """Return a self-contained page: a title, a line `about` its content, and the sections that are not empty.

    `style` is CSS of its own.
    """
    name = escape(title)
    head = (
        f'<!doctype html>\n<html lang="{_("en")}">\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{name} · npgpt</title>\n<style>{charts.STYLE}{STYLE}{style}</style>\n<main>\n"
        f'<h1>{name}</h1>\n<p class="soft">{escape(about)}</p>\n'
    )
    return head + "\n".join(filter(None, sections)) + "\n</main>\n"


def table(head: Sequence[str], rows: Iterable[Sequence[object]], best: int | None = None) -> str:
    """Return an HTML table of rows of texts and Bars under the names in `head`; row `best` is in bold."""
    lines = ["<table><tr>" + "".join(f"<th>{escape(h)}</th>" for h in head) + "</tr>"]
    for i, row in enumerate(rows):
        kind = ' class="best"' if i == best else ""
        cells = (
            f'<td class="bar"><i style="width:{cell:.1%}"></i></td>'
            if isinstance(cell, Bar)
            else f"<td>{escape(str(cell))}</td>"
            for cell in row
        )
        lines.append(f"<tr{kind}>" + "".join(cells) + "</tr>")
    return "\n".join([*lines, "</table>"])


def metrics(run: Path) -> Rows:
    """Return the rows of metrics.csv by their columns' names; an empty list without the file.

    ValueError, with the number of the line, where one is not as a run writes it.
    """
    journal = journals(run)[0]
    return [dict(zip(METRICS.split(","), row.split(","), strict=True)) for row in _lines(journal)]


def points(rows: Rows, name: str, by: str = "step") -> list[tuple[float, float]]:
    """Return the points (by, name) of the rows in which `name` is a finite number."""
    found = [(float(row[by]), float(row[name])) for row in rows if row[name]]
    return [point for point in found if math.isfinite(point[1])]


def averaged(curve: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """Return a curve of at most about POINTS points, each the mean over its chunk of the steps."""
    share = max(1, len(curve) // POINTS)
    chunks = [curve[i : i + share] for i in range(0, len(curve), share)]
    return [(chunk[-1][0], sum(y for _, y in chunk) / len(chunk)) for chunk in chunks]


def _lines(journal: Journal) -> list[str]:
    try:
        return journal.read(sys.maxsize)
    except OSError:
        return []


def test_result(path: Path) -> Fields | None:
    """Return what evaluate wrote, None without the file; ValueError where it holds something else."""
    try:
        test = json.loads(path.read_text(encoding="utf-8-sig"))
        if test["baselines"] is not None and TEST_KEYS <= set(test):
            return dict(test)
    except OSError:
        return None
    except (ValueError, TypeError, KeyError, RecursionError):
        pass
    raise ValueError(f"{path}: must be what npgpt.evaluate writes; it writes it anew")


def _curves(rows: Rows) -> tuple[list[charts.Curve], list[charts.Mark]]:
    """Return the loss chart's curves, averaged training and validation loss, and its mark, the best step."""
    train, val = averaged(points(rows, "train_loss")), points(rows, "val_loss")
    curves: list[charts.Curve] = [
        (fill(_("training {loss:.3f}"), loss=train[-1][1]) if train else "", "one", train)
    ]
    marks: list[charts.Mark] = []
    if val:
        curves.append((fill(_("validation {loss:.3f}"), loss=val[-1][1]), "two", val))
        best = min(val, key=lambda point: point[1])
        marks = [("" if best == val[-1] else fill(_("best {loss:.3f}"), loss=best[1]), "two", *best)]
    return curves, marks


def _description(config: Fields, rows: Rows) -> str:
    texts = [Path(text).name for text in config["text"]]
    text = texts[0] + (fill(_(" and {n} more"), n=len(texts) - 1) if len(texts) > 1 else "")
    steps = fill(_("{n:,} steps"), n=len(rows))
    if rows:
        steps += ", " + fill(_("{epochs:.1f} epochs"), epochs=float(rows[-1]["epoch"]))
    said = fill(_("A GPT trained on {text}: {steps}"), text=text, steps=steps)
    about = config["about"]
    return f"{said} · npgpt {about.get('npgpt', '')}, {about.get('kernels', '')}"


def _figures(rows: Rows, test: Fields | None) -> str:
    figures = []
    val = [loss for _, loss in points(rows, "val_loss")]
    if test:
        figures += [
            (number(test["bits_per_byte"], ".3f"), _("bits per byte, test")),
            (number(test["loss"], ".3f"), _("loss, test")),
        ]
        figures.append((number(test["accuracy@1"], ".1%"), _("accuracy@1, test")))
    if val:
        figures.append((number(min(val), ".3f"), _("best val loss")))
    if rows:
        minutes, seconds = divmod(round(float(rows[-1]["seconds"])), 60)
        figures.append((f"{minutes}:{seconds:02}", _("training, min:s")))
        figures.append((number(int(rows[-1]["tokens"]), ","), _("tokens seen")))
    return '<div class="figures">' + "".join(f"<div>{a}<span>{b}</span></div>" for a, b in figures) + "</div>"


def _warning(rows: Rows) -> str:
    verdict = History(",".join(list(row.values())[:5]) for row in rows).verdict()
    if not verdict:
        return ""
    sentence = overfitting_message(verdict, translate=_)
    return f'<p class="warning">{escape(sentence[0].upper() + sentence[1:])}.</p>'


def _counting(rows: Rows, test: Fields | None) -> str:
    """Return when the model passed an n-gram model, on what training validates on."""
    counted = (test or {}).get("counted_val_loss")
    if not isinstance(counted, float):
        return ""
    passed = [row for row in rows if row["val_loss"] and float(row["val_loss"]) < counted]
    if passed:
        minutes, seconds = divmod(round(float(passed[0]["seconds"])), 60)
        what = _("It passed counting (kneser-ney, {loss:.3f}) by step {step:,}, after {time} min.")
        said = fill(what, loss=counted, step=int(passed[0]["step"]), time=f"{minutes}:{seconds:02}")
    else:
        said = fill(_("It has not passed counting (kneser-ney, {loss:.3f})."), loss=counted)
    return f'<p class="soft">{escape(said)}</p>'


def _test(test: Fields | None) -> str:
    if not test:
        return ""
    models = {"npgpt": test, **test["baselines"]}
    names = sorted(models, key=lambda name: models[name]["bits_per_byte"])
    longest = models[names[-1]]["bits_per_byte"]
    rows = []
    for name in names:
        m = models[name]
        shares = [number(m[key], ".1%") if key in m else "" for key in ("accuracy@1", "accuracy@5")]
        bar = Bar(m["bits_per_byte"] / longest)
        rows.append([_(name), bar, number(m["bits_per_byte"], ".3f"), *shares])
    overlap = test.get("overlap")
    what = _("Bits per byte on {part}, {tokens:,} tokens; lower is better.")
    head = ["", "", _("bits per byte"), _("accuracy@1"), _("accuracy@5")]
    lines = [
        f"<h2>{_('Test')}</h2>",
        f'<p class="soft">{escape(fill(what, part=_(test["part"]), tokens=test["tokens"]))}</p>',
        table(head, rows, best=names.index("npgpt")),
    ]
    if overlap:
        message = overlap.get("in_words") or overlap_message(overlap)  # the sentence itself in runs of 0.1.0
        lines.append(f'<p class="soft" style="margin-top:16px">{escape(message)}</p>')
    return "\n".join(lines)


def _samples(lines: list[str]) -> str:
    if not lines:
        return ""
    samples = [json.loads(line) for line in lines]
    shown = samples[:: max(1, len(samples) // 6)]
    shown += [] if shown[-1] is samples[-1] else [samples[-1]]
    lines = [
        f'<div class="sample"><span>{fill(_("step {step:,}"), step=s["step"])}</span>'
        f"<pre>{escape(s['text'].strip())}</pre></div>"
        for s in shown
    ]
    return "\n".join([f"<h2>{_('What it wrote on the way')}</h2>", *lines])


def _rates(rows: Rows) -> str:
    def small(title: str, name: str) -> str:
        curve = points(rows, name)
        curve = curve[:: max(1, len(curve) // POINTS)]
        chart = charts.line_chart([("", "three", curve)], _("step"), 190, 8)
        return f"<div><h2>{title}</h2>{chart}</div>" if chart else ""

    both = small(_("Learning rate"), "lr") + small(_("Gradient norm, before clipping"), "grad_norm")
    return f'<div class="two-up">{both}</div>' if both else ""


def _settings(config: Fields) -> str:
    shown = {name: value for name, value in config.items() if name not in HIDDEN}
    shown = {name: shown.pop(name) for name in SHAPE if name in shown} | shown
    shown |= {
        "split": ", ".join(map(str, config["split"])),
        "text": ", ".join(Path(t).name for t in config["text"][:3]),
    }
    shown |= {"val": Path(config["val"]).name} if "val" in config else {}
    shown |= {name: config["about"].get(name, "") for name in ("kernels", "python", "numpy")}
    cells = "".join(
        f"<div><dt>{escape(name)}</dt><dd>{escape(f'{v:g}' if isinstance(v, float) else str(v))}</dd></div>"
        for name, v in shown.items()
    )
    return f"<h2>{_('Settings')}</h2>\n<dl>{cells}</dl>"


def _write_png(out: Path, name: str, curves: Sequence[charts.Curve]) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 4.5), dpi=150, layout="constrained")
    axes = figure.add_subplot()
    looks = (("#0b62a4", "top"), ("#c2410c", "bottom"))  # so that the labels do not overlap
    for (label, _kind, curve), (colour, side) in zip(curves, looks, strict=False):
        if curve:
            axes.plot(*zip(*curve, strict=True), color=colour, linewidth=1.6)
            axes.annotate(label, curve[-1], (6, 0), textcoords="offset points", va=side, color=colour)
    axes.set(xlabel=_("step"), ylabel=_("nats per token"))
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter(lambda value, place: charts.tick(value))
    axes.set_title(name.encode("utf-8", "replace").decode(), parse_math=False)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", color="#e4e4df")
    figure.savefig(out, format="png")
