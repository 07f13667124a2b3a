"""The output of a search for settings: a row for each trial, a page, and the best settings."""

from collections.abc import Iterable

from npgpt.console import charts, report
from npgpt.console.language import _, fill, number
from npgpt.console.messages import tuning_message
from npgpt.training import run
from npgpt.training.tuner import SHARES, Search, Trial

COLUMNS = "trial,minutes,layers x channels,batch,lr,dropout,epochs,steps,val loss,vs default"
HEAD = COLUMNS.split(",")
WIDTHS = [max(len(name), 6) for name in HEAD]


def row(search: Search, trial: Trial) -> list[str]:
    """Return a trial's cells for the columns of HEAD; the last compares it with the default of its rung."""
    s, default = trial.settings, search.default_of(trial)
    versus = "" if trial is default else number(trial.loss - default.loss, "+.4f")
    shape, steps = f"{s['n_layer']} x {s['n_embd']}", str(trial.result.get("steps", ""))
    tuned = [shape, str(s["batch_size"]), number(s["lr"], ".4f"), number(s["dropout"], ".2f")]
    outcome = [number(trial.epochs, ".1f"), steps, number(trial.loss, ".4f"), versus or _("default")]
    return [trial.folder.name, number(trial.minutes, ".2f"), *tuned, *outcome]


def in_columns(cells: Iterable[str]) -> str:
    """Return the cells of a row as a line, each as wide as its column in HEAD."""
    return "  ".join(f"{cell:>{width}}" for cell, width in zip(cells, WIDTHS, strict=True))


def write(search: Search, best: Trial | None) -> None:
    """Write report.html and the best trial's config.toml into the folder of the search."""
    shown = sorted(search.trials, key=lambda trial: (-trial.rung, trial.loss))
    if not shown:
        return
    verdict = _("The search was stopped before its end.")
    if best:
        verdict = tuning_message(search.verdict(best))
        tuned = {"tuned": tuning_message(search.verdict(best), str)}  # English, in a file
        run.write_config(search.folder, search.best_settings(best), search.about | tuned)
    curves = [_curve(trial, best) for trial in shown]
    curves.sort(key=lambda curve: {"three": 0, "two": 1, "one": 2}[curve[1]])
    chart = charts.line_chart(curves, _("seconds of training"), right=120)
    picture = f"<h2>{_('Validation loss')}</h2>\n{chart}"
    rows = [row(search, trial) for trial in shown]
    head, chosen = _(COLUMNS).split(","), shown.index(best) if best else None
    table = f"<h2>{_('Trials')}</h2>\n" + report.table(head, rows, best=chosen)
    report.write_page(search.folder, verdict, [picture, table])


def _curve(trial: Trial, best: Trial | None) -> charts.Curve:
    points = report.points(report.metrics(trial.folder), "val_loss", by="seconds")
    kind = "one" if trial is best else "two" if trial.candidate == 0 else "three"
    last = trial.rung + 1 == len(SHARES)
    names = {"one": _("best {loss:.3f}"), "two": _("default {loss:.3f}")}
    return fill(names[kind], loss=trial.loss) if last and kind in names else "", kind, points
