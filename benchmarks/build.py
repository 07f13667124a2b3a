"""Seconds from a cold folder to compiled kernels: this tree, and others in turn, A B A B.

    python -m benchmarks.build [--against COMMIT ...] [--rounds N] [--json]

Each build is `python setup.py build` in a fresh copy of its commit's files (this tree's: as they stand), by
the compiler, setuptools and pybind11 of this environment.
"""

import argparse
import io
import json
import shutil
import subprocess
import sys
import tarfile
import tempfile
import time
from pathlib import Path
from statistics import median

from benchmarks import record

HERE = "this tree"


def copy(tree: str, folder: Path) -> None:
    """The tracked files of a commit, or of the tree as it stands."""
    if tree == HERE:
        listed = subprocess.run(["git", "ls-files", "-z"], cwd=record.ROOT, check=True, capture_output=True)
        for name in filter(None, listed.stdout.decode().split("\0")):
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(record.ROOT / name, folder / name)
    else:
        packed = subprocess.run(["git", "archive", tree], cwd=record.ROOT, check=True, capture_output=True)
        with tarfile.open(fileobj=io.BytesIO(packed.stdout)) as files:
            files.extractall(folder, filter="data")


def seconds(tree: str) -> float:
    with tempfile.TemporaryDirectory() as folder:
        copy(tree, Path(folder))
        start = time.perf_counter()
        done = subprocess.run(
            [sys.executable, "setup.py", "-q", "build"], cwd=folder, capture_output=True, text=True
        )
        took = time.perf_counter() - start
        if done.returncode or not list(Path(folder).glob("build/*/npgpt/_kernels*.so")):
            raise SystemExit(f"{tree} does not build:\n{done.stdout}{done.stderr}")
    return took


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--against", nargs="+", default=[], metavar="COMMIT", help="built in turn with this")
    parser.add_argument("--rounds", type=int, default=2, help="builds of each (default 2)")
    parser.add_argument("--json", action="store_true", help="end with one JSON object on the last line")
    record.add_flags(parser)
    args = parser.parse_args()
    found = {tree: [] for tree in (*args.against, HERE)}
    for _ in range(args.rounds):
        for tree, times in found.items():
            times.append(seconds(tree))
            print(f"{tree}: {times[-1]:.1f} s", flush=True)
    for tree, times in found.items():
        print(f"{tree:12}{median(times):8.1f} s")
    rows = [{"tree": tree, "seconds": times} for tree, times in found.items()]
    record.save(args, "build", rows, ["setuptools", "pybind11"])
    if args.json:
        print(json.dumps(rows))


if __name__ == "__main__":
    main()
