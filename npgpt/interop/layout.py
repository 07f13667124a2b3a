"""The tensors of other programs' checkpoints: their names, shapes and views in our parameters, and the check.

A format is one program's names and layouts: "gpt2", "openai-gpt", "gpt_neo" and "llama" are Transformers' (by
their model_type), "nanogpt" is nanoGPT's, "tensorflow" OpenAI's release of GPT-2, "gguf" llama.cpp's, which
may leave out biases.
"""

import re
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np

from npgpt.engine import kernels
from npgpt.engine.config import GPTConfig, count_parameters, parameter_shapes
from npgpt.engine.finite import check_tensor
from npgpt.engine.model import GPT, views_of
from npgpt.engine.types import Array, Fields, Floats, Shape, Tensors
from npgpt.interop.blocks import TYPES
from npgpt.text.tokenizer import Tokenizer

# the format's dtype -> safetensors'
FLOATS = {"float16": "F16", "bfloat16": "BF16", "float32": "F32", "float64": "F64"}
# buffers of old files, not parameters
MASKS = re.compile(r"\.attn\.(attention\.)?(masked_)?bias$|\.rotary_emb\.inv_freq$")
GGUF = {
    "wte": "token_embd",
    "wpe": "position_embd",
    "lm_head": "output",
    "ln_f": "output_norm",
    "ln_1": "attn_norm",
    "ln_2": "ffn_norm",
    "attn.c_attn": "attn_qkv",
    "attn.c_proj": "attn_output",
    "mlp.c_fc": "ffn_up",
    "mlp.c_proj": "ffn_down",
}
# The same of Llama's shape, where every linear layer is a tensor of its own: a format's names of our modules,
# or of their parts
LLAMA: dict[str, dict[str, tuple[str, ...]]] = {
    "llama": {
        "wte": ("model.embed_tokens",),
        "lm_head": ("lm_head",),
        "ln_f": ("model.norm",),
        "h": ("model.layers",),
        "ln_1": ("input_layernorm",),
        "ln_2": ("post_attention_layernorm",),
        "attn.c_attn": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
        "attn.c_proj": ("self_attn.o_proj",),
        "mlp.c_fc": ("mlp.gate_proj", "mlp.up_proj"),
        "mlp.c_proj": ("mlp.down_proj",),
    },
    "gguf": {
        "wte": ("token_embd",),
        "lm_head": ("output",),
        "ln_f": ("output_norm",),
        "h": ("blk",),
        "ln_1": ("attn_norm",),
        "ln_2": ("ffn_norm",),
        "attn.c_attn": ("attn_q", "attn_k", "attn_v"),
        "attn.c_proj": ("attn_output",),
        "mlp.c_fc": ("ffn_gate", "ffn_up"),
        "mlp.c_proj": ("ffn_down",),
    },
}


class Pretrained(NamedTuple):
    """A model as it was read from a file or folder."""

    config: GPTConfig
    weights: Floats  # 1-D, float32: all parameters in the order of parameter_shapes(config)
    tokenizer: Tokenizer | None  # None where there is none, or one that npgpt cannot read

    @property
    def tensors(self) -> Tensors:
        """The parameters, {name: view of the weights}."""
        return views_of(self.weights, parameter_shapes(self.config))

    def model(self) -> GPT:
        """Return the engine's model of these weights, which are not copied."""
        return GPT(self.config, weights=self.weights)


def with_rows(base: Pretrained, rows: int) -> Pretrained:
    """Return the model with so many rows of the embedding and of a head of its own; new ones are zero."""
    if rows == base.config.vocab_size:
        return base
    config, kept = replace(base.config, vocab_size=rows), min(rows, base.config.vocab_size)
    grown = base._replace(config=config, weights=kernels.zeros(count_parameters(config)))
    params = grown.tensors
    for name, w in base.tensors.items():
        of_tokens = name in ("wte.weight", "lm_head.weight")
        params[name][: kept if of_tokens else None] = w[: kept if of_tokens else None]
    return grown


class StoredTensor(NamedTuple):
    """A lazy tensor of a file: shape and dtype are known before its numbers are read."""

    shape: Shape
    dtype: str  # by safetensors' name: "F32"
    read: Callable[[], np.ndarray]
    raw: Array | None = None  # the bytes (n,) in a GGUF file, in blocks of the dtype


class TensorSpec(NamedTuple):
    """The layout of a stored tensor: the parameter, or part of one, that it holds."""

    name: str
    shape: Shape  # of the stored tensor
    columns: slice | None = (
        None  # of the parameter's last axis: queries, keys or values; a gate or its values
    )
    transposed: bool = False  # (out, in), as torch.nn.Linear has it
    is_query: bool = False
    turned: int = 0  # heads whose rows stand as their pairs turn, (i, i + D/2) side by side: GGUF's q and k

    def view(self, params: Tensors) -> Floats:
        """Return the view of our parameters, {name: array}, that the stored tensor fills.

        Its numbers are in the tensor's order. Where heads are turned, more axes stand for that of the rows.
        """
        w = params[self.name]
        w = w if self.columns is None else w[..., self.columns]
        w = w.T if self.transposed else w
        return w.reshape(self.turned, 2, -1, *w.shape[1:]).swapaxes(1, 2) if self.turned else w


def config_of(where: str, /, **fields: Any) -> GPTConfig:
    """Return the GPTConfig of fields from a file; `where` begins the ValueError for wrong ones."""
    try:
        return GPTConfig(**fields)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{where}: {error}") from None


def raise_all(where: str, wrong: list[str]) -> None:
    """Raise ValueError, `where` first, for all faults of a file at once, where there is any."""
    if wrong:
        more = f"; and {len(wrong) - 20} more faults" if len(wrong) > 20 else ""
        raise ValueError(f"{where}: " + "; ".join(wrong[:20]) + more)


def without_defaults(fields: Fields) -> Fields:
    """Return a Llama's fields of GPTConfig without those that say what None says: equal shapes are equal."""
    C, H = fields["n_embd"], fields["n_head"]
    usual = {"n_kv_head": H, "n_inner": 4 * C, "head_size": None if not H or C % H else C // H}
    kept = {name: value for name, value in fields.items() if name not in usual or value != usual[name]}
    if kept["attention_bias"] == kept["mlp_bias"]:
        kept["bias"] = kept.pop("attention_bias")
        del kept["mlp_bias"]
    return {"bias": False} | kept


def tensor_specs(format: str, config: GPTConfig) -> dict[str, TensorSpec]:
    """Return {the format's name: its TensorSpec} for every tensor but the tied head.

    Transformers' models have biases even where ours has none.
    """
    if config.rope and format in LLAMA:
        return _llama_specs(format, config)
    full = config if format == "nanogpt" else replace(config, bias=True)
    found = {}
    for name, shape in parameter_shapes(full).items():
        linear = len(shape) == 2 and name not in ("wte.weight", "wpe.weight", "lm_head.weight")
        theirs = name if name == "lm_head.weight" else f"transformer.{name}"
        transposed = linear and format in ("nanogpt", "gpt_neo", "gguf")
        if format == "openai-gpt":
            theirs = theirs.replace(".wte.", ".tokens_embed.").replace(".wpe.", ".positions_embed.")
        elif format == "gpt_neo":
            theirs = theirs.replace(".attn.", ".attn.attention.").replace("attention.c_p", "attention.out_p")
        elif format == "tensorflow":
            theirs = re.sub(r"^h\.", "h", name).replace(".", "/")
            short = "w" if linear else "g"
            theirs = "model/" + re.sub(r"^(w.e)/weight$", r"\1", theirs)
            theirs = re.sub("/weight$", f"/{short}", re.sub("/bias$", "/b", theirs))
        elif format == "gguf":
            theirs = re.sub(r"^h\.", "blk.", name)
            for ours, other in GGUF.items():
                theirs = theirs.replace(ours, other)
        if format == "gpt_neo" and name.endswith("c_attn.weight"):
            for letter, columns in _heads(config):
                a_third = columns.stop - columns.start, shape[0]
                spec = TensorSpec(name, a_third, columns, True, letter == "q")
                found[theirs.replace("c_attn", f"{letter}_proj")] = spec
        else:
            found[theirs] = TensorSpec(name, shape[::-1] if transposed else shape, None, transposed)
    return found


def _heads(config: GPTConfig) -> list[tuple[str, slice]]:
    """Return the columns of c_attn that are queries, keys and values."""
    queries, keys = config.n_head * config.D, config.K * config.D
    edges = 0, queries, queries + keys, queries + 2 * keys
    return [(letter, slice(*edge)) for letter, edge in zip("qkv", pairwise(edges), strict=True)]


def _llama_specs(format: str, config: GPTConfig) -> dict[str, TensorSpec]:
    """Return tensor_specs() of Llama's shape: every linear layer a tensor of its own."""
    names, found = LLAMA[format], {}
    cuts = {"attn.c_attn": [columns for _, columns in _heads(config)]}
    cuts["mlp.c_fc"] = [slice(0, config.F), slice(config.F, 2 * config.F)]
    turned = [config.n_head, config.K, 0] if format == "gguf" else [0, 0, 0]
    for name, shape in parameter_shapes(config).items():
        module, _, kind = name.rpartition(".")
        if not module.startswith("h."):
            found[f"{names[module][0]}.{kind}"] = TensorSpec(name, shape)
            continue
        _, layer, part = module.split(".", 2)
        for i, theirs in enumerate(names[part]):
            columns = cuts[part][i] if part in cuts else None
            size = shape if columns is None else (*shape[:-1], columns.stop - columns.start)
            heads = turned[i] if part == "attn.c_attn" else 0
            spec = TensorSpec(name, size[::-1], columns, len(size) == 2, turned=heads)
            found[f"{names['h'][0]}.{layer}.{theirs}.{kind}"] = spec
    return found


def tensors(format: str, model: GPT) -> dict[str, StoredTensor]:
    """Return {the format's name: float32 tensor} of a model's weights, without the tied head.

    They are made when they are read, one at a time. ValueError, before, for weights that are not finite.
    """
    for name, w in model.params.items():
        if isinstance(w, np.ndarray):  # what a file holds in blocks was checked when it was opened
            check_tensor("save", name, w)

    def read(spec: TensorSpec) -> Floats:
        if spec.name not in model.params:
            return np.zeros(spec.shape, np.float32)
        w, factor = spec.view({spec.name: model.array(spec.name)}), factor_of(format, model.config, spec)
        return np.ascontiguousarray(w if factor == 1 else w * np.float32(factor), np.float32)

    specs = tensor_specs(format, model.config)
    return {theirs: StoredTensor(spec.shape, "F32", partial(read, spec)) for theirs, spec in specs.items()}


def fitting(
    format: str, config: GPTConfig, stored: dict[str, StoredTensor], where: str
) -> tuple[dict[str, StoredTensor], StoredTensor | None]:
    """Return the tensors by the names of tensor_specs(), and a copy of a tied head, None without one.

    One ValueError, `where` first, names all faults of the tensors, before any is read.
    """
    if config.n_layer > len(stored):  # a false config must not cost time or memory
        raise ValueError(f"{where}: {config.n_layer} layers, but only {len(stored)} tensors")
    wanted = tensor_specs(format, config)
    given, wrong = {}, []
    for name, tensor in stored.items():
        if format != "gguf" and MASKS.search(name):
            continue
        if format != "gguf" and not name.startswith(("transformer.", "model.", "model/", "lm_head.")):
            name = f"{'model' if format == 'llama' else 'transformer'}.{name}"  # saved without the head
        if name in given:
            wrong.append(f"{_shown(name)} is there twice")
        given[name] = tensor
    theirs = _head_of(format)
    # some repeat the tied head, or have it instead of the embedding
    head = given.pop(theirs, None) if config.tied else None
    wte = next(name for name, spec in wanted.items() if spec.name == "wte.weight")
    if head and wte not in given and format != "gguf":
        given[wte], head = head, None
    needed = (name for name in wanted if format != "gguf" or not name.endswith(".bias"))
    wrong += [f"{name} is missing" for name in needed if name not in given]
    wrong += [f"{_shown(name)} does not belong" for name in given if name not in wanted]
    checked = {name: (given[name], spec.shape) for name, spec in wanted.items() if name in given}
    if head:
        checked[theirs] = head, wanted[wte].shape
    for name, (tensor, shape) in checked.items():
        if _without_ones(format, tensor.shape) != _without_ones(format, shape):
            wrong.append(f"{name} must have shape {shape}, got {tuple(tensor.shape)}")
        known = _dtypes(format, shape)
        if tensor.dtype not in known:
            wrong.append(f"{name} must be one of {', '.join(known)}, got {tensor.dtype}")
    raise_all(where, wrong)
    return given, head


def read_weights(format: str, config: GPTConfig, stored: dict[str, StoredTensor], where: str) -> Floats:
    """Return all parameters (num_params,) of these tensors; `where` begins errors: function and file.

    One ValueError names all faults of the tensors, before any is read or memory is allocated for them.
    """
    given, head = fitting(format, config, stored, where)
    wanted = tensor_specs(format, config)
    weights = kernels.empty(count_parameters(config))
    params = views_of(weights, parameter_shapes(config))
    for spec in (spec for name, spec in wanted.items() if name not in given and spec.name in params):
        spec.view(params)[...] = 0  # a bias that the file does not have
    for name, tensor in given.items():
        array, spec = tensor.read(), wanted[name]
        if spec.name in params:
            w = spec.view(params)
            with np.errstate(over="ignore"):  # of float64, which is refused
                w[...] = array.reshape(w.shape)
            check_tensor(where, name, w)
            if (factor := factor_of(format, config, spec)) != 1:
                w /= w.dtype.type(factor)
        elif array.any():
            raise ValueError(f"{where}: {name} must be zero, as bias is false")
        if head and spec.name == "wte.weight" and not np.array_equal(head.read(), array):
            raise ValueError(f"{where}: {_head_of(format)} must equal {name} (tied)")
    return weights


def _head_of(format: str) -> str:
    return "output.weight" if format == "gguf" else "lm_head.weight"


def _shown(name: str) -> str:
    """Return a file's name of a tensor as a line can hold it."""
    return name if name.isprintable() and len(name) < 80 else f"{name!r:.80}"


def _without_ones(format: str, shape: Shape) -> Shape:
    """Return the shape by which tensors are told apart: GGUF's writers may leave out lengths of 1."""
    first = next((i for i, n in enumerate(shape) if n != 1), len(shape)) if format == "gguf" else 0
    return tuple(shape[first:])


def _dtypes(format: str, shape: Shape) -> tuple[str, ...]:
    if format != "gguf":
        return tuple(FLOATS.values())
    return ("F32",) if len(shape) == 1 else tuple(map(str.upper, TYPES))  # ggml adds no other vectors


def factor_of(format: str, config: GPTConfig, spec: TensorSpec) -> float:
    """Return the factor of a stored weight: GPT-Neo's queries include the scale of the scores."""
    return config.scale if format == "gpt_neo" and spec.is_query else 1.0
