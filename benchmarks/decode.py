"""`python -m benchmarks.decode`: prompts and new tokens beside llama.cpp and CTranslate2, in turns.

Random weights, greedy, 128 tokens of prompt and 64 new ones; each contender in a process of its own, which is
generators.py; medians of the turns. llama.cpp (the xllamacpp wheel) reads the very file, CTranslate2 has the
same weights as its own float32 or int8. In between: the machine's read bandwidth and peak.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import npgpt
from benchmarks import record
from benchmarks.generators import NEW, PROMPT, SIZES, write_ctranslate2
from npgpt.engine import kernels
from npgpt.interop.gguf import TYPES, write_gguf

PEERS = {"npgpt": "gguf", "llama.cpp": "gguf", "CTranslate2": "folder"}
COMPUTE = {"f32": "float32", "q8_0": "int8"}  # CTranslate2's; it has no other types on such a CPU


class Contender:
    def __init__(self, name, path, threads):
        command = [sys.executable, "-m", "benchmarks.generators", name, str(path), str(threads)]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.ask("turn")  # warm

    def ask(self, what):
        self.process.stdin.write(what + "\n")
        self.process.stdin.flush()
        return json.loads(self.process.stdout.readline())

    def close(self):
        self.process.stdin.close()
        self.process.wait()


def measure(model, size, type, folder, turns, threads, peers):
    path = folder / f"{type}.gguf"
    write_gguf(path, model, model.tokenizer, type)
    read = path.stat().st_size - model.params["wpe.weight"].nbytes  # positions are looked up
    contenders = {}
    for name in peers:
        if name == "CTranslate2" and type not in COMPUTE:
            continue
        place = path
        if name == "CTranslate2":
            place = folder / f"ctranslate2-{COMPUTE[type]}"
            write_ctranslate2(place, model, COMPUTE[type])
        contenders[name] = Contender(name, place, threads)
    results, limits = {name: [] for name in contenders}, []
    for _ in range(turns):
        for name, contender in contenders.items():
            results[name].append(contender.ask("turn"))
        limits.append(kernels.limits(0.2))
    eight = [contenders["npgpt"].ask("eight") for _ in range(3)]
    for contender in contenders.values():
        contender.close()
    path.unlink()
    peak, bandwidth = (statistics.median(column) for column in zip(*limits, strict=True))
    row = {"size": size, "type": type, "threads": threads, "peak": peak, "bandwidth": bandwidth}
    for name, answers in results.items():
        row[name] = {key: statistics.median(a[key] for a in answers) for key in ("prefill", "decode")}
    row["share"] = row["npgpt"]["decode"] * read / 1e9 / bandwidth
    row["eight"] = statistics.median(eight)
    weights = sum(w.size for name, w in model.params.items() if w.ndim == 2 and name != "wpe.weight")
    row["eight_of_peak"] = row["eight"] * 2 * weights / 1e9 / peak
    return row


def show(row):
    print(
        f"\n{row['size']}, {row['type']}: peak {row['peak']:.0f} GFLOP/s, read {row['bandwidth']:.0f} GB/s; "
        f"ours reads {row['share']:.0%} of that; eight sessions together {row['eight']:,.0f} tokens/s, "
        f"{row['eight'] / row['npgpt']['decode']:.1f} times one, {row['eight_of_peak']:.0%} of the peak"
    )
    print(f"{'':14}{'prefill':>10}{'decode':>10}   ours / theirs")
    for name in PEERS:
        if name in row:
            ratios = [row["npgpt"][key] / row[name][key] for key in ("prefill", "decode")]
            print(
                f"{name:14}{row[name]['prefill']:10,.0f}{row[name]['decode']:10,.0f}"
                f"{ratios[0]:8.2f}{ratios[1]:8.2f}",
                flush=True,
            )


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--size", choices=SIZES, action="append", help="default: all")
    parser.add_argument("--type", choices=TYPES, action="append", help="default: all")
    parser.add_argument("--peer", choices=PEERS, action="append", help="default: those that are installed")
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--threads", type=int, default=kernels.get_num_threads())
    parser.add_argument("--json", action="store_true")
    record.add_flags(parser)
    args = parser.parse_args()
    from importlib.util import find_spec

    needs = {"npgpt": "npgpt", "llama.cpp": "xllamacpp", "CTranslate2": "ctranslate2"}
    peers = args.peer or [name for name in PEERS if find_spec(needs[name])]
    if "npgpt" not in peers:
        peers = ["npgpt", *peers]
    rows = []
    if not args.json:
        print(f"{kernels.describe()}; {PROMPT} tokens of prompt, {NEW} new ones, tokens/s")
    for size in args.size or SIZES:
        model = npgpt.GPT(npgpt.GPTConfig(**SIZES[size]))
        model.tokenizer = npgpt.text.tokenizer.ByteTokenizer()
        for type in args.type or TYPES:
            with tempfile.TemporaryDirectory() as folder:
                turns = args.turns if size == "124M" else 5 * args.turns  # of some milliseconds each
                rows.append(measure(model, size, type, Path(folder), turns, args.threads, peers))
            if not args.json:
                show(rows[-1])
    how = {"prompt": PROMPT, "new": NEW, "turns": args.turns}
    record.save(args, "decode", rows, peers=["xllamacpp", "ctranslate2"], **how)
    if args.json:
        print(json.dumps(rows))


if __name__ == "__main__":
    main()
