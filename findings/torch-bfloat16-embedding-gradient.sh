#!/usr/bin/env bash
# torch 2.13.0 on CPUs: gradients of a model in bfloat16, of parameters that 1000 tokens add 1 to.
# Guess: all are 1000: sums inside one backward pass are held in float32, as products of matrices are.
# Seen: nn.Linear's weight and bias and nn.RMSNorm's weight have 1000. nn.Embedding's row has 256, and so has
#   nn.LayerNorm's bias: each addition is rounded to bfloat16, where 256 + 1 is 256. LayerNorm's depends on
#   the number of threads (512 with two). In float16 all have 1000.
# Why it matters: a batch holds a common token, such as a space or a comma, far more than 256 times. Its
#   gradient is too small, beside right ones, and more tokens in a batch do not make it grow. Small models in
#   pure bfloat16 on a CPU learn worse without a sign of it. Weights in float32 with autocast do not have it.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
export PATH="$folder/venv/bin:$PATH"
pip install -q --no-compile --disable-pip-version-check torch==2.13.0 numpy==2.4.6
cat >"$folder/look.py" <<'EOF'
import sys

import torch
from torch import nn

torch.set_num_threads(1)


def gradients(dtype):
    """Return one number of each gradient; each of 1000 tokens adds 1 to it."""
    embedding, linear = nn.Embedding(10, 4).to(dtype), nn.Linear(4, 4).to(dtype)
    layer_norm, rms_norm = nn.LayerNorm(4).to(dtype), nn.RMSNorm(4).to(dtype)
    ones = torch.ones(1000, 4, dtype=dtype)
    embedding(torch.full((1000,), 3)).sum().backward()
    for layer in (linear, layer_norm, rms_norm):
        layer(ones).sum().backward()
    return {
        "Embedding": embedding.weight.grad[3, 0].item(),
        "LayerNorm, bias": layer_norm.bias.grad[0].item(),
        "RMSNorm, weight": rms_norm.weight.grad[0].item(),
        "Linear, weight": linear.weight.grad[0, 0].item(),
        "Linear, bias": linear.bias.grad[0].item(),
    }


seen = {dtype: gradients(dtype) for dtype in (torch.bfloat16, torch.float16, torch.float32)}
for dtype, found in seen.items():
    print(dtype, found)
right = all(abs(n - 1000) < 0.1 for dtype in (torch.float16, torch.float32) for n in seen[dtype].values())
sys.exit(not right or list(seen[torch.bfloat16].values()) != [256, 256, 1000, 1000, 1000])
EOF
if python "$folder/look.py"; then
    echo "OK: still so"
else
    echo "CHANGED: not as stated at the head of this file"
    exit 1
fi
