#!/usr/bin/env bash
# torch 2.13.0 on CPUs: nn.MultiheadAttention where a mask leaves a query nothing to look at.
# Guess: NaN, whatever the flags are, as a softmax over minus infinity alone is 0 / 0.
# Seen: need_weights=True gives NaN; need_weights=False, which only drops the weights from what is returned,
#   gives zeros (and the bias of the last product). But the same call, need_weights=False, in eval() under
#   no_grad() takes another path, and gives NaN again. scaled_dot_product_attention gives zeros.
# Why it matters: a batch with a row of padding, or a window that shuts out all keys, trains without a sign of it,
#   and the same model writes NaN as soon as it is used. Keep one key open for each query.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
export PATH="$folder/venv/bin:$PATH"
pip install -q --no-compile --disable-pip-version-check torch==2.13.0 numpy==2.4.6
cat >"$folder/look.py" <<'EOF'
import sys

import torch

torch.manual_seed(0)
x = torch.randn(1, 3, 16)
shut = torch.zeros(3, 3, dtype=torch.bool)
shut[1] = True  # the second query sees nothing


def found(numbers):
    """Return "NaN", "0" or "numbers" for the row of the second query."""
    row = numbers[0, 1]
    return "NaN" if row.isnan().all() else "0" if not row.any() else "numbers"


attention = torch.nn.MultiheadAttention(16, 2, batch_first=True)
seen = {}
for mode in ("train", "eval", "eval, no_grad"):
    attention.train(mode == "train")
    with torch.set_grad_enabled(mode != "eval, no_grad"):
        for weights in (True, False):
            seen[mode, weights] = found(attention(x, x, x, attn_mask=shut, need_weights=weights)[0])
            print(f"{mode}, need_weights={weights}: {seen[mode, weights]}")
q = x[:, None]
direct = found(torch.nn.functional.scaled_dot_product_attention(q, q, q, attn_mask=~shut)[:, 0])
print(f"scaled_dot_product_attention: {direct}")
expected = {(mode, True): "NaN" for mode in ("train", "eval", "eval, no_grad")}
expected |= {("train", False): "0", ("eval", False): "0", ("eval, no_grad", False): "NaN"}
sys.exit((seen, direct) != (expected, "0"))
EOF
if python "$folder/look.py"; then
    echo "OK: still so"
else
    echo "CHANGED: not as stated at the head of this file"
    exit 1
fi
