#!/usr/bin/env bash
# tokenizers 0.23.3, a release of 2026: which Unicode three of its parts know.
# Guess: one library has one table, that of a recent Unicode, as Python's unicodedata and ICU have.
# Seen: three. The normalizer NFC has Unicode 9 (2016): a mark of Unicode 10 or later has no combining class there, so
#   marks stay in the order in which they were typed, and letters of Unicode 13 are not composed. \p{N} of a Split has
#   Unicode 16. Digits has Unicode 17, as Rust's standard library: 13 code points more are numbers for it.
# Why it matters: text that Python or ICU normalized before training, or that a test compares with them, gets other ids:
#   Arabic with Quranic marks, Malayalam, Bengali, Telugu. SmolLM2's pre-tokenizer is Digits, then GPT-2's pattern; ports
#   write both as \p{N}, and their ids part on new scripts.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
export PATH="$folder/venv/bin:$PATH"
pip install -q --no-compile --disable-pip-version-check tokenizers==0.23.3
cat >"$folder/look.py" <<'EOF'
import sys
import unicodedata

from tokenizers import Regex, normalizers, pre_tokenizers

CASES = {  # two marks in an order that is not the canonical one, and a letter of two parts; are they changed?
    "Unicode 9: Arabic, small high word ar-rub and fatha": ("\u0628\u08d4\u064e", True),
    "Unicode 10: Malayalam, acute and virama": ("\u0d15\u0301\u0d3b", False),
    "Unicode 11: Bengali, sandhi mark and acute below": ("\u0995\u09fe\u0317", False),
    "Unicode 13: Arabic, small high farsi yeh and fatha": ("\u0628\u08ca\u064e", False),
    "Unicode 13: Dives Akuru, a vowel sign of two parts": ("\U00011935\U00011930", False),
}
nfc, wrong = normalizers.NFC(), []
print("Python's unicodedata has Unicode", unicodedata.unidata_version)
for what, (text, expected) in CASES.items():
    python, theirs = unicodedata.normalize("NFC", text), nfc.normalize_str(text)
    assert python != text  # in Python each of them is changed
    names = [" ".join(f"{ord(c):04X}" for c in one) for one in (text, python, theirs)]
    print("NFC, {}: {} -> Python {}, tokenizers {}".format(what, *names))
    if (python == theirs) != expected:
        wrong.append(what)
digits = pre_tokenizers.Digits(individual_digits=True)
pattern = pre_tokenizers.Split(Regex(r"\p{N}"), "isolated")
parted = []
for code in range(0x110000):
    if not 0xD800 <= code < 0xE000:
        text = f"a{chr(code)}a"
        if len(digits.pre_tokenize_str(text)) != len(pattern.pre_tokenize_str(text)):
            parted.append(code)
print("numbers for Digits, not for \\p{N}:", " ".join(f"{code:04X}" for code in parted))
if parted != [*range(0x11DE0, 0x11DEA), *range(0x16FF4, 0x16FF7)]:
    wrong.append("Digits")
sys.exit(bool(wrong))
EOF
if python "$folder/look.py"; then
    echo "OK: still so"
else
    echo "CHANGED: not as stated at the head of this file"
    exit 1
fi
