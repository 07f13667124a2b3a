"""From files to training batches: read, clean, split, cut into windows.

A text becomes one row of ids, each document closed by an end of text. The token before the first one of a
split counts as an end of text, so every token is a target once in each epoch, the first one too. Where there
are several documents, a token of a window sees its own one alone, and splits begin with documents where these
are small enough. The batch of a step is a pure function of (text, seed, step): a run that resumes needs the
step alone.

N = tokens, B = windows in a batch, T = tokens in a window (block_size).
"""

import contextlib
import hashlib
import os
import re
import tempfile
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple, TypeAlias, TypeVar

import numpy as np

from npgpt.distributed.world import SINGLE, World
from npgpt.engine import kernels
from npgpt.engine.names import missing, names_checked
from npgpt.engine.notebooks import small_table
from npgpt.engine.types import Integers, PathLike
from npgpt.text.corpus import Corpus
from npgpt.text.distinct import DistinctCorpus
from npgpt.text.load import make_tokenizer
from npgpt.text.tokenizer import BEFORE_BLANK, ByteTokenizer, Place, Tokenizer

DEFAULT_SPLIT = (0.8, 0.1, 0.1)  # train, validation, test
CHUNKS_PER_RANK = 4  # at least, so that their unequal costs even out
BLOCK = 1 << 24  # ids that are looked at together
BEGINNING = 60  # tokens that a notebook shows
PART = 1 << 20  # bytes that are encoded together
TAIL = 4096  # bytes at the end of a chunk in which a boundary of words is looked for
ENOUGH = 0.25  # of a part of the text, by which its ends may move to those of documents
DOCUMENTS = ("apart", "joined")
T = TypeVar("T")
Split: TypeAlias = str | Sequence[float]
Batch: TypeAlias = tuple[
    Integers, ...
]  # x, y (B,T) int32, and `starts` (B,T) where a window has several documents


def encode(corpus: Corpus, tokenizer: Tokenizer, world: World = SINGLE) -> Integers:
    """Return the ids (N,) of a corpus, each document closed by an end of text.

    They are uint16 where the vocabulary allows it, else uint32. The ids of a corpus too large for memory are
    memory-mapped from a file, which is found again by the content of text and tokenizer. Each rank of `world`
    encodes a shard, and all get all ids; on each host one rank writes the file.
    """
    tokenizer = tokenizer.normalizing("none")  # of a corpus, which is clean already
    chunks = _encode_chunks(corpus, tokenizer, world)
    if corpus.in_memory:
        return np.concatenate(list(chunks))
    form = corpus.clean if corpus.encoding in ("utf-8", "auto") else f"{corpus.clean} {corpus.encoding}"
    key = f"{corpus.sha256} {form} {tokenizer.fingerprint}{corpus.selection}"  # all that the ids depend on
    path = cache_folder() / f"{hashlib.sha256(key.encode()).hexdigest()}.ids"
    missing = not _is_made(path)
    if world.any(missing)[0]:
        if world.local_rank:
            deque(chunks, maxlen=0)
        else:
            _write(path, chunks)
        world.barrier()
    return np.memmap(path, tokenizer.dtype, "r")


def _is_made(path: Path) -> bool:
    """Return whether a file of ids is there. An empty one, which a broken disk may leave, is removed."""
    with contextlib.suppress(FileNotFoundError):
        if path.stat().st_size:
            return True
        path.unlink()
    return False


def _write(path: Path, chunks: Iterable[Integers]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile(dir=path.parent) as file:  # removed after a failure
        for ids in chunks:
            ids.tofile(file)
        file.flush()
        os.fsync(file.fileno())
        with contextlib.suppress(FileExistsError):  # another process was faster
            os.link(file.name, path)


def _encode_chunks(corpus: Corpus, tokenizer: Tokenizer, world: World = SINGLE) -> Iterator[Integers]:
    """Yield the ids of the corpus part by part; joined they are those of the documents."""
    begin, end = (np.array(ids, tokenizer.dtype) for ids in (tokenizer.begin, [tokenizer.end_of_text]))

    def encode(chunks: Iterable[Chunk]) -> Integers:
        arrays = []
        for chunk in chunks:
            place = Place.BEGIN if chunk.begins else Place.INSIDE
            arrays += [begin] if chunk.begins else []
            arrays.append(tokenizer.encode(chunk.text, place=place))
            arrays += [end] if chunk.ends else []
        return np.concatenate(arrays)

    chunks = _text_chunks(corpus, tokenizer, world)
    if world.size > 1:
        return world.map(encode, ([chunk] for chunk in chunks))
    return _ahead(encode, _gathered(chunks))


def _gathered(chunks: Iterable["Chunk"]) -> Iterator[list["Chunk"]]:
    """Yield chunks side by side, so many that they hold PART bytes: records are small."""
    part, size = list[Chunk](), 0
    for chunk in chunks:
        part.append(chunk)
        size += len(chunk.text)
        if size >= PART:
            yield part
            part, size = [], 0
    if part:
        yield part


def _ahead(function: Callable[[T], Integers], items: Iterable[T]) -> Iterator[Integers]:
    """Yield function(item) for all items in their order, by threads beside the one that makes the items."""
    threads = kernels.get_num_threads()
    with ThreadPoolExecutor(threads) as workers:
        waiting = deque[Future[Integers]]()
        for item in items:
            waiting.append(workers.submit(function, item))
            if len(waiting) > 2 * threads:
                yield waiting.popleft().result()
        for future in waiting:
            yield future.result()


class Chunk(NamedTuple):
    """A part of a document."""

    text: bytes
    begins: bool  # its document
    ends: bool


def _text_chunks(corpus: Corpus, tokenizer: Tokenizer, world: World) -> Iterator[Chunk]:
    """Yield chunks whose ids joined are the document's."""
    begins = True
    for text, ends in _cut_chunks(corpus, tokenizer.boundary, world):
        yield Chunk(text, begins, ends)
        begins = ends


def _cut_chunks(
    corpus: Corpus, boundary: re.Pattern[bytes] | None, world: World
) -> Iterator[tuple[bytes, bool]]:
    """Yield (text, True where it ends its document), cut where the pattern has matched."""
    before, held = 0, b""
    for number, chunk in corpus.chunks():
        if number != before:
            yield from _cut_last(held, corpus.n_bytes, boundary, world)
            held = b""
        elif held and boundary:
            # The text after the last boundary between words waits for the next chunk.
            cut = max((m.end() for m in boundary.finditer(held, len(held) - TAIL)), default=len(held))
            for shard in _cut_for_ranks(held[:cut], corpus.n_bytes, boundary, world):
                yield shard, False
            held = held[cut:]
        before, held = number, held + chunk
    yield from _cut_last(held, corpus.n_bytes, boundary, world)


def _cut_last(
    text: bytes, n_bytes: int, boundary: re.Pattern[bytes] | None, world: World
) -> Iterator[tuple[bytes, bool]]:
    """Yield the end of a document as _cut_chunks does."""
    *shards, last = _cut_for_ranks(text, n_bytes, boundary, world) if boundary else [text]
    for shard in shards:
        yield shard, False
    yield last, True


def _cut_for_ranks(chunk: bytes, n_bytes: int, boundary: re.Pattern[bytes], world: World) -> Iterator[bytes]:
    """Yield `chunk`, of a text of n_bytes, cut between words so that every rank has work."""
    size, start = n_bytes // (CHUNKS_PER_RANK * world.size) if world.size > 1 else len(chunk), 0
    while cut := boundary.search(chunk, start + size):
        yield chunk[start : cut.end()]
        start = cut.end()
    yield chunk[start:]


def make_corpus_tokenizer(name: str, corpus: Corpus, split: Split, world: World = SINGLE) -> Tokenizer:
    """Return the tokenizer of a name: bytes; bpe:N, trained on the corpus's training split; a path."""
    return make_tokenizer(name, _beginning(corpus, parse_split(split)[0], world), world)


def _beginning(corpus: Corpus, share: float, world: World) -> Iterator[bytes]:
    """Yield the text of the documents up to the fraction `share` of its bytes."""
    left = round(share * corpus.n_kept)
    for _, chunk in corpus.chunks():
        yield from _cut_for_ranks(chunk[:left], corpus.n_bytes, BEFORE_BLANK, world)
        left -= len(chunk)
        if left <= 0:
            return


def cache_folder() -> Path:
    """Return NPGPT_CACHE, or npgpt in the user's cache folder; its contents can be made again."""
    usual = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(os.environ.get("NPGPT_CACHE") or Path(usual) / "npgpt")


def parse_split(text: Split) -> tuple[float, float, float]:
    """Return the (train, validation, test) shares that '0.8,0.1,0.1' or numbers give; missing ones are 0.

    >>> parse_split("0.9,0.1")
    (0.9, 0.1, 0.0)
    """
    try:
        shares = [float(s) for s in (text.split(",") if isinstance(text, str) else text)]
    except (TypeError, ValueError):
        shares = []
    in_range = all(0 <= share <= 1 for share in shares)
    if not (1 <= len(shares) <= 3 and in_range and abs(sum(shares) - 1) < 1e-6 and shares[0] > 0):
        raise ValueError(
            f"split must be up to three shares that add up to 1, training first, as 0.8,0.1,0.1; got {text!r}"
        )
    train, validation, test = shares + [0.0] * (3 - len(shares))
    return train, validation, test


@dataclass(frozen=True)
class Dataset:
    """The ids of a text in three contiguous splits, (N,) each; a split may be empty.

    Its length is that of the text.
    """

    train: Integers  #: ids (N,) to train on
    validation: Integers  #: ids (N,) that follow those of train
    test: Integers  #: ids (N,) that follow those of validation
    tokenizer: Tokenizer  #: the tokenizer of these ids
    own_validation: bool = False  #: validation is another text, and no part of this one
    n_copies: int = (
        0  #: tokens that are in no split, as a split before holds their document, or one near to it
    )
    apart: bool = False  #: there are several documents, and windows read one at a time

    def __len__(self) -> int:
        own = 0 if self.own_validation else len(self.validation)
        return len(self.train) + own + len(self.test) + self.n_copies

    def __repr__(self) -> str:
        parts = ", ".join(f"{name} {len(getattr(self, name)):,}" for name in ("train", "validation", "test"))
        return f"<Dataset of {len(self):,} tokens: {parts}; tokenizer {self.tokenizer.name}>"

    def _repr_html_(self) -> str:
        """Return a table for notebooks: the tokens of each part, and the beginning of the text."""
        rows: dict[str, object] = {name: len(getattr(self, name)) for name in ("train", "validation", "test")}
        rows |= {"tokens left out": self.n_copies} if self.n_copies else {}
        rows |= {"tokenizer": self.tokenizer.name, "documents": "apart" if self.apart else "joined"}
        beginning = self.tokenizer.decode(self.train[:BEGINNING])
        return small_table(f"Dataset of {len(self):,} tokens", rows | {"begins": beginning})

    @classmethod
    @names_checked
    def from_text(
        cls,
        paths: PathLike | Iterable[PathLike],
        split: Split = DEFAULT_SPLIT,
        clean: str | None = None,
        tokenizer: Tokenizer | None = None,
        encoding: str = "auto",
        field: str | None = None,
        dedupe: str = "records",
        documents: str = "apart",
    ) -> "Dataset":
        """Read one file or several, folders, archives, or stdin ("-"), clean and split them.

        clean: none, light or full (default light). The dataset's tokenizer cleans prompts in the same way.
        encoding "auto" finds out what a file is, another name says it, and "bytes" takes any file as it is,
        uncleaned. field: the field or column that holds the text of records (default: text, or the only one
        with text). dedupe: "records" leaves out records that repeat a document before them, or nearly so;
        "all" any document; "none" nothing. documents: "joined" lets windows read across documents.
        ValueError for a file that has no text.
        """
        if isinstance(paths, str) and paths not in ("", "-") and not os.path.exists(paths):
            raise missing(paths)
        if documents not in DOCUMENTS:
            raise ValueError(f"documents must be one of {', '.join(DOCUMENTS)}, got {documents!r}")
        how = {"clean": clean, "encoding": encoding, "field": field}
        corpus = DistinctCorpus(paths, dedupe, documents == "apart", **how)
        tokenizer = (tokenizer or ByteTokenizer()).normalizing(corpus.clean)
        return cls.of(corpus, encode(corpus, tokenizer), split, tokenizer)

    @classmethod
    def of(cls, corpus: DistinctCorpus, ids: Integers, split: Split, tokenizer: Tokenizer) -> "Dataset":
        """Split the ids (N,) of a corpus as from_ids() does, near duplicates as if they were copies."""
        documents = "apart" if corpus.apart else "joined"
        held_out = parse_split(split)[0] < 1
        twins = corpus.twins() if corpus.apart and held_out and corpus.n_documents > 1 else None
        return cls.from_ids(ids, split, tokenizer, documents, twins)

    @classmethod
    @names_checked
    def from_ids(
        cls,
        ids: Integers,
        split: Split,
        tokenizer: Tokenizer,
        documents: str = "apart",
        twins: Integers | None = None,
    ) -> "Dataset":
        """Split ids (N,); ValueError for fewer than 3.

        The splits follow each other in the text, so that validation and test never show a token that was
        trained on. They begin with a document where one ends near enough, else inside a document, behind a
        character; with documents="joined" they always may. A document that began in a split before is left
        out of validation and test, and so are those that duplicate it: twins (n,) has the first document that
        each of n duplicates, or -1 (default: of those with equal ids).
        """
        split = parse_split(split)
        if len(ids) < 3:  # an end of text is the last
            raise ValueError(f"the text must hold at least 2 tokens, got {len(ids) - 1}")
        stops = _document_ends(ids, tokenizer.end_of_text)
        if twins is not None and len(twins) != len(stops):
            raise ValueError(f"twins must be of {len(stops)} documents, got {len(twins)}")
        room = ENOUGH * len(ids) * min(filter(None, split)) if documents == "apart" else 0.0
        cuts = [_cut(ids, share, stops[:-1], room, tokenizer) for share in (split[0], split[0] + split[1])]
        known = list(_copies(ids, stops, twins))
        held_out = ids[cuts[0] : cuts[1]], ids[cuts[1] :]
        parts = [
            _without(part, begin, [(start, stop) for first, start, stop in known if first < begin])
            for part, begin in zip(held_out, cuts, strict=True)
        ]
        n_copies = sum(map(len, held_out)) - sum(map(len, parts))
        apart = documents == "apart" and len(stops) > 1
        return cls(ids[: cuts[0]], parts[0], parts[1], tokenizer, n_copies=n_copies, apart=apart)

    def validated_by(self, ids: Integers) -> "Dataset":
        """Return the dataset with the ids (N,) of another text for validation."""
        return replace(self, validation=ids, own_validation=True)


def _document_ends(ids: Integers, end_of_text: int) -> Integers:
    """Return where documents end in ids (N,), each behind its end of text."""
    blocks = range(0, len(ids), BLOCK)  # ids may be a file larger than memory
    return np.concatenate([i + 1 + np.flatnonzero(ids[i : i + BLOCK] == end_of_text) for i in blocks])


def _cut(ids: Integers, share: float, ends: Integers, room: float, tokenizer: Tokenizer) -> int:
    """Return where the first `share` of ids (N,) ends: where a document does, if one is within `room` ids."""
    cut = min(max(1, round(share * len(ids))), len(ids))
    if len(ends) and cut < len(ids):
        nearest = int(ends[np.abs(ends - cut).argmin()])
        if abs(nearest - cut) <= room:
            return nearest
    while _inside_character(tokenizer.decode_bytes(ids[cut : cut + 1])):
        cut += 1
    return cut


def _copies(ids: Integers, stops: Integers, twins: Integers | None) -> Iterator[tuple[int, int, int]]:
    """Yield for each copy of a document where the first of its kind begins, and its own begin and end.

    twins (n,) says which document each one copies, or -1; without it those with equal ids are copies.
    """
    starts = np.concatenate([[0], stops[:-1]]) if len(stops) > 1 else stops[:0]  # one document is usual
    if twins is not None:
        copies = np.flatnonzero(twins >= 0)
        places = starts[twins[copies]], starts[copies], stops[copies]
        yield from zip(*(place.tolist() for place in places), strict=True)
        return
    first = dict[bytes, int]()
    for start, stop in zip(starts.tolist(), stops.tolist(), strict=False):
        begin = first.setdefault(hashlib.sha256(ids[start:stop].data).digest(), start)
        if begin != start:
            yield begin, start, stop


def _without(part: Integers, begin: int, places: Iterable[tuple[int, int]]) -> Integers:
    """Return the part of ids that begins at `begin`, without the ids at these places."""
    keep = None
    for start, stop in places:
        if stop > begin and start < begin + len(part):
            keep = np.ones(len(part), bool) if keep is None else keep
            keep[max(0, start - begin) : stop - begin] = False
    return part if keep is None else part[keep]


def _inside_character(text: bytes) -> bool:
    """Return True where `text` begins with a byte that never begins a UTF-8 character."""
    return 0x80 <= (text or b"\0")[0] < 0xC0


def n_windows(n_tokens: int, block_size: int) -> int:
    """Return how many windows of block_size targets n_tokens make; the last one may be shorter."""
    return -(-n_tokens // block_size)


def batches_per_epoch(n_tokens: int, block_size: int, batch_size: int) -> int:
    """Return how many steps make each of n_tokens a target once."""
    return -(-n_windows(n_tokens, block_size) // batch_size)


def cut_windows(
    ids: Integers, windows: Integers, block_size: int, end_of_text: int, shift: int = 0, apart: bool = False
) -> Batch:
    """Return x, y int32 (B,T): the windows numbered `windows` (B,) of ids (N,); y[b,t] follows x[b,t].

    Window w has the T targets from w*T on; where these pass N, y is -1 (not counted) and x is padding.
    `shift` rotates the text: its end is followed by its beginning. apart: where a document begins inside a
    window, `starts` (B,T) is returned too, the place at which the document of each token begins there. It
    begins with the end of text before its first token.

    >>> x, y = cut_windows(np.array([10, 11, 12]), np.array([0, 1]), block_size=2, end_of_text=256)
    >>> x.tolist(), y.tolist()
    ([[256, 10], [11, 256]], [[10, 11], [12, -1]])
    >>> cut_windows(np.array([10, 256, 12]), np.array([0]), 3, end_of_text=256, apart=True)[2].tolist()
    [[0, 0, 2]]
    """
    position = np.asarray(windows)[:, None] * block_size + np.arange(block_size)  # (B,T)
    outside = position >= len(ids)
    position = (position + shift) % len(ids)
    x = np.where(position == 0, end_of_text, ids[position - 1].astype(np.int32))  # ids are unsigned
    y = np.where(outside, -1, ids[position].astype(np.int32))
    batch = x.astype(np.int32), y.astype(np.int32)
    if not apart:
        return batch
    begins = np.where(x == end_of_text, np.arange(block_size, dtype=np.int32), 0)
    return (*batch, np.maximum.accumulate(begins, axis=1)) if begins.any() else batch


class Batches:
    """The training batches of ids (N,), in an order that depends on the seed alone.

    An epoch has the windows of the text in random order, so that every token is a target once. In three
    epochs of four the text is rotated by a random shift before it is cut. So over the epochs a token comes at
    all positions of a window, and yet the model sees the text's beginning as a beginning. With `apart` the
    windows are the same, and in each a token sees its own document alone.
    """

    def __init__(
        self,
        ids: Integers,
        block_size: int,
        batch_size: int,
        seed: int,
        end_of_text: int,
        apart: bool = False,
    ) -> None:
        self.ids, self.block_size, self.batch_size = ids, block_size, batch_size
        self.seed, self.end_of_text, self.apart = seed, end_of_text, apart
        self.per_epoch = batches_per_epoch(len(ids), block_size, batch_size)
        self._epoch, self._order, self._shift = -1, np.zeros(0, np.int64), 0  # of the last epoch used

    def windows(self, step: int) -> Integers:
        """Return the numbers (B,) of the windows of step 0, 1, ..., in the text that its epoch rotates."""
        epoch, position = divmod(step, self.per_epoch)
        if epoch != self._epoch:
            generator = np.random.default_rng([self.seed, epoch])
            self._shift = int(generator.integers(len(self.ids))) if epoch % 4 else 0
            self._order = generator.permutation(n_windows(len(self.ids), self.block_size))
            self._epoch = epoch
        return self._order[position * self.batch_size :][: self.batch_size]

    def batch(self, step: int) -> Batch:
        """Return the windows of step 0, 1, ... by cut_windows(); an epoch's last batch may be smaller."""
        windows = self.windows(step)
        return cut_windows(self.ids, windows, self.block_size, self.end_of_text, self._shift, self.apart)


def evaluation_batches(
    ids: Integers,
    block_size: int,
    batch_size: int,
    end_of_text: int,
    max_tokens: int | None = None,
    apart: bool = False,
) -> Iterator[Batch]:
    """Yield all of ids in non-overlapping windows, in order, as cut_windows() returns them.

    With max_tokens only as many windows as hold them, evenly spaced: always the same ones.
    """
    count = n_windows(len(ids), block_size)
    keep = count if max_tokens is None else min(count, n_windows(max_tokens, block_size))
    windows = np.arange(keep) * count // max(keep, 1)
    for first in range(0, keep, batch_size):
        chosen = windows[first : first + batch_size]
        yield cut_windows(ids, chosen, block_size, end_of_text, apart=apart)
