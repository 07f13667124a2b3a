#!/usr/bin/env bash
# peft 0.21.2: add_weighted_adapter(..., combination_type="linear") of two LoRA adapters, 0.5 and 0.5.
# Guess: the new adapter's change of a weight is half of the one's and half of the other's.
# Seen: the matrices A and B are mixed, each by the root of the weight, and multiplied afterwards, so A of the
#   one meets B of the other. Half and half of the same adapter is twice that adapter. Of two that have
#   nothing to do with each other, the result is off by as much as the wanted change is large. "cat" gives the
#   weighted sum, within rounding.
# Why it matters: "linear" is the name that one picks, and shapes and ranks are right. The mixture writes text
#   of another style, which is taken for what mixing does.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
export PATH="$folder/venv/bin:$PATH"
pip install -q --no-compile --disable-pip-version-check peft==0.21.2 transformers==5.24.0 torch==2.13.0
cat >"$folder/look.py" <<'EOF'
import sys

import torch
from peft import LoraConfig, get_peft_model
from torch import nn

torch.manual_seed(0)
config = LoraConfig(r=4, target_modules=["0"], init_lora_weights=False)
model = get_peft_model(nn.Sequential(nn.Linear(64, 64)), config, "one")
model.add_adapter("two", config)


def delta(name):
    """Return what an adapter adds to the weight."""
    return model.base_model.model[0].get_delta_weight(name)


def mixed(kind, names):
    """Return the ratio of norms, and the error, of half and half of two adapters."""
    new = f"{kind} {' '.join(names)}".replace(" ", "-")
    model.add_weighted_adapter(list(names), [0.5, 0.5], new, combination_type=kind)
    wanted = 0.5 * delta(names[0]) + 0.5 * delta(names[1])
    return (delta(new).norm() / wanted.norm()).item(), ((delta(new) - wanted).norm() / wanted.norm()).item()


model.add_adapter("again", config)
layer = model.base_model.model[0]
with torch.no_grad():
    layer.lora_A["again"].weight.copy_(layer.lora_A["one"].weight)
    layer.lora_B["again"].weight.copy_(layer.lora_B["one"].weight)
seen = {}
for kind in ("linear", "cat"):
    for names in (("one", "again"), ("one", "two")):
        seen[kind, names[1]] = ratio, error = mixed(kind, names)
        print(f"{kind}, half {names[0]} and half {names[1]}: {ratio:.3f} of its size, error {error:.3f}")
doubled = abs(seen["linear", "again"][0] - 2) < 1e-4 and seen["linear", "two"][1] > 0.5
sys.exit(not (doubled and max(error for (kind, _), (_, error) in seen.items() if kind == "cat") < 1e-4))
EOF
if python "$folder/look.py"; then
    echo "OK: still so"
else
    echo "CHANGED: not as stated at the head of this file"
    exit 1
fi
