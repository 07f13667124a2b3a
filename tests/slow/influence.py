"""`python tests/slow/influence.py TEXT OTHER [--seeds 0 1 2]`: `explain --influence` finds its teachers.

A small model learns the beginning of TEXT with a tenth of OTHER, another language, scattered in it. The tenth
of its windows that taught it most to write a passage of OTHER, which it never saw, is taken out, and it
learns anew from the same seed: the passage's loss must rise more than without a random tenth.
"""

import argparse
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))

import npgpt  # noqa: E402
from npgpt.training.influence import influence  # noqa: E402
from tests.slow.common import run  # noqa: E402

BYTES, PIECE, PASSAGES, T = 40_000, 400, 2, 64  # of the text and its pieces; for a seed; tokens of a window
SIZES = ("--n-layer", 2, "--n-embd", 64, "--n-head", 2, "--block-size", T, "--tokenizer", "bytes")
HOW = (*SIZES, "--steps", 400, "--split", 1, "--clean", "none", "--encoding", "bytes", "--dropout", 0)
KEPT = ("--keep", 4, "--save-every", 100, "--eval-every", 100)


def trained(folder: Path, text: bytes, seed: int) -> str:
    """The run of a text, kept at four checkpoints."""
    file = folder.with_suffix(".txt")
    file.write_bytes(text)
    run("train", file, *HOW, *KEPT, "--seed", seed, "--out", folder)
    return str(folder)


def without(text: bytes, starts: list[int]) -> bytes:
    """The text without the windows that begin there."""
    kept = np.ones(len(text), bool)
    for start in starts:
        kept[start : start + T] = False
    return bytes(np.frombuffer(text, np.uint8)[kept])


def mixed(text: bytes, other: bytes) -> bytes:
    """Pieces of the text, each tenth of which is of the other."""
    pieces = range(0, BYTES, PIECE)
    return b"".join((other if at // PIECE % 10 == 9 else text)[at : at + PIECE] for at in pieces)


def loss_of(run: str, passage: str) -> float:
    return -npgpt.load(run).score(passage) / T


def rises(seed: int, out: Path, text: bytes, passages: list[str]) -> Iterator[float]:
    """Yield how much more the loss of each passage rises without its windows than without random ones."""
    starts = np.arange(0, len(text), T)
    n = len(starts) // 10
    chosen = np.random.default_rng(seed).choice(starts, n, replace=False).tolist()
    first = trained(out / f"all{seed}", text, seed)
    random = trained(out / f"random{seed}", without(text, chosen), seed)
    for number, passage in enumerate(passages):
        taken = [lesson.token for lesson in influence(first, passage, n).lessons]
        again = trained(out / f"without{seed}-{number}", without(text, taken), seed)
        whole, at_random, best = (loss_of(one, passage) for one in (first, random, again))
        told = f"loss {whole:.3f}, without {n} random windows {at_random:.3f}, without its {n} {best:.3f}"
        print(f"seed {seed}, {passage[:24]!r}: {told}", flush=True)
        yield best - at_random


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("text", type=Path)
    parser.add_argument("other", type=Path)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    args = parser.parse_args()
    other = args.other.read_bytes()
    text, found = mixed(args.text.read_bytes(), other), []
    with tempfile.TemporaryDirectory() as folder:
        for seed in args.seeds:
            places = np.random.default_rng(seed).integers(BYTES, len(other) - T, PASSAGES).tolist()
            passages = [other[at : at + T].decode("utf-8", "surrogateescape") for at in places]
            found += rises(seed, Path(folder), text, passages)
    mean, error = np.mean(found), np.std(found, ddof=1) / len(found) ** 0.5
    print(f"more than at random by {mean:.3f} nats per byte, standard error {error:.3f}")
    if mean < 3 * error:
        sys.exit("the windows that were found taught it no more than random ones")
    print("the windows that were found taught it what random ones did not")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
