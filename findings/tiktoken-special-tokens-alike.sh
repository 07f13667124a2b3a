#!/usr/bin/env bash
# tiktoken 0.14.0 and tokenizers 0.23.3: special tokens of which one begins as another does.
# Guess: the longest that fits wins, in both, whatever the order in which they were given.
# Seen: in tokenizers it does. In tiktoken the one wins that comes first in an order of its own, which follows
#   neither length nor ids: of <|a|> and <|a|>b the short one, so that the long one never comes, and of <|x|>
#   and <|x|>y, and of others, now the one and now the other.
# Why it matters: a vocabulary whose special tokens are extended, as <|user|> by <|user|>:, loads in both and
#   has the same ids in both, but a chat becomes other ids: the longer token may be one that no text ever makes.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
export PATH="$folder/venv/bin:$PATH"
pip install -q --no-compile --disable-pip-version-check tiktoken==0.14.0 tokenizers==0.23.3
cat >"$folder/look.py" <<'EOF'
import string
import sys

import tiktoken
from tokenizers import Tokenizer, models

BYTES = {bytes([i]): i for i in range(256)}


def by_tiktoken(short, long):
    """Return whether the longer of two special tokens is found where it stands."""
    special = {short: 256, long: 257}
    encoding = tiktoken.Encoding("two", pat_str=r"\S+|\s+", mergeable_ranks=BYTES, special_tokens=special)
    return encoding.encode(long, allowed_special="all") == [257]


def by_tokenizers(short, long):
    """Return the same of tokenizers."""
    tokenizer = Tokenizer(models.BPE(vocab={"a": 0}, merges=[]))
    tokenizer.add_special_tokens([short, long])
    return tokenizer.encode(long).tokens == [long]


pairs = [(f"<|{letter}|>", f"<|{letter}|>{more}") for letter in string.ascii_lowercase for more in "b:"]
found = {find.__name__: sum(find(*pair) for pair in pairs) for find in (by_tiktoken, by_tokenizers)}
print("<|a|>b in tiktoken:", "found" if by_tiktoken("<|a|>", "<|a|>b") else "<|a|>, then b")
print(f"of {len(pairs)} pairs the longer one is found: {found}")
sys.exit(not (0 < found["by_tiktoken"] < len(pairs) and found["by_tokenizers"] == len(pairs)))
EOF
if python "$folder/look.py"; then
    echo "OK: still so"
else
    echo "CHANGED: not as stated at the head of this file"
    exit 1
fi
