"""Where the tensors of other people's checkpoints lie in our parameters, and the check that all are there.

A form is one program's names and layouts: "gpt2", "openai-gpt" and "gpt_neo" are Transformers' (by their
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
from npgpt.engine.model import GPT, views_of
from npgpt.engine.types import Floats, Shape, Tensors
from npgpt.text.tokenizer import Tokenizer

# theirs -> safetensors'
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
    """A model as somebody's file holds it."""

    config: GPTConfig
    weights: Floats  # 1-D, float32: all parameters in the order of parameter_shapes(config)
    tokenizer: Tokenizer | None  # None where there is none, or one that npgpt does not know

    @property
    def tensors(self) -> Tensors:
        """{name: view of the weights}."""
        return views_of(self.weights, parameter_shapes(self.config))


class Stored(NamedTuple):
    """A tensor in somebody's file, which can be looked at before it is read."""

    shape: Shape
    dtype: str  # as safetensors names them: "F32"
    read: Callable[[], np.ndarray]


class Place(NamedTuple):
    """What of our parameters a stored tensor is."""

    name: str
    shape: Shape  # of the stored tensor
    third: int | None = None  # 0, 1, 2 of c_attn's columns: queries, keys, values
    transposed: bool = False  # (out, in), as torch.nn.Linear has it

    def of(self, params: Tensors) -> Floats:
        """The view of our parameters that it fills."""
        w = params[self.name]
        w = w if self.third is None else np.split(w, 3, axis=-1)[self.third]
        return w.T if self.transposed else w


def config_of(where: str, /, **fields: Any) -> GPTConfig:
    """The GPTConfig of fields that stood in a file; ValueError for whatever is wrong with them."""
    try:
        return GPTConfig(**fields)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{where}: {error}") from None


def places(form: str, config: GPTConfig) -> dict[str, Place]:
    """{the form's name: its place} for every tensor but the tied head.

    Transformers' models have biases even where ours has none.
    """
    full = config if form == "nanogpt" else replace(config, bias=True)
    found = {}
    for name, shape in parameter_shapes(full).items():
        linear = len(shape) == 2 and name not in ("wte.weight", "wpe.weight")
        theirs, transposed = f"transformer.{name}", linear and form in ("nanogpt", "gpt_neo", "gguf")
        if form == "openai-gpt":
            theirs = theirs.replace(".wte.", ".tokens_embed.").replace(".wpe.", ".positions_embed.")
        elif form == "gpt_neo":
            theirs = theirs.replace(".attn.", ".attn.attention.").replace("attention.c_p", "attention.out_p")
        elif form == "tensorflow":
            theirs = re.sub(r"^h\.", "h", name).replace(".", "/")
            short = "w" if linear else "g"
            theirs = "model/" + re.sub(r"^(w.e)/weight$", r"\1", theirs)
            theirs = re.sub("/weight$", f"/{short}", re.sub("/bias$", "/b", theirs))
        elif form == "gguf":
            theirs = re.sub(r"^h\.", "blk.", name)
            for ours, part in GGUF.items():
                theirs = theirs.replace(ours, part)
        if form == "gpt_neo" and name.endswith("c_attn.weight"):
            a_third = shape[1] // 3, shape[0]
            for third, letter in enumerate("qkv"):
                found[theirs.replace("c_attn", f"{letter}_proj")] = Place(name, a_third, third, True)
        else:
            found[theirs] = Place(name, shape[::-1] if transposed else shape, None, transposed)
    return found


def tensors(form: str, model: GPT) -> Tensors:
    """{the form's name: float32 array} of a model's weights, the head not among them."""
    found: Tensors = {}
    for theirs, place in places(form, model.config).items():
        if place.name in model.params:
            w, factor = place.of(model.params), _factor(form, model.config, place)
            found[theirs] = np.ascontiguousarray(w if factor == 1 else w * np.float32(factor), np.float32)
        else:
            found[theirs] = np.zeros(place.shape, np.float32)
    return found


def read_weights(form: str, config: GPTConfig, stored: dict[str, Stored], where: str) -> Floats:
    """Return all parameters (num_params,) of these tensors; `where` begins errors: function and file.

    All that is wrong with the tensors is said at once, before any of them is read or memory taken for them.
    """
    if config.n_layer > len(stored):  # a config that lies must not cost time or memory
        raise ValueError(f"{where}: {config.n_layer} layers, but only {len(stored)} tensors")
    wanted = places(form, config)
    given, wrong = {}, []
    for name, tensor in stored.items():
        if MASKS.search(name):
            continue
        if form != "gguf" and not name.startswith(("transformer.", "model/", "lm_head.")):
            name = f"transformer.{name}"  # the model alone was saved, without its head
        if name in given:
            wrong.append(f"{name} is there twice")
        given[name] = tensor
    head = given.pop("lm_head.weight", None)  # some repeat the tied head, or have it in the embedding's place
    wte = next(name for name, place in wanted.items() if place.name == "wte.weight")
    if head and wte not in given:
        given[wte], head = head, None
    needed = (name for name in wanted if form != "gguf" or not name.endswith(".bias"))
    wrong += [f"{name} is missing" for name in needed if name not in given]
    wrong += [f"{name} does not belong" for name in given if name not in wanted]
    checked = {name: (given[name], place.shape) for name, place in wanted.items() if name in given}
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
        array, place = tensor.read(), wanted[name]
        if place.name in params:
            w = place.of(params)
            w[...] = array
            if (factor := _factor(form, config, place)) != 1:
                w /= w.dtype.type(factor)
        elif array.any():
            raise ValueError(f"{where}: {name} must be zero, as bias is false")
        if head and place.name == "wte.weight" and not np.array_equal(head.read(), array):
            raise ValueError(f"{where}: lm_head.weight must equal {name} (tied)")
    return weights


def _factor(form: str, config: GPTConfig, place: Place) -> float:
    """What the form has multiplied a weight by: GPT-Neo's queries bring the scale of the scores with them."""
    return config.scale if form == "gpt_neo" and place.third == 0 else 1.0
