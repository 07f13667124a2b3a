"""`python -m benchmarks.tune TEXT...`: does npgpt.tune beat the default, at equal training time?

For each text: the search; then the default and the settings it found, both trained for the same minutes with
a seed that the search has not seen, in turn, and compared by their best validation loss.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

from benchmarks import record


def npgpt(*args) -> dict:
    """The last line of `npgpt ARGS... --json`."""
    command = [sys.executable, "-m", "npgpt", *map(str, args), "--json"]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)} ended with {done.returncode}")
    print("\n".join(done.stdout.splitlines()[:-1]), flush=True)
    return json.loads(done.stdout.splitlines()[-1])


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("text", nargs="+", help="each a file or a folder of .txt files")
    parser.add_argument("--minutes", type=float, default=20, help="of each search (default 20)")
    parser.add_argument("--seeds", type=int, default=1, help="final trainings of each (default 1)")
    record.add_flags(parser)
    args = parser.parse_args()
    lines, rows = [], []
    with tempfile.TemporaryDirectory() as folder:
        for number, text in enumerate(args.text):
            search = Path(folder) / f"tune-{number}"
            found = npgpt("tune", text, "--minutes", args.minutes, "--out", search)
            losses = {"default": [], "tuned": []}
            for seed in range(1, args.seeds + 1):
                for name in losses:
                    config = ["--config", search / "config.toml"] if name == "tuned" else []
                    flags = ["--minutes", found["minutes"], "--seed", seed, "--split", "0.8,0.1,0.1"]
                    out = Path(folder) / f"{name}-{number}-{seed}"
                    losses[name].append(npgpt("train", text, *config, *flags, "--out", out)["best_val_loss"])
            default, tuned = (sum(values) / len(values) for values in losses.values())
            settings = None if found["is_default"] else found["settings"]
            row = {"text": Path(text).name, "default": default, "tuned": tuned, "settings": settings}
            rows.append(row | {"minutes": found["minutes"]})
            what = "the default was best" if found["is_default"] else json.dumps(found["settings"])
            after = f"after {found['minutes']:.2f} minutes each"
            difference = f"{default:.4f} by default, {tuned:.4f} tuned ({tuned - default:+.4f})"
            lines.append(f"{Path(text).name}: validation loss {difference}, {after}: {what}")
    print("\n" + "\n".join(lines))
    record.save(args, "tune", rows, search_minutes=args.minutes, seeds=args.seeds)


if __name__ == "__main__":
    main()
