"""Which shape of model learns more of a text in the same minutes: bits per byte on text held out.

    python -m benchmarks.shapes TEXT... --minutes M [--engine gpt-2 llama ...] [--seeds N] [--json]

As `python -m benchmarks.vocabulary`, but the engine is what differs. Each has the size that the default plan
gives it. The table has the mean of the seeds and how far they lie apart.
"""

import argparse
import json
from pathlib import Path
from statistics import mean

from benchmarks import record
from benchmarks.vocabulary import conditions, measure


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("text", type=Path, nargs="+")
    parser.add_argument("--minutes", type=float, required=True, help="of training, each")
    parser.add_argument("--engine", nargs="+", default=["gpt-2", "llama"])
    parser.add_argument("--seeds", type=int, default=3, help="runs of each")
    parser.add_argument("--json", action="store_true", help="end with one JSON object")
    record.add_flags(parser)
    args = parser.parse_args()
    rows = []
    for engine, results in measure(args, "engine", args.engine).items():
        losses = [result["bits_per_byte"] for result in results]
        row = {
            "engine": engine,
            "parameters": results[0]["parameters"],
            "bits_per_byte": mean(losses),
            "apart": max(losses) - min(losses),
            "steps": mean(result["steps"] for result in results),
        }
        rows.append(row)
        print(
            f"{engine:8}{row['parameters']:12,} parameters{row['steps']:8.0f} steps"
            f"{row['bits_per_byte']:8.4f} bits per byte, {row['apart']:.4f} apart"
        )
    how = conditions(args)
    record.save(args, f"shapes-{how['text']}", rows, **how)
    if args.json:
        print(json.dumps({**how, "rows": rows}))


if __name__ == "__main__":
    main()
