"""`python -m npgpt.prepare TEXT... -o FILE`: make one clean text of files of any form, and tell how."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from itertools import groupby
from operator import itemgetter
from pathlib import Path
from typing import TYPE_CHECKING

from npgpt.console.language import _
from npgpt.console.messages import corpus_report, log, log_next, shell_path
from npgpt.console.process import command, errors_as_lines
from npgpt.console.settings import FORMS, Setting, add_settings, make_parser, one_of, resolve

if TYPE_CHECKING:
    from npgpt.engine.types import Fields
    from npgpt.text.corpus import Corpus
    from npgpt.text.distinct import DistinctCorpus

CLEAN = Setting(
    "clean", one_of("none", "light", "full"), "none, light (BOM, line ends, NFC; default) or full"
)
ENDINGS = (".txt", ".jsonl")


@command("prepare")
def main(argv: Sequence[str] | None = None) -> int:
    """Write the text, print what was read and left out, and return exit code 0; exit with 2 for bad input."""
    parser = make_parser("prepare", "Make one clean text of files of any form, and tell what was left out.")
    add = parser.add_argument
    add("text", nargs="+", metavar="TEXT", help="files, folders, archives, or - for stdin")
    add(
        "-o",
        "--out",
        metavar="FILE",
        required=True,
        help="a text (.txt, <|endoftext|> between documents), or JSON lines with a document each (.jsonl)",
    )
    settings = [*FORMS, CLEAN]
    add_settings(parser, settings)
    add("--skip-bad", action="store_true", help="leave out bad records instead of refusing them")
    add("--json", action="store_true", help="end with one JSON object on the last line of stdout")
    args = parser.parse_args(argv)
    with errors_as_lines("prepare", as_json=args.json):
        from npgpt.text.distinct import DistinctCorpus

        out = Path(args.out)
        if out.suffix not in ENDINGS:
            raise ValueError(f"-o: must be a file that ends in {' or '.join(ENDINGS)}, got {args.out}")
        how = resolve(settings, args, None)
        dedupe = how.pop("dedupe") or "records"
        how |= {"encoding": how["encoding"] or "auto", "skip_bad": args.skip_bad}
        corpus = DistinctCorpus(args.text, dedupe, True, **how)
        if out.resolve() in {Path(document.name).resolve() for document in corpus.documents}:
            raise ValueError(f"-o: must not be a file that is read, got {args.out}")
        with errors_as_lines("prepare", 1, (OSError,), args.json):
            _write(out, corpus)
    print("\n".join(corpus_report(corpus)))
    for document in corpus.documents:
        for why, examples in document.notes.examples.items() if document.notes else ():
            for example in examples:
                print(f"  {document.name}: {_(why)}: {example}")
    log("saved to {file}", file=args.out)
    log_next(f"python -m npgpt.train {shell_path(args.out)}")
    if args.json:
        print(json.dumps(_result(args.out, corpus), allow_nan=False))
    return 0


def _write(out: Path, corpus: Corpus) -> None:
    from npgpt.training.checkpoint import written_whole

    with written_whole(out) as temporary, open(temporary, "wb") as file:
        for number, chunks in _documents(corpus):
            if out.suffix == ".jsonl":
                text = b"".join(chunks).decode("utf-8", "replace")
                file.write(json.dumps({"text": text}, ensure_ascii=False, allow_nan=False).encode() + b"\n")
                continue
            file.write(b"<|endoftext|>\n" if number else b"")
            last = b"\n"
            for chunk in chunks:
                file.write(chunk)
                last = chunk[-1:] or last
            file.write(b"" if last == b"\n" else b"\n")


def _documents(corpus: Corpus) -> Iterator[tuple[int, Iterator[bytes]]]:
    """Yield (number, chunks) of the documents."""
    for number, group in groupby(corpus.chunks(), itemgetter(0)):
        yield number, (chunk for _number, chunk in group)


def _result(out: str, corpus: DistinctCorpus) -> Fields:
    files = [
        {
            "file": document.name,
            "form": document.notes.form if document.notes else "text",
            "encoding": document.notes.encoding if document.notes else "utf-8" if document.is_utf8 else None,
            "documents": len(document.starts),
            "bytes": document.n_bytes,
            "left_out": dict(document.notes.dropped) if document.notes else {},
        }
        for document in corpus.documents
    ]
    result = {"out": out, "bytes": corpus.n_clean, "cleaned": dict(corpus.changed), "files": files}
    return result | {"documents": corpus.n_documents, "duplicates": corpus.n_left_out}


if __name__ == "__main__":
    raise SystemExit(main())
