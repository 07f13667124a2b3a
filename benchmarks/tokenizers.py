"""npgpt's byte-pair encoding beside tiktoken and Hugging Face's tokenizers, in one run, on one thread.

    python -m benchmarks.tokenizers VOCABULARY TEXT... [--rounds N] [--json]

VOCABULARY is a folder with GPT-2's encoder.json and vocab.bpe, TEXT files of UTF-8. The contenders take
turns, A B C A B C; medians are compared. Their ids and merges must be the same before anything is timed.
The peers come with `pip install -e ".[parity]"`.
"""

import argparse
import json
import os
import time
from functools import partial
from pathlib import Path
from statistics import median

os.environ |= {"RAYON_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false", "TIKTOKEN_CACHE_DIR": ""}

import numpy as np
import tiktoken
import tokenizers
from tiktoken.load import data_gym_to_mergeable_bpe_ranks

from benchmarks import record
from npgpt.engine import kernels
from npgpt.text.load import load_tokenizer
from npgpt.text.tokenizer import END_OF_TEXT, BPETokenizer

PATTERN = r"'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
MERGES = 4096


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("vocabulary", type=Path)
    parser.add_argument("text", type=Path, nargs="+")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", action="store_true")
    record.add_flags(parser)
    args = parser.parse_args()
    documents = [path.read_bytes() for path in args.text]
    texts = [document.decode() for document in documents]
    whole = b"".join(documents)
    text = whole.decode()
    letters = np.frombuffer(b"etaoinshrdlu", np.uint8)
    long_word = np.random.default_rng(3).choice(letters, 10_000_000).tobytes()

    files = [str(args.vocabulary / name) for name in ("encoder.json", "vocab.bpe")]
    ours = load_tokenizer(args.vocabulary)
    ranks, special = data_gym_to_mergeable_bpe_ranks(*files[::-1]), {END_OF_TEXT: 50256}
    tik = tiktoken.Encoding("gpt2", pat_str=PATTERN, mergeable_ranks=ranks, special_tokens=special)
    hugging = tokenizers.ByteLevelBPETokenizer(*files)
    fast = hugging._tokenizer.encode_batch_fast  # without offsets, which nobody else computes either

    def encode_on(threads, data):
        kernels.set_num_threads(threads)
        return ours.encode(data)

    def train_theirs():
        trained = tokenizers.ByteLevelBPETokenizer()
        rules = {"min_frequency": 2, "special_tokens": [END_OF_TEXT], "show_progress": False}
        trained.train_from_iterator(texts, 257 + MERGES, **rules)
        return trained

    cpus = kernels.get_num_threads()
    tiktoken_ids = partial(tik.encode_to_numpy, disallowed_special=())
    groups = [  # name, MB, contender -> what it does
        (
            "encode, GPT-2's vocabulary",
            len(whole) / 1e6,
            {
                "npgpt": lambda: encode_on(1, whole),
                "tiktoken": lambda: tiktoken_ids(text),
                "tokenizers": lambda: fast([text])[0],
                f"npgpt, {cpus} threads": lambda: encode_on(cpus, whole),
            },
        ),
        (
            "encode, without a space",
            len(long_word) / 1e6,
            {"npgpt": lambda: encode_on(1, long_word), "tiktoken": lambda: tiktoken_ids(long_word.decode())},
        ),
        (
            f"learn {MERGES} merges",
            len(whole) / 1e6,
            {"npgpt": lambda: BPETokenizer.train(documents, 257 + MERGES), "tokenizers": train_theirs},
        ),
    ]
    results = [compare(*group, args.rounds) for group in groups]
    record.save(args, "tokenizers", results, peers=["tiktoken", "tokenizers"], rounds=args.rounds)
    print(json.dumps(results) if args.json else "")


def compare(name, megabytes, contenders, rounds):
    answers = {contender: as_list(run()) for contender, run in contenders.items()}  # also fills their caches
    for contender, answer in answers.items():
        assert answer == answers["npgpt"], f"{contender} differs"
    seconds = {contender: [] for contender in contenders}
    for _ in range(rounds):
        for contender, run in contenders.items():
            start = time.perf_counter()
            run()
            seconds[contender].append(time.perf_counter() - start)
    medians = {contender: median(times) for contender, times in seconds.items()}
    print(f"\n{name}: {megabytes:.1f} MB, the same result from all")
    print(f"{'':22}{'s':>8}{'MB/s':>9}{'theirs / ours':>15}")
    rows = {}
    for contender, s in medians.items():
        rows[contender] = {"seconds": s, "mb_per_second": megabytes / s, "ratio": s / medians["npgpt"]}
        print(f"{contender:22}{s:8.3f}{megabytes / s:9.2f}{s / medians['npgpt']:15.2f}", flush=True)
    return {"case": name, "megabytes": megabytes, "rows": rows}


def as_list(result):
    """Ids or merges, whoever they come from."""
    if isinstance(result, BPETokenizer):
        return result.vocabulary.merges
    if isinstance(result, tokenizers.ByteLevelBPETokenizer):
        return [tuple(pair) for pair in json.loads(result._tokenizer.to_str())["model"]["merges"]]
    return result.ids if hasattr(result, "ids") else result.tolist()


if __name__ == "__main__":
    main()
