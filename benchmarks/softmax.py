"""What training over a part of the vocabulary costs in loss, and saves in time: full runs, both ways.

    python -m benchmarks.softmax TEXT... [--seeds N] [--json]

The default plan with bpe:8192, all its steps, `--softmax full` and `sampled` in turns, seed by seed. The last
tenth of each text is held out, and measured over the whole vocabulary.
"""

import argparse
import json
from pathlib import Path
from statistics import mean, median

from benchmarks import record
from benchmarks.vocabulary import conditions, measure

SOFTMAXES, TOKENIZER = ("full", "sampled"), "bpe:8192"


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("text", type=Path, nargs="+")
    parser.add_argument("--seeds", type=int, default=3, help="runs of each")
    parser.add_argument("--json", action="store_true", help="end with one JSON object")
    record.add_flags(parser)
    args = parser.parse_args()
    args.minutes, rows = None, []
    for softmax, results in measure(args, "softmax", SOFTMAXES, "--tokenizer", TOKENIZER).items():
        losses = [result["bits_per_byte"] for result in results]
        row = {
            "softmax": softmax,
            "steps": results[0]["steps"],
            "seconds": median(result["seconds"] for result in results),
            "bits_per_byte": mean(losses),
            "apart": max(losses) - min(losses),
        }
        rows.append(row)
        print(
            f"{softmax:8}{row['steps']:7,} steps{row['seconds']:8.1f} s"
            f"{row['bits_per_byte']:8.4f} bits per byte, {row['apart']:.4f} apart"
        )
    how = conditions(args) | {"tokenizer": TOKENIZER}
    record.save(args, f"softmax-{how['text']}", rows, **how)
    if args.json:
        print(json.dumps({**how, "rows": rows}))


if __name__ == "__main__":
    main()
