#!/usr/bin/env bash
# inseq 0.7.1: attribution by occlusion, of a token that speaks against what comes next.
# Guess: a token whose removal makes the target more probable has a negative score, as in captum's Occlusion, which
#   inseq calls and names as its source.
# Seen: inseq returns the sizes alone. No score is below zero, and one that captum gives as -x comes back as x.
# Why it matters: in a picture, what speaks against a word cannot be told from what speaks for it, and averages over
#   texts, or a comparison with gradient times input or integrated gradients, which have signs, are wrong.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
export PATH="$folder/venv/bin:$PATH"
pip install -q --no-compile --disable-pip-version-check inseq==0.7.1 transformers==5.24.0 torch==2.13.0
cat >"$folder/look.py" <<'EOF'
import pathlib
import sys

import inseq
import torch
from captum.attr import Occlusion
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

words = ["<unk>", "a", "b", "c", "d", "e"]
tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>"))
tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
special = {"unk_token": "<unk>", "eos_token": "<unk>", "bos_token": "<unk>", "pad_token": "<unk>"}
where = str(pathlib.Path(__file__).parent / "model")
PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special).save_pretrained(where)
torch.manual_seed(0)
config = GPT2Config(
    vocab_size=6, n_layer=2, n_head=2, n_embd=16, n_positions=16, bos_token_id=0, eos_token_id=0
)
GPT2LMHeadModel(config).eval().save_pretrained(where)
model = inseq.load_model(where, "occlusion", device="cpu")
found = model.attribute("a b c d", "a b c d e", attributed_fn="logit", show_progress=False)
theirs = found.sequence_attributions[0].target_attributions[:4, 0]
plain = model.model


def logit(e):
    return plain(inputs_embeds=e).logits[:, -1, 5]


embed = plain.get_input_embeddings()
e = embed(torch.tensor([[1, 2, 3, 4]])).detach()
nothing = embed(torch.zeros(1, 4, dtype=torch.long)).detach()
signed = Occlusion(logit).attribute(e, sliding_window_shapes=(1, 16), baselines=nothing)[0, :, 0]
print("captum:", [round(x, 4) for x in signed.tolist()])
print("inseq: ", [round(x, 4) for x in theirs.tolist()])
sys.exit(not (signed.min() < -1e-3 and theirs.min() >= 0 and torch.allclose(theirs, signed.abs(), atol=1e-5)))
EOF
if python "$folder/look.py"; then
    echo "OK: still so"
else
    echo "CHANGED: not as stated at the head of this file"
    exit 1
fi
