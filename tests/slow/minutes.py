"""`--minutes` is kept within 10 %, from the command to its end: alone, and beside a late neighbour."""

import argparse
import multiprocessing
import shutil
import tempfile
import time
from pathlib import Path

from common import start


def busy(seconds):
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        sum(range(10_000))


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("text", nargs="+")
    parser.add_argument("--minutes", type=float, default=1)
    args = parser.parse_args()
    folder, missed = Path(tempfile.mkdtemp()), []
    try:
        for name in ("alone", "beside a neighbour"):
            began = time.monotonic()
            process = start("train", *args.text, "--minutes", args.minutes, "--out", folder / name)
            if name != "alone":
                time.sleep(24 * args.minutes)
                neighbour = multiprocessing.Process(target=busy, args=(18 * args.minutes,))
                neighbour.start()
            out, err = process.communicate()
            took = time.monotonic() - began
            if process.returncode:
                raise SystemExit(out + err)
            missed.append(took / 60 / args.minutes - 1)
            done = next(line for line in out.splitlines() if line.startswith("done"))
            asked = f"{args.minutes:g} minutes asked for, {took / 60:.2f} taken ({missed[-1]:+.1%})"
            print(f"{name}: {asked}; {done}", flush=True)
    finally:
        shutil.rmtree(folder)
    raise SystemExit(any(abs(m) > 0.1 for m in missed))


if __name__ == "__main__":
    main()
