"""Files to training batches: read, clean, split, cut into windows.

A text becomes one row of ids, each document closed by an end of text. The token before a part's first one
counts as an end of text, so every token is a target once in each epoch, the first one too.
The batch of a step is a pure function of (text, seed, step): whoever resumes needs the step and nothing else.

N = tokens, B = windows in a batch, T = tokens in a window (block_size).
"""

import hashlib
import re
import unicodedata
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from npgpt.text.tokenizer import ByteTokenizer

CLEANINGS = ("none", "light", "full")
DEFAULT_SPLIT = (0.8, 0.1, 0.1)  # train, validation, test


def read_files(paths) -> list[bytes]:
    """The documents, one per file, as raw bytes; ValueError for one with nothing in it."""
    paths = [paths] if isinstance(paths, (str, Path)) else list(paths)
    return [_read_file(Path(path)) for path in paths]


def _read_file(path: Path) -> bytes:
    try:
        document = path.read_bytes()
    except OSError as error:
        error.filename = str(path)  # which a failed read, unlike a failed open, does not tell
        raise
    if not document.strip():
        what = "an empty file" if not document else "only whitespace"
        raise ValueError(f"{path}: must hold text, got {what}")
    return document


def fingerprint(documents) -> str:
    """sha256 over the documents in their order: tells whether a text changed since a run used it."""
    whole = hashlib.sha256()
    for document in documents:
        whole.update(hashlib.sha256(document).digest())
    return whole.hexdigest()


def clean_document(document: bytes, how: str = "light") -> bytes:
    """`document` without what only looks like text.

    light  byte-order mark, line ends, Unicode NFC: changes nothing in text that is clean
    full   also control characters, blanks at line ends, runs of blank lines
    A document that is not UTF-8 as a whole comes back as it is.
    """
    if how not in CLEANINGS:
        raise ValueError(f"clean_document: how must be one of {', '.join(CLEANINGS)}, got {how!r}")
    if how == "none":
        return document
    try:
        text = document.decode("utf-8-sig")
    except UnicodeDecodeError:
        return document
    text = unicodedata.normalize("NFC", text.replace("\r\n", "\n").replace("\r", "\n"))
    if how == "full":
        text = re.sub(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]", "", text)  # all of category Cc but tab, newline
        text = re.sub(r"[^\S\n]+$", "", text, flags=re.MULTILINE)
        text = re.sub(r"\n{3,}", "\n\n", text)
    return text.encode("utf-8")


def parse_split(text) -> tuple[float, float, float]:
    """'0.8,0.1,0.1' (or the numbers) to (train, validation, test) shares; missing ones are 0."""
    try:
        shares = [float(s) for s in (text.split(",") if isinstance(text, str) else text)]
    except (TypeError, ValueError):
        shares = []
    in_range = all(0 <= share <= 1 for share in shares)
    if not (1 <= len(shares) <= 3 and in_range and abs(sum(shares) - 1) < 1e-6 and shares[0] > 0):
        raise ValueError(
            f"split must be up to three shares that add up to 1, training first, as 0.8,0.1,0.1; got {text!r}"
        )
    return tuple(shares + [0.0] * (3 - len(shares)))


@dataclass(frozen=True)
class Dataset:
    """The ids of a text in three contiguous parts, uint16 (N,) each; a part may be empty."""

    train: np.ndarray
    validation: np.ndarray
    test: np.ndarray
    tokenizer: ByteTokenizer

    @classmethod
    def from_text(cls, paths, split=DEFAULT_SPLIT, clean="light", tokenizer=None) -> "Dataset":
        """Read one file or several, clean and split them."""
        documents = [clean_document(document, clean) for document in read_files(paths)]
        return cls.from_documents(documents, split, tokenizer)

    @classmethod
    def from_documents(cls, documents, split=DEFAULT_SPLIT, tokenizer=None) -> "Dataset":
        """Encode the documents (bytes), close each with an end of text, split the whole.

        The parts follow each other in the text, so that validation and test never show a token that was
        trained on; a cut that falls inside a character moves behind it.
        """
        tokenizer = tokenizer or ByteTokenizer()
        split = parse_split(split)
        if (n_bytes := sum(map(len, documents))) < 2:
            raise ValueError(f"the text must hold at least 2 tokens, got {n_bytes}")
        end = np.array([tokenizer.end_of_text], np.uint16)
        ids = np.concatenate([a for d in documents for a in (tokenizer.encode(d), end)])
        cuts = []
        for share in (split[0], split[0] + split[1]):
            cut = min(max(1, round(share * len(ids))), len(ids))
            while cut < len(ids) and 0x80 <= ids[cut] < 0xC0:  # a byte inside a UTF-8 character
                cut += 1
            cuts.append(cut)
        return cls(*np.split(ids, cuts), tokenizer)


def n_tokens(documents) -> int:
    """Byte tokens that the documents make, their ends of text included."""
    return sum(len(document) + 1 for document in documents)


def n_windows(n_tokens: int, block_size: int) -> int:
    """Windows of block_size targets that n_tokens make, the last one maybe ragged."""
    return -(-n_tokens // block_size)


def batches_per_epoch(n_tokens: int, block_size: int, batch_size: int) -> int:
    """Steps in which each of n_tokens is a target once."""
    return -(-n_windows(n_tokens, block_size) // batch_size)


def cut_windows(ids: np.ndarray, windows, block_size: int, end_of_text: int, shift: int = 0):
    """Windows number `windows` (B,) of ids (N,) -> x, y int32 (B,T): y[b,t] follows x[b,t].

    Window w has the T targets from w*T on; where these pass N, y is -1 (not counted) and x is padding.
    `shift` turns the text as a ring: its end is followed by its beginning.
    """
    place = np.asarray(windows)[:, None] * block_size + np.arange(block_size)  # (B,T)
    outside = place >= len(ids)
    place = (place + shift) % len(ids)
    x = np.where(place == 0, end_of_text, ids[place - 1].astype(np.int32))  # ids are unsigned
    y = np.where(outside, -1, ids[place].astype(np.int32))
    return x.astype(np.int32), y.astype(np.int32)


class Batches:
    """The training batches of ids (N,), in an order that depends on the seed alone.

    An epoch deals the windows of the text in random order, so that every token is a target once. In three
    epochs of four the text, as a ring, is turned by a random shift before it is cut: so tokens meet all
    positions of a window as epochs pass, and yet the text's beginning is learnt as a beginning.
    """

    def __init__(self, ids, block_size: int, batch_size: int, seed: int, end_of_text: int):
        self.ids, self.block_size, self.batch_size = ids, block_size, batch_size
        self.seed, self.end_of_text = seed, end_of_text
        self.per_epoch = batches_per_epoch(len(ids), block_size, batch_size)
        self._epoch, self._order, self._shift = None, None, None  # of the epoch asked for last

    def batch(self, step: int):
        """x, y int32 (B,T) of step 0, 1, ...; the last batch of an epoch may have fewer rows."""
        epoch, position = divmod(step, self.per_epoch)
        if epoch != self._epoch:
            generator = np.random.default_rng([self.seed, epoch])
            self._shift = int(generator.integers(len(self.ids))) if epoch % 4 else 0
            self._order = generator.permutation(n_windows(len(self.ids), self.block_size))
            self._epoch = epoch
        windows = self._order[position * self.batch_size :][: self.batch_size]
        return cut_windows(self.ids, windows, self.block_size, self.end_of_text, self._shift)


def evaluation_batches(ids, block_size, batch_size, end_of_text, max_tokens=None):
    """Yield x, y over all of ids in non-overlapping windows, in order.

    With max_tokens, only as many windows as hold them, evenly spaced: always the same ones.
    """
    count = n_windows(len(ids), block_size)
    keep = count if max_tokens is None else min(count, n_windows(max_tokens, block_size))
    windows = np.arange(keep) * count // max(keep, 1)
    for first in range(0, keep, batch_size):
        yield cut_windows(ids, windows[first : first + batch_size], block_size, end_of_text)
