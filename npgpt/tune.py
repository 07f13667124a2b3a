"""`python -m npgpt.tune TEXT... --minutes M`: find settings that train better than the default's."""

from __future__ import annotations

import json
from collections.abc import Sequence
from contextlib import ExitStack
from typing import TYPE_CHECKING

from npgpt.console.language import _
from npgpt.console.messages import (
    corpus_report,
    log,
    log_next,
    log_saved,
    shell_path,
    start_command,
    tuning_message,
)
from npgpt.console.process import command, errors_as_lines, interruptible
from npgpt.console.settings import (
    DOCUMENTS,
    FORMS,
    Setting,
    add_settings,
    count_or_zero,
    make_parser,
    minutes,
    not_empty,
    one_of,
    resolve,
    thread_count,
)

if TYPE_CHECKING:
    from argparse import Namespace

    from npgpt.engine.types import Fields
    from npgpt.text.corpus import Corpus
    from npgpt.text.distinct import DistinctCorpus
    from npgpt.training.tuner import Search, Trial

SETTINGS = [
    Setting("out", not_empty, "the search's folder (default: runs/, the text's name and -tune)"),
    Setting("split", not_empty, "shares of training, validation, test (default 0.8,0.1,0.1)"),
    Setting("clean", one_of("none", "light", "full"), "none, light (BOM, line ends, NFC; default) or full"),
    *FORMS,
    DOCUMENTS,
    Setting(
        "tokenizer",
        not_empty,
        "bytes, bpe:N, or the path of a vocabulary (default: bytes for small texts, else bpe)",
    ),
    Setting("seed", count_or_zero, "random seed of candidates, weights, batches and dropout (default 0)"),
    Setting("threads", thread_count, "number of threads (default: the CPUs this process may use)"),
]


@command("tune", goes_on=True)
def main(argv: Sequence[str] | None = None) -> int:
    """Search for settings and return the exit code.

    0: done; 1: failed; 2: bad input; 130: interrupted, with the trials so far kept.
    """
    parser = make_parser(
        "tune", "Find settings that train better than the default's: size, batch, rate, dropout."
    )
    add = parser.add_argument
    add("text", nargs="+", metavar="TEXT", help="files, folders, archives, or - for stdin")
    add(
        "--minutes",
        type=minutes,
        required=True,
        help="minutes of the complete search; a training with its result takes about a fifth of them",
    )
    add_settings(parser, SETTINGS)
    add("--json", action="store_true", help="end with one JSON object on the last line of stdout")
    args = parser.parse_args(argv)

    with errors_as_lines("tune", as_json=args.json):
        from npgpt.text.corpus import STDIN
        from npgpt.training import tuner
        from npgpt.training.trainer import TrainingFailed

        settings = resolve(SETTINGS, args, {})
        threads = settings.pop("threads")
        search, corpus = _search(args, settings)
    start_command(threads)
    print("\n".join(corpus_report(corpus)))
    log(
        "{rungs} rungs; the last trains for {minutes:.2f} minutes, as the winner will",
        **{"rungs": len(tuner.SHARES), "minutes": search.minutes},
    )
    with errors_as_lines("tune", 1, (OSError, MemoryError, TrainingFailed), args.json), ExitStack() as lock:
        _make_folder(search, corpus, args, lock)
        best = _run(search)
    if best is None:
        log("interrupted; the trials so far are in {where}", where=search.folder)
        return 130
    print(tuning_message(search.verdict(best)))
    log_saved(search.folder)
    config = shell_path(search.folder / "config.toml")
    texts = [search.folder / STDIN if text == "-" else text for text in args.text]
    log_next(f"python -m npgpt.train {' '.join(map(shell_path, texts))} --config {config}")
    if args.json:
        result = {
            "run": str(search.folder),
            "minutes": search.minutes,
            "settings": best.settings,
            "val_loss": best.loss,
        }
        print(
            json.dumps(
                result | {"is_default": best.candidate == 0, "steps": best.result["steps"]}, allow_nan=False
            )
        )
    return 0


def _search(args: Namespace, settings: Fields) -> tuple[Search, DistinctCorpus]:
    """Return the search that the arguments describe and its text; nothing is written yet."""
    from npgpt.text.dataset import DEFAULT_SPLIT, Dataset, encode, make_corpus_tokenizer, parse_split
    from npgpt.text.distinct import DistinctCorpus
    from npgpt.training import run as runs
    from npgpt.training.plan import default_tokenizer
    from npgpt.training.tuner import Search

    split = settings["split"] = parse_split(settings["split"] or DEFAULT_SPLIT)
    settings["encoding"] = settings["encoding"] or "auto"
    settings["dedupe"] = settings["dedupe"] or "records"
    settings["documents"] = settings["documents"] or "apart"
    how = {name: settings[name] for name in ("clean", "encoding", "field")}
    corpus = DistinctCorpus(args.text, settings["dedupe"], settings["documents"] == "apart", **how)
    settings["clean"] = corpus.clean
    settings["tokenizer"] = settings["tokenizer"] or default_tokenizer(corpus.n_kept)
    tokenizer = make_corpus_tokenizer(settings["tokenizer"], corpus, split).normalizing(corpus.clean)
    dataset = Dataset.of(corpus, encode(corpus, tokenizer), split, tokenizer)
    folder = runs.find_folder(settings["out"], args.text[0], resume=False, suffix="-tune")
    seed = settings.pop("seed") or 0
    about = {"memorise": False, "text_sha256": corpus.sha256}
    shared = settings | {"text": corpus.names(folder), "seed": seed}
    return Search(dataset, folder, args.minutes, shared, about, seed), corpus


def _make_folder(search: Search, corpus: Corpus, args: Namespace, lock: ExitStack) -> None:
    """Make and lock the folder of the search; another search of this text may have begun meanwhile."""
    from npgpt.training import run as runs

    if not search.settings["out"]:
        search.folder = runs.make_numbered(args.text[0], "-tune")[1]
    lock.enter_context(runs.locked(search.folder, new=True))
    corpus.keep_stdin(search.folder)
    search.settings["text"] = corpus.names(search.folder)


def _run(search: Search) -> Trial | None:
    """Run the search, print a line for each trial, and return the best one, None if interrupted."""
    from npgpt.console import report, tuning
    from npgpt.console.progress import Progress

    with interruptible() as interrupted:

        def done_with(trial: Trial) -> None:
            if "steps" in trial.result:  # it was trained
                report.write(trial.folder)
            if not interrupted():
                print(tuning.in_columns(tuning.row(search, trial)), flush=True)

        print(tuning.in_columns(_(tuning.COLUMNS).split(",")))
        best = search.run(interrupted, done_with, Progress(quiet=True))
        tuning.write(search, best)
    return best


if __name__ == "__main__":
    raise SystemExit(main())
