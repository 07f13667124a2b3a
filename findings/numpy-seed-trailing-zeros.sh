#!/usr/bin/env bash
# numpy 2.4.6: default_rng([seed, worker]), a stream of its own for each worker or each epoch.
# Guess: [7, 0] is other entropy than 7, so worker 0 has a stream of its own as well.
# Seen: zeros at the end do not count up to the fourth place: 7, [7, 0] and [7, 0, 0, 0] give the same
#   numbers. One zero more does: [7, 0, 0, 0, 0] is the first child that SeedSequence(7).spawn() gives. And
#   2**32 + 7 is [7, 1].
# Why it matters: epoch 0 or rank 0 shuffles and drops out with the numbers that drew the initial weights, if
#   those came from default_rng(seed). Nothing looks wrong, for all other ranks differ. Count from 1, or use
#   spawn().
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
export PATH="$folder/venv/bin:$PATH"
pip install -q --no-compile --disable-pip-version-check numpy==2.4.6
cat >"$folder/look.py" <<'EOF'
import sys

import numpy as np


def first(seed):
    """Return the first number of a generator."""
    return np.random.default_rng(seed).random()


child = np.random.SeedSequence(7).spawn(1)[0]
seeds = {"7": 7, "[7, 0]": [7, 0], "[7, 0, 0, 0]": [7, 0, 0, 0], "[7, 0, 0, 0, 0]": [7, 0, 0, 0, 0]}
seeds |= {"SeedSequence(7).spawn(1)[0]": child, "[7, 1]": [7, 1], "2**32 + 7": 2**32 + 7, "[0, 7]": [0, 7]}
seen = {name: first(seed) for name, seed in seeds.items()}
for name, number in seen.items():
    print(f"{name:28} {number}")
a, b, c, d, e, f, g, h = seen.values()
sys.exit(not (a == b == c and d == e != a and f == g != a and h not in (a, d, f)))
EOF
if python "$folder/look.py"; then
    echo "OK: still so"
else
    echo "CHANGED: not as stated at the head of this file"
    exit 1
fi
