"""The parts of a model, with how many numbers each has, and the neighbours of tokens."""

from math import prod
from typing import NamedTuple

import numpy as np

from npgpt.engine.config import GPTConfig, parameter_shapes
from npgpt.engine.model import GPT
from npgpt.engine.traced import TracedGPT
from npgpt.engine.types import Floats, Integers, Shape


class Part(NamedTuple):
    """A tensor of a model, or the tensors of one name in all its layers."""

    name: str  # GPT-2's, with * for the layers: h.*.attn.c_attn.weight
    shape: Shape  # of one
    times: int  # how many there are

    @property
    def parameters(self) -> int:
        """The numbers in all of them."""
        return self.times * prod(self.shape)


def parts(config: GPTConfig) -> list[Part]:
    """Return the parts of a model in the order of a forward pass; their parameters add up to the model's."""
    found: dict[str, Part] = {}
    for name, shape in parameter_shapes(config).items():
        layer = name.split(".")[1] if name.startswith("h.") else ""
        general = name.replace(f"h.{layer}.", "h.*.", 1) if layer else name
        found[general] = Part(general, shape, found[general].times + 1 if general in found else 1)
    attention, mlp = ["h.*.attn.c_attn", "h.*.attn.c_proj"], ["h.*.mlp.c_fc", "h.*.mlp.c_proj"]
    order = ["wte", "wpe", "h.*.ln_1", *attention, "h.*.ln_2", *mlp, "ln_f", "lm_head"]
    if config.post_norm:  # the norms stand behind the branches
        order = ["wte", "wpe", *attention, "h.*.ln_1", *mlp, "h.*.ln_2", "lm_head"]
    places = {name: place for place, name in enumerate(order)}
    return sorted(found.values(), key=lambda part: places[part.name.rpartition(".")[0]])


def neighbours(model: GPT, ids: Integers, k: int = 3) -> tuple[Integers, Floats]:
    """Return the k other tokens (T,k) whose embeddings point most nearly where those of ids (T,) do.

    With them come the cosines of the angles between them (T,k).
    """
    traced = TracedGPT(model)
    table = traced.token_embeddings(np.arange(model.config.vocab_size))
    lengths = np.sqrt((table.astype(np.float64) ** 2).sum(axis=1))
    unit = (table / np.maximum(lengths, 1e-30)[:, None]).astype(model.dtype)
    cosines = traced.products(unit[ids], unit)  # (T,V)
    cosines[np.arange(len(ids)), ids] = -np.inf  # each is its own nearest
    nearest = np.argsort(-cosines, axis=1, kind="stable")[:, :k]
    return nearest, np.take_along_axis(cosines, nearest, axis=1)
