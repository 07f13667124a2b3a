"""`python -m benchmarks.explain`: attributions of a next token, npgpt's command and inseq's in turn.

GPT-2's shape with random weights, in one Hugging Face folder that both read, and a sentence of 20 tokens.
Each row is a process of its own from its start to its end: what a person waits for; `inside` is the
attribution alone. The scores of the two are compared. inseq integrates over as many points as npgpt, and from
zero too.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time

import numpy as np

import npgpt
from benchmarks import record
from benchmarks.decode import SIZES
from npgpt.explaining.attribution import POINTS
from npgpt.text.tokenizer import BPETokenizer

TEXT = "the quick brown fox jumps over the lazy dog "
METHODS = {"gradient": "saliency", "grad_x_input": "input_x_gradient", "integrated": "integrated_gradients"}
INSEQ = """import json, sys, time
import inseq, torch
folder, method, text, target, threads = sys.argv[1:]
torch.set_num_threads(int(threads))
model = inseq.load_model(folder, method, device="cpu")
begun = time.perf_counter()
how = {"n_steps": %d} if method == "integrated_gradients" else {}
found = model.attribute(text, text + target, attributed_fn="logit", show_progress=False, **how)
seconds = time.perf_counter() - begun
scores = found.sequence_attributions[0].target_attributions[:, 0]
scores = scores.norm(dim=-1) if method == "saliency" else scores.sum(-1)
print(json.dumps({"inside": seconds, "scores": [s for s in scores.tolist() if s == s]}))
"""
OURS = """import json, sys, time
import npgpt
from npgpt.engine import kernels
folder, method, text, target, threads = sys.argv[1:]
kernels.set_num_threads(int(threads))
model = npgpt.load(folder)
begun = time.perf_counter()
found = model.explain(text, target, method=method, of="logit")
print(json.dumps({"inside": time.perf_counter() - begun, "scores": found.scores.tolist()}))
"""


def timed(program, *arguments):
    """What a process prints as JSON, with its seconds and its memory."""
    begun = time.perf_counter()
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL, "text": True}
    offline = os.environ | {"HF_HUB_OFFLINE": "1"}
    process = subprocess.Popen([sys.executable, "-c", program, *arguments], env=offline, **pipes)
    out = process.stdout.read()
    _, status, used = os.wait4(process.pid, 0)
    seconds = time.perf_counter() - begun
    if status:
        raise SystemExit(f"a process ended with {status}: {arguments}")
    return json.loads(out.splitlines()[-1]) | {"seconds": seconds, "memory": used.ru_maxrss * 1024}


def make(folder, size):
    """A Hugging Face folder of random weights; return a text of 20 tokens and a token after it."""
    tokenizer = BPETokenizer.train([TEXT.encode() * 20], 270)
    model = npgpt.GPT(npgpt.GPTConfig(**SIZES[size] | {"vocab_size": 50257}))
    model.tokenizer = tokenizer
    with model.edit() as params:  # the unknown token, from which inseq integrates: zero, as npgpt does
        params["wte.weight"][tokenizer.end_of_text] = 0
    model.save_pretrained(folder)
    text = tokenizer.decode(tokenizer.encode(TEXT * 20)[:20])
    assert len(tokenizer.encode(text)) == 20
    return text, " "


def command_seconds(folder, text, target, method, threads):
    """Seconds of the whole command, with the maps of attention."""
    begun = time.perf_counter()
    how = ["--target", target, "--method", method, "--attention", "--threads", str(threads)]
    command = [sys.executable, "-m", "npgpt.explain", str(folder), text, *how]
    subprocess.run(command, stdout=subprocess.DEVNULL, check=True)
    return time.perf_counter() - begun


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--size", choices=SIZES, default="124M")
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    record.add_flags(parser)
    args = parser.parse_args()
    rows, commands = [], {}
    with tempfile.TemporaryDirectory() as folder:
        text, target = make(folder, args.size)
        for method, theirs in METHODS.items():
            asked = text, target, str(args.threads)
            turns = [
                (
                    timed(OURS, folder, method, *asked),
                    timed(INSEQ % POINTS, folder, theirs, *asked),
                    command_seconds(folder, text, target, method, args.threads),
                )
                for _ in range(args.turns)
            ]
            for place, who in enumerate(("npgpt", "inseq")):
                took = {key: [turn[place][key] for turn in turns] for key in ("seconds", "inside", "memory")}
                rows.append({"method": method, "who": who, "scores": turns[0][place]["scores"], **took})
            commands[method] = [turn[2] for turn in turns]
    how = {"size": args.size, "threads": args.threads, "turns": args.turns, "points": POINTS, "tokens": 20}
    record.save(
        args, "explain", rows, peers=["inseq", "captum", "torch", "transformers"], commands=commands, **how
    )
    print(f"{args.size}, 20 tokens, {args.threads} threads, medians of {args.turns} turns")
    for ours, theirs in zip(rows[::2], rows[1::2], strict=True):
        method, a, b = ours["method"], np.array(ours["scores"]), np.array(theirs["scores"][:20])
        for row in (ours, theirs):
            seconds, inside = (statistics.median(row[key]) for key in ("seconds", "inside"))
            memory = max(row["memory"]) / 1e6
            print(f"{method:13} {row['who']:6} {seconds:7.2f} s, inside {inside:7.3f} s, {memory:,.0f} MB")
        times = [
            statistics.median(theirs[key]) / statistics.median(ours[key]) for key in ("seconds", "inside")
        ]
        whole, inside = times
        apart = np.abs(a - b).max() / np.abs(b).max()
        print(f"{'':13} {whole:.1f} times as fast, inside {inside:.1f} times; scores {apart:.1e} apart")
        print(f"{'':13} the command with attention: {statistics.median(commands[method]):.2f} s")


if __name__ == "__main__":
    main()
