"""A night's work in small: train for some minutes, kill it twice, resume, test it, let it write."""

import argparse
import shutil
import tempfile
import time
from pathlib import Path

from common import run, start

from npgpt.training import checkpoint


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("text", nargs="+", help="files or folders")
    parser.add_argument("--minutes", type=float, default=15)
    parser.add_argument("--prompt", default="", help="what the sample goes on from")
    parser.add_argument("--out", help="keep the run here")
    parser.add_argument("--flags", default="", help="more flags for npgpt train")
    args = parser.parse_args()
    scratch = Path(tempfile.mkdtemp())
    out = Path(args.out) if args.out else scratch / "night"
    try:
        show(args, out)
    finally:
        shutil.rmtree(scratch)


def show(args, out):
    command = ["train", *args.text, "--minutes", args.minutes, "--out", out, *args.flags.split()]
    lost, began = 0.0, time.monotonic()
    for kill, share in enumerate((0.3, 0.6), 1):
        process = start(*command, *(["--resume"] if kill > 1 else []))
        while _seconds(out) < share * 60 * args.minutes:
            if process.poll() is not None:
                raise SystemExit("".join(process.communicate()))
            time.sleep(0.2)
        process.kill()
        said = process.communicate()[0]
        if kill == 1:
            print("\n".join(said.splitlines()[:6]))
        step, seconds = _saved(out)
        lost += _seconds(out) - seconds
        print(f"killed at {_seconds(out):.0f} s; saved: step {step}, {seconds:.0f} s", flush=True)
    said = run(*command, "--resume")
    print(
        "\n".join(
            line for line in said.splitlines() if line.startswith(("going on", "done", "warning", "the best"))
        )
    )
    print(
        f"in all {(time.monotonic() - began) / 60:.1f} minutes, {lost:.0f} s of which were lost to the kills"
    )
    print("\n".join(run("evaluate", out).splitlines()[1:]))
    print(f"it writes, after {args.prompt!r}:\n{'-' * 70}")
    print(run("generate", out, args.prompt, "--seed", 1, "--max-new-tokens", 400).rstrip())


def _saved(out: Path) -> tuple[int, float]:
    """Step and seconds of training of the last checkpoint; 0 without one."""
    if not checkpoint.is_run(out):
        return 0, 0.0
    state, _ = checkpoint.load(checkpoint.choose(out, ())[0])
    return state["step"], state["seconds"]


def _seconds(out: Path) -> float:
    """Of training, by the last whole row of metrics.csv."""
    try:
        return float((out / "metrics.csv").read_text().rsplit("\n", 2)[-2].split(",")[8])
    except (OSError, ValueError, IndexError):
        return 0.0


if __name__ == "__main__":
    main()
