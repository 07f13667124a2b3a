#!/usr/bin/env bash
# transformers 5.24.0: the sizes in a GPT-2 config.json under two names, n_head and num_attention_heads.
# Guess: GPT-2's files say n_head; the other name is for reading in Python, and a file with both is refused.
# Seen: num_attention_heads is read from the file as well, alone or beside n_head, and beside it wins in
#   silence: {"n_head": 12, "num_attention_heads": 4} makes 4 heads, in either order. Saving writes n_head
#   only.
# Why it matters: a reader of one's own that looks for n_head and falls back to GPT-2's 12 reads a valid file
#   with a wrong number of heads. No shape differs (heads share one matrix), so the model loads and writes
#   nonsense. hidden_size, num_hidden_layers and max_position_embeddings have the same double, but there
#   shapes give it away.
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

from transformers import GPT2Config

folder = pathlib.Path(tempfile.mkdtemp(dir=pathlib.Path(__file__).parent))
files = [
    {"num_attention_heads": 4},
    {"n_head": 12, "num_attention_heads": 4},
    {"num_attention_heads": 4, "n_head": 12},
]
heads = []
for settings in files:
    (folder / "config.json").write_text(json.dumps({"model_type": "gpt2", "n_embd": 48, **settings}))
    config = GPT2Config.from_pretrained(str(folder))
    heads.append(config.n_head)
    print(f"{settings}: n_head {config.n_head}")
saved = config.to_dict()
print("saved:", {key: saved[key] for key in ("n_head", "num_attention_heads") if key in saved})
sys.exit(not (heads == [4, 4, 4] and saved["n_head"] == 4 and "num_attention_heads" not in saved))
EOF
if python "$folder/look.py"; then
    echo "OK: still so"
else
    echo "CHANGED: not as stated at the head of this file"
    exit 1
fi
