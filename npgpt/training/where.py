"""Where a model has it from: what a text repeats from the training text of a run, and from its prompt."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from operator import itemgetter
from pathlib import Path

import numpy as np

from npgpt.engine.names import names_checked
from npgpt.engine.types import Fields, Integers, PathLike
from npgpt.text.dataset import Dataset, encode
from npgpt.text.distinct import DistinctCorpus
from npgpt.text.index import Index, Stretch
from npgpt.text.index_file import open_index
from npgpt.text.tokenizer import Tokenizer
from npgpt.training import run as runs
from npgpt.training.pretrained import read_tokenizer
from npgpt.training.source import find_text

SHORTEST = 8  # characters; shorter stretches of any text are everywhere


@dataclass(frozen=True)
class Repeat:
    """A stretch that a text repeats."""

    text: str  #: the stretch
    count: int  #: how often the training text, or the prompt, has it
    file: str | None  #: the file where it comes first; None for the prompt
    line: int  #: the line of that file, or of the prompt, where it begins there, from 1
    start: int  #: the character of the text at which it begins, from 0
    length: int  #: its characters
    unit: str = "line"  #: what `line` counts: line, of a PDF page, of Word paragraph, of a JSON list record


@dataclass(frozen=True)
class Where:
    """What a text repeats: longest first, and no two stretches of one list overlap."""

    text: str  #: the text, cleaned as the model's own text was
    training: list[Repeat]  #: what it repeats from the part of the run's text that was trained on
    prompt: list[Repeat]  #: what it repeats from the prompt
    shortest: int  #: characters of the shortest stretch that is told
    found_at: str | None  #: the first file of the run's text, where that is not where it was


@names_checked
def where(run: PathLike, text: str, prompt: str = "", shortest: int = SHORTEST) -> Where:
    """Return what `text`, which the model of `run` wrote after `prompt`, repeats.

    The run's text is looked up in an index, which is made once and kept in npgpt's cache folder: five bytes
    for each of the training part. ValueError for a text that is empty or longer than an index takes, for a
    run that was taught by examples, and where the run's text has changed; FileNotFoundError where it has
    gone.
    """
    if shortest < 1:
        raise ValueError(f"where: shortest must be at least 1, got {shortest}")
    config, corpus, found_at = open_source(run)
    tokenizer = read_tokenizer(run)
    text = bytes(tokenizer.normalize(text)).decode("utf-8", "surrogateescape")
    if not text:
        raise ValueError("where: text must not be empty")
    in_prompt = Index.of([bytes(tokenizer.normalize(prompt))])
    from_prompt = _repeats(text, in_prompt, in_prompt.stretches(text, shortest))
    index = training_index(corpus, config, tokenizer)
    from_training = _repeats(text, index, index.stretches(text, shortest), corpus)
    return Where(text, from_training, from_prompt, shortest, found_at)


def open_source(run: PathLike) -> tuple[Fields, DistinctCorpus, str | None]:
    """Return the config.toml of a run, its text, and the first file of that where it has moved.

    ValueError for a run that was taught by examples, and where the text has changed; FileNotFoundError where
    it has gone.
    """
    if not (Path(run) / runs.CONFIG).exists():
        raise ValueError(f"{run}: must be a run, as only a run knows its training text")
    config = runs.read_config(run)
    if "text_sha256" not in config["about"]:
        raise ValueError(f"{run}: was taught by examples; a text is found in runs that were trained on text")
    return config, *find_text(Path(run), config, advice="put it back, there or beside the run")


def _repeats(
    text: str, index: Index, found: Sequence[Stretch], corpus: DistinctCorpus | None = None
) -> list[Repeat]:
    """Return the stretches of `text` with file and line; without a corpus the index is of the prompt."""
    lines, files, units = dict[tuple[int, int], int](), dict[int, str](), dict[int, str]()
    for number in {stretch.document for stretch in found}:  # so that each document is read once
        offsets = sorted({stretch.offset for stretch in found if stretch.document == number})
        of_document = index.lines(number, offsets)
        if corpus:
            files[number], of_document = corpus.places(number, of_document)
            units[number] = corpus.unit(files[number])
        lines |= {(number, offset): line for offset, line in zip(offsets, of_document, strict=True)}
    return [
        Repeat(
            text[stretch.start : stretch.start + stretch.length],
            stretch.count,
            runs.shown(files[stretch.document]) if corpus else None,
            lines[stretch.document, stretch.offset],
            stretch.start,
            stretch.length,
            units.get(stretch.document, "line"),
        )
        for stretch in found
    ]


def training_index(corpus: DistinctCorpus, config: Fields, tokenizer: Tokenizer) -> Index:
    """Return the index of the part of a run's text that it was trained on; `config` is its config.toml."""

    def documents() -> Iterator[Iterator[bytes]]:
        dataset = Dataset.of(corpus, encode(corpus, tokenizer), config["split"], tokenizer)
        return _beginning(corpus, *_extent(dataset.train, tokenizer))

    how = f"{corpus.clean} {corpus.encoding} {config['split']} {tokenizer.fingerprint}"
    how += f" {corpus.selection} apart" if corpus.apart else corpus.selection
    return open_index(f"{corpus.sha256} {how}", documents)


def _extent(ids: Integers, tokenizer: Tokenizer) -> tuple[int, int]:
    """Return how many documents the ids (N,) hold whole, and how many bytes of the next one."""
    whole, last, block = 0, 0, 1 << 24
    for at in range(0, len(ids), block):  # ids may be a file larger than memory
        ends = np.flatnonzero(ids[at : at + block] == tokenizer.end_of_text)
        whole, last = whole + len(ends), at + int(ends[-1]) + 1 if len(ends) else last
    rest = range(last, len(ids), block)
    return whole, sum(len(tokenizer.decode_bytes(ids[at : at + block])) for at in rest)


def _beginning(corpus: DistinctCorpus, n_whole: int, n_bytes: int) -> Iterator[Iterator[bytes]]:
    """Yield the chunks of the first documents, and of the first bytes of the next one."""
    for number, group in groupby(corpus.chunks(), itemgetter(0)):
        chunks = (chunk for _number, chunk in group)
        if number < n_whole:
            yield chunks
        elif n_bytes:
            yield _first(chunks, n_bytes)
            return


def _first(chunks: Iterator[bytes], n: int) -> Iterator[bytes]:
    for chunk in chunks:
        yield chunk[:n]
        n -= len(chunk)
        if n <= 0:
            return
