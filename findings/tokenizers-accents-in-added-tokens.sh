#!/usr/bin/env bash
# tokenizers 0.23.3: an added token with an accent, such as <|usuário|>, beside a ByteLevel BPE as GPT-2 and
#   Llama 3 have.
# Guess: added tokens stand outside of the bytes, so their text comes back from decode as it was added.
# Seen: decode gives '<|usu\ufffdrio|>'. Its decoder takes á for one of the letters that stand for bytes (á is
#   U+E1, so byte 0xE1), and one such byte is no UTF-8. With a character that stands for no byte, such as a
#   space, in the same token ('<|o usuário|>') it comes back whole. encode is right in both cases; special or
#   not makes no difference.
# Why it matters: names of roles and ends of turns in Portuguese, Spanish, French or German are added like
#   this. A chat is encoded well and shown broken, and what is cut at the text of such a token is never cut.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
export PATH="$folder/venv/bin:$PATH"
pip install -q --no-compile --disable-pip-version-check tokenizers==0.23.3
cat >"$folder/look.py" <<'EOF'
import sys

from tokenizers import Tokenizer, decoders, models, pre_tokenizers

alphabet = {letter: i for i, letter in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
tokenizer = Tokenizer(models.BPE(alphabet, []))
tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
tokenizer.decoder = decoders.ByteLevel()
special = ["<|user|>", "<|usuário|>", "<|o usuário|>", "<|Übersetzer|>"]
tokenizer.add_special_tokens(special)
tokenizer.add_tokens(["maçã"])
seen = {}
for text in [*special, "maçã", "a maca é boa"]:
    encoding = tokenizer.encode(text)
    seen[text] = tokenizer.decode(encoding.ids, skip_special_tokens=False)
    print(f"{text!r}: {len(encoding.ids)} token(s), decoded {seen[text]!r}")
broken = {text for text, decoded in seen.items() if decoded != text}
sys.exit(broken != {"<|usuário|>", "<|Übersetzer|>", "maçã"} or "\ufffd" not in seen["maçã"])
EOF
if python "$folder/look.py"; then
    echo "OK: still so"
else
    echo "CHANGED: not as stated at the head of this file"
    exit 1
fi
