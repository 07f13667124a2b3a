#!/usr/bin/env bash
# peft 0.21.2: an adapter whose modules have the names of another architecture, put on a model that has some of them.
# Guess: a target module that the model does not have is an error, and so is a tensor of the adapter without a place.
# Seen: nothing is said. GPT-2's names on a GPT-Neo: mlp.c_fc gets its matrices, attn.c_attn is not there, and its
#   matrices in adapter_model.safetensors are dropped. The model runs, with half of the adapter. An error comes only
#   where not one of target_modules is found.
# Why it matters: an adapter that was converted, or that names the modules of another version of a model, gives other
#   numbers than those it was tested with. load_adapter() returns the keys that were left over: look at them.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
export PATH="$folder/venv/bin:$PATH"
pip install -q --no-compile --disable-pip-version-check peft==0.21.2 transformers==5.24.0 torch==2.13.0
cat >"$folder/look.py" <<'EOF'
import io
import json
import logging
import pathlib
import sys
import warnings

import torch
from peft import PeftModel
from safetensors.torch import save_file
from transformers import GPTNeoConfig, GPTNeoForCausalLM

heard = io.StringIO()
logging.getLogger().addHandler(logging.StreamHandler(heard))
logging.getLogger("peft").setLevel(logging.WARNING)
torch.manual_seed(0)
model = GPTNeoForCausalLM(
    GPTNeoConfig(
        vocab_size=20,
        hidden_size=8,
        num_layers=1,
        num_heads=2,
        max_position_embeddings=8,
        attention_types=[[["global"], 1]],
        bos_token_id=0,
        eos_token_id=0,
    )
)
targets = {"attn.c_attn": (8, 24), "mlp.c_fc": (8, 32)}
tensors = {}
for name, (inputs, outputs) in targets.items():
    key = f"base_model.model.transformer.h.0.{name}"
    tensors |= {
        f"{key}.lora_A.weight": torch.ones(2, inputs),
        f"{key}.lora_B.weight": torch.ones(outputs, 2),
    }
adapter = pathlib.Path(__file__).parent / "adapter"
adapter.mkdir()
save_file(tensors, adapter / "adapter_model.safetensors")
config = {"peft_type": "LORA", "task_type": "CAUSAL_LM", "r": 2, "lora_alpha": 4}
config |= {"target_modules": list(targets), "base_model_name_or_path": str(adapter)}
(adapter / "adapter_config.json").write_text(json.dumps(config))
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    tuned = PeftModel.from_pretrained(model, adapter)
about = [str(w.message) for w in caught if "c_attn" in str(w.message) or "unexpected" in str(w.message).lower()]
placed = sorted({name.split(".lora_")[0] for name, _ in tuned.named_parameters() if "lora_" in name})
left_over = tuned.load_adapter(adapter, "again").unexpected_keys
print(f"tensors in the file: {len(tensors)}; modules that got some: {placed}")
print(f"warnings about the others: {about}, {heard.getvalue()!r}; left over, when asked: {len(left_over)}")
silent = not about and not heard.getvalue()
sys.exit(not (len(placed) == 1 and "c_fc" in placed[0] and silent and len(left_over) == 2))
EOF
if python "$folder/look.py"; then
    echo "OK: still so"
else
    echo "CHANGED: not as stated at the head of this file"
    exit 1
fi
