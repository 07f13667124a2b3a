#!/usr/bin/env bash
# transformers 5.24.0: an eos_token in tokenizer_config.json and another in special_tokens_map.json.
# Guess: special_tokens_map.json is a leftover of version 4, which newer versions do not write; where the two
#   differ, tokenizer_config.json counts.
# Seen: special_tokens_map.json wins in silence. But where tokenizer_config.json has added_tokens_decoder, if only
#   an empty one, it is not looked at, and neither is added_tokens.json.
# Why it matters: whoever edits eos_token in tokenizer_config.json of an older folder changes nothing, and a reader
#   of one's own that prefers that file ends its texts at another token. One unrelated key turns this around.
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

from transformers import AutoTokenizer

vocabulary = {"a": 0, "b": 1, "<config>": 2, "<map>": 3, "<|endoftext|>": 4}


def eos_token(**more):
    """Return the eos_token of a folder whose two files name two, with more keys in tokenizer_config.json."""
    folder = pathlib.Path(tempfile.mkdtemp(dir=pathlib.Path(__file__).parent))
    config = {"tokenizer_class": "GPT2Tokenizer", "eos_token": "<config>", **more}
    files = {
        "config.json": {"model_type": "gpt2"},
        "vocab.json": vocabulary,
        "tokenizer_config.json": config,
        "special_tokens_map.json": {"eos_token": "<map>"},
    }
    for name, value in files.items():
        (folder / name).write_text(json.dumps(value))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    return AutoTokenizer.from_pretrained(folder).eos_token


seen = eos_token(), eos_token(added_tokens_decoder={})
print("both files:", seen[0])
print("both files, and an empty added_tokens_decoder:", seen[1])
sys.exit(seen != ("<map>", "<config>"))
EOF
if python "$folder/look.py"; then
    echo "OK: still so"
else
    echo "CHANGED: not as stated at the head of this file"
    exit 1
fi
