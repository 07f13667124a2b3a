"""A corpus without its duplicates: which documents are left out, and what is told of them."""

import hashlib
from array import array
from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property
from itertools import groupby
from operator import itemgetter
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from npgpt.engine.types import Integers, PathLike
from npgpt.text import duplicates
from npgpt.text.corpus import Corpus

DEDUPE = ("records", "all", "none")
RECORDS = (
    "JSON lines",
    "JSON",
    "comma-separated values",
    "tab-separated values",
)  # forms of forms/reading.py
EXAMPLES = 3  # of each kind
SHOWN = 60  # characters of each


class Repeated(NamedTuple):
    """A document that is left out, and the first one that it repeats."""

    exact: bool  #: byte for byte
    place: tuple[str, int, str]  #: name of its file, where it begins in it, and what that counts: line, page
    beginning: str  #: of its text
    first_place: tuple[str, int, str]
    first_beginning: str


class DistinctCorpus(Corpus):
    """The documents of some files and folders, of which duplicates are left out.

    Documents are numbered as chunks() gives them: without those that are left out.
    """

    def __init__(
        self, paths: PathLike | Iterable[PathLike], dedupe: str | None, apart: bool, **how: Any
    ) -> None:
        """Read all files once, as Corpus does, and look for duplicates where some are to be left out.

        dedupe: "records" leaves out the records of tables and JSON that are exact or near duplicates of a
        document before them, "all" any such document, "none" and None nothing. apart: whether the parts of a
        dataset and the windows of training keep documents apart.
        """
        if dedupe not in (*DEDUPE, None):
            raise ValueError(f"dedupe must be one of {', '.join(DEDUPE)}, got {dedupe!r}")
        super().__init__(paths, **how)
        self.apart = apart
        self._left_out = np.zeros(0, np.int64)  # numbers of documents, before any is left out
        taken = [
            dedupe == "all"
            or (dedupe == "records" and document.notes is not None and document.notes.form in RECORDS)
            for document in self.documents
        ]
        if self._first[-1] > 1 and any(taken):
            may = np.repeat(taken, [len(document.starts) for document in self.documents])
            self._left_out = np.flatnonzero((self.duplicates.of >= 0) & may)
            self._count_left_out()

    def _count_left_out(self) -> None:
        exact = self.duplicates.exact[self._left_out]
        self.n_left_out = {"exact": int(exact.sum()), "near": int((~exact).sum())}
        gone = int(self._sizes[self._left_out].sum())
        self.n_clean, self.n_kept = int(self._sizes.sum()) - gone, max(1, self.n_bytes - gone)
        if len(self._left_out):
            self.selection = hashlib.sha256(self._left_out.data).hexdigest()

    @cached_property
    def duplicates(self) -> duplicates.Duplicates:
        """The duplicates among all documents, by their numbers before any is left out."""
        sizes = array("q", bytes(8 * self._first[-1]))

        def measured() -> Iterator[tuple[int, bytes]]:
            for number, chunk in super(DistinctCorpus, self).chunks():
                sizes[number] += len(chunk)
                yield number, chunk

        found = duplicates.find(measured(), len(sizes))
        self._sizes = np.frombuffer(sizes, np.int64)
        return found

    @property
    def n_documents(self) -> int:
        """The number of documents that are not left out."""
        return int(self._first[-1]) - len(self._left_out)

    def chunks(self) -> Iterator[tuple[int, bytes]]:
        """Yield (number, chunk of the cleaned document) of the documents that are not left out, in order."""
        left_out, passed, n_clean = [*self._left_out.tolist(), -1], 0, 0
        for number, group in groupby(super().chunks(), itemgetter(0)):
            if number == left_out[passed]:
                passed += 1
                continue
            for _number, chunk in group:
                n_clean += len(chunk)
                yield number - passed, chunk
        self.n_clean = n_clean

    def places(self, number: int, lines: Sequence[int]) -> tuple[str, list[int]]:
        """Return the file of a document, by its number in chunks(), and where these lines of it are there."""
        return super().places(self._number(number), lines)

    def _number(self, kept: int) -> int:
        """Return the number of a document before any is left out."""
        before = self._left_out - np.arange(len(self._left_out))  # documents that are kept before each
        return kept + int(np.searchsorted(before, kept, "right"))

    def twins(self) -> Integers:
        """Return for each document, by its number in chunks(), the first one that it duplicates, or -1."""
        of, exact = self.duplicates
        of = np.where(
            exact & (of[of] >= 0), of[of], of
        )  # what is near to the first of equal ones comes before
        left_out = np.zeros(len(of), bool)
        left_out[self._left_out] = True
        kept = of[~left_out]
        while (gone := (kept >= 0) & left_out[kept]).any():  # which duplicates one before it in turn
            kept = np.where(gone, of[kept], kept)
        return np.where(kept < 0, -1, kept - np.searchsorted(self._left_out, kept))

    def repeated(self) -> list[Repeated]:
        """Return the first EXAMPLES of each kind of the documents that are left out."""
        exact = self.duplicates.exact[self._left_out]
        shown = np.concatenate([self._left_out[exact == kind][:EXAMPLES] for kind in (True, False)]).tolist()
        wanted = {*shown, *self.duplicates.of[shown].tolist()}
        texts = self._beginnings(wanted)
        places = {number: self._place(number) for number in wanted}
        firsts = self.duplicates.of[shown].tolist()
        kinds = self.duplicates.exact[shown].tolist()
        return [
            Repeated(kind, places[number], texts[number], places[first], texts[first])
            for kind, number, first in zip(kinds, shown, firsts, strict=True)
        ]

    def _beginnings(self, wanted: set[int]) -> dict[int, str]:
        """Return the beginnings of these documents, by their numbers before any is left out."""
        found = dict[int, str]()
        for first, document in zip(self._first, self.documents, strict=False):
            if wanted.isdisjoint(range(first, first + len(document.starts))):
                continue
            for number, chunk in document.parts(self.clean):
                if first + number in wanted and first + number not in found:
                    text = " ".join(chunk[: 8 * SHOWN].decode("utf-8", "ignore").split())
                    found[first + number] = text if len(text) <= SHOWN else text[: SHOWN - 3] + "..."
        return found

    def _place(self, number: int) -> tuple[str, int, str]:
        file, (begin,) = super().places(number, [1])
        return Path(file).name, begin, self.unit(file)
