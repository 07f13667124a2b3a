"""page.html: one file to look into a model with, on one text: who spoke for each token, layer by layer.

Each token of the text, and what may come behind it, is a target with its attributions, as far as WORK goes;
attention is kept for the last tokens, as many as MAPS bytes hold. The page says where either ends.

Dimensions: T time, L layers, H heads, k tokens of each layer, n the last tokens whose attention is kept.
"""

import base64
import html
import json
import warnings
from pathlib import Path

import numpy as np
from numpy.typing import DTypeLike

from npgpt.engine.model import GPT
from npgpt.engine.traced import TracedGPT
from npgpt.engine.types import Fields, Floats, Integers
from npgpt.explaining.anatomy import parts
from npgpt.explaining.attribution import METHODS, Objective, Subject
from npgpt.explaining.explanation import Explanation
from npgpt.explaining.layers import lens, traced
from npgpt.explaining.reading import token_of
from npgpt.text.tokenizer import Tokenizer

TEMPLATE = Path(__file__).with_name("page.html")
WORK = 2e12  # multiply-adds for targets beside the first: a minute of two cores, whatever the model
MAPS = 4 << 20  # bytes of attention
NEXT = 5  # tokens that may come behind the text, each a target
SHOWN = 6  # tokens of each layer
ROOTS = 255  # a weight of attention is kept as the root of it, in as many steps: small ones stay apart
FINE = 65535  # steps of a probability


def write(model: GPT, tokenizer: Tokenizer | None, found: Explanation, name: str, dropped: int = 0) -> str:
    """Return the page about the text and the target of `found`, for the model called `name`.

    dropped: how many tokens before these are left out of the text.
    """
    about = {"model": name, "dropped": dropped}
    data = json.dumps(about | content(model, tokenizer, found), allow_nan=False, ensure_ascii=False)
    for letter in "<>&\u2028\u2029":  # text in a page, never a part of it
        data = data.replace(letter, f"\\u{ord(letter):04x}")
    page = TEMPLATE.read_text(encoding="utf-8").replace("__TITLE__", html.escape(name))
    return page.replace("__DATA__", data)


def content(model: GPT, tokenizer: Tokenizer | None, found: Explanation) -> Fields:
    """Return what the page shows; arrays are in base64, little-endian, row after row."""
    ids, layers = np.array(found.ids), lens(model, tokenizer, found.ids)
    T, k = len(ids), min(SHOWN, layers.top.shape[2])
    best = [int(id) for id in layers.top[-1, -1, :NEXT] if id != found.target.id]
    asked = [(T, found.target.id), *((T, id) for id in best[: NEXT - 1])]
    asked += [(t, int(ids[t])) for t in range(T - 1, 0, -1)]
    targets = [{**_target(found.scores, found.value), "at": T, "id": found.target.id}]
    targets += _attributions(TracedGPT(model), ids, found, asked[1:])
    weights = _attention(model, ids)
    said = layers.probabilities(np.append(ids[1:], found.target.id))
    texts = {*found.ids, *(int(id) for id in np.unique(layers.top[:, :, :k])), *(id for _, id in asked)}
    texts |= {found.against.id} if found.against else set()
    config = model.config
    return {
        "ids": found.ids,
        "texts": {id: token_of(tokenizer, id).text for id in sorted(texts)},
        "layers": config.n_layer,
        "heads": config.n_head,
        "method": found.method,
        "signed": found.signed,
        "of": found.of,
        "against": found.against.id if found.against else None,
        "targets": targets,
        "attention": {
            "rows": weights.shape[2],
            "roots": _packed_rows(weights),
        },  # (L,H,n,T), without the future
        "lens": {
            "k": k,
            "top": _base64(layers.top[:, :, :k], "<u4"),  # (L,T,k)
            "shares": _base64(np.rint(FINE * layers.shares[:, :, :k]), "<u2"),
            "target": _base64(np.rint(FINE * said), "<u2"),  # (L,T), of the token that follows
            "entropy": _base64(layers.entropy, "<f4"),  # (L,T)
        },
        "parts": [
            [part.name, " x ".join(map(str, part.shape)), part.times, part.parameters]
            for part in parts(config)
        ],
        "vocabulary": config.vocab_size,
        "context": config.block_size,
    }


def _target(scores: Floats, value: float, rough: bool = False) -> Fields:
    """Return a target's scores as shares of the largest; rough: they do not add up within 1 %."""
    largest = float(np.abs(scores).max()) or 1.0
    steps = _base64(np.rint(scores / largest * 32767), "<i2")
    return {"scores": steps, "largest": float(f"{largest:.5g}"), "value": round(value, 5), "rough": rough}


def _attributions(
    model: TracedGPT, ids: Integers, found: Explanation, asked: list[tuple[int, int]]
) -> list[Fields]:
    """Return as many of the targets that are asked for, (place, id), as WORK allows, in their order."""
    targets, work = [], 0.0
    for at, id in asked:
        if work > WORK:
            break
        subject = Subject(model, ids[:at], Objective(found.of, id))
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            scores = METHODS[found.method](subject)
        targets.append({**_target(scores, subject.value, bool(caught)), "at": at, "id": id})
        work += subject.passes * at * model.num_params
    return targets


def _attention(model: GPT, ids: Integers) -> Floats:
    """Return the attention (L,H,n,T) of the last n tokens, of which MAPS bytes hold what each looks at."""
    L, H, T = model.config.n_layer, model.config.n_head, len(ids)
    n = max(1, int((L * H * np.cumsum(np.arange(T, 0, -1)) <= MAPS).sum()))
    trace = traced(model, ids)
    return np.stack([trace.attention(layer)[0, :, T - n :] for layer in range(L)])


def _packed_rows(weights: Floats) -> str:
    """Return the roots of weights (L,H,n,T) up to the token that looks, as bytes."""
    n, T = weights.shape[2:]
    seen = np.tri(n, T, T - n, dtype=bool)
    return _base64(np.rint(ROOTS * np.sqrt(weights[:, :, seen])), "u1")


def _base64(array: Floats | Integers, kind: DTypeLike) -> str:
    return base64.b64encode(np.ascontiguousarray(array, kind).tobytes()).decode()
