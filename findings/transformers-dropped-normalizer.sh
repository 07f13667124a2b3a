#!/usr/bin/env bash
# transformers 5.24.0: a GPT-2 folder whose tokenizer.json has a normalizer (NFC), loaded by GPT2Tokenizer.
# Guess: from_pretrained reads the whole tokenizer.json, as the `tokenizers` library and version 4's fast class did.
# Seen: vocabulary and merges are read and the normalizer is dropped without a word; AutoTokenizer does the same
#   where tokenizer_config.json names GPT2Tokenizer or GPT2TokenizerFast. With PreTrainedTokenizerFast it stays.
# Why it matters: a model that learnt NFC gets other ids for the same letters, and only its answers are worse.
#   Whoever exports a GPT-2 with a normalizer must name the general class, not the model's own.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
export PATH="$folder/venv/bin:$PATH"
pip install -q --no-compile --disable-pip-version-check transformers==5.24.0 tokenizers==0.23.3
cat >"$folder/look.py" <<'EOF'
import json
import pathlib
import sys
import tempfile

from tokenizers import ByteLevelBPETokenizer, Tokenizer, normalizers
from transformers import AutoTokenizer, GPT2Tokenizer

folder = pathlib.Path(tempfile.mkdtemp(dir=pathlib.Path(__file__).parent))
trained = ByteLevelBPETokenizer()
trained.train_from_iterator(["o café é do mar"] * 4, 300, special_tokens=["<|endoftext|>"], show_progress=False)
trained._tokenizer.normalizer = normalizers.NFC()
trained.save(str(folder / "tokenizer.json"))
composed, decomposed = "caf\u00e9", "cafe\u0301"


def same(name):
    config = {"tokenizer_class": name, "eos_token": "<|endoftext|>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    tokenizer = AutoTokenizer.from_pretrained(folder)
    return tokenizer(composed).input_ids == tokenizer(decomposed).input_ids


file = Tokenizer.from_file(str(folder / "tokenizer.json"))
direct = GPT2Tokenizer.from_pretrained(folder)
seen = {"tokenizers": file.encode(composed).ids == file.encode(decomposed).ids}
seen["GPT2Tokenizer.from_pretrained"] = direct(composed).input_ids == direct(decomposed).input_ids
for name in ("GPT2Tokenizer", "GPT2TokenizerFast", "PreTrainedTokenizerFast"):
    seen[f"AutoTokenizer, {name}"] = same(name)
for how, equal in seen.items():
    print(f"{how}: ids of NFC and NFD are {'equal' if equal else 'different'}")
sys.exit([*seen.values()] != [True, False, False, False, True])
EOF
if python "$folder/look.py"; then
    echo "OK: still so"
else
    echo "CHANGED: not as stated at the head of this file"
    exit 1
fi
