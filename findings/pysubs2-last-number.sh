#!/usr/bin/env bash
# pysubs2 1.8.1 and srt 3.5.3: an .srt file whose last cue ends in a line that is a number.
# Guess: both read the text as it stands; the number is no more than a line of it.
# Seen: srt does. pysubs2 takes that line for the number of a cue that is not there, and leaves it out: of
#   "The end:" and "7" the 7 is gone. In any cue before, where the next one's own number follows, the line
#   stays, and so does a last cue that is a number alone. Nothing is said.
# Why it matters: films end with years, scores, countdowns and credits. Subtitles that were turned into text for
#   training, or rewritten with other times, lack their last line, and no count of cues shows it.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
export PATH="$folder/venv/bin:$PATH"
pip install -q --no-compile --disable-pip-version-check pysubs2==1.8.1 srt==3.5.3
cat >"$folder/look.py" <<'EOF'
import sys

import pysubs2
import srt

CUES = ("It was the year\n1984", "The end:\n7")
ALONE = ("It was the year", "1984")


def file_of(texts):
    """Return an .srt file of cues of one second each."""
    cues = [f"{n}\n00:00:0{n},000 --> 00:00:0{n},900\n{text}\n" for n, text in enumerate(texts, 1)]
    return "\n".join(cues)


seen = {}
for texts in (CUES, ALONE):
    text = file_of(texts)
    seen[texts] = (
        [event.text.replace("\\N", "\n") for event in pysubs2.SSAFile.from_string(text)],
        [cue.content for cue in srt.parse(text)],
    )
    print("written:", list(texts))
    print("pysubs2:", seen[texts][0])
    print("srt:    ", seen[texts][1])
as_guessed = all(found[1] == list(texts) for texts, found in seen.items())
sys.exit(not (as_guessed and seen[CUES][0] == [CUES[0], "The end:"] and seen[ALONE][0] == list(ALONE)))
EOF
if python "$folder/look.py"; then
    echo "OK: still so"
else
    echo "CHANGED: not as stated at the head of this file"
    exit 1
fi
