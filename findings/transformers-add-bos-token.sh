#!/usr/bin/env bash
# transformers 5.24.0: "add_bos_token": true in the tokenizer_config.json of a GPT-2.
# Guess: it puts a bos token before every text, whether the vocabulary stands in tokenizer.json or in vocab.json
#   and merges.txt, which are two forms of the same.
# Seen: with vocab.json and merges.txt it does. Beside a tokenizer.json it does nothing and says nothing: only
#   that file's own post-processor counts. add_prefix_space in the same file works beside both.
# Why it matters: the same folder gives other ids once somebody adds the faster file to it, or takes it away, and
#   a model that was trained with a token at the start loses it without a word.
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

vocabulary = {"a": 0, "b": 1, chr(288): 2, "<|endoftext|>": 3}  # chr(288) stands for a space
level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
tokenizer = {
    "version": "1.0",
    "truncation": None,
    "padding": None,
    "added_tokens": [],
    "normalizer": None,
    "pre_tokenizer": level,
    "post_processor": None,
    "decoder": level,
    "model": {"type": "BPE", "vocab": vocabulary, "merges": []},
}


def ids(one_file, **settings):
    """Return the ids of "ab" with the vocabulary in tokenizer.json, or in the two older files."""
    folder = pathlib.Path(tempfile.mkdtemp(dir=pathlib.Path(__file__).parent))
    config = {"tokenizer_class": "GPT2Tokenizer", **settings}
    (folder / "config.json").write_text('{"model_type": "gpt2"}')
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    if one_file:
        (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    else:
        (folder / "vocab.json").write_text(json.dumps(vocabulary))
        (folder / "merges.txt").write_text("#version: 0.2\n")
    return AutoTokenizer.from_pretrained(folder)("ab")["input_ids"]


seen = [[ids(one_file, **{key: True}) for one_file in (False, True)] for key in ("add_bos_token", "add_prefix_space")]
for key, (two, one) in zip(("add_bos_token", "add_prefix_space"), seen):
    print(f"{key}: vocab.json and merges.txt {two}, tokenizer.json {one}")
sys.exit(seen != [[[3, 0, 1], [0, 1]], [[2, 0, 1], [2, 0, 1]]])
EOF
if python "$folder/look.py"; then
    echo "OK: still so"
else
    echo "CHANGED: not as stated at the head of this file"
    exit 1
fi
