"""GGUF, the one-file format of llama.cpp and libnpgpt: models of GPT-2's and Llama's shape, written and read.

The architecture is gpt2 or llama wherever the mathematics is theirs, else npgpt, which libnpgpt alone reads.
Matrices are (out, in) there, of one of ggml's types each. The rules are those of docs/formats.md, which
model.cpp and vocabulary.cpp of libnpgpt hold, too.
"""

from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from math import inf, sqrt
from pathlib import Path
from typing import NamedTuple

import numpy as np

from npgpt.engine.config import GPTConfig
from npgpt.engine.finite import check_tensor
from npgpt.engine.model import GPT
from npgpt.engine.types import Array, Fields, PathLike
from npgpt.interop import gguf_rope
from npgpt.interop.blocks import TYPES as BLOCK_TYPES
from npgpt.interop.gguf_file import Outgoing, read_file, write_file
from npgpt.interop.gguf_tokenizer import OWN_KEYS as TOKENIZER_KEYS
from npgpt.interop.gguf_tokenizer import tokenizer_from, tokenizer_values
from npgpt.interop.gguf_values import is_of, shortest, value_of
from npgpt.interop.layout import (
    Pretrained,
    StoredTensor,
    TensorSpec,
    config_of,
    raise_all,
    read_weights,
    tensor_specs,
    without_defaults,
)
from npgpt.interop.quantise import quantise, type_in_file
from npgpt.text.tokenizer import Tokenizer

ARCHITECTURES = SHARED, LLAMA, OWN = "gpt2", "llama", "npgpt"  # general.architecture
TYPES = {name: BLOCK_TYPES[name] for name in ("f32", "f16", "q8_0", "q4_0", "q4_1", "q4_k", "q6_k")}
EMBEDDING, HEAD, FREQUENCIES = "token_embd.weight", "output.weight", "rope_freqs.weight"


# ---------------------------------------------------------------------------- writing


def write_gguf(
    path: PathLike, model: GPT, tokenizer: Tokenizer | None = None, type: str = "f32", name: str = "npgpt"
) -> None:
    """Write model and tokenizer to the file `path`, atomically.

    type: of the matrices, but for the positions, which stay F32 as vectors do; type_in_file() says of which
    others some are. ValueError for a tokenizer that GGUF cannot hold, for weights that are not finite, and
    for those that the type cannot hold.
    """
    if type not in TYPES:
        raise ValueError(f"write_gguf: type must be one of {', '.join(TYPES)}, got {type!r}")
    config = model.config
    arch = architecture_of(config)
    values = _metadata(config, arch, type, name) | tokenizer_values(tokenizer, arch, config.vocab_size)
    layout_config = config if arch == OWN else replace(config, window=None)
    tensors = {}
    for theirs, spec in tensor_specs("gguf", layout_config).items():
        of = type_in_file(theirs, spec.shape, type, config.n_layer, EMBEDDING if config.tied else HEAD)
        tensors[theirs] = Outgoing(spec.shape, of, partial(_chunks, model, spec, arch, of))
    factors = gguf_rope.factors_of(config)
    if factors is not None:
        tensors[FREQUENCIES] = Outgoing(factors.shape, "f32", lambda: [factors])
    write_file(Path(path), values, tensors)


def architecture_of(config: GPTConfig) -> str:
    """Return GGUF's architecture of a config: gpt2, llama, or npgpt, which libnpgpt alone reads."""
    if config.rope:
        return LLAMA
    windows = (config.window or config.block_size) < config.block_size
    return OWN if config.post_norm or config.activation == "gelu" or windows else SHARED


def _chunks(model: GPT, spec: TensorSpec, arch: str, type: str) -> Iterator[Array]:
    """Yield the bytes of a tensor, some rows at a time: no copy of a large matrix is made."""
    rows = np.atleast_2d(_tensor(model, spec, arch))
    check_tensor("write_gguf", spec.name, rows)
    for first in range(0, len(rows), 4096):
        try:
            yield quantise(rows[first : first + 4096], type)
        except OverflowError as error:
            raise ValueError(f"write_gguf: {spec.name} {error}") from None


def _tensor(model: GPT, spec: TensorSpec, arch: str) -> Array:
    config = model.config
    if spec.name not in model.params:  # a bias of zeros
        return np.zeros(spec.shape, np.float32)
    w = spec.view(model.params).reshape(spec.shape)
    factor = np.float32(config.scale * sqrt(config.D))
    if arch == SHARED and "c_attn" in spec.name and factor != 1:  # the scale that llama.cpp does not apply
        w = w.copy()
        w[: config.n_embd] *= factor
    return w


def _metadata(config: GPTConfig, arch: str, type: str, name: str) -> Fields:
    values = {
        "general.architecture": arch,
        "general.name": name,
        "general.file_type": TYPES[type].file_type,
        "general.quantization_version": 2,
        f"{arch}.context_length": config.block_size,
        f"{arch}.embedding_length": config.n_embd,
        f"{arch}.block_count": config.n_layer,
        f"{arch}.feed_forward_length": config.F,
        f"{arch}.attention.head_count": config.n_head,
    }
    epsilon = float(config.layer_norm_epsilon)
    if arch == LLAMA:
        return values | {
            "llama.vocab_size": config.vocab_size,
            "llama.attention.head_count_kv": config.K,
            "llama.attention.key_length": config.D,
            "llama.attention.value_length": config.D,
            "llama.attention.layer_norm_rms_epsilon": epsilon,
            **gguf_rope.values_of(config),
        }
    values |= {f"{arch}.attention.layer_norm_epsilon": epsilon, "npgpt.bias": config.bias}
    if arch == OWN:
        values |= {"npgpt.post_norm": config.post_norm, "npgpt.attention.scale": float(config.scale)}
        values["npgpt.exact_gelu"] = config.activation == "gelu"
        if config.window is not None:
            values["npgpt.attention.sliding_window"] = config.window
    return values


# ---------------------------------------------------------------------------- reading

# Keys behind the architecture's name -> the type of the value. Any other may change what is computed.
SIZES = (
    *("block_count", "embedding_length", "context_length", "feed_forward_length", "attention.head_count"),
    *("attention.head_count_kv", "attention.key_length", "attention.value_length", "embedding_length_out"),
)
KEYS: dict[str, type] = {
    **dict.fromkeys((*SIZES, "vocab_size", "expert_count", "expert_used_count"), int),
    "attention.causal": bool,
}
EPSILON, RMS_EPSILON = "attention.layer_norm_epsilon", "attention.layer_norm_rms_epsilon"
OF_LLAMA: dict[str, type] = {RMS_EPSILON: float, "tensor_data_layout": str, **gguf_rope.KEYS}
OF_OWN: dict[str, type] = {
    "post_norm": bool,
    "exact_gelu": bool,
    "attention.sliding_window": int,
    "attention.scale": float,
}
MORE_KEYS: dict[str, dict[str, type]] = {
    SHARED: {EPSILON: float},
    LLAMA: OF_LLAMA,
    OWN: {EPSILON: float} | OF_OWN,
}
# Those that must be there, and those that must be above 0
NEEDED = (*SIZES[:3], "attention.head_count")
NEEDED_BY = {SHARED: (EPSILON,), LLAMA: ("feed_forward_length", RMS_EPSILON), OWN: (EPSILON,)}
POSITIVE = (*SIZES, EPSILON, RMS_EPSILON, "rope.freq_base", "attention.sliding_window", "attention.scale")


class Opened(NamedTuple):
    """A GGUF file whose keys and tensors' names, shapes and types are read, but not its weights."""

    config: GPTConfig
    tensors: dict[str, StoredTensor]  # of tensor_specs("gguf", config), a copy of the tied head left out
    tokenizer: Tokenizer | None
    scale: float  # by which attention scores are to be multiplied, where config.scale is another


def open_gguf(path: PathLike, where: str) -> Opened:
    """Open a GGUF file; ValueError, `where` first, for one that is malformed or not of a model we compute."""
    values, tensors = read_file(path, where)
    arch = value_of(values, "general.architecture", str, where)
    if arch not in ARCHITECTURES:
        known = f"{', '.join(ARCHITECTURES[:-1])} or {OWN}"
        raise ValueError(f"{where}: general.architecture must be {known}, got {arch!r:.60}")
    _check_keys(values, arch, where)
    tokenizer = tokenizer_from(values, where)
    head, embedding = tensors.get(HEAD), tensors.get(EMBEDDING)
    if head and embedding and _equal(head, embedding):
        del tensors[HEAD]  # a copy, which older converters wrote: the head is tied
    fields: Fields = {
        "n_layer": values[f"{arch}.block_count"],
        "n_head": values[f"{arch}.attention.head_count"],
        "n_embd": values[f"{arch}.embedding_length"],
        "block_size": values[f"{arch}.context_length"],
        "tied": HEAD not in tensors,
    }
    if tokenizer:
        fields["vocab_size"] = len(values["tokenizer.ggml.tokens"])
    else:
        fields["vocab_size"] = value_of(values, f"{arch}.vocab_size", int, where)
    read = _llama_config if arch == LLAMA else _gpt2_config
    config = read(values, arch, fields, tensors, where)
    scale = values.get("npgpt.attention.scale", config.scale)
    return Opened(config, tensors, tokenizer, scale)


def read_gguf(path: PathLike) -> Pretrained:
    """Read the model of a GGUF file, its weights as float32; the tokenizer is None where it has none.

    ValueError, with what is wrong, for a file that is malformed or not of a model as we compute it.
    """
    where = f"read_gguf: {path}"
    config, tensors, tokenizer, scale = open_gguf(path, where)
    pretrained = Pretrained(config, read_weights("gguf", config, tensors, where), tokenizer)
    factor = scale / config.scale
    if abs(factor - 1) > 1e-6:
        for name, w in pretrained.tensors.items():
            if "c_attn" in name:
                w[..., : config.n_embd] *= factor
    return pretrained


def read_tokenizer(path: PathLike) -> Tokenizer | None:
    """Return the tokenizer of a GGUF file, None where it has none; the errors are read_gguf's."""
    where = f"read_tokenizer: {path}"
    return tokenizer_from(read_file(path, where)[0], where)


def _equal(a: StoredTensor, b: StoredTensor) -> bool:
    """Return whether two tensors are of one type and shape, and of the same bytes."""
    if a.raw is None or b.raw is None or (a.shape, a.dtype) != (b.shape, b.dtype):
        return False
    return np.array_equal(a.raw, b.raw)


def _check_keys(values: Fields, arch: str, where: str) -> None:
    """Raise ValueError for the keys of an architecture that are wrong whatever the others say: for all."""
    known = {f"{arch}.{name}": kind for name, kind in (KEYS | MORE_KEYS[arch]).items()}
    known |= TOKENIZER_KEYS
    known |= {} if arch == LLAMA else {"npgpt.bias": bool}
    positive = {f"{arch}.{name}" for name in POSITIVE}
    wrong = [
        f"there is no {key}"
        for name in (*NEEDED, *NEEDED_BY[arch])
        if (key := f"{arch}.{name}") not in values
    ]
    for key, value in values.items():
        if key in known:
            if not is_of(value, known[key]):
                wrong.append(f"{key} must be of type {known[key].__name__}, got {value!r:.60}")
            elif key in positive and not 0 < value < inf:
                wrong.append(f"{key} must be positive and finite, got {value!r:.60}")
        elif key.startswith(tuple(f"{one}." for one in ARCHITECTURES)):
            wrong.append(f"{key!r:.80} is no key of {arch} that npgpt computes with")
    raise_all(where, wrong)


def _check_only(values: Fields, arch: str, only: Fields, where: str) -> None:
    """Raise ValueError for keys that must have one value, where they are there, but have another."""
    wrong = []
    for name, value in only.items():
        if (found := values.get(f"{arch}.{name}", value)) != value:
            wrong.append(f"{arch}.{name} must be {value}, got {found}")
    raise_all(where, wrong)


def _gpt2_config(
    values: Fields, arch: str, fields: Fields, tensors: dict[str, StoredTensor], where: str
) -> GPTConfig:
    config = config_of(
        where,
        **fields,
        bias=values.get("npgpt.bias", True),
        layer_norm_epsilon=shortest(values[f"{arch}.{EPSILON}"]),
        post_norm=values.get("npgpt.post_norm", False),
        activation="gelu" if values.get("npgpt.exact_gelu", False) else "gelu_new",
        window=values.get("npgpt.attention.sliding_window"),
    )
    only = NEUTRAL | {"feed_forward_length": config.F, "embedding_length_out": config.n_embd}
    only |= {"attention.head_count_kv": config.n_head}
    only |= dict.fromkeys(("attention.key_length", "attention.value_length"), config.D)
    _check_only(values, arch, only, where)
    return config


def _llama_config(
    values: Fields, arch: str, fields: Fields, tensors: dict[str, StoredTensor], where: str
) -> GPTConfig:
    """Return the config of these keys; rope_freqs.weight, which is part of it, leaves the tensors."""

    def has_bias(*names: str) -> bool:
        layers = range(min(fields["n_layer"], len(tensors)))
        return any(f"blk.{i}.{name}.bias" in tensors for i in layers for name in names)

    fields |= {
        "norm": "rmsnorm",
        "activation": "swiglu",
        "rope": gguf_rope.rope_of(values, where),
        "layer_norm_epsilon": shortest(values[f"{arch}.{RMS_EPSILON}"]),
        "n_inner": values[f"{arch}.feed_forward_length"],
        "n_kv_head": values.get(f"{arch}.attention.head_count_kv"),
        "head_size": values.get(f"{arch}.attention.key_length"),
        "attention_bias": has_bias("attn_q", "attn_k", "attn_v", "attn_output"),
        "mlp_bias": has_bias("ffn_gate", "ffn_up", "ffn_down"),
    }
    config = config_of(where, **without_defaults(fields))
    only = NEUTRAL | {"embedding_length_out": config.n_embd, "attention.value_length": config.D}
    _check_only(
        values, arch, only | {"rope.dimension_count": config.D, "rope.scaling.attn_factor": 1.0}, where
    )
    if FREQUENCIES in tensors:
        stored = tensors.pop(FREQUENCIES)
        config = replace(config, rope=gguf_rope.with_factors(config, stored, f"{where}: {FREQUENCIES}"))
    return config


NEUTRAL: Fields = {"attention.causal": True, "expert_count": 0, "expert_used_count": 0}
