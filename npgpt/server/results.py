"""What a fine-tuning job leaves in its model's folder: the losses of its steps, and its checkpoints."""

import contextlib
import csv
import io
import math
import re
from pathlib import Path

from npgpt.engine.types import Fields

METRICS = "metrics.csv"  # of a run
COLUMNS = ("step", "train_loss", "valid_loss")  # of a result file, by OpenAI's names
# what a process prints of a step
STEP = re.compile(r"step ([\d,]+)/([\d,]+): loss (\d+\.\d+)(?:, val loss (\d+\.\d+))?")


def of_line(line: str) -> Fields | None:
    """Return the metrics of a step in a line that a process printed, None for another line."""
    if not (found := STEP.match(line)):
        return None
    step, steps, loss, val_loss = found.groups()
    counts = {"step": int(step.replace(",", "")), "total_steps": int(steps.replace(",", ""))}
    return {**counts, "train_loss": float(loss)} | ({"valid_loss": float(val_loss)} if val_loss else {})


def losses(run: Path) -> list[Fields]:
    """Return step, train_loss and valid_loss of each step, None for what was not measured or not finite.

    The list is empty where the run has no such file, and ends where that is broken.
    """
    rows = list[Fields]()
    broken = (OSError, KeyError, ValueError, TypeError)  # TypeError: half a line
    with contextlib.suppress(*broken), open(run / METRICS, encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file):
            measured = (float(row["train_loss"]), float(row["val_loss"] or "nan"))
            finite = (value if math.isfinite(value) else None for value in measured)
            rows.append(dict(zip(COLUMNS, (int(row["step"]), *finite), strict=True)))
    return rows


def as_csv(rows: list[Fields]) -> bytes:
    """Return the rows of losses() as CSV; the cell of a step that was not validated is empty."""
    text = io.StringIO()
    writer = csv.DictWriter(text, COLUMNS, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue().encode()


def checkpoints(run: Path, job: str, model: str) -> list[tuple[Fields, Path]]:
    """Return OpenAI's checkpoint object and the folder of each checkpoint of a job, the latest first."""
    metrics = {row["step"]: row for row in losses(run)}
    found = []
    for folder in sorted(run.glob("step-*"), reverse=True):
        if folder.is_symlink() or not re.fullmatch(r"step-\d+", folder.name):
            continue
        step = int(folder.name.removeprefix("step-"))
        row = {name: value for name, value in metrics.get(step, {}).items() if value is not None}
        about = {
            "id": f"ftckpt-{job.removeprefix('ftjob-')}-{step}",
            "object": "fine_tuning.job.checkpoint",
            "created_at": int(folder.stat().st_mtime),
            "fine_tuned_model_checkpoint": f"{model}:ckpt-step-{step}",
            "fine_tuning_job_id": job,
            "step_number": step,
            "metrics": {"step": step, **row},
        }
        found.append((about, folder))
    return found
