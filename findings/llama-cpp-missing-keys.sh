#!/usr/bin/env bash
# llama.cpp (xllamacpp 2026.10.11549) with a GPT-2 file by gguf 0.19.0 that leaves out two optional keys.
# Guess: without tokenizer.ggml.eos_token_id there is no end token, and text goes on to n_predict; without
#   tokenizer.ggml.pre the text is split as GPT-2 does, for tokenizer.ggml.model is "gpt2".
# Seen: the end token is then number 11, whatever that token is: a model that always writes token 11 stops
#   after one ("stop_type": "eos"), one that always writes token 12 writes all five. And the split is another
#   one: the token " 1" (space and digit) is used with pre "gpt-2" and never without it.
# Why it matters: such a file loads and writes. But text breaks off at a common token (in GPT-2's vocabulary
#   11 is the comma), and numbers, punctuation and 's arrive in tokens that the model has hardly seen. Write
#   both keys always.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
export PATH="$folder/venv/bin:$PATH"
pip install -q --no-compile --disable-pip-version-check xllamacpp==2026.10.11549 gguf==0.19.0 numpy==2.4.6
cat >"$folder/look.py" <<'EOF'
import json
import pathlib
import sys
import urllib.request

import gguf
import numpy as np
import xllamacpp

BYTES = [*range(33, 127), *range(161, 173), *range(174, 256)]
LETTERS = [chr(b) for b in BYTES] + [chr(256 + i) for i in range(256 - len(BYTES))]
SPACE_ONE = chr(256 + 32) + "1"


def write(path, always, keys=True):
    """Write a GPT-2 of one layer to path, which gives nearly all probability to the token `always`."""
    n, tokens, rng = 64, [*LETTERS, SPACE_ONE], np.random.default_rng(0)
    writer = gguf.GGUFWriter(path, "gpt2")
    writer.add_context_length(256), writer.add_embedding_length(n), writer.add_block_count(1)
    writer.add_feed_forward_length(4 * n), writer.add_head_count(2), writer.add_layer_norm_eps(1e-5)
    (
        writer.add_tokenizer_model("gpt2"),
        writer.add_token_list(tokens),
        writer.add_token_types([1] * len(tokens)),
    )
    writer.add_token_merges([" ".join(SPACE_ONE)])
    if keys:
        writer.add_tokenizer_pre("gpt-2"), writer.add_eos_token_id(0)
    shapes = {"attn_qkv": (3 * n, n), "attn_output": (n, n), "ffn_up": (4 * n, n), "ffn_down": (n, 4 * n)}
    tensors = {
        "token_embd.weight": (len(tokens), n),
        "position_embd.weight": (256, n),
        "output.weight": (len(tokens), n),
    }
    for name, shape in shapes.items():
        tensors |= {f"blk.0.{name}.weight": shape, f"blk.0.{name}.bias": shape[:1]}
    values = {name: rng.normal(0, 0.02, shape).astype(np.float32) for name, shape in tensors.items()}
    for name in ("blk.0.attn_norm", "blk.0.ffn_norm", "output_norm"):
        values |= {f"{name}.weight": np.ones(n, np.float32), f"{name}.bias": np.zeros(n, np.float32)}
    values["output_norm.bias"][0], values["output.weight"][always, 0] = 50, 10
    for name, value in values.items():
        writer.add_tensor(name, value)
    (
        writer.write_header_to_file(),
        writer.write_kv_data_to_file(),
        writer.write_tensors_to_file(),
        writer.close(),
    )


def answers(**settings):
    """Return how many tokens llama.cpp writes of five, why it stopped, and whether it uses the token ' 1'."""
    path = str(pathlib.Path(__file__).parent / "model.gguf")
    write(path, **settings)
    params = xllamacpp.CommonParams()
    params.model.path, params.n_ctx, params.n_parallel, params.warmup = path, 256, 1, False
    server = xllamacpp.Server(params)

    def ask(page, body):
        data, kind = json.dumps(body).encode(), {"Content-Type": "application/json"}
        with urllib.request.urlopen(
            urllib.request.Request(server.listening_address + page, data, kind), timeout=60
        ) as answer:
            return json.load(answer)

    text = ask("/completion", {"prompt": "abc", "n_predict": 5, "temperature": 0})
    ids = ask("/tokenize", {"content": "a 1"})["tokens"]
    return text["tokens_predicted"], text["stop_type"], len(LETTERS) in ids


seen = [
    answers(always=11),
    answers(always=12),
    answers(always=11, keys=False),
    answers(always=12, keys=False),
]
for (count, why, used), keys, token in zip(
    seen, ("both keys", "both keys", "neither", "neither"), (11, 12, 11, 12)
):
    print(f"{keys}, model writes {token}: {count} of 5 tokens, stopped by {why}; token ' 1' used: {used}")
sys.exit(seen != [(5, "limit", True), (5, "limit", True), (1, "eos", False), (5, "limit", False)])
EOF
if python "$folder/look.py" 2>"$folder/log"; then
    echo "OK: still so"
else
    tail -n 5 "$folder/log"
    echo "CHANGED: not as stated at the head of this file"
    exit 1
fi
