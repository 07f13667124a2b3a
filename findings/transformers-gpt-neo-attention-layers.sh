#!/usr/bin/env bash
# transformers 5.24.0: attention_types and attention_layers in a GPT-Neo config.json.
# Guess: attention_types is the setting. attention_layers is what follows from it, written down for readers; when
#   the file is read it is made anew.
# Seen: the list in the file wins in silence. A file with attention_types [[["global", "local"], 1]] and
#   attention_layers ["global", "global"] gives a model without any window, and its attention_types go on saying
#   the opposite. Saving writes both, as they are.
# Why it matters: every saved GPT-Neo has both keys. Whoever edits attention_types in it, which is the documented
#   one, changes nothing, and whoever reads that key alone computes other logits for long texts.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
export PATH="$folder/venv/bin:$PATH"
pip install -q --no-compile --disable-pip-version-check transformers==5.24.0
cat >"$folder/look.py" <<'EOF'
import json
import pathlib
import sys
import tempfile

from transformers import GPTNeoConfig

folder = pathlib.Path(tempfile.mkdtemp(dir=pathlib.Path(__file__).parent))
settings = {"model_type": "gpt_neo", "num_layers": 2, "attention_types": [[["global", "local"], 1]]}
seen = []
for more in ({}, {"attention_layers": ["global", "global"]}):
    (folder / "config.json").write_text(json.dumps(settings | more))
    config = GPTNeoConfig.from_pretrained(folder)
    config.save_pretrained(folder)
    saved = json.loads((folder / "config.json").read_text())
    seen.append((config.attention_types, config.attention_layers, saved["attention_layers"]))
    print(f"{more}: attention_types {config.attention_types}, attention_layers {config.attention_layers}")
types = [[["global", "local"], 1]]
expected = [(types, [a, b], [a, b]) for a, b in (("global", "local"), ("global", "global"))]
sys.exit(seen != expected)
EOF
if python "$folder/look.py"; then
    echo "OK: still so"
else
    echo "CHANGED: not as stated at the head of this file"
    exit 1
fi
