#!/usr/bin/env bash
# tokenizers 0.23.3: BpeTrainer(max_token_length=n) on words of eight letters that always repeat.
# Guess: the longest token has n letters.
# Seen: n - 1, except that a pair is always allowed: 1 -> 2, 2 -> 2, 3 -> 2, 4 -> 3, 5 -> 4, 6 -> 5.
# Why it matters: a vocabulary meant to hold tokens of at most 16 bytes ends at 15, and a trainer of one's own
#   that takes the limit at its word learns another vocabulary from the same text.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
export PATH="$folder/venv/bin:$PATH"
pip install -q --no-compile --disable-pip-version-check tokenizers==0.23.3
cat >"$folder/look.py" <<'EOF'
import sys

from tokenizers import Tokenizer, models, trainers

words = ["".join(chr(97 + (i * step + i * i // 3) % 26) for i in range(8)) for step in range(1, 26)] * 20
longest = {}
for limit in range(1, 7):
    tokenizer = Tokenizer(models.BPE())
    trainer = trainers.BpeTrainer(vocab_size=5000, max_token_length=limit, show_progress=False)
    tokenizer.train_from_iterator(words, trainer)
    longest[limit] = max(map(len, tokenizer.get_vocab()))
    print(f"max_token_length {limit}: the longest token has {longest[limit]} letters")
sys.exit(longest != {1: 2, 2: 2, 3: 2, 4: 3, 5: 4, 6: 5})
EOF
if python "$folder/look.py"; then
    echo "OK: still so"
else
    echo "CHANGED: not as stated at the head of this file"
    exit 1
fi
