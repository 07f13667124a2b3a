"""The output of a search for settings: a row for each trial, a page, and the best settings."""

from collections.abc import Iterable

from npgpt.console import charts, report
from npgpt.console.messages import tuning_message
from npgpt.training import run
from npgpt.training.tuner import SHARES, Search, Trial

COLUMNS = "trial,minutes,layers x channels,batch,lr,dropout,epochs,steps,val loss,vs default"
HEAD = COLUMNS.split(",")
WIDTHS = [max(len(name), 6) for name in HEAD]


def row(search: Search, trial: Trial) -> list[str]:
    """Return a trial's cells for the columns of HEAD; the last compares it with the default of its rung."""
    s, default = trial.settings, search.default_of(trial)
    versus = "" if trial is default else f"{trial.loss - default.loss:+.4f}"
    shape, steps = f"{s['n_layer']} x {s['n_embd']}", str(trial.result.get("steps", ""))
    tuned = [shape, str(s["batch_size"]), f"{s['lr']:.4f}", f"{s['dropout']:.2f}"]
    outcome = [f"{trial.epochs:.1f}", steps, f"{trial.loss:.4f}", versus or "default"]
    return [trial.folder.name, f"{trial.minutes:.2f}", *tuned, *outcome]


def in_columns(cells: Iterable[str]) -> str:
    """Return the cells of a row as a line, each as wide as its column in HEAD."""
    return "  ".join(f"{cell:>{width}}" for cell, width in zip(cells, WIDTHS, strict=True))


def write(search: Search, best: Trial | None) -> None:
    """Write report.html and the best trial's config.toml into the folder of the search."""
    shown = sorted(search.trials, key=lambda trial: (-trial.rung, trial.loss))
    if not shown:
        return
    verdict = "The search was stopped before its end."
    if best:
        verdict = tuning_message(search.verdict(best), str)
        run.write_config(search.folder, search.best_settings(best), search.about | {"tuned": verdict})
    curves = [_curve(trial, best) for trial in shown]
    curves.sort(key=lambda curve: {"three": 0, "two": 1, "one": 2}[curve[1]])
    picture = "<h2>Validation loss</h2>\n" + charts.line_chart(curves, "seconds of training", right=120)
    rows = [row(search, trial) for trial in shown]
    table = "<h2>Trials</h2>\n" + report.table(HEAD, rows, best=shown.index(best) if best else None)
    report.write_page(search.folder, verdict, [picture, table])


def _curve(trial: Trial, best: Trial | None) -> charts.Curve:
    points = report.points(report.metrics(trial.folder), "val_loss", by="seconds")
    kind = "one" if trial is best else "two" if trial.candidate == 0 else "three"
    last = trial.rung + 1 == len(SHARES)
    names = {"one": "best", "two": "default"}
    return (f"{names[kind]} {trial.loss:.3f}" if last and kind in names else ""), kind, points
