"""GGUF files whose matrices stay in their blocks, mapped from the file: the base of LoRA adapters."""

from typing import NamedTuple

import numpy as np

from npgpt.engine.config import GPTConfig, parameter_shapes
from npgpt.engine.finite import check_tensor
from npgpt.engine.quantised import Quantised, Rows
from npgpt.engine.quantised_model import QuantisedGPT
from npgpt.engine.types import Array, PathLike, Tensors
from npgpt.interop.blocks import unpack
from npgpt.interop.gguf import open_gguf
from npgpt.interop.layout import StoredTensor, TensorSpec, fitting, tensor_specs
from npgpt.text.tokenizer import Tokenizer


class InBlocks(NamedTuple):
    """A model as it was opened from a file, with the attributes of a Pretrained."""

    config: GPTConfig
    made: QuantisedGPT
    tokenizer: Tokenizer | None

    def model(self) -> QuantisedGPT:
        """Return the engine's model."""
        return self.made


def open_in_blocks(path: PathLike) -> InBlocks:
    """Open the model of a GGUF file; its matrices stay in the file, and its vectors are float32.

    ValueError as from read_gguf, which has all of it float32.
    """
    where = f"open_in_blocks: {path}"
    config, stored, tokenizer, scale = open_gguf(path, where)
    given, _ = fitting("gguf", config, stored, where)
    if abs(scale / config.scale - 1) > 1e-6:
        raise ValueError(f"{where}: npgpt.attention.scale must be {config.scale:g} for LoRA, got {scale:g}")
    specs, vectors = tensor_specs("gguf", config), _vectors(config)
    parts: dict[str, list[Rows]] = {}
    for name, spec in specs.items():
        if name not in given:
            continue
        tensor = given[name]
        if _in_blocks(spec):
            parts.setdefault(spec.name, []).append(_rows(tensor, spec))
        elif spec.name in vectors:
            w = spec.view(vectors)
            w[...] = tensor.read().reshape(w.shape)
            check_tensor(where, name, w)
        elif tensor.read().any():
            raise ValueError(f"{where}: {name} must be zero, as bias is false")
    matrices = {}
    for name, rows in parts.items():
        shape = parameter_shapes(config)[name]
        matrix = matrices[name] = Quantised(rows, shape[0] if name.startswith("h.") else shape[1])
        for _, numbers in matrix.strips():
            check_tensor(where, name, numbers)
    return InBlocks(config, QuantisedGPT(config, vectors, matrices, path), tokenizer)


def _in_blocks(spec: TensorSpec) -> bool:
    return len(spec.shape) == 2 and spec.name != "wpe.weight"


def _vectors(config: GPTConfig) -> Tensors:
    """Return zeros for the parameters that are float32: learned positions, norms, biases."""
    shapes = parameter_shapes(config)
    return {n: np.zeros(s, np.float32) for n, s in shapes.items() if len(s) == 1 or n == "wpe.weight"}


def _rows(tensor: StoredTensor, spec: TensorSpec) -> Rows:
    """Return the rows of a stored matrix, in the order of ours."""
    assert tensor.raw is not None
    blocks: Array = np.asarray(tensor.raw).reshape(spec.shape[0], -1)
    if spec.turned:
        pairs = blocks.reshape(spec.turned, -1, 2, blocks.shape[1])
        blocks = np.ascontiguousarray(pairs.swapaxes(1, 2)).reshape(blocks.shape)
    return Rows(blocks, tensor.dtype.lower(), unpack)
