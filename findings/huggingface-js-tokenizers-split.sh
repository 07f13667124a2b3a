#!/usr/bin/env bash
# @huggingface/tokenizers 0.2.0 (npm) and tokenizers 0.23.3: the behaviours of the pre-tokenizer Split.
# Guess: removed, isolated, merged_with_previous, merged_with_next and contiguous give the same tokens, or one
#   that is not there is refused by name.
# Seen: JavaScript knows the first two. The three others are done as isolated is, and isolated with invert loses
#   all that lies between the matches: of "a, b!" the signs and blanks are gone, and no token tells of them.
# Why it matters: a tokenizer.json of such a kind loads in a page and encodes without a word, but to other ids
#   than those that the model learnt. With invert the page reads a shorter text. It needs Node.js.
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

from tokenizers import Regex, Tokenizer, models, pre_tokenizers

TEXT = "a, b!! a"
LETTERS = {character: id for id, character in enumerate("ab,! ")}


def tokenizer_of(pattern, behavior, invert=False):
    """Return a tokenizer whose tokens are pieces of the text: each character, and those that merges make."""
    merges = [("a", ","), ("!", "!"), ("b", "!!"), (" ", "b"), ("a,", " "), (" ", "a")]
    vocabulary = LETTERS | {"".join(pair): len(LETTERS) + id for id, pair in enumerate(merges)}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=merges))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(pattern), behavior, invert=invert)
    return tokenizer


behaviors = ["removed", "isolated", "merged_with_previous", "merged_with_next", "contiguous"]
kinds = {name: tokenizer_of("[,! ]", name) for name in behaviors}
kinds["isolated, inverted"] = tokenizer_of("[ab]+", "isolated", invert=True)
python = [tokenizer.encode(TEXT).tokens for tokenizer in kinds.values()]
cases = json.dumps([[tokenizer.to_str(), TEXT] for tokenizer in kinds.values()])
command = ["node", "encode.mjs"]
done = subprocess.run(command, cwd=sys.argv[1], input=cases, capture_output=True, text=True, check=True)
js = json.loads(done.stdout)
for kind, one, other in zip(kinds, python, js, strict=True):
    print(f"{kind}: Python {one}, JavaScript {other}")
same = [kind for kind, one, other in zip(kinds, python, js, strict=True) if one == other]
whole = ["".join(tokens) == TEXT for tokens in (python[5], js[5])]
sys.exit(not (same == ["removed", "isolated"] and js[2] == js[3] == js[4] == js[1] and whole == [True, False]))
EOF
if python "$folder/look.py" "$folder"; then
    echo "OK: still so"
else
    echo "CHANGED: not as stated at the head of this file"
    exit 1
fi
