"""The tensors of other programs' checkpoints: their names, shapes and views in our parameters, and the check.

A format is one program's names and layouts: "gpt2", "openai-gpt" and "gpt_neo" are Transformers' (by their
model_type), "nanogpt" is nanoGPT's, "tensorflow" OpenAI's release of GPT-2, "gguf" llama.cpp's, which
may leave out biases.
"""

import re
from collections.abc import Callable
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np

from npgpt.engine import kernels
from npgpt.engine.config import GPTConfig, count_parameters, parameter_shapes
from npgpt.engine.finite import check_tensor
from npgpt.engine.model import GPT, views_of
from npgpt.engine.types import Floats, Shape, Tensors
from npgpt.text.tokenizer import Tokenizer

# the format's dtype -> safetensors'
FLOATS = {"float16": "F16", "bfloat16": "BF16", "float32": "F32", "float64": "F64"}
MASKS = re.compile(r"\.attn\.(attention\.)?(masked_)?bias$")  # buffers of old files, not parameters
GGUF = {
    "wte": "token_embd",
    "wpe": "position_embd",
    "ln_f": "output_norm",
    "ln_1": "attn_norm",
    "ln_2": "ffn_norm",
    "attn.c_attn": "attn_qkv",
    "attn.c_proj": "attn_output",
    "mlp.c_fc": "ffn_up",
    "mlp.c_proj": "ffn_down",
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


class StoredTensor(NamedTuple):
    """A lazy tensor of a file: shape and dtype are known before its numbers are read."""

    shape: Shape
    dtype: str  # by safetensors' name: "F32"
    read: Callable[[], np.ndarray]


class TensorSpec(NamedTuple):
    """The layout of a stored tensor: the parameter, or third of one, that it holds."""

    name: str
    shape: Shape  # of the stored tensor
    third: int | None = None  # 0, 1, 2 of c_attn's columns: queries, keys, values
    transposed: bool = False  # (out, in), as torch.nn.Linear has it

    def view(self, params: Tensors) -> Floats:
        """Return the view of our parameters, {name: array}, that the stored tensor fills."""
        w = params[self.name]
        w = w if self.third is None else np.split(w, 3, axis=-1)[self.third]
        return w.T if self.transposed else w


def config_of(where: str, /, **fields: Any) -> GPTConfig:
    """Return the GPTConfig of fields from a file; `where` begins the ValueError for wrong ones."""
    try:
        return GPTConfig(**fields)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{where}: {error}") from None


def tensor_specs(format: str, config: GPTConfig) -> dict[str, TensorSpec]:
    """Return {the format's name: its TensorSpec} for every tensor but the tied head.

    Transformers' models have biases even where ours has none.
    """
    full = config if format == "nanogpt" else replace(config, bias=True)
    found = {}
    for name, shape in parameter_shapes(full).items():
        linear = len(shape) == 2 and name not in ("wte.weight", "wpe.weight")
        theirs, transposed = f"transformer.{name}", linear and format in ("nanogpt", "gpt_neo", "gguf")
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
            a_third = shape[1] // 3, shape[0]
            for third, letter in enumerate("qkv"):
                found[theirs.replace("c_attn", f"{letter}_proj")] = TensorSpec(name, a_third, third, True)
        else:
            found[theirs] = TensorSpec(name, shape[::-1] if transposed else shape, None, transposed)
    return found


def tensors(format: str, model: GPT) -> Tensors:
    """Return {the format's name: float32 array} of a model's weights, without the tied head.

    ValueError, before any is made, for weights that are not finite.
    """
    for name, w in model.params.items():
        check_tensor("save", name, w)
    found: Tensors = {}
    for theirs, spec in tensor_specs(format, model.config).items():
        if spec.name in model.params:
            w, factor = spec.view(model.params), _factor(format, model.config, spec)
            found[theirs] = np.ascontiguousarray(w if factor == 1 else w * np.float32(factor), np.float32)
        else:
            found[theirs] = np.zeros(spec.shape, np.float32)
    return found


def read_weights(format: str, config: GPTConfig, stored: dict[str, StoredTensor], where: str) -> Floats:
    """Return all parameters (num_params,) of these tensors; `where` begins errors: function and file.

    One ValueError names all faults of the tensors, before any is read or memory is allocated for them.
    """
    if config.n_layer > len(stored):  # a false config must not cost time or memory
        raise ValueError(f"{where}: {config.n_layer} layers, but only {len(stored)} tensors")
    wanted = tensor_specs(format, config)
    given, wrong = {}, []
    for name, tensor in stored.items():
        if MASKS.search(name):
            continue
        if format != "gguf" and not name.startswith(("transformer.", "model/", "lm_head.")):
            name = f"transformer.{name}"  # saved without the head
        if name in given:
            wrong.append(f"{name} is there twice")
        given[name] = tensor
    head = given.pop("lm_head.weight", None)  # some repeat the tied head, or have it instead of the embedding
    wte = next(name for name, spec in wanted.items() if spec.name == "wte.weight")
    if head and wte not in given:
        given[wte], head = head, None
    needed = (name for name in wanted if format != "gguf" or not name.endswith(".bias"))
    wrong += [f"{name} is missing" for name in needed if name not in given]
    wrong += [f"{name} does not belong" for name in given if name not in wanted]
    checked = {name: (given[name], spec.shape) for name, spec in wanted.items() if name in given}
    if head:
        checked["lm_head.weight"] = head, wanted[wte].shape
    for name, (tensor, shape) in checked.items():
        if tuple(tensor.shape) != shape:
            wrong.append(f"{name} must have shape {shape}, got {tuple(tensor.shape)}")
        if tensor.dtype not in FLOATS.values():
            wrong.append(f"{name} must be one of {', '.join(FLOATS.values())}, got {tensor.dtype}")
    if wrong:
        raise ValueError(f"{where}: " + "; ".join(wrong))

    weights = kernels.zeros(count_parameters(config))
    params = views_of(weights, parameter_shapes(config))
    for name, tensor in given.items():
        array, spec = tensor.read(), wanted[name]
        if spec.name in params:
            w = spec.view(params)
            with np.errstate(over="ignore"):  # of float64, which is refused
                w[...] = array
            check_tensor(where, name, w)
            if (factor := _factor(format, config, spec)) != 1:
                w /= w.dtype.type(factor)
        elif array.any():
            raise ValueError(f"{where}: {name} must be zero, as bias is false")
        if head and spec.name == "wte.weight" and not np.array_equal(head.read(), array):
            raise ValueError(f"{where}: lm_head.weight must equal {name} (tied)")
    return weights


def _factor(format: str, config: GPTConfig, spec: TensorSpec) -> float:
    """Return the factor of a stored weight: GPT-Neo's queries include the scale of the scores."""
    return config.scale if format == "gpt_neo" and spec.third == 0 else 1.0
