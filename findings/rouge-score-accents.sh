#!/usr/bin/env bash
# rouge_score 0.1.2, which Hugging Face's evaluate calls too: ROUGE of texts with letters outside of a to z.
# Guess: words are cut at spaces and punctuation; a text that equals its reference has 1.
# Seen: every other letter is a space. Portuguese avó (grandmother) and avô (grandfather) are both "av": 1.0.
#   "não" is two words, and "no o n" has 0.8 of it. Greek, Russian or Chinese texts that equal their
#   references have 0, without a word of warning. RougeScorer(tokenizer=) takes one of your own.
# Why it matters: the scores of a model for Portuguese look right and are those of fragments of words, and
#   another language's comparison of models is a column of zeros.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
export PATH="$folder/venv/bin:$PATH"
pip install -q --no-compile --disable-pip-version-check rouge_score==0.1.2
cat >"$folder/look.py" <<'EOF'
import sys

from rouge_score import rouge_scorer


class Words:
    """Cuts at spaces."""

    def tokenize(self, text):
        """Return the words of text."""
        return text.split()


scorer = rouge_scorer.RougeScorer(["rouge1"])
words = rouge_scorer.RougeScorer(["rouge1"], tokenizer=Words())
pairs = [("avó", "avô"), ("não", "no o n"), ("καλημέρα κόσμε",) * 2, ("今日は",) * 2, ("sun", "sun")]
seen = []
for a, b in pairs:
    seen.append(tuple(round(one.score(a, b)["rouge1"].fmeasure, 2) for one in (scorer, words)))
    print(f"{a} | {b}: {seen[-1][0]}; words cut at spaces: {seen[-1][1]}")
sys.exit(seen != [(1.0, 0.0), (0.8, 0.0), (0.0, 1.0), (0.0, 1.0), (1.0, 1.0)])
EOF
if python "$folder/look.py"; then
    echo "OK: still so"
else
    echo "CHANGED: not as stated at the head of this file"
    exit 1
fi
