"""Hugging Face folders of GPT-2: what transformers.GPT2LMHeadModel reads and writes.

Their Conv1D weights are (in, out) like ours and their names are ours behind "transformer.".
The head is tied to wte.weight in both, and therefore not in the file. No pickle is ever read.
"""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from npgpt.engine.model import GPT, GPTConfig, parameter_shapes
from npgpt.text.tokenizer import ByteTokenizer

PREFIX = "transformer."
MASKS = (".attn.bias", ".attn.masked_bias")  # buffers of old files, not parameters
DTYPES = ("F16", "F32", "F64")

# What GPT-2 can be told to do in config.json, and the one value of each that our mathematics has.
FIXED = {
    "model_type": "gpt2",
    "activation_function": "gelu_new",
    "scale_attn_weights": True,
    "scale_attn_by_inverse_layer_idx": False,
    "add_cross_attention": False,
    "tie_word_embeddings": True,
}


def write_pretrained(folder, model: GPT, tokenizer: ByteTokenizer | None = None) -> None:
    """Write model.safetensors, config.json, generation_config.json and the tokenizer's files into `folder`.

    The folder is made if need be. A model without biases is written with zeros for them, as GPT-2 always has
    them, and with a note in config.json, so that read_pretrained gives back what was saved.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {name: np.zeros(shape, np.float32) for name, shape in tensor_shapes(model.config).items()}
    tensors |= {name: np.asarray(array, np.float32) for name, array in model.params.items()}
    tensors = {PREFIX + name: array for name, array in tensors.items()}
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})

    # Said even where there is none: left out it would mean GPT-2's own 50256.
    end = tokenizer.end_of_text if tokenizer else None
    _write_json(folder / "config.json", _config_to_json(model.config, end))
    _write_json(
        folder / "generation_config.json",
        {"_from_model_config": True, "bos_token_id": end, "eos_token_id": end},
    )
    if tokenizer:
        tokenizer.save(folder, model.config.block_size)


def read_pretrained(folder, model_class=GPT):
    """(model, tokenizer) from a Hugging Face GPT-2 folder.

    The tokenizer is None where the folder has none, or has another than bytes: the model then takes ids.
    ValueError where the folder is not GPT-2 as we compute it, or its tensors are not those of its config;
    all that is wrong with the tensors is said at once, before any memory is taken for them.
    """
    folder = Path(folder)
    config = _config_from_json(_read_json(folder / "config.json"), folder)
    path = folder / "model.safetensors"
    if not path.exists():
        raise ValueError(f"read_pretrained: {folder} must hold model.safetensors (pickles are not read)")
    try:
        with safe_open(path, framework="np") as file:
            stored = {name.removeprefix(PREFIX): name for name in file.keys() if not name.endswith(MASKS)}
            head = stored.pop("lm_head.weight", None)  # some files repeat the tied head
            _check_tensors(file, stored, config, path)
            model = model_class(config)
            for name, key in stored.items():
                if name in model.params:
                    model.params[name][...] = file.get_tensor(key)
                elif file.get_tensor(key).any():
                    raise ValueError(f"read_pretrained: {path}: {key} must be zero, as bias is false")
            if head and not np.array_equal(file.get_tensor(head), file.get_tensor(stored["wte.weight"])):
                raise ValueError(f"read_pretrained: {path}: lm_head.weight must equal wte.weight (tied)")
    except SafetensorError as error:
        raise ValueError(f"read_pretrained: {path} must be a safetensors file, got {error}") from None
    model.touch()
    return model, read_tokenizer(folder)


def read_tokenizer(folder) -> ByteTokenizer | None:
    """The byte tokenizer if that is what `folder` holds, else None."""
    try:
        return ByteTokenizer.from_folder(folder)
    except (FileNotFoundError, ValueError):
        return None


def tensor_shapes(config: GPTConfig) -> dict[str, tuple]:
    """Every tensor of Hugging Face's GPT-2 but the head, our name -> shape: the biases are always there."""
    return parameter_shapes(replace(config, bias=True))


def _check_tensors(file, stored: dict[str, str], config: GPTConfig, path: Path) -> None:
    """Refuse a file whose tensors (our name -> its name) are not those of config, listing every fault."""
    if config.n_layer > len(stored):  # a config that lies must not cost time or memory
        raise ValueError(f"read_pretrained: {path}: {config.n_layer} layers, but only {len(stored)} tensors")
    wanted = tensor_shapes(config)
    wrong = [f"{name} is missing" for name in wanted if name not in stored]
    wrong += [f"{name} does not belong" for name in stored if name not in wanted]
    for name in sorted(stored.keys() & wanted.keys()):
        tensor = file.get_slice(stored[name])
        if (shape := tuple(tensor.get_shape())) != wanted[name]:
            wrong.append(f"{name} must have shape {wanted[name]}, got {shape}")
        if (dtype := tensor.get_dtype()) not in DTYPES:
            wrong.append(f"{name} must be one of {', '.join(DTYPES)}, got {dtype}")
    if wrong:
        raise ValueError(f"read_pretrained: {path}: " + "; ".join(wrong))


def _config_to_json(config: GPTConfig, end_of_text: int | None) -> dict:
    return {
        "architectures": ["GPT2LMHeadModel"],
        **FIXED,
        "vocab_size": config.vocab_size,
        "n_positions": config.block_size,
        "n_ctx": config.block_size,  # llama.cpp's converter reads this one
        "n_embd": config.n_embd,
        "n_layer": config.n_layer,
        "n_head": config.n_head,
        "n_inner": None,
        "resid_pdrop": config.dropout,
        "embd_pdrop": config.dropout,
        "attn_pdrop": 0.0,  # the attention weights themselves are never dropped
        "layer_norm_epsilon": config.layer_norm_epsilon,
        "bos_token_id": end_of_text,
        "eos_token_id": end_of_text,
        "npgpt": {"bias": config.bias},
    }


def _config_from_json(config: dict, folder: Path) -> GPTConfig:
    for key, value in FIXED.items():
        if config.get(key, value) != value:
            raise ValueError(f"read_pretrained: {folder}: {key} must be {value!r}, got {config[key]!r}")
    # Keys left out mean GPT-2's own defaults.
    sizes = {"n_layer": 12, "n_head": 12, "n_embd": 768, "n_positions": 1024, "vocab_size": 50257}
    sizes = {key: config.get(key, default) for key, default in sizes.items()}
    rates = {"resid_pdrop": 0.1, "layer_norm_epsilon": 1e-5}
    rates = {key: config.get(key, default) for key, default in rates.items()}
    for key, value in (sizes | rates).items():
        if isinstance(value, bool) or not isinstance(value, int if key in sizes else (int, float)):
            raise ValueError(f"read_pretrained: {folder}: {key} must be a number, got {value!r}")
    if config.get("n_inner") not in (None, 4 * sizes["n_embd"]):
        raise ValueError(f"read_pretrained: {folder}: n_inner must be 4 * n_embd, got {config['n_inner']!r}")
    ours = config.get("npgpt")
    bias = ours.get("bias", True) if isinstance(ours, dict) else True
    renamed = {"block_size": sizes.pop("n_positions"), "dropout": rates.pop("resid_pdrop")}
    return GPTConfig(**sizes, **renamed, **rates, bias=bool(bias))


def _write_json(path: Path, value: dict) -> None:
    path.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")


def _read_json(path: Path) -> dict:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"read_pretrained: {path} must be JSON, got {error}") from None
    if not isinstance(value, dict):
        raise ValueError(f"read_pretrained: {path} must be a JSON object, got {type(value).__name__}")
    return value
