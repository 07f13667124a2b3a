#!/usr/bin/env bash
# tokenizers 0.23.3: add_tokens of a word that is already a token of a BPE's vocabulary.
# Guess: it has an id, so nothing happens, and add_tokens returns 0.
# Seen: the vocabulary stays as it is, add_tokens returns 1, and the word is now cut out wherever its letters
#   stand, before anything else: "the other mother" was 3 tokens and is 10, o-the-r and m-o-the-r among them.
# Why it matters: a list of a domain's words is added to be safe, and some of them are in the vocabulary
#   already. The model then reads common words in pieces that it was never trained on; no size changes, and
#   loss is all that shows it. Add what token_to_id does not know, or AddedToken(word, single_word=True).
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
export PATH="$folder/venv/bin:$PATH"
pip install -q --no-compile --disable-pip-version-check tokenizers==0.23.3
cat >"$folder/look.py" <<'EOF'
import sys

from tokenizers import Tokenizer, models, pre_tokenizers, trainers

tokenizer = Tokenizer(models.BPE())
tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
alphabet = pre_tokenizers.ByteLevel.alphabet()
trainer = trainers.BpeTrainer(vocab_size=290, initial_alphabet=alphabet, show_progress=False)
tokenizer.train_from_iterator(["the other mother gather the theory"] * 5, trainer)
size, before = tokenizer.get_vocab_size(), tokenizer.encode("the other mother").tokens
added = tokenizer.add_tokens(["the"])
after = tokenizer.encode("the other mother").tokens
print("before:", before)
print("after: ", after)
same = size == tokenizer.get_vocab_size()
print(f"add_tokens returned {added}; the vocabulary has {size} tokens, as before: {same}")
sys.exit(not (same and added == 1 and len(before) == 3 and len(after) == 10 and after.count("the") == 3))
EOF
if python "$folder/look.py"; then
    echo "OK: still so"
else
    echo "CHANGED: not as stated at the head of this file"
    exit 1
fi
