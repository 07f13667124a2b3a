#!/usr/bin/env bash
# datasets 5.2.0: load_dataset("json") of a text column whose texts all look like dates, such as "2024-01-01".
# Guess: they stand in quotes, so they are strings.
# Seen: the column becomes timestamps, and rows hold datetime objects: "2024-01-01" turns into 2024-01-01
#   00:00:00. One other text among them, and all stay strings. features= with Value("string") comes too late: it
#   gives the string "2024-01-01 00:00:00".
# Why it matters: answers of a small set of questions ("when ...?"), or one shard of a larger set, are such a
#   column. A template then writes hours that were not there, the model learns them, and an exact match is
#   never one.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
export PATH="$folder/venv/bin:$PATH"
pip install -q --no-compile --disable-pip-version-check datasets==5.2.0
cat >"$folder/look.py" <<'EOF'
import json
import os
import pathlib
import sys
import tempfile

folder = pathlib.Path(tempfile.mkdtemp(dir=pathlib.Path(__file__).parent))
os.environ["HF_HOME"], os.environ["HF_DATASETS_OFFLINE"] = str(folder / "home"), "1"
import datasets  # noqa: E402  (reads the variables above)

datasets.disable_progress_bars()


def load(answers, **settings):
    """Return the column of a JSON Lines file with these answers."""
    path = folder / f"{len(list(folder.iterdir()))}.jsonl"
    path.write_text("".join(json.dumps({"answer": answer}) + "\n" for answer in answers))
    return datasets.load_dataset("json", data_files=str(path), split="train", **settings)["answer"][:]


dates = ["2024-01-01", "1822-09-07"]
fixed = datasets.Features({"answer": datasets.Value("string")})
seen = load(dates), load([*dates, "in May"]), load(dates, features=fixed)
for name, column in zip(("dates alone", "and another text", "with features="), seen):
    print(f"{name:18} {[repr(value) for value in column]}; written: {[str(value) for value in column]}")
written = [str(value) for value in seen[0]]
same = seen[1] == [*dates, "in May"] and seen[2] == ["2024-01-01 00:00:00", "1822-09-07 00:00:00"]
sys.exit(not (same and written == ["2024-01-01 00:00:00", "1822-09-07 00:00:00"]))
EOF
if python "$folder/look.py"; then
    echo "OK: still so"
else
    echo "CHANGED: not as stated at the head of this file"
    exit 1
fi
