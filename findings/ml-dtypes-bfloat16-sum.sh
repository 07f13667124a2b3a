#!/usr/bin/env bash
# ml_dtypes 0.6.0 with numpy 2.4.6: sums and means of bfloat16 arrays, the type that JAX, safetensors readers
#   and others use where NumPy has none.
# Guess: NumPy adds in pairs, or in float32 as it does for the mean of float16; 1000 ones make 1000.
# Seen: sum() is 256 and mean() 0.2559, with or without axis: each step is rounded to bfloat16, and 256 + 1 is
#   256 there. cumsum and var have it too. A product of matrices (x @ y) of the same arrays is right, 1000. So
#   is sum(dtype=np.float32).
# Why it matters: the mean of a weight, of a layer's outputs or of losses looks plausible for small arrays and
#   is a quarter of the truth, or less, for large ones; two ways to write the same sum differ four times.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
export PATH="$folder/venv/bin:$PATH"
pip install -q --no-compile --disable-pip-version-check ml_dtypes==0.6.0 numpy==2.4.6
cat >"$folder/look.py" <<'EOF'
import sys

import ml_dtypes
import numpy as np

x = np.ones(1000, ml_dtypes.bfloat16)
seen = {
    "sum()": x.sum(),
    "sum(axis=0) of (1000, 3)": np.ones((1000, 3), ml_dtypes.bfloat16).sum(axis=0)[0],
    "mean()": x.mean(),
    "cumsum()[-1]": x.cumsum()[-1],
    "x @ x": x @ x,
    "sum(dtype=np.float32)": x.sum(dtype=np.float32),
    "float16, sum()": np.ones(1000, np.float16).sum(),
    "float16, mean()": np.ones(1000, np.float16).mean(),
}
for name, number in seen.items():
    print(f"{name:26} {float(number)}")
sys.exit([float(number) for number in seen.values()] != [256, 256, 0.255859375, 256, 1000, 1000, 1000, 1])
EOF
if python "$folder/look.py"; then
    echo "OK: still so"
else
    echo "CHANGED: not as stated at the head of this file"
    exit 1
fi
