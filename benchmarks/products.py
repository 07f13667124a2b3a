"""The matrix product alone: npgpt's and NumPy's (OpenBLAS) in turn, beside the measured peak.

    python -m benchmarks.products [--json]

Squares, and the products of a GPT: forward x w, its dx = dy w^T and its dw = x^T dy. Each library has a
process of its own, without the other's threads and memory, and their turns follow each other within 0.2 s.
All products take a turn in every round: a busy minute of the machine meets them all.
"""

import argparse
import json
import math
import multiprocessing
import time
from collections import defaultdict
from concurrent.futures import ProcessPoolExecutor
from functools import cache
from statistics import median

import numpy as np
from tqdm import tqdm

from benchmarks import record
from npgpt.engine import kernels

SQUARES = [384, 512, 768, 1024, 1536, 2048, 3072]
SPIN = 0.15  # seconds of rest after its turn: OpenBLAS's threads spin for 0.11 s
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


@cache  # all cases at once are 0.7 GB a process
def product(library, M, N, K, trans_a, trans_b):
    """The product of this case as `library` computes it, a function to be called again and again."""
    rng, ops = np.random.default_rng(0), kernels.ops_for(np.float32)
    a = rng.standard_normal((K, M) if trans_a else (M, K), dtype=np.float32)
    b = rng.standard_normal((N, K) if trans_b else (K, N), dtype=np.float32)
    out = np.zeros((M, N), np.float32)
    if library == "npgpt":
        return lambda: ops.matmul(a, b, out=out, trans_a=trans_a, trans_b=trans_b)
    return lambda: np.matmul(a.T if trans_a else a, b.T if trans_b else b, out=out)


def turn(library, case):
    """(share of the peak measured just before, seconds of one product) over about 20 ms of products."""
    flops, run = 2 * math.prod(case[:3]), product(library, *case)
    calls = max(2, round(0.02 / (flops / 100e9)))
    peak = kernels.peak_gflops(0.01) * 1e9
    run()  # wakes the threads
    start = time.perf_counter()
    for _ in range(calls):
        run()
    seconds = (time.perf_counter() - start) / calls
    if library == "openblas":
        time.sleep(SPIN)
    return flops / seconds / peak, seconds


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rounds", type=int, default=15, help="turns of each, 16 s a round (default 15)")
    parser.add_argument("--json", action="store_true", help="end with one JSON object on the last line")
    record.add_flags(parser)
    args = parser.parse_args()
    turns, spawn = defaultdict(list), multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, spawn) as npgpt, ProcessPoolExecutor(1, spawn) as openblas:
        for name, *case in tqdm([*cases()] * args.rounds, disable=None):
            ours = npgpt.submit(turn, "npgpt", case).result()
            turns[name].append((ours, openblas.submit(turn, "openblas", case).result()))
    print(f"{kernels.describe()}; shares of the measured peak, medians of {args.rounds} turns")
    print(f"{'':32}{'npgpt':>8}{'OpenBLAS':>10}{'npgpt / OpenBLAS':>18}")
    results = {}
    for name, pairs in turns.items():
        ours, theirs = (median(share for share, _ in side) for side in zip(*pairs, strict=True))
        ratio = median(their_seconds / our_seconds for (_, our_seconds), (_, their_seconds) in pairs)
        results[name] = {"npgpt": ours, "openblas": theirs, "ratio": ratio}
        print(f"{name:32}{ours:8.0%}{theirs:10.0%}{ratio:18.2f}")
    record.save(args, "products", results, rounds=args.rounds)
    if args.json:
        print(json.dumps(results))


if __name__ == "__main__":
    main()
