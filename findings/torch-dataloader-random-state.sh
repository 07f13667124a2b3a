#!/usr/bin/env bash
# torch 2.13.0: going through a DataLoader that has shuffle=False and num_workers=0, as one does to measure a
#   model.
# Guess: nothing there is random, so torch's random state stays as it is.
# Seen: each loop over it draws a number from the global generator, a seed for workers that there are none of.
#   What dropout or sampling draws afterwards is different. DataLoader(generator=torch.Generator()) draws from
#   that one instead.
# Why it matters: a run that measures its loss every 100 steps trains to other weights than one that does it
#   every 200, or never, with the same seed, in eval() and no_grad(). A run that is resumed without the first
#   measurement differs too.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
export PATH="$folder/venv/bin:$PATH"
pip install -q --no-compile --disable-pip-version-check torch==2.13.0 numpy==2.4.6
cat >"$folder/look.py" <<'EOF'
import sys

import torch
from torch.utils.data import DataLoader

data = list(range(10))


def after(**settings):
    """Return what is drawn after seed 0 and one loop over a loader."""
    torch.manual_seed(0)
    if settings:
        for _ in DataLoader(data, batch_size=5, shuffle=False, num_workers=0, **settings):
            pass
    return torch.rand(2).tolist()


seen = after(), after(drop_last=False), after(generator=torch.Generator())
names = "no loader", "after one loop", "after one loop, generator=torch.Generator()"
for name, numbers in zip(names, seen):
    print(f"{name:45} {numbers}")
sys.exit(not (seen[0] == seen[2] != seen[1]))
EOF
if python "$folder/look.py"; then
    echo "OK: still so"
else
    echo "CHANGED: not as stated at the head of this file"
    exit 1
fi
