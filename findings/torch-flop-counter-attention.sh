#!/usr/bin/env bash
# torch 2.13.0 on CPUs: torch.utils.flop_counter.FlopCounterMode around attention.
# Guess: it counts scaled_dot_product_attention; the list of what it knows names flash attention and its kin.
# Seen: 0, without a word. On CPUs the call goes to an operator of its own,
#   _scaled_dot_product_flash_attention_for_cpu, which is not in the list. Under sdpa_kernel(SDPBackend.MATH)
#   the same call has 4 T T C. Linear layers are counted.
# Why it matters: operations of a training step, and the share of the peak that is made of them, come out too
#   small, the more the longer the context is, and another machine (with a GPU) gives another number for the
#   same model.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
export PATH="$folder/venv/bin:$PATH"
pip install -q --no-compile --disable-pip-version-check torch==2.13.0 numpy==2.4.6
cat >"$folder/look.py" <<'EOF'
import sys

import torch
import torch.nn.functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

T, HEADS, WIDTH = 64, 4, 32
q = torch.randn(1, HEADS, T, WIDTH)


def count(call):
    """Return the operations that the counter sees."""
    with FlopCounterMode(display=False) as counter:
        call()
    return counter.get_total_flops()


def attention():
    """Attend."""
    F.scaled_dot_product_attention(q, q, q)


seen = [count(attention)]
with sdpa_kernel(SDPBackend.MATH):
    seen.append(count(attention))
linear = torch.nn.Linear(128, 128)
seen.append(count(lambda: linear(torch.randn(T, 128))))
wanted = 4 * T * T * HEADS * WIDTH
print(f"attention: {seen[0]}; with SDPBackend.MATH: {seen[1]}; expected: {wanted}")
print(f"a linear layer: {seen[2]}; expected: {2 * T * 128 * 128}")
sys.exit(seen != [0, wanted, 2 * T * 128 * 128])
EOF
if python "$folder/look.py"; then
    echo "OK: still so"
else
    echo "CHANGED: not as stated at the head of this file"
    exit 1
fi
