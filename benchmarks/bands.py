"""What a window saves: attention of one text with a window of 256 tokens and without, forward and backward.

    python -m benchmarks.bands [--json]

12 heads of 64 channels. Per token, a window costs the same however long the text; without one, twice as much
when it is twice as long. The two are timed in turn; medians.
"""

import argparse
import json
import time
from statistics import median

import numpy as np

from benchmarks import record
from npgpt.engine import kernels

H, D, WINDOW = 12, 64, 256
LENGTHS = [256, 512, 1024, 2048, 4096, 8192]


def measure(T: int, turns: int) -> dict:
    """{(window or None, direction): microseconds per token} at T tokens."""
    ops, rng = kernels.ops_for(np.float32), np.random.default_rng(0)
    qkv, dout = (rng.standard_normal((1, T, n * H * D), dtype=np.float32) for n in (3, 1))
    first_keys = {WINDOW: np.maximum(np.arange(T, dtype=np.int32) - (WINDOW - 1), 0)[None], None: None}
    times = {(window, way): [] for window in first_keys for way in ("forward", "backward")}
    for _ in range(turns):
        for window, first_key in first_keys.items():
            start = time.perf_counter()
            out, lse = ops.attention_forward(qkv, H, D**-0.5, first_key)
            middle = time.perf_counter()
            ops.attention_backward(dout, qkv, out, lse, H, D**-0.5, first_key)
            times[window, "forward"].append(middle - start)
            times[window, "backward"].append(time.perf_counter() - middle)
    return {key: median(seconds) / T * 1e6 for key, seconds in times.items()}


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--json", action="store_true", help="end with one JSON object on the last line")
    record.add_flags(parser)
    args = parser.parse_args()
    measure(256, 3)  # memory and threads
    print(f"{kernels.describe()}; microseconds per token, forward + backward")
    print(f"{'T':>6}{f'window {WINDOW}':>18}{'no window':>18}{'saved':>8}")
    rows = {}
    for T in LENGTHS:
        row = measure(T, max(3, 8192 // T))
        rows[T] = {f"{window or 'none'} {way}": value for (window, way), value in row.items()}
        cells = [f"{row[w, 'forward']:.1f} + {row[w, 'backward']:.1f}" for w in (WINDOW, None)]
        saved = 1 - sum(row[WINDOW, way] for way in ("forward", "backward")) / sum(
            row[None, way] for way in ("forward", "backward")
        )
        print(f"{T:6}{cells[0]:>18}{cells[1]:>18}{saved:8.0%}")
    record.save(args, "bands", rows, window=WINDOW)
    if args.json:
        print(json.dumps(rows))


if __name__ == "__main__":
    main()
