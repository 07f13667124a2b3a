#!/usr/bin/env bash
# llama.cpp (xllamacpp 2026.10.11549) on a CPU: a Llama in F32, with a key-value cache of F32.
# Guess: all is float32 then, so log-probabilities agree with NumPy's to about 1e-5.
# Seen: they differ by some thousandths. Flash attention is on by default ("auto"), and rounds to float16 inside,
#   whatever the type of the cache. With flash_attn_type DISABLED they agree within 1e-5.
# Why it matters: whoever checks a converter or another engine against llama.cpp sees a difference a thousand times
#   too large, allows it, and then small mistakes (an epsilon, a base of angles) pass too. Turn it off to compare.
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

PATH, E, H, D, F, V, T = str(pathlib.Path(__file__).parent / "m.gguf"), 64, 4, 16, 128, 64, 24
rng = np.random.default_rng(0)
shapes = {"attn_q": (E, E), "attn_k": (E, E), "attn_v": (E, E), "attn_output": (E, E)}
shapes |= {"ffn_gate": (F, E), "ffn_up": (F, E), "ffn_down": (E, F), "attn_norm": (E,), "ffn_norm": (E,)}
shapes = {f"blk.0.{name}": shape for name, shape in shapes.items()} | {"token_embd": (V, E), "output_norm": (E,)}
w = {name: rng.normal("norm" in name, 0.15, shape).astype(np.float32) for name, shape in shapes.items()}


def write():
    writer = gguf.GGUFWriter(PATH, "llama")
    writer.add_context_length(64), writer.add_embedding_length(E), writer.add_block_count(1)
    writer.add_feed_forward_length(F), writer.add_head_count(H), writer.add_layer_norm_rms_eps(1e-5)
    writer.add_tokenizer_model("gpt2"), writer.add_tokenizer_pre("gpt-2"), writer.add_eos_token_id(0)
    writer.add_token_list([chr(0x100 + i) if i < 33 else chr(i) for i in range(V)])
    writer.add_token_merges(["A B"])
    for name, x in w.items():
        writer.add_tensor(f"{name}.weight", x)
    writer.write_header_to_file(), writer.write_kv_data_to_file(), writer.write_tensors_to_file()
    writer.close()


def exact(ids):
    """Return log-probabilities of the next token, in float64."""

    def rms(x, name):
        return x / np.sqrt(np.square(x).mean(-1, keepdims=True) + 1e-5) * w[name]

    def turn(x):  # (T, H, D): pairs 2i, 2i + 1
        angles = np.arange(len(x))[:, None, None] * 1e4 ** (-np.arange(0, D, 2) / D)
        a, b, cos, sin = x[..., ::2], x[..., 1::2], np.cos(angles), np.sin(angles)
        return np.stack([a * cos - b * sin, a * sin + b * cos], -1).reshape(x.shape)

    x = w["token_embd"][ids].astype(np.float64)
    n = rms(x, "blk.0.attn_norm")
    q, k, v = ((n @ w[f"blk.0.attn_{letter}"].T).reshape(-1, H, D) for letter in "qkv")
    scores = np.einsum("thd,shd->hts", turn(q), turn(k)) / np.sqrt(D)
    scores[:, np.triu(np.ones((len(ids),) * 2, bool), 1)] = -np.inf
    p = np.exp(scores - scores.max(-1, keepdims=True))
    x = x + np.einsum("hts,shd->thd", p / p.sum(-1, keepdims=True), v).reshape(-1, E) @ w["blk.0.attn_output"].T
    n = rms(x, "blk.0.ffn_norm")
    u = n @ w["blk.0.ffn_gate"].T
    x = x + (u / (1 + np.exp(-u)) * (n @ w["blk.0.ffn_up"].T)) @ w["blk.0.ffn_down"].T
    z = (rms(x, "output_norm") @ w["token_embd"].T)[-1]
    return z - np.log(np.exp(z).sum())


def error(ids, flash):
    params = xllamacpp.CommonParams()
    params.model.path, params.n_ctx, params.n_parallel, params.warmup = PATH, 64, 1, False
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = 1
    params.cache_type_k = params.cache_type_v = xllamacpp.ggml_type.GGML_TYPE_F32
    if flash is not None:
        params.flash_attn_type = flash
    server, expected = xllamacpp.Server(params), exact(ids)
    asked = {"prompt": ids.tolist(), "n_predict": 1, "n_probs": 20, "temperature": 0}
    body, kind = json.dumps(asked).encode(), {"Content-Type": "application/json"}
    with urllib.request.urlopen(
        urllib.request.Request(server.listening_address + "/completion", body, kind), timeout=60
    ) as answer:
        found = json.load(answer)["completion_probabilities"][0]["top_logprobs"]
    return max(abs(entry["logprob"] - expected[entry["id"]]) for entry in found)


write()
worst = {}
for name, flash in {
    "as by default": None,
    "without flash attention": xllamacpp.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED,
}.items():
    worst[name] = max(error(rng.integers(1, V, T), flash) for _ in range(5))
    print(f"{name}: log-probabilities differ from exact ones by {worst[name]:.1e}")
default, without = worst.values()
sys.exit(not (default > 2e-4 and without < 2e-5))
EOF
if python "$folder/look.py" 2>"$folder/log"; then
    echo "OK: still so"
else
    tail -n 5 "$folder/log"
    echo "CHANGED: not as stated at the head of this file"
    exit 1
fi
