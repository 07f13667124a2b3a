#!/usr/bin/env bash
# tokenizers 0.23.3: BpeTrainer(special_tokens=["<|endoftext|>"]) on a text that has <|endoftext|> between
#   documents.
# Guess: it is a special token, so the trainer cuts the text there, as encode does, and learns from what is
#   between.
# Seen: the trainer reads it as text. Of 20 learnt tokens 9 come from it, up to 'endoftext', with the merges
#   that lead there. encode never uses them: it cuts at the special token before.
# Why it matters: files of stories for small GPTs (TinyStories) have it between all documents, where it is one
#   of the most frequent words. A small vocabulary loses places to it, and the model has rows that are never
#   trained. Split the text at it before training.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
export PATH="$folder/venv/bin:$PATH"
pip install -q --no-compile --disable-pip-version-check tokenizers==0.23.3
cat >"$folder/look.py" <<'EOF'
import sys

from tokenizers import Tokenizer, models, pre_tokenizers, trainers

END = "<|endoftext|>"


def learnt(texts):
    """Return the tokens that training adds to the 256 bytes and the special token."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=257 + 20, special_tokens=[END], initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(texts, trainer)
    assert tokenizer.encode(END).ids == [tokenizer.token_to_id(END)]
    return [token for token, i in sorted(tokenizer.get_vocab().items(), key=lambda pair: pair[1]) if i >= 257]


text = "the sun and the moon" + END + "the sea and the sand" + END + "a song of the sea" + END
whole, parts = learnt([text * 5]), learnt(text.split(END) * 5)
print("text as it is:      ", whole)
print("text cut at the end:", parts)
pieces = [token for token in whole if token in END and token not in parts]
print(len(pieces), "of", len(whole), "come from", END, pieces)
sys.exit("endoftext" not in whole or "endoftext" in parts or len(pieces) != 9)
EOF
if python "$folder/look.py"; then
    echo "OK: still so"
else
    echo "CHANGED: not as stated at the head of this file"
    exit 1
fi
