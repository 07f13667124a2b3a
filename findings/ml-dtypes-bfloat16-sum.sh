#!/usr/bin/env bash
# ml_dtypes 0.6.0 with numpy 2.4.6: sum and mean of 1000 ones in bfloat16, the dtype in which many weights
#   come.
# Guess: 1000 (or 1000 rounded to bfloat16), for NumPy sums float16 in a way that gives 1000.
# Seen: sum() is 256 and mean() is 0.2559: each addition is rounded, and 256 + 1 is 256 in bfloat16. The dot
#   product b @ b gives 1000. np.save of the array loads as |V2, raw bytes, without an error.
# Why it matters: norms, means and checksums of bfloat16 weights read with NumPy come out too small, and still
#   look plausible. Convert to float32 first; for files, save a view of uint16.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
export PATH="$folder/venv/bin:$PATH"
pip install -q --no-compile --disable-pip-version-check ml_dtypes==0.6.0 numpy==2.4.6
cat >"$folder/look.py" <<'EOF'
import io
import sys

import ml_dtypes
import numpy as np

ones = np.ones(1000, ml_dtypes.bfloat16)
half = np.ones(1000, np.float16)
file = io.BytesIO()
np.save(file, ones)
file.seek(0)
loaded = np.load(file)
print(f"bfloat16: sum {ones.sum()}, mean {ones.mean()}, dot {ones @ ones}; float16: sum {half.sum()}")
print(f"saved as {ones.dtype}, loaded as {loaded.dtype.str}")
seen = float(ones.sum()), float(ones @ ones), float(half.sum()), loaded.dtype.str
sys.exit(not (seen == (256.0, 1000.0, 1000.0, "|V2") and ones.mean() < 0.3))
EOF
if python "$folder/look.py"; then
    echo "OK: still so"
else
    echo "CHANGED: not as stated at the head of this file"
    exit 1
fi
