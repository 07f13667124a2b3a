"""`python -m benchmarks.load`: streams for 1, 8 and 64 clients, npgpt's server and llama.cpp's in turn.

Random weights in one GGUF file for both (--type run: a folder as training leaves it for npgpt, F32 for
llama.cpp), greedy, a prompt of 32 tokens and 64 new ones for each client; each
server is a process of its own on loopback. Beside tokens a second in all: seconds to the first token, and how
long a ninth client waits for it beside eight that stream. llama.cpp is the xllamacpp wheel's.
"""

import argparse
import asyncio
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

import npgpt
from benchmarks import record
from benchmarks.decode import SIZES
from npgpt.engine import kernels
from npgpt.interop.gguf import TYPES, write_gguf
from npgpt.text.tokenizer import ByteTokenizer

PROMPT, NEW = 32, 64
CLIENTS = (1, 8, 64)


class Ours:
    name, extra = "npgpt", {}

    def __init__(self, path, threads):
        command = [sys.executable, "-m", "npgpt.serve", path, "--port", "0", "--threads", threads]
        self.start(command, path)

    def start(self, command, path):
        environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[1])}
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL, "text": True}
        self.process = subprocess.Popen(list(map(str, command)), env=environment, **pipes)
        self.model = Path(path).stem
        for line in self.process.stdout:
            if found := re.search(r"http://(127\.0\.0\.1):(\d+)", line):
                self.address = found.group(1), int(found.group(2))
                return
        raise SystemExit(f"{self.name}'s server ended")

    def end(self):
        self.process.terminate()
        self.process.wait()


class LlamaCpp(Ours):
    name, extra = "llama.cpp", {"cache_prompt": False}

    def __init__(self, path, threads):
        self.start([sys.executable, "-m", "benchmarks.load", "--llama", path, "--threads", threads], path)


def serve_llama(path, threads):
    """llama.cpp's server, until it is terminated."""
    import xllamacpp

    params = xllamacpp.CommonParams()
    params.model.path, params.n_parallel = path, max(CLIENTS)
    params.n_ctx = params.n_parallel * 128
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = threads
    server = xllamacpp.Server(params)
    print(server.listening_address, flush=True)
    time.sleep(3600)


async def client(server, number, new=NEW):
    """(seconds to the first token, tokens) of one streamed completion."""
    text = "".join(chr(97 + (7 * number + i * i) % 26) for i in range(PROMPT))
    asked = {"model": server.model, "prompt": text, "max_tokens": new, "temperature": 0, "stream": True}
    asked |= {"ignore_eos": True, "stream_options": {"include_usage": True}, **server.extra}
    body = json.dumps(asked).encode()
    host, port = server.address
    reader, writer = await asyncio.open_connection(host, port)
    begin, first, tokens = time.perf_counter(), None, 0
    head = f"POST /v1/completions HTTP/1.1\r\nHost: {host}:{port}\r\nContent-Type: application/json\r\n"
    writer.write(f"{head}Connection: close\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body)
    async for line in reader:
        if line.startswith(b"data: {"):
            event = json.loads(line[6:])
            if event["choices"] and event["choices"][0].get("text") and first is None:
                first = time.perf_counter() - begin
            tokens = (event.get("usage") or {}).get("completion_tokens", tokens)
    writer.close()
    if tokens != new:
        raise SystemExit(f"{server.name} gave {tokens} tokens instead of {new}")
    return first, tokens


async def level(server, clients):
    """(tokens a second in all, seconds to the first token of each)"""
    begin = time.perf_counter()
    results = await asyncio.gather(*(client(server, i) for i in range(clients)))
    seconds = time.perf_counter() - begin
    return sum(tokens for _, tokens in results) / seconds, [first for first, _ in results]


async def ninth(server):
    """Seconds to the first token of one that comes while eight stream."""
    eight = [asyncio.create_task(client(server, i, 2 * NEW)) for i in range(8)]
    await asyncio.sleep(1)
    first, _ = await client(server, 8)
    await asyncio.gather(*eight)
    return first


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--size", choices=SIZES, default="124M")
    parser.add_argument("--type", choices=("run", *TYPES), default="run")
    parser.add_argument("--turns", type=int, default=2)
    parser.add_argument("--threads", type=int, default=kernels.get_num_threads())
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--llama", help=argparse.SUPPRESS)
    record.add_flags(parser)
    args = parser.parse_args()
    if args.llama:
        return serve_llama(args.llama, args.threads)
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
        servers = [Ours(ours, args.threads)]
        try:
            import xllamacpp  # noqa: F401

            servers.append(LlamaCpp(path, args.threads))
        except ImportError:
            pass
        rows = {(server.name, n): ([], []) for server in servers for n in CLIENTS}
        waits = {server.name: [] for server in servers}
        try:
            for server in servers:
                asyncio.run(level(server, 2))  # warm
            for _ in range(args.turns):
                for n in CLIENTS:
                    for server in servers:
                        rate, firsts = asyncio.run(level(server, n))
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
