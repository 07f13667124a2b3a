#!/usr/bin/env bash
# transformers 5.24.0: generate(do_sample=True) of a GPT-2 whose generation_config says top_k None, top_p
#   None.
# Guess: nothing is cut, for every setting that could cut says None; each of the 200 tokens can be drawn.
# Seen: a top-k of 50 applies all the same. From 200 almost equally likely tokens, 4000 draws find 50
#   different ones; with top_k=0 said in the call they find all 200 (or nearly).
# Why it matters: comparing samples with another engine (llama.cpp, CTranslate2, one's own) at "temperature 1,
#   no cut" compares two distributions, and the configuration that one prints to make sure does not show it.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
export PATH="$folder/venv/bin:$PATH"
pip install -q --no-compile --disable-pip-version-check transformers==5.24.0 torch==2.13.0
cat >"$folder/look.py" <<'EOF'
import sys

import torch
from transformers import GPT2Config, GPT2LMHeadModel

torch.manual_seed(0)
config = GPT2Config(
    vocab_size=200, n_layer=1, n_head=2, n_embd=16, n_positions=8, bos_token_id=0, eos_token_id=0
)
model = GPT2LMHeadModel(config).eval()
with torch.no_grad():
    model.transformer.wte.weight.mul_(1e-3)
prompt = torch.ones(4000, 1, dtype=torch.long)


def different(**settings):
    """Return how many different tokens 4000 draws find."""
    drawn = model.generate(
        prompt, attention_mask=prompt, max_new_tokens=1, do_sample=True, pad_token_id=0, **settings
    )
    return len(set(drawn[:, 1].tolist()))


stated = model.generation_config.top_k, model.generation_config.top_p
plain, open_ = different(), different(top_k=0)
print(f"generation_config: top_k {stated[0]}, top_p {stated[1]}")
print(f"different tokens in 4000 draws: {plain}; with top_k=0: {open_}")
sys.exit(not (stated == (None, None) and plain == 50 and open_ > 190))
EOF
if python "$folder/look.py"; then
    echo "OK: still so"
else
    echo "CHANGED: not as stated at the head of this file"
    exit 1
fi
