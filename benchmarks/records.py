"""`python -m benchmarks.records`: from records to ids in a mapped file, beside datasets with tokenizers.

A .jsonl.gz and a .csv of --megabytes of text, of passages of the real texts of NPGPT_DATA. Both have the same
tokenizer, learnt from these texts, and write the same ids: uint16, an end of text behind each record. In
turns, each in a process of its own with caches of its own; medians. npgpt looks for duplicates by default,
which datasets does not: that is a row of its own. `pip install datasets` brings the peer.
"""

import argparse
import csv
import gzip
import hashlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from benchmarks import record
from benchmarks.record import ROOT
from npgpt.text.corpus import IN_MEMORY

VOCABULARY = 8192
LENGTHS = 200, 4000  # characters of a passage
CONTENDERS = "npgpt", "datasets", "npgpt, without duplicates"


def ours(file: str, tokenizer: str, dedupe: str) -> np.ndarray:
    """The ids as npgpt.train has them: a file in NPGPT_CACHE, mapped."""
    from npgpt.text.dataset import encode
    from npgpt.text.distinct import DistinctCorpus
    from npgpt.text.load import load_tokenizer

    return encode(DistinctCorpus(file, dedupe, True, encoding="auto"), load_tokenizer(tokenizer))


def theirs(file: str, tokenizer: str) -> np.ndarray:
    """The ids as nanoGPT's prepare.py gets them: a dataset, mapped in batches, then written to one file."""
    import datasets
    import tokenizers

    datasets.disable_progress_bars()
    bpe = tokenizers.Tokenizer.from_file(f"{tokenizer}/tokenizer.json")
    end = bpe.token_to_id("<|endoftext|>")

    def encoded(rows):
        return {"ids": [[*found.ids, end] for found in bpe.encode_batch_fast(rows["text"])]}  # on all cores

    kind, cache = "csv" if file.endswith(".csv") else "json", os.environ["HF_HOME"]
    rows = datasets.load_dataset(kind, data_files=file, cache_dir=cache, split="train")
    rows = rows.map(encoded, batched=True, remove_columns=rows.column_names)
    with open(f"{cache}/ids", "wb") as out:
        for batch in rows.with_format("arrow").iter(1000):
            ids = batch["ids"].combine_chunks()
            out.write(ids.values.to_numpy().astype(np.uint16).tobytes())
    return np.memmap(f"{cache}/ids", np.uint16, "r")


def contend(who: str, file: str, tokenizer: str) -> None:
    """Print a contender's number of ids, their hash and the most memory that it took."""
    dedupe = "records" if "duplicates" in who else "none"
    ids = theirs(file, tokenizer) if who == "datasets" else ours(file, tokenizer, dedupe)
    assert isinstance(ids, np.memmap)
    digest, peak = hashlib.sha256(ids).hexdigest(), record.peak_memory()
    print(json.dumps({"ids": len(ids), "digest": digest, "peak": peak}, allow_nan=False))


def run(who: str, file: Path, tokenizer: Path) -> dict:
    """What contend() prints in a process of its own, and its seconds."""
    with tempfile.TemporaryDirectory(dir=file.parent) as folder:
        there = os.environ | {"NPGPT_CACHE": folder, "HF_HOME": folder, "HF_DATASETS_OFFLINE": "1"}
        command = [sys.executable, "-m", "benchmarks.records", "--contend", who, str(file), str(tokenizer)]
        begun = time.perf_counter()
        done = subprocess.run(command, cwd=ROOT, env=there, stdout=subprocess.PIPE, text=True, check=True)
        return {"seconds": time.perf_counter() - begun} | json.loads(done.stdout)


def write_files(folder: Path, megabytes: int) -> list[Path]:
    """The tokenizer's folder, then the two files with the same records."""
    from npgpt.text.tokenizer import BPETokenizer

    data, rng, texts = Path(os.environ["NPGPT_DATA"]), np.random.default_rng(0), []
    files = [*sorted((data / "machado").glob("*.txt")), data / "tinyshakespeare" / "input.txt"]
    whole = "\n".join(file.read_text("utf-8", errors="replace") for file in files)
    left = megabytes * 10**6
    while left > 0:
        begin = int(rng.integers(len(whole) - LENGTHS[1]))
        texts.append(whole[begin : begin + int(rng.integers(*LENGTHS))])
        left -= len(texts[-1].encode())
    tokenizer, packed, table = folder / "tokenizer", folder / "records.jsonl.gz", folder / "records.csv"
    tokenizer.mkdir()
    BPETokenizer.train([file.read_bytes() for file in files], VOCABULARY).save(tokenizer, 64)
    with gzip.open(packed, "wt", 6, "utf-8") as lines:
        for number, text in enumerate(texts):
            lines.write(json.dumps({"id": number, "text": text}, ensure_ascii=False) + "\n")
    with table.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([("id", "text"), *enumerate(texts)])
    return [tokenizer, packed, table]


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--megabytes", type=int, default=200)
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--contend", nargs=3, help=argparse.SUPPRESS)
    record.add_flags(parser)
    args = parser.parse_args()
    if args.contend:
        contend(*args.contend)
        return
    if args.megabytes * 10**6 <= IN_MEMORY:
        parser.error(f"--megabytes must be more than {IN_MEMORY // 10**6}: smaller texts are not mapped")
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        tokenizer, *files = write_files(Path(folder), args.megabytes)
        for file in files:
            found = {who: [] for who in CONTENDERS}
            for _ in range(args.turns):
                for who in CONTENDERS:
                    found[who].append(run(who, file, tokenizer))
            same = {(turn["ids"], turn["digest"]) for who in CONTENDERS[:2] for turn in found[who]}
            assert len(same) == 1, f"{file.name}: the ids differ"
            size = {"file": file.name, "megabytes": args.megabytes, "on_disk": file.stat().st_size}
            rows.append(size | {who: summary(turns) for who, turns in found.items()})
            for who, turns in found.items():
                told = summary(turns)
                rate = f"{args.megabytes / told['seconds']:.1f} MB/s"
                memory = f"peak {told['peak'] / 1e6:.0f} MB"
                print(f"{file.name}: {who}: {told['seconds']:.1f} s, {rate}, {memory}", flush=True)
    record.save(args, "records", rows, peers=["datasets", "tokenizers", "pyarrow"], turns=args.turns)


def summary(turns: list[dict]) -> dict:
    """Medians of the turns, and the seconds of each."""
    middle = {key: statistics.median(turn[key] for turn in turns) for key in ("seconds", "peak", "ids")}
    return middle | {"samples": [turn["seconds"] for turn in turns]}


if __name__ == "__main__":
    main()
