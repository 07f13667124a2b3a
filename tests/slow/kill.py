"""SIGKILL at random moments while every step is saved: always resumable, and at the end the same bits."""

import argparse
import random
import shutil
import tempfile
import time
from pathlib import Path

from common import bits, run, start

from npgpt.training import checkpoint

FLAGS = (
    "--n-layer 2 --n-head 2 --n-embd 64 --block-size 32 --batch-size 2 --gradient-accumulation-steps 2 "
    "--dropout 0.1 --split 0.8,0.2 --eval-every 7 --save-every 1 --seed 3"
).split()


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=200)
    kills = parser.parse_args().kills
    folder = Path(tempfile.mkdtemp())
    try:
        print(show(folder, kills))
    finally:
        shutil.rmtree(folder)


def show(folder: Path, kills: int) -> str:
    text, began, rng = folder / "text.txt", time.monotonic(), random.Random(0)
    text.write_bytes(b"the cat sat on the mat, the rat ate the hat, " * 40)
    victim, steps, killed, in_a_save, passed_over = folder / "killed", 16 * kills, 0, 0, 0
    flags = [*FLAGS, "--steps", steps]
    while killed < kills:
        process = start("train", text, *flags, "--out", victim, "--resume")
        newest = _newest(victim)
        while process.poll() is None and _newest(victim) <= newest:  # it works again, and saves
            time.sleep(0.005)
        time.sleep(rng.uniform(0, 0.15))
        process.kill()
        out, err = process.communicate()
        if process.returncode == 0:
            raise SystemExit(f"the run ended before {kills} kills; more steps are needed:\n{out}")
        if process.returncode != -9:
            raise SystemExit(f"after {killed} kills it could not go on:\n{out}{err}")
        killed += 1
        in_a_save += bool(list(victim.glob(".step-*")))
        passed_over += err.count("passed over")
        if checkpoint.is_run(victim):
            checkpoint.choose(victim, ())  # raises where nothing is whole
    run("train", "--resume", "--out", victim)
    run("train", text, *flags, "--out", folder / "whole")
    if bits(victim) != bits(folder / "whole"):
        raise SystemExit("the bits differ from those of the run that was never stopped")
    seconds = time.monotonic() - began
    return (
        f"killed {killed} times in {steps} steps, {in_a_save} times in the midst of a checkpoint; "
        f"always resumed, {passed_over} broken checkpoints met, the same bits at the end ({seconds:.0f} s)"
    )


def _newest(run: Path) -> int:
    return max((int(path.name[5:]) for path in checkpoint.checkpoints(run)), default=0) if run.exists() else 0


if __name__ == "__main__":
    main()
