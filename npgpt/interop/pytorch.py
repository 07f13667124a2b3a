"""PyTorch's files: a state_dict as safetensors, read and written, and nanoGPT's ckpt.pt, read.

ckpt.pt is a pickle: torch, which must be installed, opens it, and for weights and plain values alone. nanoGPT
computes GELU exactly; before July 2023 it had the tanh form, which its files do not name: give activation.
"""

import json
import re
from contextlib import ExitStack
from dataclasses import asdict
from typing import Any

import numpy as np

from npgpt.engine.config import GPTConfig
from npgpt.engine.model import GPT
from npgpt.engine.types import Array, Fields, PathLike
from npgpt.interop.huggingface import family_of, open_safetensors
from npgpt.interop.layout import FLOATS, Pretrained, StoredTensor, config_of, read_weights, tensors
from npgpt.interop.safetensors_file import save_file
from npgpt.text.tokenizer import ByteTokenizer, Tokenizer

COMPILED = "_orig_mod."  # torch.compile's prefix of a name
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
    """Read the model of a state_dict saved as safetensors: of Transformers' three, or of nanoGPT's.

    The tensors give all sizes but n_head: unless npgpt has written the file, `known` must hold it, with those
    of GPTConfig's fields that are not the defaults. ValueError as for Hugging Face folders.
    """
    where = f"read_state_dict: {path}"
    with ExitStack() as stack:
        stored, metadata = open_safetensors(path, stack)
        stored = {name.removeprefix(COMPILED): tensor for name, tensor in stored.items()}
        format, fields = _recognise(stored, where)
        if "npgpt" in metadata:
            fields = _written_config(metadata["npgpt"], where)
        elif "n_head" not in known:
            raise ValueError(f"{where} does not tell n_head; give it: load(path, n_head=12)")
        config = config_of(where, **fields | known)
        return Pretrained(config, read_weights(format, config, stored, where), _tokenizer_for(config))


def read_checkpoint(path: PathLike, **known: Any) -> Pretrained:
    """Read the model of nanoGPT's ckpt.pt; `known` are fields of GPTConfig that replace the file's."""
    where = f"read_checkpoint: {path}"
    try:
        import torch
    except ImportError:
        raise ValueError(f"{where} is a pickle, which torch alone may open: pip install torch") from None
    if [int(n) for n in torch.__version__.split(".")[:2]] < [2, 6]:
        raise ValueError(f"{where} needs torch 2.6 or newer, where weights_only keeps what it promises")
    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    except OSError:
        raise
    except Exception as error:  # of any kind, which depends on the file
        reason = str(error).split("\n")[0]
        raise ValueError(f"{where} must hold weights and plain values alone, got {reason}") from None
    found = checkpoint if isinstance(checkpoint, dict) else {}
    args, state = found.get("model_args"), found.get("model")
    if not isinstance(args, dict) or not isinstance(state, dict) or not all(name in args for name in SIZES):
        raise ValueError(f"{where} must be nanoGPT's, with model and model_args of {', '.join(SIZES)}")

    def tensor(value: object) -> StoredTensor:
        if not isinstance(value, torch.Tensor):
            return StoredTensor((), type(value).__name__, lambda: np.empty(0))  # never read
        dtype = str(value.dtype).removeprefix("torch.")
        return StoredTensor(tuple(value.shape), FLOATS.get(dtype, dtype), lambda: value.float().numpy())

    stored = {str(name).removeprefix(COMPILED): tensor(value) for name, value in state.items()}
    fields = {name: args[name] for name in (*SIZES, "bias", "dropout") if name in args}
    config = config_of(where, **{"activation": "gelu"} | fields | known)
    return Pretrained(config, read_weights("nanogpt", config, stored, where), _tokenizer_for(config))


def _recognise(stored: dict[str, StoredTensor], where: str) -> tuple[str, Fields]:
    """Return (format, fields of GPTConfig) by the names and shapes of the tensors."""
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


def _tokenizer_for(config: GPTConfig) -> Tokenizer | None:
    """Return a ByteTokenizer for a vocabulary of its size, else None: these files hold no tokenizer."""
    return ByteTokenizer() if config.vocab_size == ByteTokenizer.vocab_size else None


def _written_config(text: str, where: str) -> Fields:
    try:
        fields: Fields = json.loads(text)
        GPTConfig(**fields)
    except (ValueError, TypeError, RecursionError) as error:
        raise ValueError(f"{where}: npgpt in its metadata must be a GPTConfig, got {error}") from None
    return fields
