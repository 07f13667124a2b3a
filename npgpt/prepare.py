"""`python -m npgpt.prepare TEXT... -o FILE`: make one clean text of files of any form, and tell how."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import groupby
from operator import itemgetter
from pathlib import Path
from typing import TYPE_CHECKING

from npgpt.console.language import _
from npgpt.console.messages import corpus_report, listed, log, log_next, shell_path
from npgpt.console.process import command, errors_as_lines
from npgpt.console.settings import FORMS, Setting, add_settings, count, make_parser, one_of, resolve

if TYPE_CHECKING:
    from argparse import Namespace

    from npgpt.engine.types import Fields
    from npgpt.text.anonymise import Anonymiser
    from npgpt.text.corpus import Corpus
    from npgpt.text.distinct import DistinctCorpus

CLEAN = Setting(
    "clean", one_of("none", "light", "full"), "none, light (BOM, line ends, NFC; default) or full"
)
ENDINGS = (".txt", ".jsonl")
LONGEST = 128  # bytes of a conversation, as the context of a model has tokens by default


@command("prepare")
def main(argv: Sequence[str] | None = None) -> int:
    """Write the text, print what was read and left out, and return exit code 0; exit with 2 for bad input."""
    args = _arguments(argv)
    with errors_as_lines("prepare", as_json=args.json):
        from npgpt.text.distinct import DistinctCorpus

        out = Path(args.out)
        how = resolve([*FORMS, CLEAN], args, {})
        how["encoding"] = how["encoding"] or "auto"
        _check(args, how)
        # turns are cleaned one by one
        taken = {
            "clean": "none" if args.as_ else how["clean"],
            "as_chat": args.as_ is not None,
            "me": args.me,
        }
        taken |= {"encoding": how["encoding"], "field": how["field"], "skip_bad": args.skip_bad}
        corpus = DistinctCorpus(args.text, how["dedupe"] or "records", True, **taken)
        if out.resolve() in {Path(document.name).resolve() for document in corpus.documents}:
            raise ValueError(f"-o: must not be a file that is read, got {args.out}")
        writer = _Writer(corpus, args, how["clean"] or "light")
        with errors_as_lines("prepare", 1, (OSError,), args.json):
            writer.write(out)
    print("\n".join(corpus_report(corpus, shown=not args.anonymise)))
    _log_left_out(corpus, shown=not args.anonymise)
    if args.as_:
        log(
            "conversations: {n:,}, each at most {longest:,} bytes, to fit a context of as many tokens; "
            "answers in them: {answers:,}",
            n=writer.conversations,
            longest=args.longest,
            answers=writer.answers,
        )
        if writer.left_out:
            print(f"  {listed(writer.left_out)}")
    if writer.anonymiser:
        replaced = listed(writer.anonymiser.replaced)
        log("replaced: {done}; read it before you give it away", done=replaced or _("nothing"))
    log("saved to {file}", file=args.out)
    log_next(f"python -m npgpt.{'finetune RUN' if args.as_ else 'train'} {shell_path(args.out)}")
    if args.json:
        print(json.dumps(_result(args.out, corpus, writer), allow_nan=False))
    return 0


def _arguments(argv: Sequence[str] | None) -> Namespace:
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
    add_settings(parser, [*FORMS, CLEAN])
    add(
        "--skip-bad",
        action="store_true",
        help="leave out bad records, and bad files of several, instead of refusing them",
    )
    add(
        "--as",
        dest="as_",
        type=one_of("chat"),
        metavar="FORM",
        help="chat: conversations of WhatsApp exports and subtitles, as npgpt.finetune reads them; six hours "
        "without a message, or ten seconds without a subtitle, begin another one",
    )
    add(
        "--me",
        metavar="NAME",
        help="with --as chat: who becomes the assistant, as the export names you; the others are the user "
        "(subtitles name nobody: they take turns)",
    )
    add(
        "--longest",
        type=count,
        metavar="N",
        help="with --as chat: most bytes of a conversation, which is parted before a question; the context "
        "of the model in tokens is a good choice (default 128)",
    )
    add(
        "--anonymise",
        action="store_true",
        help="replace the names of a chat's people, telephones, e-mail addresses, links, CPF, CNPJ and long "
        "numbers by stand-ins as [person 1]; nicknames, other people, places and addresses are not found",
    )
    add("--json", action="store_true", help="end with one JSON object on the last line of stdout")
    args: Namespace = parser.parse_args(argv)
    return args


def _check(args: Namespace, how: Fields) -> None:
    """Raise ValueError for flags that do not go together, before anything is read."""
    ending = Path(args.out).suffix
    if ending not in ENDINGS:
        raise ValueError(f"-o: must be a file that ends in {' or '.join(ENDINGS)}, got {args.out}")
    for name in ("me", "longest"):
        if getattr(args, name) is not None and not args.as_:
            raise ValueError(f"--{name} is for --as chat, which is missing")
    if args.as_ and ending != ".jsonl":
        raise ValueError(f"-o: must be a file that ends in .jsonl where it is a chat, got {args.out}")
    if args.as_ and how["field"]:
        raise ValueError("--field is of records, which are no chat")
    if how["encoding"] in ("bytes", "utf-8") and (args.as_ or args.anonymise):
        flag = "--as chat" if args.as_ else "--anonymise"
        raise ValueError(f"{flag} reads what files say, so --encoding cannot be {how['encoding']}")
    args.longest = args.longest or LONGEST


class _Writer:
    """Writes the documents of a corpus, or what can be learnt of its conversations, and counts."""

    def __init__(self, corpus: Corpus, args: Namespace, clean: str) -> None:
        from npgpt.text.anonymise import Anonymiser

        names = (name for document in corpus.documents if document.notes for name in document.notes.names)
        self.anonymiser: Anonymiser | None = Anonymiser(names) if args.anonymise else None
        self.left_out: Counter[str] = Counter()
        self.conversations = self.answers = 0
        self._corpus, self._as_chat, self._longest, self._clean = corpus, args.as_, args.longest, clean

    def write(self, out: Path) -> None:
        """Write the file whole; ValueError, and nothing, where no conversation is left."""
        from npgpt.training.checkpoint import written_whole

        with written_whole(out) as temporary, open(temporary, "wb") as file:
            if self._as_chat:
                lines = self._chat()
            else:
                lines = self._records() if out.suffix == ".jsonl" else self._text()
            file.writelines(lines)
            if self._as_chat and not self.conversations:
                why = ", ".join(f"{n} {what}" for what, n in self.left_out.items())
                raise ValueError(f"no conversation is left: {why}")

    def _documents(self) -> Iterator[tuple[int, Iterator[bytes]]]:
        """Yield (number, chunks) of the documents, with stand-ins where these are asked for."""
        for number, group in groupby(self._corpus.chunks(), itemgetter(0)):
            chunks = (chunk for _number, chunk in group)
            yield number, self.anonymiser.chunks(chunks) if self.anonymiser and not self._as_chat else chunks

    def _text(self) -> Iterator[bytes]:
        for number, chunks in self._documents():
            yield b"<|endoftext|>\n" if number else b""
            last = b"\n"
            for chunk in chunks:
                yield chunk
                last = chunk[-1:] or last
            yield b"" if last == b"\n" else b"\n"

    def _records(self) -> Iterator[bytes]:
        for _number, chunks in self._documents():
            yield _line({"text": b"".join(chunks).decode("utf-8", "replace")})

    def _chat(self) -> Iterator[bytes]:
        from npgpt.text.cleaning import clean_document
        from npgpt.text.forms.conversations import parts

        changed: Counter[str] = Counter()
        n_read = n_clean = 0
        for _number, chunks in self._documents():
            turns = []
            for role, said in json.loads(b"".join(chunks)):
                text = clean_document(said.encode(), self._clean, changed).decode()
                n_read, n_clean = n_read + len(said.encode()), n_clean + len(text.encode())
                turns.append((role, self.anonymiser.text(text) if self.anonymiser else text))
            for part in parts(turns, self._longest, self.left_out):
                self.conversations += 1
                self.answers += len(part) // 2
                yield _line({"messages": [{"role": role, "content": text} for role, text in part]})
        corpus = self._corpus  # whose own figures are of how it holds the turns
        corpus.clean, corpus.changed = self._clean, changed
        corpus.n_bytes, corpus.n_clean = n_read, n_clean


def _line(record: Fields) -> bytes:
    return json.dumps(record, ensure_ascii=False, allow_nan=False).encode() + b"\n"


def _log_left_out(corpus: Corpus, shown: bool) -> None:
    """Print the files that were left out, and of what was left out of the others some examples if `shown`."""
    for line in corpus.skipped:
        log("left out: {why}", why=line)
    for document in corpus.documents:
        for why, examples in document.notes.examples.items() if document.notes and shown else ():
            for example in examples:
                print(f"  {document.name}: {_(why)}: {example}")


def _result(out: str, corpus: DistinctCorpus, writer: _Writer) -> Fields:
    files = [
        {
            "file": document.name,
            "form": document.notes.form if document.notes else "text",
            "encoding": document.notes.encoding if document.notes else "utf-8" if document.is_utf8 else None,
            "documents": len(document.starts),
            **({} if writer.conversations else {"bytes": document.n_bytes}),
            "left_out": dict(document.notes.dropped) if document.notes else {},
        }
        for document in corpus.documents
    ]
    more: Fields = {"skipped": corpus.skipped}
    if writer.conversations:
        counted = {"conversations": writer.conversations, "answers": writer.answers}
        more |= counted | {"left_out": dict(writer.left_out)}
    if writer.anonymiser:
        more["replaced"] = dict(writer.anonymiser.replaced)
    more |= {"documents": corpus.n_documents, "duplicates": corpus.n_left_out}
    return {"out": out, "bytes": corpus.n_clean, "cleaned": dict(corpus.changed), **more, "files": files}


if __name__ == "__main__":
    raise SystemExit(main())
