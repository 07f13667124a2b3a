"""Measure anew what the pages show, one benchmark after another, then write the pages' figures.

    python -m benchmarks.all [--nanogpt CLONE] [--against COMMIT] [--only NAME ...] [--dry-run]

The machine has to be quiet. NPGPT_DATA is where the real text lies. Peers and build tools come with
`pip install -e ".[test,parity,mpi,server]" ctranslate2 "setuptools>=77" pybind11`. If a benchmark
fails, it is named at the end, and the others run.

What takes hours (tasks, vocabulary, tune, much of quotes.toml), is no time (perplexity, `benchmarks.output
promises parity`), or needs a peer that no extra has (explain, and index beside it), is measured on purpose
alone.
"""

import argparse
import os
import subprocess
import sys
import time
from pathlib import Path

from benchmarks.record import ROOT

QUICK = "train generate evaluate embed serve bench presets shakespeare shakespeare-evaluate mpi"


def plan(nanogpt: str | None, against: str | None) -> dict[str, tuple[int, list[str]]]:
    """Name -> (seconds on two quiet cores, about; arguments of python -m), in order."""
    data = Path(os.environ["NPGPT_DATA"])
    machado = sorted(map(str, (data / "machado").glob("*.txt")))
    shakespeare = str(data / "tinyshakespeare" / "input.txt")
    found = {
        "compare": (560, ["compare", "--rounds", "3"]),
        "products": (130, ["products", "--rounds", "8"]),
        "nanogpt": (150, ["nanogpt", nanogpt or "", shakespeare]),
        "tokenizers": (60, ["tokenizers", str(data / "gpt2-vocab"), *machado, "--rounds", "3"]),
        "decode": (150, ["decode", "--turns", "3"]),
        "load": (150, ["load"]),
        "build": (300 if against else 100, ["build", *(["--against", against] if against else [])]),
        "bands": (20, ["bands"]),
        "scaling": (30, ["scaling"]),
        "output": (180, ["output", *QUICK.split()]),
        "tables": (1, ["tables"]),
    }
    if not nanogpt:
        del found["nanogpt"]
    return found


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument(
        "--nanogpt", metavar="CLONE", help="of github.com/karpathy/nanoGPT; left out without it"
    )
    parser.add_argument("--against", metavar="COMMIT", help="whose build time stands beside this tree's")
    parser.add_argument("--only", nargs="+", metavar="NAME", help="these alone")
    parser.add_argument("--dry-run", action="store_true", help="only show what would run")
    args = parser.parse_args()
    steps = plan(args.nanogpt, args.against)
    if unknown := set(args.only or ()) - set(steps):
        parser.error(f"name must be of {', '.join(steps)}, got {' '.join(sorted(unknown))}")
    steps = {name: step for name, step in steps.items() if not args.only or name in args.only}
    print(f"about {sum(seconds for seconds, _ in steps.values()) / 60:.0f} minutes", flush=True)
    failed = []
    for name, (seconds, words) in steps.items():
        print(f"\n=== {name}, about {seconds} s", flush=True)
        if args.dry_run:
            continue
        began = time.monotonic()
        if subprocess.call([sys.executable, "-m", f"benchmarks.{words[0]}", *words[1:]], cwd=ROOT):
            failed.append(name)
        print(f"=== {name} took {time.monotonic() - began:.0f} s", flush=True)
    if failed:
        raise SystemExit(f"failed: {', '.join(failed)}")


if __name__ == "__main__":
    main()
