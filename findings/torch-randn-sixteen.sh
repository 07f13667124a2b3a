#!/usr/bin/env bash
# torch 2.13.0 on CPUs: torch.randn(n) after the same seed, for different n.
# Guess: one stream, so the first numbers agree whatever n is, as in NumPy's standard_normal.
# Seen: below 16 numbers another method draws them, and above 16 the last 16 are drawn afresh unless 16
#   divides n: randn(15) and randn(16) share no number; of randn(17) only the first is that of randn(32);
#   randn(20) has the first four of randn(32).
# Why it matters: a bias of 15 channels, or a vocabulary made longer by one, changes the initial weights it
#   shares with the former size. Draw the largest size and cut, when two models are to begin alike.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
export PATH="$folder/venv/bin:$PATH"
pip install -q --no-compile --disable-pip-version-check torch==2.13.0 numpy==2.4.6
cat >"$folder/look.py" <<'EOF'
import sys

import torch


def draw(n):
    """Return n numbers after seed 0."""
    torch.manual_seed(0)
    return torch.randn(n)


whole = draw(32)
agree = {}
for n in (10, 15, 16, 17, 20, 24):
    equal = (draw(n) == whole[:n]).tolist()
    agree[n] = sum(equal) if all(equal[: sum(equal)]) else -1
    print(f"randn({n}): the first {agree[n]} are those of randn(32)")
sys.exit(agree != {10: 0, 15: 0, 16: 16, 17: 1, 20: 4, 24: 8})
EOF
if python "$folder/look.py"; then
    echo "OK: still so"
else
    echo "CHANGED: not as stated at the head of this file"
    exit 1
fi
