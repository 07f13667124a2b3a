"""The matrix product alone: npgpt's and NumPy's (OpenBLAS) in turn, beside the measured peak.

    python -m benchmarks.products [--json]

Squares, and the products of a GPT: forward x w, its dx = dy w^T and its dw = x^T dy.
"""

import argparse
import json
import time
from statistics import median

import numpy as np

from npgpt.engine import kernels

SQUARES = [384, 512, 768, 1024, 1536, 2048, 3072]
PAUSE = 0.15  # seconds between turns: OpenBLAS spins on the core that we need for 0.11 s after each product
LAYERS = [(768, 128), (4096, 384), (256, 768), (1024, 768)]  # tokens, C


def cases():
    """(name, M, N, K, trans_a, trans_b)"""
    for n in SQUARES:
        yield f"square {n}", n, n, n, False, False
    for rows, C in LAYERS:
        for n_in, n_out in ((C, 3 * C), (C, C), (C, 4 * C), (4 * C, C)):
            yield f"forward {rows} x {n_in} x {n_out}", rows, n_out, n_in, False, False
            yield f"dx      {rows} x {n_in} x {n_out}", rows, n_in, n_out, False, True
            yield f"dw      {rows} x {n_in} x {n_out}", n_in, n_out, rows, True, False


def measure(M, N, K, trans_a, trans_b, seconds):
    """Shares of the peak, ours and OpenBLAS's, and their ratio: medians of turns that follow each other."""
    rng, ops = np.random.default_rng(0), kernels.ops_for(np.float32)
    a = rng.standard_normal((K, M) if trans_a else (M, K), dtype=np.float32)
    b = rng.standard_normal((N, K) if trans_b else (K, N), dtype=np.float32)
    a_view, b_view = (a.T if trans_a else a), (b.T if trans_b else b)
    out = np.zeros((M, N), np.float32)
    runs = (
        lambda: ops.matmul(a, b, out=out, trans_a=trans_a, trans_b=trans_b),
        lambda: np.matmul(a_view, b_view, out=out),
    )
    flops = 2 * M * N * K
    calls = max(1, round(0.02 / (flops / 100e9)))  # about 20 ms a turn
    shares = [[], []]
    for _ in range(max(5, round(seconds / 0.2))):
        for share, run in zip(shares, runs, strict=True):
            time.sleep(PAUSE)
            peak = kernels.peak_gflops(0.01) * 1e9
            run()  # wakes the threads
            start = time.perf_counter()
            for _ in range(calls):
                run()
            share.append(flops * calls / (time.perf_counter() - start) / peak)
    return *map(median, shares), median(ours / theirs for ours, theirs in zip(*shares, strict=True))


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--seconds", type=float, default=1.0, help="for each product (default 1)")
    parser.add_argument("--json", action="store_true", help="end with one JSON object on the last line")
    args = parser.parse_args()
    results = {}
    print(f"{kernels.describe()}; shares of the measured peak")
    print(f"{'':32}{'npgpt':>8}{'OpenBLAS':>10}{'npgpt / OpenBLAS':>18}")
    for name, *case in cases():
        ours, theirs, ratio = measure(*case, args.seconds)
        results[name] = {"npgpt": ours, "openblas": theirs, "ratio": ratio}
        print(f"{name:32}{ours:8.0%}{theirs:10.0%}{ratio:18.2f}", flush=True)
    if args.json:
        print(json.dumps(results))


if __name__ == "__main__":
    main()
