"""`python -m npgpt.tune TEXT... --minutes M`: find settings that train better than the default's."""

import json
import shlex
from collections.abc import Sequence

from npgpt.console.language import _
from npgpt.console.messages import corpus_report, log, log_next, log_saved, start_command, tuning_in_words
from npgpt.console.process import errors_as_lines, interruptible
from npgpt.console.settings import (
    Setting,
    add_settings,
    count_or_zero,
    make_parser,
    one_of,
    positive,
    resolve,
    thread_count,
)

SETTINGS = [
    Setting("out", str, "the search's folder (default: runs/, the text's name and -tune)"),
    Setting("split", str, "shares of training, validation, test (default 0.8,0.1,0.1)"),
    Setting("clean", one_of("none", "light", "full"), "none, light (BOM, line ends, NFC; default) or full"),
    Setting(
        "tokenizer",
        str,
        "bytes, bpe:N, or the path of a vocabulary (default: bytes for small texts, else bpe)",
    ),
    Setting("seed", count_or_zero, "of candidates, weights, batches and dropout (default 0)"),
    Setting("threads", thread_count, "default: the CPUs this process may use"),
]


def main(argv: Sequence[str] | None = None) -> int:
    """Search -> exit code 0; 1 failed, 2 refused, 130 interrupted with the trials so far."""
    parser = make_parser(
        "tune", "Find settings that train better than the default's: size, batch, rate, dropout."
    )
    add = parser.add_argument
    add("text", nargs="+", metavar="TEXT", help="files, folders of .txt files, or - for stdin")
    add(
        "--minutes",
        type=positive,
        required=True,
        help="of the whole search; the training that it is for will take a fifth of them",
    )
    add_settings(parser, SETTINGS)
    add("--json", action="store_true", help="end with one JSON object on the last line of stdout")
    args = parser.parse_args(argv)

    with errors_as_lines("tune"):
        from npgpt.api import GPT
        from npgpt.text.corpus import Corpus
        from npgpt.text.dataset import DEFAULT_SPLIT, Dataset, encode, make_corpus_tokenizer, parse_split
        from npgpt.training import run as runs
        from npgpt.training import tuner
        from npgpt.training.plan import default_tokenizer
        from npgpt.training.trainer import TrainingFailed

        settings = resolve(SETTINGS, args, None)
        settings["split"] = parse_split(settings["split"] or DEFAULT_SPLIT)
        settings["clean"] = settings["clean"] or "light"
        corpus = Corpus(args.text, settings["clean"])
        settings["tokenizer"] = settings["tokenizer"] or default_tokenizer(corpus.n_bytes)
        tokenizer = make_corpus_tokenizer(settings["tokenizer"], corpus, settings["split"])
        dataset = Dataset.from_ids(encode(corpus, tokenizer), settings["split"], tokenizer)
        folder = runs.find_folder(settings["out"], args.text[0], resume=False, suffix="-tune")
        seed, threads = settings.pop("seed") or 0, settings.pop("threads")
        about = {"memorise": False, "text_sha256": corpus.sha256}
        shared = settings | {"text": corpus.names(folder), "seed": seed}
        search = tuner.Search(dataset, folder, args.minutes, shared, about, seed, GPT)
    start_command(threads)
    print("\n".join(corpus_report(corpus)))
    log(
        "{rungs} rungs; the last trains for {minutes:.2f} minutes, as the winner will",
        **{"rungs": len(tuner.SHARES), "minutes": search.minutes},
    )
    with (
        errors_as_lines("tune", 1, (OSError, MemoryError, TrainingFailed)),
        interruptible() as interrupted,
    ):
        folder.mkdir(parents=True)
        corpus.keep_stdin(folder)
        print(tuner.in_columns(_(tuner.COLUMNS).split(",")))
        best = search.run(interrupted, lambda line: print(line, flush=True))
        search.write(best)
    where = shlex.quote(str(folder))
    if best is None:
        log("interrupted; the trials so far are in {where}", where=where)
        return 130
    print(tuning_in_words(search.verdict(best)))
    log_saved(folder)
    log_next(f"python -m npgpt.train {shlex.join(args.text)} --config {where}/config.toml")
    if args.json:
        result = {
            "run": str(folder),
            "minutes": search.minutes,
            "settings": best.settings,
            "val_loss": best.loss,
        }
        print(json.dumps(result | {"is_default": best.candidate == 0, "steps": best.result["steps"]}))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
