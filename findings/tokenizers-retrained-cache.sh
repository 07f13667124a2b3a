#!/usr/bin/env bash
# tokenizers 0.23.3: a BPE tokenizer that has encoded some text is trained again, on other text.
# Guess: training replaces vocabulary and merges, and encode uses them from then on.
# Seen: words encoded before the second training keep their old ids, which now name other tokens: 'sol mar'
#   comes out as 'r m e l u'. The same tokenizer written out and read again gives ['sol', 'mar'].
# Why it matters: a search for a vocabulary size in one process (train, measure on a sample, train again)
#   measures a mixture, and a corpus encoded after it is wrong wherever a word was in the sample. Make a new
#   Tokenizer each time.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
export PATH="$folder/venv/bin:$PATH"
pip install -q --no-compile --disable-pip-version-check tokenizers==0.23.3
cat >"$folder/look.py" <<'EOF'
import sys

from tokenizers import Tokenizer, models, pre_tokenizers, trainers

tokenizer = Tokenizer(models.BPE())
tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
tokenizer.train_from_iterator(["sol sal mar"], trainers.BpeTrainer(vocab_size=8, show_progress=False))
before = tokenizer.encode("sol mar").ids
second = ["luz lua rosa mar sol mel lar sul"] * 3
tokenizer.train_from_iterator(second, trainers.BpeTrainer(vocab_size=30, show_progress=False))
after = tokenizer.encode("sol mar")
fresh = Tokenizer.from_str(tokenizer.to_str()).encode("sol mar")
print("before:          ", before)
print("trained again:   ", after.ids, after.tokens)
print("saved and loaded:", fresh.ids, fresh.tokens)
sys.exit(not (after.ids == before and after.tokens != fresh.tokens and fresh.tokens == ["sol", "mar"]))
EOF
if python "$folder/look.py"; then
    echo "OK: still so"
else
    echo "CHANGED: not as stated at the head of this file"
    exit 1
fi
