"""An explanation on the screen: shaded tokens on a terminal, plain tables elsewhere."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from npgpt.console.language import N_, _, fill, number
from npgpt.console.messages import log

if TYPE_CHECKING:
    from npgpt.engine.model import GPT
    from npgpt.engine.types import Floats
    from npgpt.explaining.attacks import Flips, Reduction
    from npgpt.explaining.explanation import Explanation
    from npgpt.explaining.layers import Lens
    from npgpt.text.tokenizer import Tokenizer

# Of 256 colours, background and foreground, faint to strong: blue speaks for the target, orange against it
FOR = (195, 16), (153, 16), (111, 16), (69, 231), (27, 231)
AGAINST = (230, 16), (223, 16), (215, 16), (208, 16), (166, 231)
FAINT = 0.02  # of the largest score: less is not shaded
QUANTITIES = {"logprob": N_("log probability"), "logit": N_("logit"), "prob": N_("probability")}
METHODS = {
    "gradient": N_("gradient"),
    "grad_x_input": N_("gradient times input"),
    "integrated": N_("integrated gradients"),
    "smooth": N_("SmoothGrad"),
    "occlusion": N_("occlusion"),
}
SPEAKS_FOR = N_("what speaks for it, by {method}:")
REACTS_TO = N_("how strongly it reacts to each token, by {method}:")
LOG_PROBABILITY_LESS = N_("log probability less that of {against}")
LABEL = N_("label {target}: {of} {value:.4f}")
LABEL_AGAINST = N_("label {target} rather than {against}: {of} {value:+.4f}")
MB = 1e6


def is_shaded() -> bool:
    """Return whether stdout is a terminal that is given colours: not with NO_COLOR (no-color.org)."""
    return sys.stdout.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"


def visible(token: str) -> str:
    """Return a token on one line: what moves the cursor or cannot be seen is spelt as Python does."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in token)


def shaded(tokens: Sequence[str], scores: Floats) -> str:
    """Return the tokens on backgrounds, stronger for larger scores (T,): blue above 0, orange below."""
    largest, pieces = float(np.abs(scores).max()) or 1.0, []
    for token, score in zip(tokens, scores, strict=True):
        share, colours = abs(score) / largest, FOR if score > 0 else AGAINST
        text = visible(token)
        back, front = colours[min(int(share * len(colours)), len(colours) - 1)]
        pieces.append(f"\x1b[48;5;{back};38;5;{front}m{text}\x1b[0m" if share >= FAINT else text)
    return "".join(pieces)


def table(heads: Sequence[str], rows: Sequence[Sequence[str]], left: int) -> None:
    """Print rows under their heads; column `left` is text, and the others end at one place."""
    widths = [max(len(row[n]) for row in (heads, *rows)) for n in range(len(heads))]
    for row in (heads, *rows):
        cells = [
            cell.ljust(w) if n == left else cell.rjust(w)
            for n, (cell, w) in enumerate(zip(row, widths, strict=True))
        ]
        print("  ".join(cells).rstrip())


def quoted(text: str) -> str:
    """Return a token in quotes."""
    return f'"{visible(text)}"'


def show(found: Explanation) -> None:
    """Print an explanation."""
    values = {"target": quoted(found.target.text), "of": _(QUANTITIES[found.of]), "value": found.value}
    other = quoted(found.against.text) if found.against else ""
    if found.labels:
        log(LABEL_AGAINST if other else LABEL, against=other, **values)
    elif other:
        log("next token {target} rather than {against}: {of} {value:+.4f}", against=other, **values)
    else:
        log("next token {target}: {of} {value:.4f}", **values)
    how = SPEAKS_FOR if found.signed else REACTS_TO
    log(how, method=_(METHODS[found.method]))
    if is_shaded():
        print(shaded(found.tokens, found.scores))
        return
    form = "+.4f" if found.signed else ".4f"
    rows = [(number(s, form), quoted(t)) for t, s in zip(found.tokens, found.scores, strict=True)]
    table((_("score"), _("token")), rows, 1)


def show_reduction(found: Reduction) -> None:
    """Print what is left of a text by input reduction."""
    left = "  ".join(quoted(found.tokens[place]) for place in found.kept)
    log("what it needs, by input reduction ({n} of {all} tokens):", n=len(found.kept), all=len(found.tokens))
    print(left)
    log("behind that {of} {value:.4f}", of=_what(found), value=found.value_left)


def _what(found: Reduction | Flips) -> str:
    """Return what the values are of: the target's log-probability, or what it is above that of `against`."""
    if found.against:
        return fill(_(LOG_PROBABILITY_LESS), against=quoted(found.against.text))
    return _(QUANTITIES["logprob"])


def show_flips(found: Flips) -> None:
    """Print what overturns a prediction by HotFlip."""
    if found.overturned:
        log("what overturns it, by HotFlip: {target} comes next then", target=quoted(found.predicted.text))
    else:
        log("nothing was found that overturns it, by HotFlip; the most was this:")
    rows = [
        (str(flip.place), quoted(flip.old.text), quoted(flip.new.text), number(flip.value, ".4f"))
        for flip in found.flips
    ]
    table((_("position"), _("token"), _("instead"), _what(found)), rows, 2)
    print(visible("".join(found.flipped)))


def show_attention(tokens: Sequence[str], weights: Floats) -> None:
    """Print where the last token looks in each layer: (L,H,T,T), the mean of the heads."""
    log("where the last token looks, mean of the heads:")
    rows = []
    for layer, mean in enumerate(weights[:, :, -1].mean(axis=1), 1):
        if is_shaded():
            print(f"{layer:3}  {shaded(tokens, mean)}")
            continue
        best = np.argsort(-mean, kind="stable")[:3]
        rows.append((str(layer), "  ".join(f"{number(mean[t], '.3f')} {quoted(tokens[t])}" for t in best)))
    if rows:
        table((_("layer"), _("tokens")), rows, 1)


def show_lens(lens: Lens, tokenizer: Tokenizer, found: Explanation) -> None:
    """Print what each layer would have said behind the last token."""
    from npgpt.explaining.reading import token_of

    log("what each layer would have said next:")
    target = lens.probabilities(found.target.id)
    rows = [
        (
            str(layer + 1),
            quoted(token_of(tokenizer, lens.top[layer, -1, 0]).text),
            number(lens.shares[layer, -1, 0], ".4f"),
            number(target[layer, -1], ".4f"),
            number(lens.entropy[layer, -1], ".3f"),
        )
        for layer in range(len(target))
    ]
    heads = (_("layer"), _("says"), _("probability"), quoted(found.target.text), _("entropy (nats)"))
    table(heads, rows, 1)


def show_anatomy(model: GPT, tokenizer: Tokenizer, found: Explanation) -> None:
    """Print the tokens with the neighbours of their embeddings, and the parts of the model."""
    from npgpt.explaining.anatomy import neighbours, parts
    from npgpt.explaining.reading import token_of

    log("the tokens, and those whose embeddings are the nearest (cosine):")
    ids, cosines = neighbours(model, np.array(found.ids))
    rows = [
        (
            str(place),
            str(id),
            quoted(token),
            "  ".join(
                f"{quoted(token_of(tokenizer, n).text)} {number(c, '.2f')}"
                for n, c in zip(near, cosine, strict=True)
            ),
        )
        for place, (id, token, near, cosine) in enumerate(
            zip(found.ids, found.tokens, ids, cosines, strict=True)
        )
    ]
    width = max(len(row[2]) for row in rows)
    rows = [(place, id, token.ljust(width), near) for place, id, token, near in rows]
    table((_("position"), "id", _("token").ljust(width), _("neighbours")), rows, 3)
    log("the parts of the model:")
    size = model.dtype.itemsize
    cells = [
        (
            part.name,
            " x ".join(map(str, part.shape)),
            str(part.times),
            number(part.parameters, ","),
            number(size * part.parameters / MB, ",.3f"),
        )
        for part in parts(model.config)
    ]
    total = (_("total"), "", "", number(model.num_params, ","), number(size * model.num_params / MB, ",.3f"))
    table((_("part"), _("shape"), _("times"), _("parameters"), "MB"), [*cells, total], 0)
