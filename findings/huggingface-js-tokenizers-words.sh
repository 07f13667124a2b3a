#!/usr/bin/env bash
# @huggingface/tokenizers 0.2.0 (npm) and tokenizers 0.23.3: one tokenizer.json with the pre-tokenizer Whitespace.
# Guess: the same tokens; a word is letters and digits of any language in both.
# Seen: in JavaScript a word ends where a letter has an accent, so that no merge crosses it: "coração", one token
#   in Python, comes as six. Words without accents have the same tokens, and nothing is said.
# Why it matters: Whitespace is what tutorials train a BPE with. A model of Portuguese that learnt so is asked
#   other tokens by a page that reads its tokenizer.json with this library, as transformers.js does: most words
#   with an accent come in pieces that it never saw. An English example shows nothing. It needs Node.js.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
export PATH="$folder/venv/bin:$PATH"
pip install -q --no-compile --disable-pip-version-check tokenizers==0.23.3
npm install --silent --no-fund --no-audit --prefix "$folder" @huggingface/tokenizers@0.2.0 >/dev/null
cat >"$folder/encode.mjs" <<'EOF'
import { readFileSync } from "fs";
import { Tokenizer } from "@huggingface/tokenizers";
const cases = JSON.parse(readFileSync(0));
console.log(JSON.stringify(cases.map(([file, text]) => new Tokenizer(JSON.parse(file), {}).encode(text).tokens)));
EOF
cat >"$folder/look.py" <<'EOF'
import json
import subprocess
import sys

from tokenizers import Tokenizer, models, pre_tokenizers, trainers

TEXT = "Ação, coração e manhã: a ação do coração é de manhã. The sea and the sun. " * 20
tokenizer = Tokenizer(models.BPE(unk_token="<unk>"))
tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
tokenizer.train_from_iterator(
    [TEXT], trainers.BpeTrainer(vocab_size=200, special_tokens=["<unk>"], show_progress=False)
)
texts = ["coração", "Ação", "manhã", "The sea and the sun"]
python = [tokenizer.encode(text).tokens for text in texts]
cases = json.dumps([[tokenizer.to_str(), text] for text in texts])
command = ["node", "encode.mjs"]
done = subprocess.run(command, cwd=sys.argv[1], input=cases, capture_output=True, text=True, check=True)
js = json.loads(done.stdout)
for text, one, other in zip(texts, python, js, strict=True):
    print(f"{text}: Python {one}, JavaScript {other}")
sys.exit(
    not (
        python[:3] == [["coração"], ["Ação"], ["manhã"]]
        and js[0][-3:] == ["ç", "ã", "o"]
        and python[3] == js[3]
        and all(one != other for one, other in zip(python[:3], js[:3], strict=True))
    )
)
EOF
if python "$folder/look.py" "$folder"; then
    echo "OK: still so"
else
    echo "CHANGED: not as stated at the head of this file"
    exit 1
fi
