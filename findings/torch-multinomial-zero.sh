#!/usr/bin/env bash
# torch 2.13.0 on CPUs: torch.multinomial(p, n) without replacement, where fewer than n entries of p are above
#   0.
# Guess: an error, as NumPy's Generator.choice gives ("Fewer non-zero entries in p than size").
# Seen: it returns the entries that are above 0 and then fills up with entries of probability 0, without a
#   word.
# Why it matters: beam search that samples, and drafts of several tokens, draw n different tokens after top-k,
#   top-p or a grammar cut the rest to 0. With k below n, or where a grammar leaves a single token, forbidden
#   tokens come back as if they had been drawn. Look at p of what was drawn.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
export PATH="$folder/venv/bin:$PATH"
pip install -q --no-compile --disable-pip-version-check torch==2.13.0 numpy==2.4.6
cat >"$folder/look.py" <<'EOF'
import sys

import numpy as np
import torch

p = [0, 0.5, 0, 0.5, 0, 0]
drawn = []
for seed in range(200):
    torch.manual_seed(seed)
    drawn.append(torch.multinomial(torch.tensor(p), 4).tolist())
print("torch draws 4 of", p, "for example:", drawn[:3])
forbidden = [sum(p[i] == 0 for i in row) for row in drawn]
print(f"each of {len(drawn)} draws has {min(forbidden)} to {max(forbidden)} entries of probability 0")
try:
    np.random.default_rng(0).choice(6, 4, replace=False, p=p)
    refused = ""
except ValueError as error:
    refused = str(error)
print("numpy:", refused)
first = all({row[0], row[1]} == {1, 3} for row in drawn)
sys.exit(not (set(forbidden) == {2} and first and refused))
EOF
if python "$folder/look.py"; then
    echo "OK: still so"
else
    echo "CHANGED: not as stated at the head of this file"
    exit 1
fi
