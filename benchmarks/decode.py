"""`python -m benchmarks.decode`: prompts and new tokens beside llama.cpp, in turns, on the same files.

Random weights, greedy, 128 tokens of prompt and 64 new ones, medians of the turns; beside them the share of
the read bandwidth measured in the same run. llama.cpp is the xllamacpp wheel's; without it we are alone.
"""

import argparse
import json
import statistics
import tempfile
import time
import urllib.request
from pathlib import Path

import numpy as np

import npgpt
from npgpt.engine import kernels
from npgpt.interop.gguf import TYPES, write_gguf
from npgpt.runtime import binding
from npgpt.text.tokenizer import ByteTokenizer

SIZES = {
    "124M": {},
    "4L x 128": {"n_layer": 4, "n_head": 4, "n_embd": 128, "block_size": 256, "vocab_size": 257},
}
PROMPT, NEW = 128, 64


class Ours:
    name = "npgpt"

    def __init__(self, path, threads):
        kernels.set_num_threads(threads)
        self.session = binding.Session(binding.Model.open(path))

    def turn(self, ids):
        """(prompt tokens a second, new tokens a second)"""
        self.session.reset()
        how = binding.sampling_struct(npgpt.runtime.sampling.Sampling(0), 256)
        start = time.perf_counter()
        self.session.feed(ids)
        read = time.perf_counter()
        for _ in range(NEW):
            self.session.feed([self.session.sample(how)])
        return PROMPT / (read - start), NEW / (time.perf_counter() - read)


class LlamaCpp:
    name = "llama.cpp"

    def __init__(self, path, threads):
        import xllamacpp

        params = xllamacpp.CommonParams()
        params.model.path, params.n_ctx, params.n_parallel = str(path), 256, 1
        params.cpuparams.n_threads = params.cpuparams_batch.n_threads = threads
        self.server = xllamacpp.Server(params)

    def turn(self, ids):
        asked = {"prompt": ids.tolist(), "n_predict": NEW, "temperature": 0, "ignore_eos": True}
        data = json.dumps(asked | {"cache_prompt": False}).encode()
        url = f"{self.server.listening_address}/completion"
        request = urllib.request.Request(url, data, {"Content-Type": "application/json"})
        with urllib.request.urlopen(request) as answer:
            times = json.load(answer)["timings"]
        return times["prompt_per_second"], times["predicted_per_second"]


def together(path, sessions=8, steps=16):
    """Tokens a second of several sessions decoded at once."""
    model = binding.Model.open(path)
    many = [binding.Session(model) for _ in range(sessions)]
    for session in many:
        session.feed(range(16))
    start = time.perf_counter()
    for _ in range(steps):
        binding.feed_many(many, [1] * sessions)
    return sessions * steps / (time.perf_counter() - start)


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--size", choices=SIZES, action="append", help="default: all")
    parser.add_argument("--type", choices=TYPES, action="append", help="default: all")
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--threads", type=int, default=kernels.get_num_threads())
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    ids = np.random.default_rng(0).integers(0, 256, PROMPT)
    rows = []
    for size in args.size or SIZES:
        config = npgpt.GPTConfig(**SIZES[size])
        model = npgpt.GPT(config)
        for type in args.type or TYPES:
            with tempfile.TemporaryDirectory() as folder:
                path = Path(folder) / "model.gguf"
                write_gguf(path, model, ByteTokenizer(), type)
                read = path.stat().st_size - 4 * config.block_size * config.n_embd  # positions are looked up
                peers = [Ours(path, args.threads)]
                try:
                    peers.append(LlamaCpp(path, args.threads))
                except ImportError:
                    pass
                for peer in peers:
                    peer.turn(ids)  # warm
                turns = {peer.name: [] for peer in peers}
                for _ in range(args.turns):
                    for peer in peers:
                        turns[peer.name].append(peer.turn(ids))
                _, bandwidth = kernels.limits(0.3)
                row = {"size": size, "type": type, "threads": args.threads, "bandwidth": bandwidth}
                for name, results in turns.items():
                    prefill, decode = (statistics.median(column) for column in zip(*results, strict=True))
                    row[name] = {"prefill": prefill, "decode": decode}
                row["share"] = row["npgpt"]["decode"] * read / 1e9 / bandwidth
                row["eight"] = together(path)
                rows.append(row)
                if not args.json:
                    show(row)
                del peers
    if args.json:
        print(json.dumps(rows))


def show(row):
    line = f"{row['size']:9}{row['type']:6}"
    for name in ("npgpt", "llama.cpp"):
        if name in row:
            line += f"{name}: {row[name]['prefill']:8,.0f} read {row[name]['decode']:8,.1f} written   "
    if "llama.cpp" in row:
        line += "ours / theirs: " + " ".join(
            f"{row['npgpt'][k] / row['llama.cpp'][k]:.2f}" for k in ("prefill", "decode")
        )
    print(
        f"{line}   {row['share']:.0%} of {row['bandwidth']:.0f} GB/s   eight at once: {row['eight']:,.0f}",
        flush=True,
    )


if __name__ == "__main__":
    main()
