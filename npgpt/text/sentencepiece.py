"""SentencePiece's BPE as Llama 2 has it, from tokenizer.json's merges or from the scores of a GGUF file."""

import re

import numpy as np

from npgpt.engine import kernels
from npgpt.engine.types import Buffer, Integers
from npgpt.text.bpe import NO_ID
from npgpt.text.spm import BLANK, BYTE_NAMES, BYTE_TOKENS, Merges, Pieces, ReferenceSpm, merges_of_scores
from npgpt.text.tokenizer import BEFORE_SPACE, Place, Tokenizer, merge_table, with_end
from npgpt.text.tokenizer_json import Vocabulary


class SentencePieceTokenizer(Tokenizer):
    """A tokenizer that writes blanks as U+2581, and most often puts one before a text."""

    def __init__(self, vocabulary: Vocabulary) -> None:
        """Check the vocabulary. ValueError, naming the first fault, where it is inconsistent."""
        v = self.vocabulary = with_end(vocabulary)
        assert v.pieces
        self._pieces: Pieces = v.pieces
        self.name = f"spm:{self.vocab_size}"
        if BLANK not in v.tokens or BLANK in v.special:
            raise ValueError(f"{v.where}: there must be a token {BLANK!r}, which stands for a blank")
        merges = _merges(v)
        names = sorted(v.tokens, key=v.tokens.__getitem__)
        apart = v.special.keys() | v.flags.keys()
        bytes_of = {name: bytes([byte]) for byte, name in enumerate(BYTE_NAMES) if name not in apart}
        self._bytes = [
            name.encode() if name in apart else bytes_of.get(name, name.replace(BLANK, " ").encode())
            for name in names
        ]
        falls_back = [self._pieces.bytes and name in bytes_of for name in BYTE_NAMES]
        byte_ids = [
            v.tokens.get(n, NO_ID) if ok else NO_ID for n, ok in zip(BYTE_NAMES, falls_back, strict=True)
        ]
        unknown = v.tokens[v.unknown] if v.unknown else NO_ID
        self._tables = (
            [symbol.encode() for symbol in merges.symbols],
            self.vocab_size,
            merges.table,
            np.array(byte_ids, np.uint32),
            unknown,
            self._pieces.fuse_unknown,
            self._pieces.words,
        )
        self._spm: ReferenceSpm = (kernels.compiled("Spm") or ReferenceSpm)(*self._tables)

    @property
    def boundary(self) -> re.Pattern[bytes] | None:
        """What ends where a text may be cut; None where a token may hold the end of a word and a blank."""
        over = any(BLANK in name.lstrip(BLANK) for name in self.vocabulary.tokens)
        if (over and not self._pieces.words) or super().boundary is None:
            return None
        return BEFORE_SPACE

    def __reduce__(self) -> tuple[type["SentencePieceTokenizer"], tuple[Vocabulary]]:  # to another process
        return SentencePieceTokenizer, (self.vocabulary,)

    def _encode(self, data: Buffer) -> Integers:
        return self._spm.encode(data)

    def _encode_at(self, data: Buffer, place: Place) -> Integers:
        return self._spm.encode(data, self._has_prefix(bytes(data[:3]), place))

    def _has_prefix(self, beginning: bytes, place: Place) -> bool:
        """Return whether a blank is put before a text that begins so."""
        how = self._pieces.prefix
        if not beginning or place is Place.INSIDE or how == "never":
            return False
        has_blank = beginning.startswith((b" ", BLANK.encode()))
        return how == "prepend" or not (has_blank or (how == "first" and place is Place.SEGMENT))

    def _normalize_segment(self, text: str) -> str:
        return BLANK + text.replace(" ", BLANK) if self._pieces.prefix == "prepend" else text

    def _encode_segment(self, text: str, place: Place) -> Integers:
        if self._pieces.prefix != "prepend":
            return self._encode_at(text.encode("utf-8", "surrogateescape"), place)
        text = text.removeprefix(BLANK) if place is Place.INSIDE else text  # which has its blank
        return self._spm.encode(text.encode("utf-8", "surrogateescape"))

    def _decode(self, ids: Integers) -> bytes:
        return b"".join(map(self._bytes.__getitem__, ids.tolist()))

    def _text_of(self, data: bytes) -> bytes:
        return data if self._pieces.prefix == "never" else data.removeprefix(b" ")


def _merges(v: Vocabulary) -> Merges:
    """Return the merges of a vocabulary, in the order that its merges or its scores say."""
    names = sorted(v.tokens, key=v.tokens.__getitem__)
    apart = v.special.keys() | v.flags.keys()
    table = merge_table(v, apart, complete=False)
    assert v.pieces
    scores = v.pieces.scores
    if not scores:
        ranked = [(*merge, rank) for rank, merge in enumerate(table)]
        return Merges(
            np.array(ranked, np.uint32).reshape(-1, 4), ["" if name in apart else name for name in names]
        )
    return merges_of_scores(["" if name in apart or name in BYTE_TOKENS else name for name in names], scores)


def scores_of_merges(v: Vocabulary) -> list[float]:
    """Return the scores by which other programs merge in the order of a vocabulary's merges: -rank, each.

    What no merge makes comes last.
    """
    assert v.pieces
    if v.pieces.scores:
        return [*v.pieces.scores]
    scores = [-float(len(v.merges) + 1)] * len(v.tokens)
    for rank, (left, right) in reversed([*enumerate(v.merges)]):
        scores[v.tokens[left + right]] = -float(rank + 1)
    return scores
