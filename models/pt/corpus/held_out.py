"""Which documents of the text are never trained on, and the text in two parts: to train on, to measure on."""

import csv
import hashlib
import math
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from .errors import SourceError

SEPARATOR = b"\n<|endoftext|>\n"
ONE_OF = 50  # documents of a source are held out: the first of each 50 by the sha256 of their paths
MEASURED = (
    32_768  # bytes of a held-out document, its first lines: a novel says no more in all of its megabyte
)

LONG = 40  # bytes: a shorter line, as what people say, comes again in another book


class Document(NamedTuple):
    """A row of the index: where a document stands in the text."""

    source: str
    path: str
    offset: int
    bytes: int


class Part(NamedTuple):
    """A stretch of the text, whole lines of one document, and whether it is held out."""

    source: str
    begin: int
    end: int
    held_out: bool


def read_index(path: Path) -> list[Document]:
    """Read the index beside the text; SourceError where it is none."""
    with path.open(encoding="utf-8", newline="") as file:
        rows = csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE)
        try:
            return [Document(r["source"], r["path"], int(r["offset"]), int(r["bytes"])) for r in rows]
        except (KeyError, TypeError, ValueError):
            raise SourceError(f"{path}: is no index as text.py writes it") from None


def parts(text: bytes, index: list[Document]) -> Iterator[Part]:
    """Yield the parts of the text in its order.

    Of a source with several documents one in ONE_OF is held out, at least one: those whose paths have the
    lowest sha256. A source with one document has its last lines held out, at least that share of its bytes.
    """
    chosen = set[tuple[str, str]]()
    sources: dict[str, list[Document]] = {}
    for document in index:
        sources.setdefault(document.source, []).append(document)
    for source, documents in sources.items():
        by_hash = sorted(documents, key=lambda d: hashlib.sha256(d.path.encode()).digest())
        if len(documents) > 1:
            chosen |= {(source, d.path) for d in by_hash[: math.ceil(len(documents) / ONE_OF)]}
    end = -len(SEPARATOR)
    for source, path, begin, size in index:
        here, end = end + len(SEPARATOR), begin + size
        if here != begin or not text.startswith(SEPARATOR, end):
            raise SourceError(f"the index is of another text: {path} is not at byte {begin}")
        if len(sources[source]) > 1:
            yield Part(source, begin, end, (source, path) in chosen)
        else:
            cut = text.rfind(b"\n", begin, end - size // ONE_OF) + 1 or end
            yield from (Part(source, begin, cut, False), Part(source, cut, end, True))


def split(text: bytes, index: list[Document]) -> tuple[bytes, dict[str, bytes]]:
    """Return the text to train on, and by source the text to measure on, documents parted as in the text.

    A held-out document of whose longer lines more than a tenth are trained on too is in neither: it is the
    dialogue that is left of a novel in a second edition.
    """
    train, held = [], dict[str, list[bytes]]()
    for part in parts(text, index):
        data = text[part.begin : part.end].removesuffix(b"\n")
        if data and part.held_out:
            held.setdefault(part.source, []).append(first_lines(data))
        elif data:
            train.append(data)
    known = {line for document in train for line in document.split(b"\n") if len(line) >= LONG}
    new = {source: [d for d in documents if not repeats(d, known)] for source, documents in held.items()}
    return joined(train), {source: joined(documents) for source, documents in new.items() if documents}


def repeats(document: bytes, known: set[bytes]) -> bool:
    """Return whether more than a tenth of a document's longer lines are among the known ones."""
    long = [line for line in document.split(b"\n") if len(line) >= LONG]
    return 10 * sum(line in known for line in long) > len(long)


def first_lines(document: bytes) -> bytes:
    """Return the whole lines among the first MEASURED bytes; all of a document that is shorter."""
    if len(document) <= MEASURED:
        return document
    return document[: document.rfind(b"\n", 0, MEASURED + 1)]


def joined(documents: list[bytes]) -> bytes:
    """Return documents as one text."""
    return b"".join(document + SEPARATOR for document in documents)
