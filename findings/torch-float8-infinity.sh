#!/usr/bin/env bash
# torch 2.13.0 on CPUs: numbers too large for a float8, cast with .to().
# Guess: both kinds of float8 do the same: they end at their largest number, or become infinity or NaN.
# Seen: float8_e4m3fn ends at 448, and infinity becomes 448 too. float8_e5m2 becomes infinity. ml_dtypes
#   0.6.0, which JAX and NumPy use, has NaN for float8_e4m3fn, from above 464 on.
# Why it matters: weights that overflowed in training come out of a cast to float8 as plain numbers in torch,
#   so a check for infinity after it finds nothing; and two programs that convert the same checkpoint write
#   other files. Look for infinities, and scale, before the cast.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
export PATH="$folder/venv/bin:$PATH"
pip install -q --no-compile --disable-pip-version-check torch==2.13.0 ml_dtypes==0.6.0 numpy==2.4.6
cat >"$folder/look.py" <<'EOF'
import math
import sys

import ml_dtypes
import numpy as np
import torch

numbers = [448.0, 460.0, 1000.0, 1e6, math.inf]
x, y = torch.tensor(numbers), np.array(numbers, np.float32)
with np.errstate(all="ignore"):
    seen = {
        "torch.float8_e4m3fn": x.to(torch.float8_e4m3fn).float().tolist(),
        "torch.float8_e5m2": x.to(torch.float8_e5m2).float().tolist(),
        "ml_dtypes.float8_e4m3fn": y.astype(ml_dtypes.float8_e4m3fn).astype(np.float32).tolist(),
        "ml_dtypes.float8_e5m2": y.astype(ml_dtypes.float8_e5m2).astype(np.float32).tolist(),
    }
print(f"{'':24} {numbers}")
for name, found in seen.items():
    print(f"{name:24} {found}")
a, b, c, d = (str(found) for found in seen.values())
wide = "[448.0, 448.0, 1024.0, inf, inf]"
sys.exit(not (a == str([448.0] * 5) and b == d == wide and c == "[448.0, 448.0, nan, nan, nan]"))
EOF
if python "$folder/look.py"; then
    echo "OK: still so"
else
    echo "CHANGED: not as stated at the head of this file"
    exit 1
fi
