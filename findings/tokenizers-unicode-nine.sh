#!/usr/bin/env bash
# tokenizers 0.23.3, a release of 2026: its normalizer NFC, on characters that are younger than 2016.
# Guess: the tables are those of a recent Unicode, as in Python's unicodedata or ICU.
# Seen: they are those of Unicode 9 (2016). A mark of Unicode 10 or later has no combining class there, so marks
#   stay in the order in which they were typed, and letters of Unicode 13 are not composed. Marks of Unicode 9 are
#   put in order.
# Why it matters: text that was normalized by Python or ICU before training, or compared with them in a test, gets
#   other ids from the tokenizer: Arabic with Quranic marks, Malayalam, Bengali, Telugu. Normalize in one place.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
export PATH="$folder/venv/bin:$PATH"
pip install -q --no-compile --disable-pip-version-check tokenizers==0.23.3
cat >"$folder/look.py" <<'EOF'
import sys
import unicodedata

from tokenizers import normalizers

CASES = {  # two marks in an order that is not the canonical one, and a letter of two parts
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
    print("{}: {} -> Python {}, tokenizers {}".format(what, *names))
    if (python == theirs) != expected:
        wrong.append(what)
sys.exit(bool(wrong))
EOF
if python "$folder/look.py"; then
    echo "OK: still so"
else
    echo "CHANGED: not as stated at the head of this file"
    exit 1
fi
