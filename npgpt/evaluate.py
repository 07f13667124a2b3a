"""`python -m npgpt.evaluate RUN [TEXT...]`: measure a trained GPT on text, beside simple baselines."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from npgpt.console.language import N_, _, number
from npgpt.console.messages import log, log_changed, log_found, overlap_message, start_command
from npgpt.console.process import command, errors_as_lines
from npgpt.console.settings import add_adapter, encoding, make_parser, thread_count

if TYPE_CHECKING:
    from argparse import Namespace

    from npgpt.engine.types import Fields, Integers
    from npgpt.text.kneser_ney import KneserNey
    from npgpt.text.tokenizer import Tokenizer

# the text that a model is measured on, as test.json names it
TEST = N_("the test part of its text")
VALIDATION = N_("its validation text (there is no test part)")
GIVEN = N_("the text given")
TRAINED = N_("the text that it was trained on (there is no test part)")
MEMORISED = N_("the text that it was trained on, which was to be memorised (there is no test part)")
SAMPLES, SAMPLE_TOKENS = 4, 300  # to search for stretches of the training text


class Parts(NamedTuple):
    """The text that a model is measured on, and what its run trained and validated on."""

    name: str
    ids: Integers
    train: Integers
    validation: Integers  # empty where there is none
    apart: bool  # of documents in a window


@command("evaluate")
def main(argv: Sequence[str] | None = None) -> int:
    """Measure, print, write test.json into the run, and return exit code 0.

    Exit with 2 for bad input, 1 where a file cannot be written.
    """
    parser = make_parser("evaluate", "Measure a trained GPT: on the test part of its run's text, or on TEXT.")
    add = parser.add_argument
    add("model", metavar="RUN", help="a run, a checkpoint folder, a Hugging Face folder or a .gguf file")
    add(
        "text",
        nargs="*",
        metavar="TEXT",
        help="text to measure on instead of the test part of the run's text",
    )
    add("--encoding", type=encoding, help="of TEXT: auto, bytes, or its name (default: as of the run)")
    add("--field", help="field or column of TEXT's records that holds the text (default: text)")
    add_adapter(parser)
    add("--threads", type=thread_count, help="number of threads (default: the CPUs this process may use)")
    add("--json", action="store_true", help="end with one JSON object on the last line of stdout")
    args = parser.parse_intermixed_args(argv)

    with errors_as_lines("evaluate", as_json=args.json):
        from npgpt.api import load
        from npgpt.console import report
        from npgpt.training import checkpoint, evaluation, overfitting

        model = load(args.model, args.adapter)
        if model.tokenizer is None:
            raise ValueError(f"{args.model}: must have a tokenizer to be measured on text")
        tokenizer = model.tokenizer
        part, ids, train_ids, validation, apart = _select(args, tokenizer)
        held_out = part in (TEST, VALIDATION)
        start_command(args.threads)
        log("measured on {part}: {tokens:,} tokens", part=_(part), tokens=len(ids))
        measured = evaluation.evaluate(model, ids, tokenizer, apart)
        counted = evaluation.count(train_ids, tokenizer) if held_out else None
        simple = evaluation.baselines(ids, train_ids, tokenizer, counted)
        result = {"part": part, **measured, "baselines": simple}
        if counted and len(validation):
            result["counted_val_loss"] = _counted_loss(args.model, tokenizer, counted, validation)
        if not args.text:
            unseen = tokenizer.decode_bytes(ids[: SAMPLES * SAMPLE_TOKENS * 4]) if held_out else b""
            samples = [model.generate("", SAMPLE_TOKENS, seed=seed) for seed in range(SAMPLES)]
            text = overfitting.training_text(train_ids, tokenizer)
            result["overlap"] = overfitting.overlap(samples, unseen, text)
        # the figures of a run are those of its own weights
        if not (args.text or args.adapter) and checkpoint.is_run(folder := Path(args.model)):
            with errors_as_lines("evaluate", 1, (OSError,), args.json):
                checkpoint.write_atomically(
                    folder / "test.json", json.dumps(result, indent=2, allow_nan=False) + "\n"
                )
                report.write(folder)
        _print_table(result)
        if args.json:
            more = {"adapter": args.adapter} if args.adapter else {}
            print(json.dumps({"run": args.model, **more, **result}, allow_nan=False))
    return 0


def _select(args: Namespace, tokenizer: Tokenizer) -> Parts:
    """Return the text to measure on, and the parts of the run's text."""
    import numpy as np

    from npgpt.text.corpus import Corpus
    from npgpt.text.dataset import Dataset, encode
    from npgpt.training import run as runs
    from npgpt.training.source import find_text

    path = Path(args.model) / runs.CONFIG
    if args.text:
        table = runs.read_table(path) if path.exists() else {}
        of_run = table.get("encoding", "auto")
        how = args.encoding or ("auto" if of_run == "utf-8" else of_run)
        corpus = Corpus(args.text, "none" if how == "bytes" else tokenizer.normalizer, how, args.field)
        given = encode(corpus, tokenizer)
        log_changed(corpus.clean, corpus.changed)
        apart = not path.exists() or table.get("documents") == "apart"
        return Parts(GIVEN, given, given, given[:0], apart)
    for name in ("encoding", "field"):
        if getattr(args, name):
            raise ValueError(f"--{name} is of TEXT, which must be given")
    if not path.exists():
        raise ValueError(f"{args.model}: is not a run, so TEXT must be given")
    config = runs.read_config(args.model)
    if "text_sha256" not in config["about"]:
        raise ValueError(f"{args.model}: was taught by examples, so TEXT must be given")
    corpus, elsewhere = find_text(Path(args.model), config)
    log_found(elsewhere)
    dataset = Dataset.of(corpus, encode(corpus, tokenizer), config["split"], tokenizer)
    apart = dataset.apart
    if len(dataset.test):
        return Parts(TEST, dataset.test, dataset.train, dataset.validation, apart)
    if "val" in config:
        val, elsewhere = find_text(Path(args.model), config, "val")
        log_found(elsewhere)
        held_out = encode(val, tokenizer)
        return Parts(VALIDATION, held_out, dataset.train, held_out, apart)
    trained = np.concatenate([dataset.train, dataset.validation])
    name = MEMORISED if config["about"].get("memorise") else TRAINED
    return Parts(name, trained, dataset.train, dataset.validation, apart)


def _counted_loss(run: str, tokenizer: Tokenizer, counted: KneserNey, validation: Integers) -> float:
    """Return what an n-gram model loses where the run validated, in nats per token."""
    from npgpt.training import run as runs
    from npgpt.training.evaluation import counted_loss

    config = runs.read_config(run)
    return counted_loss(counted, validation, tokenizer, config["block_size"], config["eval_tokens"])


def _print_table(result: Fields) -> None:
    perplexity = result["perplexity"]
    if perplexity is None:
        log("loss {loss:.4f} nats per token, perplexity above 1e308", **result)
    else:
        log("loss {loss:.4f} nats per token, perplexity {perplexity:.3f}", **result)
    print(f"{'':10}{_('bits per byte'):>15}{_('accuracy@1'):>12}{_('accuracy@5'):>12}")
    for name, row in {"npgpt": result, **result["baselines"]}.items():
        cells = [number(row["bits_per_byte"], "15.3f")]
        cells += [number(row[key], "12.1%") for key in ("accuracy@1", "accuracy@5") if key in row]
        if "seconds" in row:
            cells.append("  " + _("counted in {seconds} s").format(seconds=number(row["seconds"], ".1f")))
        print(f"{_(name):10}{''.join(cells)}")
    if "overlap" in result:
        print(overlap_message(result["overlap"]))


if __name__ == "__main__":
    raise SystemExit(main())
