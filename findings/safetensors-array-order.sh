#!/usr/bin/env bash
# safetensors 0.8.0: NumPy arrays whose rows do not lie one after another (a transpose, every second column),
#   saved by safetensors.numpy and loaded again.
# Guess: the same numbers, as with 0.7.0; or an error, as safetensors.torch gives for such tensors.
# Seen: neither. The shape comes back with the numbers in the order in which they lie in memory, of a slice even
#   numbers that were no part of it. 0.7.0 returns what was saved.
# Why it matters: layers of GPT-2 and Llama are transposes of each other, so `save_file({name: w.T})` is how a
#   converter writes them. The file opens everywhere and the model is noise. np.ascontiguousarray(w.T) is right.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cat >"$folder/look.py" <<'EOF'
import sys
from importlib.metadata import version

import numpy as np
from safetensors.numpy import load, save

w = np.arange(6, dtype=np.float32).reshape(2, 3)
right = []
for name, array in (("as it is", w), ("transposed", w.T), ("every second column", w[:, ::2])):
    back = load(save({"w": array}))["w"]
    right.append(np.array_equal(back, array))
    print(f"safetensors {version('safetensors')}, {name}: saved {array.tolist()}, loaded {back.tolist()}")
sys.exit(right != {"0.7.0": [True, True, True], "0.8.0": [True, False, False]}[version("safetensors")])
EOF
for pin in 0.7.0 0.8.0; do
    python3 -m venv "$folder/$pin"
    "$folder/$pin/bin/pip" install -q --no-compile --disable-pip-version-check "safetensors==$pin" numpy==2.4.6
    if ! "$folder/$pin/bin/python" "$folder/look.py"; then
        echo "CHANGED: not as stated at the head of this file"
        exit 1
    fi
done
echo "OK: still so"
