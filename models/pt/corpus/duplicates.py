"""Near duplicates by exact runs of words: what was written before, and what the evaluation sets hold."""

import hashlib
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from itertools import count

import numpy as np

RUN = 8  # words that follow each other: two texts that share so many share them by no chance
SHORT = 5
SHARE = 0.5  # a paragraph is a near duplicate where so much of its runs was there before
PADDING = [0] * (RUN - 1)  # so that no run goes on into the next text
WORD = re.compile(r"\w+")
PLAIN = str.maketrans(
    "áàâãäåéèêëíìîïóòôõöúùûüçñýÿ", "aaaaaaeeeeiiiiooooouuuucnyy"
)  # accents differ from edition to edition


def words(text: str) -> list[str]:
    """Return the words of a text in small letters without accents."""
    return WORD.findall(text.lower().translate(PLAIN))


class Runs:
    """Runs of RUN words as 64-bit numbers, the same on each run: words are numbered as they come."""

    def __init__(self) -> None:
        self.numbers: defaultdict[str, int] = defaultdict(count(1).__next__)
        factors = [hashlib.blake2b(bytes([place]), digest_size=8).digest() for place in range(RUN)]
        self.factors = np.array([int.from_bytes(factor, "little") | 1 for factor in factors], np.uint64)

    def of(self, texts: Sequence[str]) -> list[list[int]]:
        """Return a number per run of words for each text; a text of fewer words has one, for all of it."""
        found = [words(text) for text in texts]
        ids: list[int] = []
        for known in found:
            ids += map(self.numbers.__getitem__, known)
            ids += PADDING
        row = np.array(ids, np.uint64) + np.uint64(0x9E3779B97F4A7C15)
        total = np.zeros(max(0, len(row) - len(PADDING)), np.uint64)
        for place in range(RUN):
            mixed = row[place : place + len(total)] * self.factors[place]
            total += (mixed ^ (mixed >> np.uint64(29))) * self.factors[-1 - place]
        numbers, at, runs = total.tolist(), 0, []
        for known in found:
            runs.append(numbers[at : at + max(1, len(known) - len(PADDING))])
            at += len(known) + len(PADDING)
        return runs


class Filter:
    """Lets through what is new and in no evaluation set.

    `runs` numbers the words. `held` has the runs of each evaluation set by its name; without the sets,
    `marks` tells which paragraphs they took out when the list of them was made.
    """

    def __init__(self, runs: Runs, held: dict[str, set[int]] | None = None, marks: Iterable[str] = ()):
        self.runs = runs
        self.held = held
        self.marks = set(marks)
        self.taken: dict[str, str] = {}  # mark of a paragraph that an evaluation set holds -> which set
        self.written: set[int] = set()

    def fresh(self, paragraphs: Sequence[str], dropped: Counter[str], talk: bool) -> Iterator[str]:
        """Yield the paragraphs that may be learnt, and remember them; count the others by reason.

        Where people talk, a paragraph of fewer than RUN words may come again.
        """
        for text, found in zip(paragraphs, self.runs.of(paragraphs), strict=True):
            reason = self.evaluation(text, found) or self.again(text, found, talk)
            if reason:
                dropped[reason] += 1
            else:
                self.written.update(found)
                yield text

    def evaluation(self, text: str, found: list[int]) -> str:
        """Return "evaluation" where a set shares RUN words in a row, or has this as a shorter line; or ""."""
        if self.held is None:
            return "evaluation" if mark(text) in self.marks else ""
        for name, held in self.held.items():
            if not held.isdisjoint(found):
                self.taken[mark(text)] = name
                return "evaluation"
        return ""

    def again(self, text: str, found: list[int], talk: bool) -> str:
        """Return which duplicate it is of what was written, or ""."""
        if talk and len(found) == 1 and len(words(text)) < RUN:
            return ""
        different = set(found)
        again = len(self.written & different)  # by the smaller set
        if again == len(different):
            return "exact duplicate"
        return "near duplicate" if again >= SHARE * len(different) else ""


def held_runs(runs: Runs, texts: Iterable[str]) -> set[int]:
    """Return the runs of an evaluation set's texts; a text of fewer than SHORT words is everybody's."""
    return {run for found in runs.of([t for t in texts if len(words(t)) >= SHORT]) for run in found}


def mark(text: str) -> str:
    """Return 16 hexadecimal digits that stand for a paragraph, to list it without its text."""
    return hashlib.sha256(" ".join(words(text)).encode()).hexdigest()[:16]
