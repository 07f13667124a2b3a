"""`python -m npgpt.explain RUN "text"`: show why a model writes what it writes next."""

from __future__ import annotations

import json
import os
import sys
from argparse import Namespace
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from npgpt.console.messages import log, log_cleaned, start_command
from npgpt.console.process import command, errors_as_lines
from npgpt.console.settings import add_adapter, count, make_parser, thread_count

if TYPE_CHECKING:
    from npgpt.engine.model import GPT
    from npgpt.engine.types import Fields, Floats
    from npgpt.explaining.explanation import Explanation
    from npgpt.explaining.layers import Lens
    from npgpt.text.tokenizer import Tokenizer


@command("explain")
def main(argv: Sequence[str] | None = None) -> int:
    """Print the explanation and return exit code 0; exit with 2 for bad input."""
    args = _arguments(argv)
    with errors_as_lines("explain"):
        from npgpt.api import load
        from npgpt.console import explanation as screen
        from npgpt.training.run import shown

        _check_out(args)
        if args.prompt is not None and not (args.where or args.influence):
            raise ValueError(
                "--prompt is for --where and --influence; else the prompt is the beginning of TEXT"
            )
        if args.where or args.influence:
            return _from_training(args)
        if args.label and (given := _given(args, "lens", "reduce", "flip")):
            raise ValueError(f"--label explains an answer, and no next token: {given} cannot be given")
        model = load(args.model, args.adapter)
        if model.tokenizer is None:
            raise ValueError(f"{args.model}: must have a tokenizer to explain a text")
        start_command(args.threads)
        log_cleaned(model.tokenizer, args.text)
        asked = args.text, args.target, args.against
        found = model.explain(*asked, args.method or "integrated", args.of or "logprob", args.label)
        weights = model.attention(found.ids) if args.attention else None
        lens = model.lens(args.text) if args.lens else None
        reduced = model.reduce(*asked) if args.reduce else None
        flipped = model.flip(*asked) if args.flip else None
        screen.show(found)
        if reduced:
            screen.show_reduction(reduced)
        if flipped:
            screen.show_flips(flipped)
        if weights is not None:
            screen.show_attention(found.tokens, weights)
        if lens:
            screen.show_lens(lens, model.tokenizer, found)
        if args.anatomy:
            screen.show_anatomy(model, model.tokenizer, found)
        if args.out and Path(args.out).suffix == ".html":
            from npgpt.explaining import page

            _write(
                args.out, page.write(model, model.tokenizer, found, shown(Path(args.model).resolve().name))
            )
        elif args.out:
            data = _data(found, weights, lens)
            data |= {"anatomy": _anatomy(model, model.tokenizer, found)} if args.anatomy else {}
            data |= {"input_reduction": reduced.allennlp()} if reduced else {}
            _write(args.out, data | ({"hotflip": flipped.allennlp()} if flipped else {}))
    return 0


def answer() -> None:
    """Write to stdout the page that the server asks for, as JSON, on stdin: it runs this as a process."""
    with errors_as_lines("explain"):
        from npgpt.api import load
        from npgpt.explaining import page

        asked = json.load(sys.stdin)
        model = load(asked["path"], asked["adapter"])
        found = model.explain(asked["ids"], method=asked["method"])
        written = page.write(model, model.tokenizer, found, asked["name"], asked["dropped"])
        sys.stdout.buffer.write(written.encode())


def _check_out(args: Namespace) -> None:
    """Raise ValueError where -o cannot be written, before anything is computed."""
    if not args.out:
        return
    suffixes = (".json",) if args.where or args.influence else (".json", ".html")
    out = Path(args.out)
    if out.suffix not in suffixes:
        raise ValueError(f"-o: must be a file that ends in {' or '.join(suffixes)}, got {args.out}")
    if args.label and out.suffix == ".html":
        raise ValueError("-o: a page shows next tokens, and no answer: --label goes with a .json file")
    if not os.access(out.parent, os.W_OK | os.X_OK) or not out.parent.is_dir() or out.is_dir():
        raise ValueError(f"-o: must be a file in a folder that can be written to, got {args.out}")


def _from_training(args: Namespace) -> int:
    """Print what of the run's training text TEXT repeats, or was taught by, and return exit code 0."""
    asked = "where" if args.where else "influence"
    others = ("target", "against", "label", "method", "of", "attention", "lens", "reduce", "flip", "anatomy")
    if given := _given(args, *others, "adapter", *(["influence"] if args.where else [])):
        raise ValueError(f"--{asked} looks TEXT up and explains nothing: {given} cannot be given")
    data: Fields
    if args.where:
        from npgpt.console.where import log_where
        from npgpt.training.where import where

        repeated = where(args.model, args.text, args.prompt or "")
        log_where(repeated)
        data = {"where": asdict(repeated)}
    else:
        from npgpt.console.influence import Told, log_influence
        from npgpt.training.influence import influence

        start_command(args.threads)
        taught = influence(args.model, args.text, args.influence, args.prompt or "", Told())
        log_influence(taught)
        data = {"influence": asdict(taught)}
    if args.out:
        _write(args.out, data)
    return 0


def _given(args: Namespace, *names: str) -> str:
    """Return those of the flags that were given, as --lens and --flip; '' for none."""
    return " and ".join(f"--{name}" for name in names if getattr(args, name))


def _write(file: str, data: Fields | str) -> None:
    from npgpt.training import checkpoint

    text = data if isinstance(data, str) else json.dumps(data, allow_nan=False) + "\n"
    with errors_as_lines("explain", 1, (OSError,)):
        checkpoint.write_atomically(Path(file), text)
    log("saved to {file} ({size:,.1f} kB)", file=file, size=len(text.encode()) / 1000)


def _anatomy(model: GPT, tokenizer: Tokenizer, found: Explanation) -> Fields:
    """Return the neighbours of each token, the nearest first, and the parts of the model."""
    import numpy as np

    from npgpt.explaining.anatomy import neighbours, parts
    from npgpt.explaining.reading import token_of

    near, cosines = neighbours(model, np.array(found.ids))
    return {
        "neighbours": [
            [vars(token_of(tokenizer, id)) | {"cosine": cosine} for id, cosine in zip(*row, strict=True)]
            for row in zip(near.tolist(), cosines.tolist(), strict=True)
        ],
        "parts": [part._asdict() | {"parameters": part.parameters} for part in parts(model.config)],
    }


def _arguments(argv: Sequence[str] | None) -> Namespace:
    parser = make_parser("explain", "Show why a model writes what it writes next.")
    add = parser.add_argument
    add("model", metavar="RUN", help="a run, a checkpoint folder, a Hugging Face folder or a .gguf file")
    add("text", metavar="TEXT", help="the text whose next token is explained")
    add("--target", help="the next token to explain, as text or id:N (default: the most probable)")
    add("--against", help="explain why --target comes rather than this token")
    add(
        "--label",
        action="append",
        help="a label of TEXT, once for each that RUN was taught: --target and --against "
        "are then two of these",
    )
    add(
        "--method",
        help="gradient, grad_x_input, integrated, smooth or occlusion (default integrated)",
    )
    add("--of", help="what is explained: logprob, logit or prob (default logprob)")
    add("--attention", action="store_true", help="show where the last token looks, layer by layer")
    add("--lens", action="store_true", help="show what each layer would have said next")
    add("--reduce", action="store_true", help="show what of TEXT the target needs to come next")
    add("--flip", action="store_true", help="show which other tokens in TEXT would make another come next")
    add("--anatomy", action="store_true", help="show the tokens' neighbours and the parts of the model")
    add(
        "--where",
        action="store_true",
        help="tell instead where TEXT, which RUN wrote, repeats its training text",
    )
    add(
        "--influence",
        type=count,
        metavar="N",
        help="tell instead which N windows of its training text taught RUN most to write TEXT",
    )
    add("--prompt", help="with --where and --influence: what RUN wrote TEXT after")
    add(
        "-o",
        "--out",
        metavar="FILE",
        help="write a page to look into (.html), or all as JSON, in AllenNLP's shape (.json)",
    )
    add_adapter(parser)
    add("--threads", type=thread_count, help="number of threads (default: the CPUs this process may use)")
    args: Namespace = parser.parse_intermixed_args(argv)
    return args


def _data(found: Explanation, weights: Floats | None, lens: Lens | None) -> Fields:
    """Return what -o writes: AllenNLP's object with more keys beside it."""
    data: Fields = found.allennlp() | {
        "tokens": found.tokens,
        "ids": found.ids,
        "scores": found.scores.tolist(),
        "target": vars(found.target),
        "against": vars(found.against) if found.against else None,
        "method": found.method,
        "of": found.of,
        "value": found.value,
    }
    if found.labels:
        data["labels"] = found.labels
    if weights is not None:
        data["attention"] = weights.tolist()
    if lens:
        data["lens"] = {
            "top": lens.top.tolist(),
            "probabilities": lens.shares.tolist(),
            "target": lens.probabilities(found.target.id).tolist(),
            "entropy": lens.entropy.tolist(),
        }
    return data


if __name__ == "__main__":
    raise SystemExit(main())
