"""To the loss of nanoGPT's CPU recipe: nanoGPT itself and npgpt, whole processes, in turn.

    python -m benchmarks.nanogpt NANOGPT TEXT [--seeds N] [--json]

NANOGPT is a clone of github.com/karpathy/nanoGPT, TEXT its tinyshakespeare. nanoGPT runs the command line
that its README gives for a laptop's CPU (4 layers x 128, context 64, batch 12, 2000 steps); npgpt runs the
default recipe, shorter, on the same split: the first nine tenths for training, the rest for validation. Both
are timed from start to exit. nanoGPT estimates its loss from 20 batches; npgpt's is over the whole part.
"""

import argparse
import json
import re
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchmarks import record

TARGET = 1.8857  # nats per character, what that recipe ends at
THEIRS = """train.py config/train_shakespeare_char.py --device=cpu --compile=False --eval_iters=20
    --log_interval=1 --block_size=64 --batch_size=12 --n_layer=4 --n_head=4 --n_embd=128 --max_iters=2000
    --lr_decay_iters=2000 --dropout=0.0""".split()
OURS = """--tokenizer bytes --split 0.9,0.1,0 --block-size 64 --batch-size 12 --n-layer 3 --n-head 4
    --n-embd 128 --steps 500 --eval-every 500 --eval-tokens 111539""".split()


def nanogpt(folder: Path) -> dict:
    seconds, output = _timed([sys.executable, *THEIRS], folder)
    return {"seconds": seconds, "val_loss": float(re.findall(r"step 2000: .* val loss ([\d.]+)", output)[0])}


def npgpt(text: Path, seed: int) -> dict:
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "npgpt.train", text, *OURS, "--seed", str(seed), "--json"]
        seconds, output = _timed([*command, "--out", f"{folder}/run"])
    return {"seconds": seconds, "val_loss": json.loads(output.splitlines()[-1])["val_loss"]}


def _timed(command, folder=None):
    start = time.perf_counter()
    output = subprocess.run(command, cwd=folder, check=True, stdout=subprocess.PIPE, text=True).stdout
    return time.perf_counter() - start, output


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("nanogpt", type=Path, help="a clone of github.com/karpathy/nanoGPT")
    parser.add_argument("text", type=Path, help="tinyshakespeare")
    parser.add_argument("--seeds", type=int, default=3, help="runs of npgpt, seeds 0, 1, ... (default 3)")
    parser.add_argument("--json", action="store_true", help="end with one JSON object on the last line")
    record.add_flags(parser)
    args = parser.parse_args()

    data = args.nanogpt / "data" / "shakespeare_char"
    shutil.copy(args.text, data / "input.txt")
    subprocess.run([sys.executable, "prepare.py"], cwd=data, check=True, stdout=subprocess.DEVNULL)

    print(f"{'':16}{'seconds':>9}{'validation loss':>17}{'theirs / ours':>15}")
    ours = [npgpt(args.text, 0)]
    theirs = nanogpt(args.nanogpt)
    ours += [npgpt(args.text, seed) for seed in range(1, args.seeds)]
    print(f"{'nanoGPT':16}{theirs['seconds']:9.1f}{theirs['val_loss']:17.4f}{1:15.2f}")
    for seed, run in enumerate(ours):
        ratio = theirs["seconds"] / run["seconds"]
        print(f"npgpt, seed {seed:<4}{run['seconds']:9.1f}{run['val_loss']:17.4f}{ratio:15.2f}")
    reached = all(run["val_loss"] <= TARGET for run in ours)
    print(f"{TARGET} nats per character {'reached by each' if reached else 'NOT reached by each'} of ours")
    record.save(args, "nanogpt", {"nanogpt": theirs, "npgpt": ours}, peers=["torch"], target=TARGET)
    if args.json:
        print(json.dumps({"nanogpt": theirs, "npgpt": ours}))


if __name__ == "__main__":
    main()
