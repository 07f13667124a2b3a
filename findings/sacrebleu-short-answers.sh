#!/usr/bin/env bash
# sacrebleu 2.6.0: corpus_bleu of answers that equal their references, each of three words or fewer.
# Guess: 100, as sentence_bleu gives for each of them, and as one answer of four words has.
# Seen: 0. There is no group of four words, so its precision is 0, and the geometric mean with it. Smoothing,
#   which is on, does not help. One pair of four words among a thousand, also right, brings the score to 100.
#   BLEU(effective_order= True) gives 100.
# Why it matters: short answers, translated words and small test sets are what small GPTs are tested with, and
#   a perfect model gets the score of one that is silent.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
export PATH="$folder/venv/bin:$PATH"
pip install -q --no-compile --disable-pip-version-check sacrebleu==2.6.0
cat >"$folder/look.py" <<'EOF'
import sys

import sacrebleu

short = ["the cat sat", "yes", "in Paris"] * 333
one_longer = [*short, "the cat sat down"]
seen = {
    "corpus_bleu, three words at most": sacrebleu.corpus_bleu(short, [short]).score,
    "sentence_bleu of each": min(sacrebleu.sentence_bleu(text, [text]).score for text in short[:3]),
    "corpus_bleu, and one of four words": sacrebleu.corpus_bleu(one_longer, [one_longer]).score,
    "BLEU(effective_order=True)": sacrebleu.BLEU(effective_order=True).corpus_score(short, [short]).score,
    "corpus_bleu of empty answers": sacrebleu.corpus_bleu([""] * len(short), [short]).score,
}
for name, score in seen.items():
    print(f"{name:36} {score:.1f}")
sys.exit([round(score) for score in seen.values()] != [0, 100, 100, 100, 0])
EOF
if python "$folder/look.py"; then
    echo "OK: still so"
else
    echo "CHANGED: not as stated at the head of this file"
    exit 1
fi
