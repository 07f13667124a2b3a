#!/usr/bin/env bash
# safetensors 0.8.0: the same tensors with the same metadata, saved again and again in one process.
# Guess: the same bytes; the order of the tensors in a file is fixed, and so is the header's.
# Seen: with two metadata keys or more, their order in the header changes from save to save, and the file's
#   hash too. 20 saves with six keys: about 20 different files. With one key: one file. The tensors are equal
#   in all of them.
# Why it matters: a hash of the file cannot show that two trainings ended in the same bits, and caches and
#   deduplicating stores see a new model each time. Hash the tensors, or keep to one metadata key (JSON inside
#   it).
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
export PATH="$folder/venv/bin:$PATH"
pip install -q --no-compile --disable-pip-version-check safetensors==0.8.0 numpy==2.4.6
cat >"$folder/look.py" <<'EOF'
import hashlib
import sys

import numpy as np
from safetensors.numpy import load, save

weights = {"w": np.arange(3, dtype=np.float32)}
files = {}
for keys in ("a", "abcdef"):
    files[keys] = [save(weights, metadata={key: key for key in keys}) for _ in range(20)]
    different = len({hashlib.sha256(file).hexdigest() for file in files[keys]})
    print(f"{len(keys)} metadata keys, 20 saves: {different} different files")
equal = all(np.array_equal(load(file)["w"], weights["w"]) for file in files["abcdef"])
print("tensors equal:", equal)
sys.exit(not (len(set(files["a"])) == 1 and len(set(files["abcdef"])) > 1 and equal))
EOF
if python "$folder/look.py"; then
    echo "OK: still so"
else
    echo "CHANGED: not as stated at the head of this file"
    exit 1
fi
