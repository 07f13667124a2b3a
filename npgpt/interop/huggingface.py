"""Hugging Face folders, read and written.

They hold transformers' GPT2LMHeadModel, OpenAIGPTLMHeadModel or GPTNeoForCausalLM: our GPT-2, GPT and GPT-3.
Names and layouts of the tensors are in layout.py; the head is tied to the embedding in all, and therefore not
in the file. No pickle is ever read.
"""

import json
import warnings
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from safetensors import SafetensorError, safe_open

from npgpt.engine.config import GPTConfig
from npgpt.engine.lora import ROWS, LoRA
from npgpt.engine.model import GPT
from npgpt.engine.types import Array, Fields, PathLike
from npgpt.interop.layout import Pretrained, StoredTensor, config_of, read_weights, tensors
from npgpt.interop.safetensors_file import save_file
from npgpt.text.load import load_tokenizer
from npgpt.text.tokenizer import Tokenizer
from npgpt.text.tokenizer_json import read_json

WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
Key: TypeAlias = tuple[str, object]  # a key of config.json, Transformers' default


@dataclass(frozen=True)
class Family:
    """The keys of config.json that hold the shape of one of Transformers' models."""

    architecture: str
    keys: dict[str, Key]  # field of GPTConfig -> (their key, their default)
    dropouts: tuple[str, ...]  # the other keys; npgpt never drops attention weights themselves
    inner: str | None  # the key of the MLP's width
    fixed: Fields  # key -> the only value that npgpt computes


GPT2_KEYS: dict[str, Key] = {
    "n_layer": ("n_layer", 12),
    "n_head": ("n_head", 12),
    "n_embd": ("n_embd", 768),
    "block_size": ("n_positions", 1024),
    "dropout": ("resid_pdrop", 0.1),
    "vocab_size": ("vocab_size", 50257),
    "layer_norm_epsilon": ("layer_norm_epsilon", 1e-5),
}
ACTIVATION = {"activation": ("activation_function", "gelu_new")}
FAMILIES = {
    "gpt2": Family(
        "GPT2LMHeadModel",
        GPT2_KEYS | {"scale_attn_weights": ("scale_attn_weights", True)} | ACTIVATION,
        ("embd_pdrop", "attn_pdrop"),
        "n_inner",
        {"scale_attn_by_inverse_layer_idx": False, "add_cross_attention": False},
    ),
    "openai-gpt": Family(
        "OpenAIGPTLMHeadModel",
        GPT2_KEYS | {"vocab_size": ("vocab_size", 40478), "block_size": ("n_positions", 512)},
        ("embd_pdrop", "attn_pdrop"),
        None,
        {"afn": "gelu"},  # the tanh form, which the other models call gelu_new
    ),
    "gpt_neo": Family(
        "GPTNeoForCausalLM",
        GPT2_KEYS
        | {"n_layer": ("num_layers", 24), "n_head": ("num_heads", 16), "n_embd": ("hidden_size", 2048)}
        | {"block_size": ("max_position_embeddings", 2048), "dropout": ("resid_dropout", 0.0)}
        | {"window": ("window_size", 256)}
        | ACTIVATION,
        ("embed_dropout", "attention_dropout"),
        "intermediate_size",
        {},
    ),
}


def family_of(config: GPTConfig) -> str:
    """Return Transformers' model_type of a config."""
    return "openai-gpt" if config.post_norm else "gpt2" if config.window is None else "gpt_neo"


def write_pretrained(folder: PathLike, model: GPT, tokenizer: Tokenizer | None = None) -> None:
    """Write model.safetensors, config.json, generation_config.json and the tokenizer's files into `folder`.

    The folder is made if need be. A model without biases is written with zeros for them, as Transformers
    always has them, and with a note in config.json, so that read_pretrained returns what was saved.
    """
    if folder == "":
        raise ValueError("save_pretrained: folder must not be empty")
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    save_file(tensors(family_of(model.config), model), folder / WEIGHTS, metadata={"format": "pt"})

    # Written even where there is none: a missing key would mean GPT-2's own 50256.
    end = tokenizer.end_of_text if tokenizer else None
    settings = _config_to_json(model.config, end)
    if tokenizer:
        settings["npgpt"]["tokenizer"] = tokenizer.fingerprint
        tokenizer.save(folder, model.config.block_size)
    _write_json(folder / "config.json", settings)
    ends = {"bos_token_id": end, "eos_token_id": end}
    _write_json(folder / "generation_config.json", {"_from_model_config": True} | ends)


def write_adapter(folder: PathLike, adapters: LoRA, base_model: str) -> None:
    """Write PEFT's adapter_model.safetensors and adapter_config.json into `folder`, which is made.

    The rows of wte that were trained too are there as wte.rows, which PEFT has no name for.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    stored = {ROWS: adapters.params[ROWS]} if ROWS in adapters.params else {}
    for name in adapters.base:
        for m in "AB":  # (out, in) there
            key = f"base_model.model.transformer.{name.removesuffix('.weight')}.lora_{m}.weight"
            stored[key] = np.ascontiguousarray(adapters.params[f"{name}.{m}"].T)
    save_file(stored, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    settings = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base_model,
        "r": adapters.rank,
        "lora_alpha": adapters.alpha,
        "lora_dropout": 0.0,
        "bias": "none",
        "fan_in_fan_out": True,
        "target_modules": ["attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj"],
    }
    _write_json(folder / "adapter_config.json", settings)


def read_pretrained(folder: PathLike) -> Pretrained:
    """Read a Hugging Face folder of one of the three models, its safetensors in one file or in shards.

    The tokenizer is None where the folder has none, or one that npgpt cannot read: the model then takes ids.
    ValueError for another model's tokenizer, for a model that npgpt does not compute, and for tensors that
    are not those of its config; it names all their faults, before memory is allocated for them.
    """
    folder = Path(folder)
    settings = read_json(folder / "config.json")
    config = _config_from_json(settings, folder)
    tokenizer = read_tokenizer(folder)
    check_tokenizer(tokenizer, settings, config, f"read_pretrained: {folder}")
    with ExitStack() as stack:
        stored, path = _open_weights(folder, stack)
        format = settings.get("model_type", "gpt2")
        return Pretrained(config, read_weights(format, config, stored, f"read_pretrained: {path}"), tokenizer)


def read_tokenizer(folder: PathLike) -> Tokenizer | None:
    """Return a folder's tokenizer; None without one, or, with a warning, for one that npgpt cannot read."""
    try:
        return load_tokenizer(folder)
    except FileNotFoundError:
        return None
    except ValueError as error:
        warnings.warn(f"{error}; the model takes ids only", stacklevel=3)
        return None


def check_tokenizer(tokenizer: Tokenizer | None, settings: Fields, config: GPTConfig, where: str) -> None:
    """Raise ValueError for a tokenizer with more tokens than the model, or another than config.json names."""
    if tokenizer is None:
        return
    if tokenizer.vocab_size > config.vocab_size:
        wanted = f"at most the model's {config.vocab_size} tokens"
        raise ValueError(f"{where}: the tokenizer must have {wanted}, got {tokenizer.vocab_size}")
    ours = settings.get("npgpt")
    if isinstance(ours, dict) and ours.get("tokenizer", tokenizer.fingerprint) != tokenizer.fingerprint:
        raise ValueError(f"{where}: the tokenizer must be the one that the model was trained with")


def open_safetensors(path: PathLike, stack: ExitStack) -> tuple[dict[str, StoredTensor], dict[str, str]]:
    """Return ({name: tensor}, metadata) of a safetensors file, which stays open as long as the stack."""
    try:
        file = stack.enter_context(safe_open(path, framework="np"))
    except SafetensorError as error:
        raise ValueError(f"{path} must be a safetensors file, got {error}") from None

    def tensor(name: str) -> StoredTensor:
        view = file.get_slice(name)
        read = _read_bfloat16 if view.get_dtype() == "BF16" else lambda path, name: file.get_tensor(name)
        return StoredTensor(tuple(view.get_shape()), view.get_dtype(), lambda: read(path, name))

    return {name: tensor(name) for name in file.keys()}, file.metadata() or {}


def _open_weights(folder: Path, stack: ExitStack) -> tuple[dict[str, StoredTensor], Path]:
    """Return the tensors of model.safetensors, or of its index's shards, and the path of either."""
    if (folder / WEIGHTS).exists():
        return open_safetensors(folder / WEIGHTS, stack)[0], folder / WEIGHTS
    path = folder / INDEX
    if not path.exists():
        wanted = f"{WEIGHTS}, or {INDEX} and its shards (pickles are not opened)"
        raise ValueError(f"read_pretrained: {folder} must hold {wanted}")
    names = read_json(path).get("weight_map")
    if not isinstance(names, dict) or not all(isinstance(file, str) for file in names.values()):
        raise ValueError(f"read_pretrained: {path}: weight_map must map names of tensors to names of files")
    shards = {}
    for file in sorted(set(names.values())):
        if file != Path(file).name or file in ("", "..") or "\\" in file:
            raise ValueError(f"read_pretrained: {path}: a shard must be a file of the folder, got {file!r}")
        if not (folder / file).is_file():
            raise ValueError(f"read_pretrained: {path}: there is no shard {file!r}")
        shards[file], _ = open_safetensors(folder / file, stack)
    return {name: shards[file][name] for name, file in names.items() if name in shards[file]}, path


def _read_bfloat16(path: PathLike, name: str) -> Array:
    """Return a bfloat16 tensor as float32; NumPy lacks this type, the upper half of a float32."""
    with open(path, "rb") as file:
        size = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(size))[name]  # which safetensors has checked
        begin, end = header["data_offsets"]
        file.seek(8 + size + begin)
        bits = np.frombuffer(file.read(end - begin), "<u2").astype(np.uint32) << 16
    return bits.view(np.float32).reshape(header["shape"])


def _config_to_json(config: GPTConfig, end_of_text: int | None) -> Fields:
    model_type = family_of(config)
    family = FAMILIES[model_type]
    settings = {"architectures": [family.architecture], "model_type": model_type, **family.fixed}
    settings |= {key: getattr(config, field) for field, (key, _) in family.keys.items()}
    settings |= dict.fromkeys(family.dropouts, 0.0) | {family.dropouts[0]: config.dropout}
    if family.inner:
        settings[family.inner] = None
    if model_type == "gpt_neo":
        pairs, odd = divmod(config.n_layer, 2)
        settings["attention_types"] = [[["global", "local"], pairs]] * (pairs > 0) + [[["global"], 1]] * odd
    else:
        settings["n_ctx"] = config.block_size  # llama.cpp's converter reads this one
    return settings | {
        "tie_word_embeddings": True,
        "bos_token_id": end_of_text,
        "eos_token_id": end_of_text,
        "npgpt": {"bias": config.bias, "scale_attn_weights": config.scale_attn_weights},
    }


def _config_from_json(settings: Fields, folder: Path) -> GPTConfig:
    where = f"read_pretrained: {folder}"
    model_type = settings.get("model_type", "gpt2")
    if not isinstance(model_type, str) or model_type not in FAMILIES:
        raise ValueError(f"{where}: model_type must be one of {', '.join(FAMILIES)}, got {model_type!r}")
    family = FAMILIES[model_type]
    for key, value in (family.fixed | {"tie_word_embeddings": True}).items():
        if settings.get(key, value) != value:
            raise ValueError(f"{where}: {key} must be {value!r}, got {settings[key]!r}")
    # Keys left out mean the family's own defaults.
    fields = {}
    for field, (key, default) in family.keys.items():
        value = fields[field] = settings.get(key, default)
        kind = type(default) if isinstance(default, (bool, int, str)) else (int, float)
        if isinstance(value, bool) != isinstance(default, bool) or not isinstance(value, kind):
            what = {bool: "true or false", str: "a string"}.get(type(default), "a number")
            raise ValueError(f"{where}: {key} must be {what}, got {value!r}")
    if family.inner and settings.get(family.inner) not in (None, 4 * fields["n_embd"]):
        raise ValueError(f"{where}: {family.inner} must be 4 * n_embd, got {settings[family.inner]!r}")
    ours = settings.get("npgpt")
    ours = ours if isinstance(ours, dict) else {}
    if model_type == "gpt_neo":
        fields["scale_attn_weights"] = bool(ours.get("scale_attn_weights", False))
        types = settings.get("attention_types", [[["global", "local"], 12]])
        if not _has_windows(types, fields["n_layer"], where):
            fields["window"] = fields["block_size"]
    fields |= {"bias": bool(ours.get("bias", True)), "post_norm": model_type == "openai-gpt"}
    return config_of(where, **fields)


def _has_windows(types: Any, n_layer: int, where: str) -> bool:
    """Return True where GPT-Neo's attention_types has windows in layers 1, 3, ..., False for none at all.

    [[["global", "local"], 6]] are twelve layers. ValueError for any others.
    """
    try:
        kinds_of = (kind for kinds, times in types for _ in range(times if kinds else 0) for kind in kinds)
        layers = list(islice(kinds_of, 10_000))  # n_layer may be false
    except (TypeError, ValueError):
        layers = []
    if layers == [("global", "local")[layer % 2] for layer in range(min(n_layer, 10_000))]:
        return True
    if layers == ["global"] * min(n_layer, 10_000):
        return False
    what = f"{n_layer} layers that are global, or global and local in turn"
    raise ValueError(f"{where}: attention_types must be {what}, got {types!r}")


def _write_json(path: Path, value: Fields) -> None:
    path.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")
