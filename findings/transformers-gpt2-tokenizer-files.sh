#!/usr/bin/env bash
# transformers 5.24.0: GPT2Tokenizer(vocab_file=..., merges_file=...), the call of the years before version 5.
# Guess: it reads the files as before, or refuses arguments that it no longer knows.
# Seen: both are taken without a word and not read. The tokenizer has one token and encodes every text to [].
#   The arguments are now vocab= and merges=, which take paths too; from_pretrained(folder) works as before.
# Why it matters: an old script trains or scores on empty sequences, and no error says why.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
export PATH="$folder/venv/bin:$PATH"
pip install -q --no-compile --disable-pip-version-check transformers==5.24.0
cat >"$folder/look.py" <<'EOF'
import json
import pathlib
import sys
import tempfile

from transformers import GPT2Tokenizer

folder = pathlib.Path(tempfile.mkdtemp(dir=pathlib.Path(__file__).parent))
(folder / "vocab.json").write_text(json.dumps({"<|endoftext|>": 0, "o": 1, "l": 2, "ol": 3}))
(folder / "merges.txt").write_text("#version: 0.2\no l\n")
vocab, merges = str(folder / "vocab.json"), str(folder / "merges.txt")
seen = {
    "vocab_file=, merges_file=": GPT2Tokenizer(vocab_file=vocab, merges_file=merges),
    "vocab=, merges=": GPT2Tokenizer(vocab=vocab, merges=merges),
    "from_pretrained": GPT2Tokenizer.from_pretrained(str(folder)),
}
for call, tokenizer in seen.items():
    print(f"{call}: {len(tokenizer)} tokens, 'olo' -> {tokenizer('olo').input_ids}")
found = [tokenizer("olo").input_ids for tokenizer in seen.values()]
sys.exit(found != [[], [3, 1], [3, 1]])
EOF
if python "$folder/look.py"; then
    echo "OK: still so"
else
    echo "CHANGED: not as stated at the head of this file"
    exit 1
fi
