"""`python -m benchmarks.index`: the index that `explain --where` makes of a text, in time, memory and disk.

The real texts of NPGPT_DATA are repeated up to --megabytes, with 1 % of the bytes changed in each copy.
"""

import argparse
import os
import tempfile
import time
from pathlib import Path

import numpy as np

from benchmarks import record
from npgpt.text.index_file import open_index

CHANGED = 0.01


def copies(n_bytes):
    """Yield chunks of n_bytes in all, a copy of the texts each."""
    data, rng = Path(os.environ["NPGPT_DATA"]), np.random.default_rng(0)
    files = [*sorted((data / "machado").glob("*.txt")), data / "tinyshakespeare" / "input.txt"]
    text = np.frombuffer(b"".join(file.read_bytes() for file in files), np.uint8)
    while n_bytes:
        copy = text[:n_bytes].copy()
        copy[rng.integers(0, len(copy), round(CHANGED * len(copy)))] = rng.integers(97, 123)
        n_bytes -= len(copy)
        yield copy.tobytes()


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--megabytes", type=int, default=1000)
    record.add_flags(parser)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        os.environ["NPGPT_CACHE"] = folder
        begun = time.perf_counter()
        index = open_index("benchmark", lambda: [copies(args.megabytes * 10**6)])
        seconds = time.perf_counter() - begun
        disk = sum(path.stat().st_size for path in Path(folder).iterdir())
        passage = index.text[5000:5400]  # of which each copy but the first has something changed
        begun = time.perf_counter()
        found = index.stretches(passage)
        asked = time.perf_counter() - begun
        assert found[0].length == len(passage)
    peak = record.peak_memory()
    row = {"megabytes": args.megabytes, "seconds": seconds, "asked": asked, "peak": peak, "disk": disk}
    record.save(args, "index", [row])
    sizes = f"{disk / 1e6:,.0f} MB on disk, peak {peak / 1e6:,.0f} MB"
    print(f"{args.megabytes:,} MB of text: {seconds:.1f} s, {sizes}")
    print(f"a passage of 400 bytes is looked up in {asked:.3f} s")


if __name__ == "__main__":
    main()
