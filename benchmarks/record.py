"""What a benchmark leaves: results/NAME.json with machine, date, commit, versions, command and rows.

`add_flags(parser)` gives a benchmark --save and --no-save, `save(args, name, rows)` writes what they ask for.
`python -m benchmarks.tables` makes the pages' figures from these files.
"""

import datetime
import json
import os
import shlex
import sys
from pathlib import Path

from npgpt.measure.machine import ROOT, commit, machine, versions

FOLDER = ROOT / "benchmarks" / "results"


def add_flags(parser):
    """--save FOLDER and --no-save."""
    where = parser.add_mutually_exclusive_group()
    where.add_argument("--save", type=Path, default=FOLDER, metavar="FOLDER",
                       help="where NAME.json is written (default: benchmarks/results)")  # fmt: skip
    where.add_argument("--no-save", action="store_const", const=None, dest="save", help="write no file")


def save(args, name, rows, peers=(), **more):
    """Write NAME.json where args.save says; `peers` are the packages whose versions belong to the rows."""
    if args.save is None:
        return
    record = {
        "name": name,
        "command": command(),
        "date": datetime.date.today().isoformat(),
        "commit": commit(),
        "machine": machine(),
        "versions": versions(peers),
        **more,
        "rows": rows,
    }
    write(args.save / f"{name}.json", record)


def peak_memory() -> int:
    """The bytes that this process had in memory at most. (getrusage's ru_maxrss begins at its parent's.)"""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * int(next(line for line in lines if line.startswith("VmHWM:")).split()[1])


def write(path, record):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(record, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def load(name, folder=FOLDER):
    path = folder / f"{name}.json"
    if not path.exists():
        raise SystemExit(f"there are no results at {path}: run python -m benchmarks.{name.split('-')[0]}")
    return json.loads(path.read_text(encoding="utf-8"))


def command():
    """The command line of this process, as one would type it elsewhere: no path of this machine."""
    module = sys.modules["__main__"].__spec__.name
    return " ".join(["python -m", module, *arguments(sys.argv[1:])])


def arguments(words):
    """The words, without paths of this machine: real text by NPGPT_DATA, a folder's texts as one pattern."""
    data, shown, skip = os.environ.get("NPGPT_DATA"), [], False
    for word in words:
        path = Path(word)
        if skip or word in ("--no-save", "--save"):  # where it was written is no part of what was measured
            skip = word == "--save"
        elif not (path.is_absolute() and path.exists()):
            shown.append(shlex.quote(word))
        else:
            whole = path.suffix == ".txt" and {str(p) for p in path.parent.glob("*.txt")} <= set(words)
            path = path.parent / "*.txt" if whole and len([*path.parent.glob("*.txt")]) > 1 else path
            inside = data and path.is_relative_to(data)
            name = f"$NPGPT_DATA/{path.relative_to(data)}" if inside else path.name
            if name not in shown:
                shown.append(name)
    return shown
