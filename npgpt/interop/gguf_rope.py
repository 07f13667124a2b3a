"""Rotary positions in a GGUF file of Llama's shape: its keys, and rope_freqs.weight, which Llama 3.1 needs.

Files have rotary positions scaled evenly, by a key, or pair by pair, by a tensor of factors that divide the
speeds of a head's pairs. Of the factors npgpt knows those that Llama 3.1's formula gives.
"""

from itertools import combinations
from math import pi

import numpy as np

from npgpt.engine.config import GPTConfig, Rope
from npgpt.engine.types import Fields, Floats
from npgpt.interop.gguf_values import shortest
from npgpt.interop.layout import StoredTensor, raise_all

# Keys behind "llama." -> the type of the value
KEYS: dict[str, type] = {
    "rope.freq_base": float,
    "rope.dimension_count": int,
    "rope.scale_linear": float,  # what the factor was called once
    "rope.scaling.type": str,
    "rope.scaling.factor": float,
    "rope.scaling.attn_factor": float,
    "rope.scaling.original_context_length": int,
    "rope.scaling.finetuned": bool,
}
THETA, TYPE = "llama.rope.freq_base", "llama.rope.scaling.type"
FACTOR, OLD_FACTOR = "llama.rope.scaling.factor", "llama.rope.scale_linear"
USUAL = 1.0, 4.0  # low_freq_factor and high_freq_factor of all Llamas


def values_of(config: GPTConfig) -> Fields:
    """Return the keys of a config's rotary positions."""
    rope = config.rope
    assert rope
    values: Fields = {"llama.rope.dimension_count": config.D, THETA: float(rope.theta)}
    return values | ({TYPE: "linear", FACTOR: float(rope.factor)} if rope.type == "linear" else {})


def factors_of(config: GPTConfig) -> Floats | None:
    """Return rope_freqs.weight (D/2,) of a config, None where its pairs are scaled evenly."""
    rope = config.rope
    if not rope or rope.type != "llama3":
        return None
    factors: Floats = (_speeds(Rope(rope.theta), config.D) / _speeds(rope, config.D)).astype(np.float32)
    return factors


def _speeds(rope: Rope, D: int) -> Floats:
    """Return the angles (D/2,) by which the pairs of a head turn from one token to the next."""
    speeds: Floats = rope.angles(2, D, np.float64)[1]
    return speeds


def rope_of(values: Fields, where: str) -> Rope:
    """Return the rotary positions of a file's keys, whose types are right; ValueError for what is wrong."""
    wrong = []
    kind = values.get(TYPE, "linear")
    if kind not in ("none", "linear"):
        wrong.append(f"{TYPE} must be none or linear, got {kind!r:.60}")
    key = FACTOR if FACTOR in values else OLD_FACTOR
    factor: float = 1.0 if kind == "none" or key not in values else values[key]
    if not 0 <= factor < np.inf:
        wrong.append(f"{key} must be positive and finite, got {factor}")
    raise_all(where, wrong)
    factor = shortest(factor or 1.0)
    theta = shortest(values.get(THETA, 10_000.0))
    return Rope(theta) if factor == 1 else Rope(theta, "linear", factor)


def with_factors(config: GPTConfig, stored: StoredTensor, where: str) -> Rope:
    """Return a config's rotary positions, whose pairs these factors scale; ValueError for unknown ones."""
    rope = config.rope
    assert rope
    if stored.shape != (config.D // 2,) or stored.dtype != "F32":
        what = f"F32 of shape ({config.D // 2},)"
        raise ValueError(f"{where} must be {what}, got {stored.dtype} of {stored.shape}")
    if rope.type != "default":
        raise ValueError(f"{where} must be alone, got {FACTOR} {rope.factor} beside it")
    factors = stored.read().astype(np.float64)
    if np.isfinite(factors).all() and factors.min() > 0:
        if (factors == factors[0]).all():
            factor = shortest(factors[0])
            return rope if factor == 1 else Rope(rope.theta, "linear", factor)
        for scaling in _candidates(rope.theta, factors):
            if np.allclose(_speeds(scaling, config.D) * factors, _speeds(rope, config.D), 1e-5, 0):
                return scaling
    what = "factors that are all the same, or those of llama3's scaling"
    found = " ".join(f"{x:.5g}" for x in factors[:16]) + " ..." * (len(factors) > 16)
    raise ValueError(f"{where} must be {what}, got {found}")


def _candidates(theta: float, factors: Floats) -> list[Rope]:
    """Return scalings of llama3's kind that may have these factors.

    The share of its own speed that a pair keeps is a straight line over the speeds, cut at 0 and at 1. So the
    pairs between tell the line, by which two of the three numbers are known, and the third is free. Where
    fewer than two are between, those next to them stand on its ends.
    """
    most = factors[-1]  # of the slowest pair
    if most == 1:
        return []
    speeds = _speeds(Rope(theta), 2 * len(factors))
    share = (1 / factors - 1 / most) / (1 - 1 / most)
    whole, none = share > 1 - 1e-6, share < 1e-6
    inside = [int(i) for i in np.flatnonzero(~whole & ~none)]
    found = []
    for i in inside[:1]:  # as all Llamas have them
        low, high = USUAL
        found.append((low, high, round(2 * pi * (low + (high - low) * share[i]) / speeds[i])))
    points = [*np.flatnonzero(whole)[-1:], *inside, *np.flatnonzero(none)[:1]] if len(inside) < 2 else inside
    for i, j in combinations(points, 2):
        slope = (share[i] - share[j]) / (speeds[i] - speeds[j])
        start = share[i] - slope * speeds[i]  # of the line, below 0
        if start < 0:
            context = max(1, round(2 * pi * slope / -start))  # which is free
            low = context * -start / (2 * pi * slope)
            found.append((low, low - low / start, context))
    scalings = [(float(low), float(high), context) for low, high, context in found if low < high and context]
    return [Rope(theta, "llama3", shortest(most), *scaling) for scaling in scalings]
