"""Measure models on text that they never read: bits per byte, beside Kneser-Ney counted on the same text.

    python models/pt/measure.py FOLDER RUN... [--kneser-ney] [--record FILE]

FOLDER is that of build.py: its train.txt is what was read, its held-out/ what was not. Where NPGPT_DATA is
set, two kinds of text that no source is like are measured too: subtitles (xed-pt) and questions and answers
about the sea and its oil (pira-qa). A byte counts where it is one of the text; that a document ends is
predicted too, and belongs to its last byte.
"""

import argparse
import csv
import json
import math
import os
import sys
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from corpus import held_out
from corpus.errors import SourceError

import npgpt
from npgpt.text.dataset import evaluation_batches
from npgpt.text.kneser_ney import KneserNey
from npgpt.training.evaluation import mean_loss

END = b"\0"  # of a document, for Kneser-Ney: one byte, as it is one token for a model
BATCH = 8  # windows at a time
UNSEEN = ("subtitles", "questions")


def main() -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("folder", type=Path, metavar="FOLDER", help="what build.py was given as -o")
    parser.add_argument("runs", nargs="*", metavar="RUN", help="runs, checkpoints or .gguf files")
    parser.add_argument("--kneser-ney", action="store_true", help="count the training text too, of order 6")
    parser.add_argument("--record", type=Path, metavar="FILE", help="write the figures as JSON")
    options = parser.parse_args()
    try:
        texts = read_texts(options.folder)
        rows = {run: of_model(run, texts) for run in options.runs}
        if options.kneser_ney:
            rows["kneser-ney"] = of_counts((options.folder / "train.txt").read_bytes(), texts)
    except (SourceError, OSError, ValueError) as error:
        print(f"measure.py: {error}", file=sys.stderr)
        sys.exit(2)
    for name, row in rows.items():
        print(name, *(f"{kind} {bits:.4f}" for kind, bits in row.items()), sep="\n  ")
    if options.record:
        options.record.write_text(json.dumps(rows, indent=1, allow_nan=False) + "\n")


def read_texts(folder: Path) -> dict[str, list[bytes]]:
    """Return the documents to measure on, by source, then those of the kinds that no source is like."""
    files = sorted((folder / "held-out").glob("*.txt"))
    if not files:
        raise SourceError(f"{folder}: has no held-out/ as build.py writes it")
    texts = {file.stem: documents(file.read_bytes()) for file in files}
    if data := os.environ.get("NPGPT_DATA"):
        texts |= unseen(Path(data))
    return texts


def documents(text: bytes) -> list[bytes]:
    """Return the documents of a text that held_out.joined() made."""
    return text.split(held_out.SEPARATOR)[:-1]


def unseen(data: Path) -> dict[str, list[bytes]]:
    """Return one document of each kind: every fourth subtitle, and every third question with its answer."""
    lines = dict[str, None]()
    for name in ("xed_pt_binary.tsv", "xed_pt_br_binary.tsv"):
        with (data / "xed-pt" / name).open(encoding="utf-8") as file:
            lines |= dict.fromkeys(row[1] for row in csv.reader(file, delimiter="\t", quoting=csv.QUOTE_NONE))
    with (data / "pira-qa/pira_qa_pt_en.jsonl").open(encoding="utf-8") as file:
        asked = [json.loads(line) for line in file][::3]
    pairs = [line for row in asked for line in (row["pergunta"], row["resposta"])]
    return {
        kind: ["\n".join(rows).encode()] for kind, rows in zip(UNSEEN, (list(lines)[::4], pairs), strict=True)
    }


def of_model(run: str, texts: dict[str, list[bytes]]) -> dict[str, float]:
    """Return the bits per byte of a model on each text, and on all that are held out together."""
    model = npgpt.load(run)
    tokenizer = model.tokenizer
    if tokenizer is None:
        raise ValueError(f"{run}: must have a tokenizer to be measured on text")
    bits = {}
    for kind, found in texts.items():
        ids = [np.append(tokenizer.encode(text + b"\n"), tokenizer.end_of_text) for text in found]
        row = np.concatenate(ids).astype(tokenizer.dtype)
        batches = evaluation_batches(row, model.config.block_size, BATCH, tokenizer.end_of_text, apart=True)
        bits[kind] = mean_loss(model, batches) / math.log(2) * len(row)
    return per_byte(bits, texts)


def of_counts(train: bytes, texts: dict[str, list[bytes]]) -> dict[str, float]:
    """Return the bits per byte of Kneser-Ney, counted on the whole training text, on each text."""
    counted = KneserNey(as_bytes(documents(train)), most=len(train))
    return per_byte(
        {kind: counted.bits(as_bytes(found), b"\n" + END) for kind, found in texts.items()}, texts
    )


def as_bytes(found: Iterable[bytes]) -> bytes:
    """Return documents as Kneser-Ney reads them."""
    return b"".join(text + b"\n" + END for text in found)


def per_byte(bits: dict[str, float], texts: dict[str, list[bytes]]) -> dict[str, float]:
    """Return bits of texts per byte, and those of all that are held out together."""
    sizes = {kind: sum(len(text) + 1 for text in found) for kind, found in texts.items()}
    held = [kind for kind in bits if kind not in UNSEEN]
    rows = {"held-out": sum(bits[kind] for kind in held) / sum(sizes[kind] for kind in held)}
    return rows | {kind: bits[kind] / sizes[kind] for kind in bits}


if __name__ == "__main__":
    main()
