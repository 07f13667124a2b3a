#!/usr/bin/env bash
# tokenizers 0.23.3: which characters are numbers, asked of two parts of one pre-tokenizer.
# Guess: one library has one Unicode table, so Digits and \p{N} of a Split agree on every code point.
# Seen: Digits knows the digits of Unicode 17 (13 code points, U+11DE0-11DE9 and U+16FF4-16FF6), \p{N} those of
#   Unicode 16: Digits asks Rust's standard library, Split the regular expressions of Oniguruma.
# Why it matters: SmolLM2's pre-tokenizer is Digits, then GPT-2's pattern; llama.cpp and ports write both as \p{N}.
#   Their ids agree until the compiler or the expression library is updated, and then part on new scripts.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
export PATH="$folder/venv/bin:$PATH"
pip install -q --no-compile --disable-pip-version-check tokenizers==0.23.3
cat >"$folder/look.py" <<'EOF'
import sys

import tokenizers
from tokenizers import Regex, pre_tokenizers

digits = pre_tokenizers.Digits(individual_digits=True)
pattern = pre_tokenizers.Split(Regex(r"\p{N}"), "isolated")
parted = []
for code in range(0x110000):
    if not 0xD800 <= code < 0xE000:
        text = f"a{chr(code)}a"
        if len(digits.pre_tokenize_str(text)) != len(pattern.pre_tokenize_str(text)):
            parted.append(code)
print(f"tokenizers {tokenizers.__version__}: {len(parted)} code points, {', '.join(f'U+{c:X}' for c in parted)}")
sys.exit(parted != [*range(0x11DE0, 0x11DEA), *range(0x16FF4, 0x16FF7)])
EOF
if python "$folder/look.py"; then
    echo "OK: still so"
else
    echo "CHANGED: not as stated at the head of this file"
    exit 1
fi
