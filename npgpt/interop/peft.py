"""PEFT's adapter folders, written: the low-rank matrices under the names of the base's family.

PEFT finds the modules of an adapter by their names, and takes no notice of a tensor that fits none of them.
So the names, and where one matrix of ours is three of theirs, are those of layout.py, as in the base's own
folder.
"""

import json
from pathlib import Path

import numpy as np

from npgpt.engine.lora import ROWS, LoRA
from npgpt.engine.types import Fields, PathLike, Tensors
from npgpt.interop.huggingface import family_of
from npgpt.interop.layout import factor_of, tensor_specs
from npgpt.interop.safetensors_file import save_file
from npgpt.text.tokenizer import Tokenizer

PREFIX = "base_model.model."


def write_adapter(folder: PathLike, adapters: LoRA, base_model: str, tokenizer: Tokenizer) -> None:
    """Write adapter_model.safetensors, adapter_config.json and the tokenizer's files into `folder`.

    The folder is made if need be. `base_model` is a Hugging Face folder or a name on the Hub. Rows of the
    embedding that were trained too are PEFT's trainable tokens; AutoPeftModelForCausalLM makes room for them
    by the tokenizer.
    """
    folder, config = Path(folder), adapters.config
    folder.mkdir(parents=True, exist_ok=True)
    form = family_of(config)
    stored: Tensors = {}
    settings: Fields = {}
    modules = []
    for theirs, spec in tensor_specs(form, config).items():
        module = f"{PREFIX}{theirs.removesuffix('.weight')}"
        if spec.name in adapters.base:
            a, b = (adapters.params[f"{spec.name}.{m}"] for m in "AB")
            b = b if spec.columns is None else b[..., spec.columns]
            b = b * b.dtype.type(factor_of(form, config, spec))
            stored |= {f"{module}.lora_A.weight": a.T, f"{module}.lora_B.weight": b.T}  # (out, in) there
            modules.append(theirs.removesuffix(".weight").split(".", 3)[3])  # transformer.h.0.attn.c_attn
            settings["fan_in_fan_out"] = not spec.transposed
        elif spec.name == "wte.weight" and ROWS in adapters.params:
            rows = adapters.params[ROWS]
            stored[f"{module}.token_adapter.trainable_tokens_delta"] = rows  # the rows, not a difference
            last = range(config.vocab_size - len(rows), config.vocab_size)
            settings["trainable_token_indices"] = {module.rsplit(".", 1)[1]: list(last)}
    arrays = {name: np.ascontiguousarray(w, np.float32) for name, w in stored.items()}
    save_file(arrays, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    settings |= {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base_model,
        "inference_mode": True,
        "r": adapters.rank,
        "lora_alpha": adapters.alpha,
        "lora_dropout": 0.0,
        "bias": "none",
        "target_modules": list(dict.fromkeys(modules)),
    }
    text = json.dumps(settings, indent=2, allow_nan=False) + "\n"
    (folder / "adapter_config.json").write_text(text, encoding="utf-8")
    tokenizer.save(folder, config.block_size)
