#!/usr/bin/env bash
# CTranslate2 4.8.5: a converter hands NumPy arrays to a spec, calls validate() and optimize(quantization="int8").
# Guess: the spec rounds copies; the arrays that were handed over are the caller's and stay as they were.
# Seen: the caller's float32 arrays are multiplied by 127 / the largest number of their row, in place, and stay so.
#   float16 leaves them alone.
# Why it matters: who converts the model that is in use, or writes int8 and then float32 from the same weights, has
#   noise afterwards, without an error. Arrays that may not be written end it with "output array is read-only".
#   A copy of each array for each quantization is right.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q --no-compile --disable-pip-version-check \
    ctranslate2==4.8.5 numpy==2.4.6 setuptools==80.9.0
"$folder/venv/bin/python" - <<'EOF' || { echo "CHANGED: not as stated at the head of this file"; exit 1; }
import sys
from importlib.metadata import version

import numpy as np
from ctranslate2.specs import common_spec, model_spec


class Linear(model_spec.ModelSpec):
    name, revision = "Linear", 1

    def __init__(self):
        self.linear = common_spec.LinearSpec()


seen = {}
for quantization in "int8", "float16":
    weight = np.array([[1, -2], [3, 0.5]], np.float32)
    before, spec = weight.copy(), Linear()
    spec.linear.weight, spec.linear.bias = weight, np.zeros(2, np.float32)
    spec.validate()
    spec.optimize(quantization=quantization)
    seen[quantization] = weight.tolist()
    print(f"ctranslate2 {version('ctranslate2')}, {quantization}: given {before.tolist()}, afterwards {weight.tolist()}")
right = {"int8": [[63.5, -127], [127, 127 / 6]], "float16": before.tolist()}
sys.exit(not all(np.allclose(seen[name], right[name], rtol=1e-5) for name in right))
EOF
echo "OK: still so"
