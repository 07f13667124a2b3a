"""Which vocabulary predicts a text best after so many minutes of training: bits per byte on text held out.

    python -m benchmarks.vocabulary TEXT... --minutes M [--tokenizer bytes bpe:1024 ...] [--seeds N] [--json]

The last tenth of each file is held out, the rest trains by the default plan through `python -m npgpt.train`;
`python -m npgpt.evaluate` measures. The vocabularies take turns, seed by seed, and medians are compared.
plan.py's rule for the tokenizer follows this table.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import median

import npgpt
from benchmarks import record

TOKENIZERS = ["bytes", "bpe:512", "bpe:1024", "bpe:2048", "bpe:4096", "bpe:8192"]


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("text", type=Path, nargs="+")
    parser.add_argument("--minutes", type=float, required=True, help="of training, each")
    parser.add_argument("--tokenizer", nargs="+", default=TOKENIZERS)
    parser.add_argument("--seeds", type=int, default=1, help="runs of each")
    parser.add_argument("--json", action="store_true", help="end with one JSON object")
    record.add_flags(parser)
    args = parser.parse_args()
    runs = measure(args, "tokenizer", args.tokenizer)
    rows = {}
    print(f"{args.minutes:g} minutes each\n{'':10}{'bits per byte':>14}{'bytes per token':>17}{'steps':>8}")
    for tokenizer, results in runs.items():
        rows[tokenizer] = row = {
            "bits_per_byte": median(result["bits_per_byte"] for result in results),
            "bytes_per_token": results[0]["bytes"] / results[0]["tokens"],
            "steps": median(result["steps"] for result in results),
        }
        print(f"{tokenizer:10}{row['bits_per_byte']:14.4f}{row['bytes_per_token']:17.2f}{row['steps']:8.0f}")
    how = conditions(args)
    record.save(args, f"vocabulary-{how['text']}", rows, **how)
    if args.json:
        print(json.dumps({"minutes": args.minutes, "seeds": args.seeds, "rows": rows}))


def conditions(args) -> dict:
    """What a record says of the text and the training."""
    size = sum(path.stat().st_size for path in args.text) / 1e6
    name = args.text[0].resolve().parent.name
    return {"text": name, "megabytes": size, "minutes": args.minutes, "seeds": args.seeds}


def measure(args, flag: str, values, *more) -> dict:
    """{value: what each seed's run measured} of trainings that differ by one flag, which take turns.

    `more` are flags of all; without args.minutes a run has the steps of the default plan.
    """
    runs = {value: [] for value in values}
    with tempfile.TemporaryDirectory() as folder:
        known, held_out = cut(args.text, Path(folder))
        for seed in range(args.seeds):
            for value, results in runs.items():
                out = Path(folder) / f"run-{seed}-{value.replace(':', '-')}"
                flags = [*more, f"--{flag}", value, "--seed", str(seed)]
                if args.minutes:
                    flags += ["--minutes", str(args.minutes)]
                trained = run_command("train", *known, *flags, "--out", str(out))
                measured = run_command("evaluate", str(out), *held_out)
                kept = {name: trained[name] for name in ("steps", "seconds")}
                results.append({**kept, "parameters": parameters_of(out), **measured})
                print(f"{value}, seed {seed}: {measured['bits_per_byte']:.4f}", file=sys.stderr, flush=True)
    return runs


def parameters_of(run) -> int:
    return npgpt.load(run).num_params


def cut(paths, folder: Path):
    """Files of the first nine tenths and of the last tenth of each text, cut at a line end."""
    parts = [], []
    for i, path in enumerate(paths):
        text = path.read_bytes()
        at = text.find(b"\n", len(text) * 9 // 10) + 1 or len(text) * 9 // 10
        for name, piece, part in zip(("known", "held-out"), (text[:at], text[at:]), parts, strict=True):
            (folder / f"{name}-{i}.txt").write_bytes(piece)
            part.append(str(folder / f"{name}-{i}.txt"))
    return parts


def run_command(name, *arguments) -> dict:
    command = [sys.executable, "-m", f"npgpt.{name}", *arguments, "--json"]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)} ended with exit code {done.returncode}")
    return json.loads(done.stdout.splitlines()[-1])


if __name__ == "__main__":
    main()
