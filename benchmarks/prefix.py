"""`python -m benchmarks.prefix`: the first token of a long prompt, new and seen before, from npgpt's server.

Random weights in GPT-2's shape as training leaves them, prompts of 900 tokens, one client: milliseconds to
the first token of a prompt that is new, of the same again, and of one that goes on for 20 tokens more.
"""

import argparse
import asyncio
import json
import tempfile
from pathlib import Path

import numpy as np

import npgpt
from benchmarks import record
from benchmarks.decode import SIZES
from npgpt.engine import kernels
from npgpt.measure.serving import Server
from npgpt.text.tokenizer import ByteTokenizer

TOKENS, MORE = 900, 20


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--size", choices=SIZES, default="124M")
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--threads", type=int, default=kernels.get_num_threads())
    parser.add_argument("--json", action="store_true")
    record.add_flags(parser)
    args = parser.parse_args()
    kernels.set_num_threads(args.threads)
    with tempfile.TemporaryDirectory() as folder:
        model = npgpt.GPT(npgpt.GPTConfig(**SIZES[args.size]))
        with model.edit() as params:
            params["wte.weight"][128:] = 0  # what it writes is ASCII: each token is a character
        model.tokenizer = ByteTokenizer()
        model.save_pretrained(Path(folder) / "model")
        del model
        server = Server("npgpt", Path(folder) / "model", cache=512)
        seconds = {"new": [], "again": [], "longer": []}
        try:
            asyncio.run(server.stream(0, 4, TOKENS))
            for turn in range(1, 1 + args.turns):
                for name, more in (("new", 0), ("again", 0), ("longer", MORE)):
                    seconds[name].append(asyncio.run(server.stream(turn, 4, TOKENS + more)))
        finally:
            server.end()
    rows = [{"prompt": name, "ms": 1e3 * float(np.median(times))} for name, times in seconds.items()]
    how = {"size": args.size, "threads": args.threads, "turns": args.turns, "tokens": TOKENS, "more": MORE}
    record.save(args, "prefix", rows, **how)
    if args.json:
        print(json.dumps({"rows": rows}))
        return
    for row in rows:
        times = rows[0]["ms"] / row["ms"]
        print(
            f"{row['prompt']:8} {row['ms']:8.1f} ms to the first token of {TOKENS}, {times:.1f} times as soon"
        )


if __name__ == "__main__":
    main()
