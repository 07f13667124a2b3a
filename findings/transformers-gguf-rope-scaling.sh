#!/usr/bin/env bash
# transformers 5.24.0: a Llama whose rotary positions are scaled, in a GGUF file, read with from_pretrained(gguf_file=).
# Guess: the scaling comes with the weights, as llama.cpp reads it, or loading ends with an error: the keys
#   llama.rope.scaling.type and .factor for linear scaling, the tensor rope_freqs.weight for that of Llama 3.1.
# Seen: neither is read, and nothing is said. rope_parameters is {"rope_type": "default", ...}, and the logits are
#   those of other positions. In the same file the base of the angles (rope.freq_base) is read.
# Why it matters: every GGUF file of Llama 3.1, 3.2 and 3.3 has rope_freqs.weight. Whoever tunes or measures such a
#   model by its file has another model, worst at long texts. Give from_pretrained rope_parameters, or read a folder.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
export PATH="$folder/venv/bin:$PATH"
pip install -q --no-compile --disable-pip-version-check transformers==5.24.0 torch==2.13.0 gguf==0.19.0 accelerate==1.15.0
cat >"$folder/look.py" <<'EOF'
import math
import pathlib
import sys

import gguf
import numpy as np
import torch
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

folder, H, D, THETA = pathlib.Path(__file__).parent, 2, 32, 5e4
SCALINGS = {
    "default": {},
    "linear": {"factor": 4.0},
    "llama3": {
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 64,
    },
}
NAMES = {
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}


def factors(factor, low_freq_factor, high_freq_factor, original_max_position_embeddings):
    """Return what divides the speeds of the pairs, as llama.cpp's converter writes it."""
    speeds = THETA ** (-np.arange(0, D, 2) / D)
    turns = original_max_position_embeddings * speeds / (2 * math.pi)
    share = np.clip((turns - low_freq_factor) / (high_freq_factor - low_freq_factor), 0, 1)
    return (1 / (share + (1 - share) / factor)).astype(np.float32)


def write(path, model, kind):
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_context_length(512), writer.add_embedding_length(H * D), writer.add_block_count(1)
    writer.add_feed_forward_length(96), writer.add_head_count(H), writer.add_head_count_kv(H)
    writer.add_layer_norm_rms_eps(1e-5), writer.add_rope_freq_base(THETA), writer.add_rope_dimension_count(D)
    writer.add_tokenizer_model("gpt2"), writer.add_tokenizer_pre("gpt-2"), writer.add_eos_token_id(0)
    writer.add_token_list([chr(65 + i) for i in range(31)] + ["AB"])
    writer.add_token_merges(["A B"])
    if kind == "linear":
        writer.add_rope_scaling_type(gguf.RopeScalingType.LINEAR)
        writer.add_rope_scaling_factor(SCALINGS[kind]["factor"])
    if kind == "llama3":
        writer.add_tensor("rope_freqs.weight", factors(**SCALINGS[kind]))
    for name, w in model.state_dict().items():
        if name == "lm_head.weight":
            continue
        module, _, _ = name.replace("model.layers.0.", "").rpartition(".")
        if "q_proj" in name or "k_proj" in name:  # rows as llama.cpp turns pairs
            w = w.reshape(H, 2, D // 2, -1).transpose(1, 2).reshape(w.shape)
        before = "blk.0." * ("layers" in name)
        writer.add_tensor(f"{before}{NAMES[module]}.weight", w.contiguous().numpy())
    writer.write_header_to_file(), writer.write_kv_data_to_file(), writer.write_tensors_to_file()
    writer.close()


seen = {}
for kind, scaling in SCALINGS.items():
    torch.manual_seed(0)
    sizes = dict(vocab_size=32, num_hidden_layers=1, num_attention_heads=H, hidden_size=H * D, intermediate_size=96)
    turns = {"rope_type": kind, "rope_theta": THETA, **scaling}
    config = LlamaConfig(
        **sizes, max_position_embeddings=512, rms_norm_eps=1e-5, tie_word_embeddings=True, rope_parameters=turns,
        initializer_range=0.3,
    )  # fmt: skip
    model = LlamaForCausalLM(config).eval()
    write(folder / f"{kind}.gguf", model, kind)
    again = AutoModelForCausalLM.from_pretrained(folder, gguf_file=f"{kind}.gguf", dtype=torch.float32).eval()
    ids = torch.arange(300)[None] % 32
    with torch.no_grad():
        error = (again(ids).logits - model(ids).logits).abs().max().item()
    seen[kind] = error, again.config.rope_parameters["rope_type"]
    print(f"{kind}: read as {again.config.rope_parameters}; the logits differ by {error:.1e}")
right = seen["default"][0] < 1e-4 and all(
    seen[kind][0] > 0.1 and seen[kind][1] == "default" for kind in ("linear", "llama3")
)
sys.exit(not right)
EOF
if python "$folder/look.py" 2>"$folder/log"; then
    echo "OK: still so"
else
    tail -n 5 "$folder/log"
    echo "CHANGED: not as stated at the head of this file"
    exit 1
fi
