"""What a benchmark leaves: results/NAME.json with machine, date, commit, versions, command and rows.

`add_flags(parser)` gives a benchmark --save and --no-save, `save(args, name, rows)` writes what they ask for.
`python -m benchmarks.tables` makes the pages' figures from these files.
"""

import datetime
import importlib.metadata
import json
import os
import platform
import shlex
import subprocess
import sys
from pathlib import Path

from npgpt.engine import kernels

ROOT = Path(__file__).resolve().parent.parent
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


def write(path, record):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(record, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def load(name, folder=FOLDER):
    path = folder / f"{name}.json"
    if not path.exists():
        raise SystemExit(f"there are no results at {path}: run python -m benchmarks.{name.split('-')[0]}")
    return json.loads(path.read_text(encoding="utf-8"))


def machine():
    """CPU, cores, memory, kernels and threads in use."""
    found = {"cpu": platform.processor() or platform.machine(), "cores": os.cpu_count()}
    if Path("/proc/cpuinfo").exists():
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        models = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
        found["cpu"] = models[0] if models else found["cpu"]
    if hasattr(os, "sysconf"):
        found["memory_gb"] = round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9, 1)
    found |= {"kernels": kernels.name(), "threads": kernels.get_num_threads()}
    return found | {"system": f"{platform.system()} {platform.machine()}"}


def versions(peers=()):
    """Python, numpy, npgpt, and those of `peers` that are installed."""
    found = {"Python": platform.python_version()}
    for package in ("numpy", "npgpt", *peers):
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            pass
    from npgpt.version import __version__

    return found | {"npgpt": __version__}


def commit():
    """The commit that is measured, with + where what is measured differs from it; None outside a clone."""
    try:
        head = _git("rev-parse", "--short=7", "HEAD").strip()
        changed = _git("status", "--porcelain", "--", "npgpt", "csrc", "benchmarks/*.py", "setup.py").strip()
    except (OSError, subprocess.CalledProcessError):
        return None
    return head + "+" * bool(changed)


def _git(*args):
    done = subprocess.run(["git", *args], cwd=ROOT, check=True, capture_output=True, text=True)
    return done.stdout


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
