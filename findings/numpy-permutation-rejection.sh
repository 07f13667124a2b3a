#!/usr/bin/env bash
# numpy 2.4.6: Generator.permutation and Generator.shuffle, made again in another language or by hand.
# Guess: they swap item i with item integers(0, i, endpoint=True), from the last on, so that one routine for
#   bounded integers makes both: Lemire's multiplication, which came with Generator.
# Seen: the order of the swaps is that, but their numbers are drawn otherwise: the low bits of a 32-bit word, as
#   many as i has, are taken, and drawn again while they are above i. A shuffle by integers() is another one.
# Why it matters: who makes batches in C or JavaScript in NumPy's order, to the number, gets integers() right,
#   and still another order of examples from the first epoch on. Both are uniform, so nothing looks wrong.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
export PATH="$folder/venv/bin:$PATH"
pip install -q --no-compile --disable-pip-version-check numpy==2.4.6
cat >"$folder/look.py" <<'EOF'
import sys

import numpy as np


def shuffled(n, up_to):
    """Return 0..n-1 with each item, from the last on, swapped with number up_to(its place)."""
    items = list(range(n))
    for i in range(n - 1, 0, -1):
        j = up_to(i)
        items[i], items[j] = items[j], items[i]
    return items


def by_integers(seed):
    """Draw as integers() does."""
    rng = np.random.default_rng(seed)
    return lambda i: int(rng.integers(0, i, endpoint=True))


def by_masks(seed):
    """Draw low bits until they are no more than i: of each 64-bit word the low half first."""
    raw = np.random.default_rng(seed).bit_generator.random_raw(1000).tolist()
    words = iter([half for word in raw for half in (word & 0xFFFFFFFF, word >> 32)])

    def up_to(i):
        while (drawn := next(words) & ((1 << i.bit_length()) - 1)) > i:
            pass
        return drawn

    return up_to


sizes, seeds = (5, 12, 100), (0, 1, 2)
cases = [(n, seed, np.random.default_rng(seed).permutation(n).tolist()) for n in sizes for seed in seeds]
masks = sum(shuffled(n, by_masks(seed)) == seen for n, seed, seen in cases)
integers = sum(shuffled(n, by_integers(seed)) == seen for n, seed, seen in cases)
print("permutation(5), seed 0:", cases[0][2])
print("by integers():         ", shuffled(5, by_integers(0)))
print("by masks:              ", shuffled(5, by_masks(0)))
print(f"of {len(cases)} permutations {integers} are those of integers(), {masks} those of masks")
sys.exit(not (masks == len(cases) and integers == 0))
EOF
if python "$folder/look.py"; then
    echo "OK: still so"
else
    echo "CHANGED: not as stated at the head of this file"
    exit 1
fi
