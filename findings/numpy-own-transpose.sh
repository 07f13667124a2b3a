#!/usr/bin/env bash
# numpy 2.4.6 (the wheel with OpenBLAS), AVX2 kernels chosen with OPENBLAS_CORETYPE=Haswell, one thread,
#   float32.
# Guess: x @ x.T and x @ x.copy().T have the same bits: same numbers, same shapes, same layout.
# Seen: they differ in 657 of 4096 elements (x of 64 x 256). NumPy sees that both operands are one array and
#   calls the symmetric product (syrk), which sums in another order than the general one (gemm).
# Why it matters: Muon's orthogonalisation multiplies a gradient by its own transpose. A copy, a cast or an
#   all-gather in between, that changes no number, changes the bits of the training. Kernels of other CPUs
#   differ at other shapes.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
export PATH="$folder/venv/bin:$PATH"
pip install -q --no-compile --disable-pip-version-check numpy==2.4.6
cat >"$folder/look.py" <<'EOF'
import os
import sys

os.environ.update(OPENBLAS_CORETYPE="Haswell", OPENBLAS_NUM_THREADS="1")
import numpy as np

x = np.random.default_rng(0).standard_normal((64, 256), dtype=np.float32)
own, copied = x @ x.T, x @ x.copy().T
print(f"{(own != copied).sum()} of {own.size} elements differ, by at most {abs(own - copied).max():.1e}")
print(
    "repeated, both are the same again:",
    np.array_equal(own, x @ x.T) and np.array_equal(copied, x @ x.copy().T),
)
sys.exit(not (np.any(own != copied) and np.allclose(own, copied, atol=1e-2) and np.array_equal(own, x @ x.T)))
EOF
if python "$folder/look.py"; then
    echo "OK: still so"
else
    echo "CHANGED: not as stated at the head of this file"
    exit 1
fi
