"""Training steps of npgpt beside what a user would pick instead, on this machine, in one run.

    python -m benchmarks.compare [--case NAME ...] [--peer NAME ...] [--rounds N] [--json]

The contenders take turns, A B C A B C, so that a slow minute hits all alike; medians are compared. The
machine's own limits are measured between the turns. PyTorch comes with `pip install -e ".[parity]"`.
"""

import argparse
import json
from statistics import median

from benchmarks import record
from benchmarks.cases import CASES
from benchmarks.peers import PEERS, SAMPLED
from npgpt.engine import kernels
from npgpt.measure.contender import Contender as Process

LARGE = 4096  # tokens of a vocabulary, from which on a sampled softmax is compared


class Contender(Process):
    """A process that does steps when it is told to, as peers.answer() does."""

    def __init__(self, *words):
        super().__init__(*words)
        self.seconds, self.rss = [], 0
        self.run(1, keep=False)  # memory, caches, compilation
        self.first_loss = self.loss
        self.run(1, keep=False)

    def run(self, steps, keep=True):
        answer = self.ask(steps)
        if keep:
            self.seconds += answer["seconds"]
        self.rss, self.loss = answer["rss"], answer["loss"]
        return median(answer["seconds"])


def compare(name, peers, rounds):
    case = CASES[name]
    if case.vocab_size < LARGE:
        peers = [peer for peer in peers if peer != SAMPLED]
    contenders = {peer: Contender("benchmarks.peers", peer, name) for peer in peers}
    once = contenders["npgpt"].run(2, keep=False)
    steps = max(1, min(50, round(0.5 / once)))  # about half a second a turn
    limits = []
    for _ in range(rounds):
        for contender in contenders.values():
            limits.append(kernels.limits(0.1))
            contender.run(steps)
    peak, read = (median(limit) for limit in zip(*limits, strict=True))
    rows = {}
    for peer, contender in contenders.items():
        contender.close()
        ms = 1e3 * median(contender.seconds)
        rows[peer] = {
            "ms": ms,
            "gflops": case.gflops / ms * 1e3,
            "share_of_peak": case.gflops / ms * 1e3 / peak,
            "peak_rss_mb": contender.rss / 1e6,
        }
    ours = rows["npgpt"]["ms"]
    for row in rows.values():
        row["ratio"] = row["ms"] / ours
    limits = {"peak_gflops": peak, "read_gb_per_second": read}
    return {"case": name, "gflop": case.gflops, **limits, "rows": rows}


def machine_line():
    machine, versions = record.machine(), record.versions(["torch"])
    packages = ", ".join(f"{package} {version}" for package, version in versions.items())
    return f"{machine['cpu']}, {kernels.describe()}, {packages}"


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--case", action="append", choices=CASES, help="default: all")
    parser.add_argument("--peer", action="append", choices=PEERS, help="beside npgpt; default: all")
    parser.add_argument("--rounds", type=int, default=5, help="turns of each contender (default 5)")
    parser.add_argument("--json", action="store_true", help="end with one JSON object on the last line")
    record.add_flags(parser)
    args = parser.parse_args()
    peers = ["npgpt", *(p for p in (args.peer or PEERS) if p != "npgpt")]

    results = {"machine": machine_line(), "cases": []}
    print(results["machine"])
    for name in args.case or CASES:
        result = compare(name, peers, args.rounds)
        results["cases"].append(result)
        limits = f"peak {result['peak_gflops']:.0f} GFLOP/s, read {result['read_gb_per_second']:.0f} GB/s"
        print(f"\n{name}: {CASES[name].gflops:.2f} GFLOP a step; {limits}")
        print(f"{'':32}{'ms':>9}{'GFLOP/s':>9}{'of peak':>9}{'MB':>8}{'theirs / ours':>15}")
        for peer, row in result["rows"].items():
            print(
                f"{peer:32}{row['ms']:9.1f}{row['gflops']:9.1f}{row['share_of_peak']:9.0%}"
                f"{row['peak_rss_mb']:8.0f}{row['ratio']:15.2f}",
                flush=True,
            )
    record.save(args, "compare", results["cases"], peers=["torch"], rounds=args.rounds)
    if args.json:
        print(json.dumps(results))


if __name__ == "__main__":
    main()
