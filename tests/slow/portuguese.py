"""The first steps of the Portuguese model's build: the same bits on one thread and, with kills, on two."""

import argparse
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
import tomllib
from pathlib import Path

from common import ROOT, bits

from npgpt.training import checkpoint

BUILD = ROOT / "models/pt/build.py"


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("text", type=Path, metavar="TEXT", help="pt.txt, as models/pt/text.py writes it")
    parser.add_argument("--share", type=int, default=20, help="of the steps, one in so many (default 20)")
    parser.add_argument("--kills", type=int, default=3)
    args = parser.parse_args()
    folder = Path(tempfile.mkdtemp(dir=Path.cwd()))
    try:
        print(show(args.text, folder, args.share, args.kills))
    finally:
        shutil.rmtree(folder)


def show(text: Path, folder: Path, share: int, kills: int) -> str:
    recipe = tomllib.loads(BUILD.with_name("recipe.toml").read_text(encoding="utf-8"))
    steps, rng, began = recipe["train"]["steps"] // share, random.Random(0), time.monotonic()
    build(text, folder / "one", 1, steps).wait()
    for n in range(kills):
        process, until = build(text, folder / "two", 2, steps), rng.randrange(steps * n // kills, steps)
        while process.poll() is None and rows(folder / "two/run/metrics.csv") < until:
            time.sleep(0.1)
        process.kill()
        process.wait()
    if build(text, folder / "two", 2, steps).wait():
        raise SystemExit(f"after {kills} kills it could not go on")
    if bits(folder / "one/run") != bits(folder / "two/run"):
        raise SystemExit("the bits differ: one thread, and two threads with kills")
    newest, _ = checkpoint.choose(folder / "one/run", ())
    return (
        f"{newest.name} of {recipe['train']['steps']}: the same weights and moments on one thread, and on "
        f"two after {kills} kills ({time.monotonic() - began:.0f} s)"
    )


def build(text: Path, out: Path, threads: int, until: int) -> subprocess.Popen:
    command = [sys.executable, BUILD, "--text", text, "-o", out, "--threads", threads, "--until", until]
    return subprocess.Popen(
        list(map(str, command)), stdout=subprocess.DEVNULL, env=os.environ | {"PYTHONPATH": str(ROOT)}
    )


def rows(path: Path) -> int:
    return path.read_bytes().count(b"\n") - 1 if path.exists() else 0


if __name__ == "__main__":
    main()
