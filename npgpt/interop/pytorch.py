"""PyTorch's files: a state_dict as safetensors, read and written, and nanoGPT's ckpt.pt, read.

nanoGPT computes GELU exactly. Before July 2023 it had the tanh form, which its files do not name: give
activation.
"""

import json
import re
from dataclasses import asdict
from typing import Any

import numpy as np

from npgpt.engine.config import GPTConfig, Rope
from npgpt.engine.model import GPT
from npgpt.engine.types import Array, Fields, PathLike, Shape
from npgpt.interop import pickle_file
from npgpt.interop.huggingface import family_of
from npgpt.interop.layout import Pretrained, StoredTensor, config_of, read_weights, tensors
from npgpt.interop.safetensors_file import open_file, save_file
from npgpt.text.tokenizer import ByteTokenizer, Tokenizer

COMPILED = "_orig_mod."  # torch.compile's prefix of a name
LLAMA = (  # tensors that tell its sizes
    "model.embed_tokens.weight",
    *(f"model.layers.0.{name}.weight" for name in ("self_attn.q_proj", "self_attn.k_proj", "mlp.gate_proj")),
)
SIZES = ("n_layer", "n_head", "n_embd", "block_size", "vocab_size")


def write_state_dict(path: PathLike, model: GPT) -> None:
    """Write the state_dict of Transformers' class for this model, also a tied head, as safetensors.

    `load_state_dict(safetensors.torch.load_file(path))` takes it, and read_state_dict finds the config in it.
    """
    state: dict[str, Array | StoredTensor] = {**tensors(family_of(model.config), model)}
    state["lm_head.weight"] = np.asarray(model.head_weights, np.float32)
    save_file(
        state, path, metadata={"format": "pt", "npgpt": json.dumps(asdict(model.config), allow_nan=False)}
    )


def read_state_dict(path: PathLike, **known: Any) -> Pretrained:
    """Read the model of a state_dict saved as safetensors: of Transformers' four, or of nanoGPT's.

    The tensors give all sizes but n_head, and of Llama neither block_size nor rope. Unless npgpt has written
    the file, `known` must hold those, with all fields of GPTConfig that are not the defaults. ValueError as
    for Hugging Face folders.
    """
    where = f"read_state_dict: {path}"
    stored, metadata = open_file(path)
    stored = {name.removeprefix(COMPILED): tensor for name, tensor in stored.items()}
    format, fields = _recognise(stored, where)
    if "npgpt" in metadata:
        fields = _written_config(metadata["npgpt"], where)
    else:
        fields = _completed(format, fields, known, stored, where)
    config = config_of(where, **fields | known)
    return Pretrained(config, read_weights(format, config, stored, where), _tokenizer_for(config))


def read_checkpoint(path: PathLike, **known: Any) -> Pretrained:
    """Read the model of nanoGPT's ckpt.pt; `known` are fields of GPTConfig that replace the file's."""
    where = f"read_checkpoint: {path}"
    checkpoint = pickle_file.load(path, where)
    found = checkpoint if isinstance(checkpoint, dict) else {}
    args, state = found.get("model_args"), found.get("model")
    if not isinstance(args, dict) or not isinstance(state, dict) or not all(name in args for name in SIZES):
        raise ValueError(f"{where} must be nanoGPT's, with model and model_args of {', '.join(SIZES)}")

    stored = {name.removeprefix(COMPILED): t for name, t in pickle_file.tensors_of(state).items()}
    fields = {name: args[name] for name in (*SIZES, "bias", "dropout") if name in args}
    config = config_of(where, **{"activation": "gelu"} | fields | known)
    return Pretrained(config, read_weights("nanogpt", config, stored, where), _tokenizer_for(config))


def _completed(
    format: str, fields: Fields, known: Fields, stored: dict[str, StoredTensor], where: str
) -> Fields:
    """Return fields of GPTConfig that _recognise found, and what follows from them and n_head."""
    needed = {"n_head": "12"} | ({"block_size": "2048", "rope": "Rope(10000.0)"} if format == "llama" else {})
    if missing := [name for name in needed if name not in known]:
        how = ", ".join(f"{name}={needed[name]}" for name in missing)
        them = "it" if len(missing) == 1 else "them"
        raise ValueError(f"{where} does not tell {', '.join(missing)}; give {them}: load(path, {how})")
    if format != "llama":
        return fields
    queries, keys = (stored[f"model.layers.0.self_attn.{x}_proj.weight"].shape[0] for x in "qk")
    n_head = known["n_head"]
    if not isinstance(n_head, int) or n_head < 1 or queries % n_head or keys % (queries // n_head):
        raise ValueError(
            f"{where}: n_head must fit {queries} rows of queries and {keys} of keys, got {n_head!r}"
        )
    return fields | {"head_size": queries // n_head, "n_kv_head": keys // (queries // n_head)}


def _recognise(stored: dict[str, StoredTensor], where: str) -> tuple[str, Fields]:
    """Return (format, fields of GPTConfig) by the names and shapes of the tensors."""
    if LLAMA[0] in stored:
        return "llama", _llama_fields({name: tensor.shape for name, tensor in stored.items()}, where)
    shapes = {name.removeprefix("transformer."): tensor.shape for name, tensor in stored.items()}
    gpt = "positions_embed.weight" in shapes
    embeddings = ("tokens_embed.weight", "positions_embed.weight") if gpt else ("wte.weight", "wpe.weight")
    wte, wpe = (shapes.get(name) for name in embeddings)
    wte = wte or shapes.get("lm_head.weight")  # safetensors keeps one of two that share memory
    layers = {int(m[1]) for name in shapes if (m := re.match(r"h\.(\d{1,9})\.", name))}
    if wte is None or wpe is None or len(wte) != 2 or len(wpe) != 2 or not layers:
        raise ValueError(
            f"{where} must hold the tensors of a GPT, got {', '.join(sorted(stored)[:5]) or 'none'}"
        )
    fields = {"n_layer": max(layers) + 1, "n_embd": wte[1], "vocab_size": wte[0], "block_size": wpe[0]}
    if gpt:
        return "openai-gpt", fields | {"post_norm": True}
    if "h.0.attn.attention.q_proj.weight" in shapes:
        return "gpt_neo", fields | {"window": 256, "scale_attn_weights": False}
    if shapes.get("h.0.attn.c_attn.weight") == (3 * wte[1], wte[1]):
        return "nanogpt", fields | {"bias": "h.0.attn.c_attn.bias" in shapes, "activation": "gelu"}
    return "gpt2", fields


def _llama_fields(shapes: dict[str, Shape], where: str) -> Fields:
    """Return the fields of GPTConfig that the shapes of LlamaForCausalLM's tensors tell."""
    if missing := [name for name in LLAMA if len(shapes.get(name, ())) != 2]:
        raise ValueError(f"{where} must hold the tensors of a GPT, without {', '.join(missing)}")
    layers = {int(m[1]) for name in shapes if (m := re.match(r"model\.layers\.(\d{1,9})\.", name))}
    vocab_size, n_embd = shapes[LLAMA[0]]
    return {
        "n_layer": max(layers) + 1,
        "n_embd": n_embd,
        "vocab_size": vocab_size,
        "n_inner": shapes[LLAMA[3]][0],
        "tied": "lm_head.weight" not in shapes,
        "bias": False,
        "attention_bias": "model.layers.0.self_attn.o_proj.bias" in shapes,
        "mlp_bias": "model.layers.0.mlp.down_proj.bias" in shapes,
        **{"norm": "rmsnorm", "activation": "swiglu"},
    }


def _tokenizer_for(config: GPTConfig) -> Tokenizer | None:
    """Return a ByteTokenizer for a vocabulary of its size, else None: these files hold no tokenizer."""
    return ByteTokenizer() if config.vocab_size == ByteTokenizer.vocab_size else None


def _written_config(text: str, where: str) -> Fields:
    try:
        fields: Fields = json.loads(text)
        if isinstance(fields.get("rope"), dict):
            fields["rope"] = Rope(**fields["rope"])
        GPTConfig(**fields)
    except (ValueError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError(f"{where}: npgpt in its metadata must be a GPTConfig, got {error}") from None
    return fields
