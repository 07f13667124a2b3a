#!/usr/bin/env bash
# transformers 5.24.0: a GPT-2 in a GGUF file with a context other than 1024, read with from_pretrained(gguf_file=).
# Guess: the file says gpt2.context_length, and the configuration has it, as it has layers, heads and channels.
# Seen: context_length becomes n_ctx, a key that version 5's GPT-2 does not use. n_positions stays 1024, and loading
#   stops over the shape of wpe.weight. from_pretrained(..., n_positions=64) loads it, and gives the right logits.
# Why it matters: every small GPT-2 that llama.cpp reads seems broken in Transformers. And a configuration read alone
#   (AutoConfig) says 1024, without an error, to whoever cuts prompts by it.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
export PATH="$folder/venv/bin:$PATH"
pip install -q --no-compile --disable-pip-version-check transformers==5.24.0 torch==2.13.0 gguf==0.19.0 accelerate==1.15.0
cat >"$folder/look.py" <<'EOF'
import pathlib
import sys

import gguf
import torch
from transformers import AutoConfig, AutoModelForCausalLM, GPT2Config, GPT2LMHeadModel

folder = pathlib.Path(__file__).parent
torch.manual_seed(0)
config = GPT2Config(vocab_size=32, n_layer=1, n_head=2, n_embd=32, n_positions=64, bos_token_id=0, eos_token_id=0)
model = GPT2LMHeadModel(config).eval()
writer = gguf.GGUFWriter(folder / "m.gguf", "gpt2")
writer.add_context_length(64)
writer.add_embedding_length(32)
writer.add_block_count(1)
writer.add_feed_forward_length(128)
writer.add_head_count(2)
writer.add_layer_norm_eps(1e-5)
writer.add_tokenizer_model("gpt2")
writer.add_tokenizer_pre("gpt-2")
writer.add_token_list([chr(65 + i) for i in range(31)] + ["AB"])
writer.add_token_merges(["A B"])
writer.add_eos_token_id(0)
names = {
    "wte": "token_embd",
    "wpe": "position_embd",
    "ln_f": "output_norm",
    "h.0.ln_1": "blk.0.attn_norm",
    "h.0.ln_2": "blk.0.ffn_norm",
    "h.0.attn.c_attn": "blk.0.attn_qkv",
    "h.0.attn.c_proj": "blk.0.attn_output",
    "h.0.mlp.c_fc": "blk.0.ffn_up",
    "h.0.mlp.c_proj": "blk.0.ffn_down",
}
with torch.no_grad():
    for name, w in model.transformer.named_parameters():
        module, _, kind = name.rpartition(".")
        linear = w.ndim == 2 and module not in ("wte", "wpe")
        writer.add_tensor(f"{names[module]}.{kind}", (w.T if linear else w).contiguous().numpy())
writer.write_header_to_file()
writer.write_kv_data_to_file()
writer.write_tensors_to_file()
writer.close()

told = AutoConfig.from_pretrained(folder, gguf_file="m.gguf")
print(f"the file's context_length: 64; the configuration's n_positions: {told.n_positions}")
try:
    AutoModelForCausalLM.from_pretrained(folder, gguf_file="m.gguf")
    plain = "loads"
except RuntimeError as error:
    plain = f"RuntimeError: {str(error):.60}"
print(f"without n_positions: {plain}")
again = AutoModelForCausalLM.from_pretrained(folder, gguf_file="m.gguf", n_positions=64).eval()
ids = torch.arange(20)[None]
with torch.no_grad():
    error = (again(ids).logits - model(ids).logits).abs().max().item()
print(f"with n_positions=64: the logits differ by {error:.1e}")
sys.exit(not (told.n_positions == 1024 and plain.startswith("RuntimeError") and error < 1e-4))
EOF
if python "$folder/look.py"; then
    echo "OK: still so"
else
    echo "CHANGED: not as stated at the head of this file"
    exit 1
fi
