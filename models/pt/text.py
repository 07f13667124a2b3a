"""Make the Portuguese text that the base model reads, from public sources, the same bytes on each run.

    python models/pt/text.py --sources FOLDER -o FILE

FOLDER has the clones (OWNER+NAME, a work tree or a git directory) and packages of sources.toml; what is
missing is fetched there. FILE gets the documents, parted by lines with <|endoftext|>, and FILE.tsv the
source, path, licence, kind, offset and size of each. What comes out is compared with record.json.
NPGPT_DATA, where it is set, is the folder of the texts that models are measured on: then evaluation.txt,
the list of the paragraphs that they take out, is checked too.
"""

import argparse
import hashlib
import json
import os
import sys
from collections import Counter
from collections.abc import Iterator
from multiprocessing import get_context
from multiprocessing.pool import Pool
from pathlib import Path
from typing import Any, BinaryIO, TextIO

from corpus import clean, duplicates, evaluation, extract, report, sources
from corpus.errors import SourceError

HERE = Path(__file__).parent
SEPARATOR = "<|endoftext|>"
TALK = {"literature", "dialogue"}  # where people say "Sim, senhor." more than once
SHORTEST = 300  # characters: a shorter document tells nothing


def arguments() -> argparse.Namespace:
    """Return the arguments of the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--sources", required=True, type=Path, metavar="FOLDER", help="clones and packages")
    parser.add_argument("-o", "--out", required=True, type=Path, metavar="FILE", help="the text")
    parser.add_argument(
        "--record", action="store_true", help="write what came out into models/pt, after a change"
    )
    return parser.parse_args()


def read(job: tuple[sources.Source, str, bytes]) -> tuple[list[str], Counter[str]]:
    """Return the clean paragraphs of a file, and how many were left out by reason."""
    source, name, data = job
    dropped: Counter[str] = Counter()
    found = extract.paragraphs(data, source.format, f"{source.name}: {name}")
    if source.files_without and source.files_without.encode() in data:
        return [], Counter(licence=len(found))
    return clean.clean(found, dropped), dropped


class Builder:
    """Reads the sources one after the other and counts what it keeps and leaves out."""

    def __init__(
        self, options: argparse.Namespace, recorded: dict[str, Any], filter: duplicates.Filter, pool: Pool
    ):
        self.folder = options.sources
        self.recorded = recorded
        self.strict = not options.record
        self.filter = filter
        self.pool = pool  # reads and cleans; what is new is decided here, file after file
        self.measured: dict[str, Any] = {}

    def documents(self, source: sources.Source) -> Iterator[tuple[str, str]]:
        """Yield (path, text) of each document of a source whose files have the recorded hash."""
        files = sources.files(source, self.folder)
        digest = sources.digest(files)
        recorded = self.recorded.get(source.name, {}).get("sha256")
        if self.strict and digest != recorded:
            raise SourceError(
                f"{source.name}: the chosen files have sha256 {digest}, not {recorded} as recorded"
            )
        dropped: Counter[str] = Counter()
        row: dict[str, Any] = {
            "sha256": digest,
            "files": len(files),
            "bytes": sum(len(data) for _, data in files),
        }
        row |= {"documents": 0, "kept": 0}
        self.measured[source.name] = row
        jobs = ((source, name, data) for name, data in files)
        for (name, _), (found, left_out) in zip(files, self.pool.imap(read, jobs, chunksize=4), strict=True):
            dropped += left_out
            text = "\n".join(self.filter.fresh(found, dropped, source.kind in TALK))
            if len(text) >= SHORTEST:
                row["documents"] += 1
                row["kept"] += len(text.encode())
                yield name, text
        row["dropped"] = dict(sorted(dropped.items()))


def write(out: Path, table: list[sources.Source], builder: Builder) -> str:
    """Write the text and its index, and return the text's sha256. Nothing is at `out` before all is done."""
    part, index_part = out.with_name(out.name + ".part"), out.with_name(out.name + ".tsv.part")
    try:
        with part.open("wb") as file, index_part.open("w", encoding="utf-8", newline="\n") as index:
            digest = fill(file, index, table, builder)
        part.replace(out)
        index_part.replace(out.with_name(out.name + ".tsv"))
    finally:
        part.unlink(missing_ok=True)
        index_part.unlink(missing_ok=True)
    return digest


def fill(file: BinaryIO, index: TextIO, table: list[sources.Source], builder: Builder) -> str:
    """Write every document to `file` and its row to `index`, and return the sha256 of what `file` got."""
    total, offset = hashlib.sha256(), 0
    index.write("source\tpath\tlicence\tkind\toffset\tbytes\n")
    for source in table:
        print(source.name, end=" ", flush=True)
        for name, text in builder.documents(source):
            data = text.encode()
            written = data + f"\n{SEPARATOR}\n".encode()
            row = (source.name, name, source.licence, source.kind, offset, len(data))
            index.write("\t".join(map(str, row)) + "\n")
            file.write(written)
            total.update(written)
            offset += len(written)
        print(builder.measured[source.name]["kept"], flush=True)
    return total.hexdigest()


def evaluation_filter() -> duplicates.Filter:
    """Return the filter, with the evaluation sets where NPGPT_DATA has them and with their list where not."""
    runs = duplicates.Runs()
    marks = [line.split()[0] for line in (HERE / "evaluation.txt").read_text().splitlines()]
    data = os.environ.get("NPGPT_DATA")
    return duplicates.Filter(runs, evaluation.sets(Path(data), runs) if data else None, marks)


def check(record: dict[str, Any], digest: str, filter: duplicates.Filter, out: Path) -> None:
    """Compare with what is recorded; SourceError says what differs."""
    if filter.held is not None and set(filter.taken) != filter.marks:
        raise SourceError(
            f"{HERE / 'evaluation.txt'} has {len(filter.marks)} paragraphs, but NPGPT_DATA takes out "
            f"{len(filter.taken)}: run again with --record"
        )
    if digest != record["text"]["sha256"]:
        raise SourceError(f"{out} has sha256 {digest}, not {record['text']['sha256']} as recorded")


def main() -> None:
    """Run the command."""
    options = arguments()
    try:
        table = sources.load(HERE / "sources.toml")
        record = json.loads((HERE / "record.json").read_text(encoding="utf-8"))
        with get_context("spawn").Pool() as pool:
            builder = Builder(options, record["sources"], evaluation_filter(), pool)
            digest = write(options.out, table, builder)
        if options.record:
            if builder.filter.held is None:
                raise SourceError("--record needs NPGPT_DATA, to list what the evaluation sets take out")
            report.record(HERE, table, builder.measured, builder.filter.taken, digest, options.out)
        else:
            check(record, digest, builder.filter, options.out)
    except (SourceError, OSError) as error:
        print(f"text.py: {error}", file=sys.stderr)
        sys.exit(2)
    print(f"{options.out}: {options.out.stat().st_size} bytes, sha256 {digest}")


if __name__ == "__main__":
    main()
