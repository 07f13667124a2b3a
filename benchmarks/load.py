"""`python -m benchmarks.load`: streams for 1, 8 and 64 clients, npgpt's server and llama.cpp's in turn.

Random weights in one GGUF file for both (--type run: a folder as training leaves it for npgpt, F32 for
llama.cpp), greedy, a prompt of 32 tokens and 64 new ones for each client; each
server is a process of its own on loopback. Beside tokens a second in all: seconds to the first token, and how
long a ninth client waits for it beside eight that stream. llama.cpp is the xllamacpp wheel's.
"""

import argparse
import asyncio
import json
import tempfile
from importlib.util import find_spec
from pathlib import Path

import numpy as np

import npgpt
from benchmarks import record
from benchmarks.decode import SIZES
from npgpt.engine import kernels
from npgpt.interop.gguf import TYPES, write_gguf
from npgpt.measure.serving import NEW, Server
from npgpt.text.tokenizer import ByteTokenizer

CLIENTS = (1, 8, 64)


async def ninth(server):
    """Seconds to the first token of one that comes while eight stream."""
    eight = [asyncio.create_task(server.stream(i, 2 * NEW)) for i in range(8)]
    await asyncio.sleep(1)
    first = await server.stream(8)
    await asyncio.gather(*eight)
    return first


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--size", choices=SIZES, default="124M")
    parser.add_argument("--type", choices=("run", *TYPES), default="run")
    parser.add_argument("--turns", type=int, default=2)
    parser.add_argument("--threads", type=int, default=kernels.get_num_threads())
    parser.add_argument("--json", action="store_true")
    record.add_flags(parser)
    args = parser.parse_args()
    kernels.set_num_threads(args.threads)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.gguf"
        model = npgpt.GPT(npgpt.GPTConfig(**SIZES[args.size]))
        with model.edit() as params:
            params["wte.weight"][128:] = 0  # what it writes is ASCII: each token is a character
        write_gguf(path, model, ByteTokenizer(), "f32" if args.type == "run" else args.type)
        ours = path
        if args.type == "run":  # as training leaves it; llama.cpp gets the same weights as GGUF
            ours = path.with_suffix("")
            model.tokenizer = ByteTokenizer()
            model.save_pretrained(ours)
        del model
        servers = [Server("npgpt", ours)]
        if find_spec("xllamacpp"):
            servers.append(Server("llama.cpp", path, max(CLIENTS)))
        rows = {(server.name, n): ([], []) for server in servers for n in CLIENTS}
        waits = {server.name: [] for server in servers}
        try:
            for server in servers:
                asyncio.run(server.level(2))  # warm
            for _ in range(args.turns):
                for n in CLIENTS:
                    for server in servers:
                        rate, firsts = asyncio.run(server.level(n))
                        rows[server.name, n][0].append(rate)
                        rows[server.name, n][1].extend(firsts)
                for server in servers:
                    waits[server.name].append(asyncio.run(ninth(server)))
        finally:
            for server in servers:
                server.end()
    report = [
        {
            "server": name,
            "clients": n,
            "tokens_per_second": float(np.median(rates)),
            "first_p50": float(np.percentile(firsts, 50)),
            "first_p99": float(np.percentile(firsts, 99)),
        }
        for (name, n), (rates, firsts) in sorted(rows.items(), key=lambda row: row[0][1])
    ]
    how = {"size": args.size, "type": args.type, "threads": args.threads, "turns": args.turns}
    record.save(args, "load", report, peers=["xllamacpp"], ninth=waits, **how)
    if args.json:
        print(json.dumps({"rows": report, "ninth": waits}))
        return
    print(f"{args.size} {args.type}, {args.threads} threads, medians of {args.turns} turns")
    for row in report:
        print(
            f"{row['server']:10}{row['clients']:3} clients {row['tokens_per_second']:8,.1f} tokens/s in all  "
            f" first token after {row['first_p50']:.3f} s (p50) {row['first_p99']:.3f} s (p99)"
        )
    for name, seconds in waits.items():
        rates = {row["clients"]: row["tokens_per_second"] for row in report if row["server"] == name}
        print(
            f"{name:10}eight clients get {rates[8] / rates[1]:.1f} times one's tokens/s; "
            f"a ninth beside them has its first token after {max(seconds):.3f} s"
        )


if __name__ == "__main__":
    main()
