"""Run the trials that the recipe was chosen by, and write their table.

    NPGPT_DATA=DATA python models/pt/trials.py --text pt.txt -o FOLDER

Each table of trials.toml changes the base, is built by build.py in FOLDER/NAME, and measured by measure.py.
trials.json has what came out, README.md and README.pt-BR.md have it as a table. A trial that is done is not
trained again.
"""

import argparse
import csv
import json
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import measure
import numpy as np
from corpus.report import grid, replace

import npgpt
from npgpt.training.run import to_toml

HERE = Path(__file__).parent
MARK = "<!-- trials: written by trials.py -->"
HEADS = {
    "README.md": "trial|settings that differ|parameters|steps|seconds a step|held-out|subtitles|questions",
    "README.pt-BR.md": "teste|o que muda|parâmetros|passos|segundos por passo|separado|legendas|perguntas",
}


def main() -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--text", type=Path, metavar="FILE", help="of text.py; without it, the table alone")
    parser.add_argument("-o", "--out", type=Path, metavar="FOLDER", help="of the builds")
    options = parser.parse_args()
    if options.text:
        if not options.out:
            parser.error("-o is needed beside --text")
        rows = run(options.text, options.out)
        text = json.dumps(rows, indent=1, ensure_ascii=False, allow_nan=False)
        (HERE / "trials.json").write_text(text + "\n", encoding="utf-8")
    write_tables(json.loads((HERE / "trials.json").read_text(encoding="utf-8")))


def run(text: Path, out: Path) -> list[dict[str, Any]]:
    """Build and measure each trial; return the rows of trials.json."""
    trials = tomllib.loads((HERE / "trials.toml").read_text(encoding="utf-8"))
    digest = tomllib.loads((HERE / "recipe.toml").read_text(encoding="utf-8"))["text"]
    out.mkdir(parents=True, exist_ok=True)
    rows = []
    for name, changes in trials.items():
        recipe = out / f"{name}.toml"
        recipe.write_text(to_toml({"text": digest, "train": trials["base"] | changes}), encoding="utf-8")
        command = [sys.executable, HERE / "build.py", "--text", text, "-o", out / name, "--recipe", recipe]
        subprocess.run(list(map(str, command)), check=True)
        bits = measure.of_model(str(out / name / "run"), measure.read_texts(out / name))
        rows.append(
            {
                "name": name,
                "changes": {} if name == "base" else changes,
                "parameters": npgpt.load(out / name / "run").num_params,
                "steps": (trials["base"] | changes)["steps"],
                "seconds_a_step": step_seconds(out / name / "run/metrics.csv"),
                "bits_per_byte": bits,
            }
        )
    return rows


def step_seconds(metrics: Path) -> float:
    """Return the seconds of a step when the machine was quiet: a tenth of the steps took less."""
    with metrics.open(encoding="utf-8") as file:
        seconds = [float(row["seconds"]) for row in csv.DictReader(file)]
    return float(np.quantile(np.diff(seconds), 0.1))


def write_tables(rows: list[dict[str, Any]]) -> None:
    """Write the block of the trials into the pages."""
    for name in HEADS:
        (HERE / name).write_text(page(name, rows), encoding="utf-8")


def page(name: str, rows: list[dict[str, Any]]) -> str:
    """Return a page with the table of these rows of trials.json in it."""
    lines = grid(tuple(HEADS[name].split("|")), [cells(row) for row in rows])
    return replace((HERE / name).read_text(encoding="utf-8"), MARK, lines)


def cells(row: dict[str, Any]) -> tuple[str, ...]:
    """Return the row of the table for one trial."""
    changes = ", ".join(f"{name} {value}" for name, value in row["changes"].items() if name != "steps")
    bits = [f"{row['bits_per_byte'][kind]:.4f}" for kind in ("held-out", *measure.UNSEEN)]
    sizes = f"{row['parameters']:,}", str(row["steps"]), f"{row['seconds_a_step']:.2f}"
    return row["name"], changes, *sizes, *bits


if __name__ == "__main__":
    main()
