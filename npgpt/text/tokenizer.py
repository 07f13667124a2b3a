"""Text to token ids and back: bytes, byte-level BPE, and their common base.

Any bytes go in and the same bytes come out, so no prompt ever holds an unknown character. A special token
is one that no text spells: a literal "<|endoftext|>" is plain bytes unless special tokens are asked for.
The tokenizer of a model that learnt cleaned text cleans what it encodes, by its normalizer.
The files written are Hugging Face's, which give the very same ids there.
"""

import codecs
import functools
import hashlib
import json
import re
import warnings
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Container, Iterable, Iterator
from dataclasses import replace
from enum import Enum
from itertools import groupby, islice
from typing import Self, TypeAlias

import numpy as np
from numpy.typing import ArrayLike

from npgpt.distributed.world import SINGLE, World
from npgpt.engine import kernels
from npgpt.engine.types import Buffer, Integers, PathLike, Text
from npgpt.text import cleaning, tokenizer_json
from npgpt.text.added_tokens import AddedTokens, Flags
from npgpt.text.bpe import NO_ID, ReferenceBpe, ReferenceCounts
from npgpt.text.tokenizer_json import BYTE_CHARACTERS, END_OF_TEXT, END_OF_WORD, Vocabulary

BYTES = {character: byte for byte, character in enumerate(BYTE_CHARACTERS)}
MIN_VOCAB_SIZE = 257  # the bytes and the end of text
Ids: TypeAlias = ArrayLike | Iterable[int]
MIN_COUNT = 2  # a pair that occurs less often makes no merge


BEFORE_BLANK, BEFORE_SPACE = re.compile(rb"[!-~](?=[ \n])"), re.compile(rb"[!-~](?= )")


class Place(Enum):
    """Where in a longer text a part of it stands."""

    BEGIN = 0  # it begins the text
    SEGMENT = 1  # behind a special token
    INSIDE = 2  # behind other text


class Tokenizer(ABC):
    """The base of every tokenizer: text to ids and back."""

    name: str  #: "bytes", "bpe:4096", "gpt1"
    vocabulary: Vocabulary  #: tokens, merges and special tokens, as the files have them
    more_ends: tuple[int, ...] = ()  #: ids beside end_of_text that end a generation, as a model's files say

    @property
    def vocab_size(self) -> int:
        """The size V of the vocabulary: ids are 0..V-1."""
        return len(self.vocabulary.tokens)

    @property
    def end_of_text(self) -> int:
        """The id that ends a document."""
        return self.vocabulary.tokens[self.vocabulary.end_of_text]

    @property
    def ends(self) -> tuple[int, ...]:
        """The ids that end a generation: end_of_text, the base's where another took its place, more_ends.

        A model that was fine-tuned ends its turns by another token, but has learnt the first one too.
        """
        first = (i for name, i in self.vocabulary.special.items() if name == END_OF_TEXT)
        return tuple(dict.fromkeys((self.end_of_text, *first, *self.more_ends)))

    @property
    def end_names(self) -> list[str]:
        """The special tokens among the ends, by name."""
        names = {i: name for name, i in self.vocabulary.special.items()}
        return [names[i] for i in self.ends if i in names]

    @property
    def begin(self) -> tuple[int, ...]:
        """The ids with which every text of this model begins: one, or none."""
        v = self.vocabulary
        return (v.tokens[v.begin],) if v.begin else ()

    @property
    def boundary(self) -> re.Pattern[bytes] | None:
        """What ends where a text may be cut, so that the ids of the parts are the text's; None for nothing.

        It is found between ASCII characters alone, so that no character is cut.
        """
        names = [n for n, flags in self.vocabulary.flags.items() if not flags.special]
        by_space = self.vocabulary.split in (
            "llama-bpe",
            "qwen2",
        )  # where signs take the line ends behind them
        pattern = BEFORE_SPACE if by_space else BEFORE_BLANK
        odd = any(pattern.search(n.encode()) or any(self.vocabulary.flags[n][1:4]) for n in names)
        return None if odd else pattern

    @property
    def dtype(self) -> type[np.uint16 | np.uint32]:
        """The type of the ids: uint16 where they fit, else uint32."""
        return np.uint16 if self.vocab_size <= 65536 else np.uint32

    @functools.cached_property
    def bytes_of(self) -> dict[int, bytes]:
        """The bytes of each id that a stream has decoded so far."""
        return {}

    @functools.cached_property
    def fingerprint(self) -> str:
        """The sha256 of everything that ids depend on: equal for tokenizers that give equal ids."""
        v = self.vocabulary
        fields = [sorted(v.tokens.items()), v.merges, sorted(v.special.items()), v.end_of_text, v.words]
        fields += [v.normalizer] * (v.normalizer != "none")
        fields += v.beyond_gpt2()
        return hashlib.sha256(json.dumps(fields).encode()).hexdigest()

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.name}: {self.vocab_size:,} tokens>"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Tokenizer) and self.fingerprint == other.fingerprint

    def __hash__(self) -> int:
        return hash(self.fingerprint)

    @property
    def normalizer(self) -> str:
        """How text is cleaned before it is encoded: none, light or full, as --clean has it."""
        return self.vocabulary.normalizer

    def normalizing(self, how: str) -> Self:
        """Return this tokenizer with the normalizer `how`; GPT-1's, which has its own, as it is.

        ValueError for another one than none, light and full.
        """
        cleaning.check_cleaning(how, "normalizing: how")
        if how == self.normalizer or self.vocabulary.words:
            return self
        other = object.__new__(type(self))
        other.__dict__ = self.__dict__ | {"vocabulary": replace(self.vocabulary, normalizer=how)}
        for cached in ("fingerprint", "added_tokens", "all_added_tokens"):
            other.__dict__.pop(cached, None)
        return other

    def normalize(self, text: Text, changed: Counter[str] | None = None) -> Buffer:
        """Return the bytes that encode() makes ids of; `changed` counts what was cleaned."""
        return cleaning.normalize(_bytes(text), self.normalizer, changed)

    def normalize_part(self, text: str) -> str:
        """Return a part of a text, such as a stop string, as a text of this model spells it."""
        return cleaning.normalize_part(text, self.normalizer)

    @functools.cached_property
    def added_tokens(self) -> AddedTokens | None:
        """What cuts a text at the added tokens that are not special; None without any."""
        return self._cutter(False)

    @functools.cached_property
    def all_added_tokens(self) -> AddedTokens | None:
        """What cuts a text at all added tokens, the special ones too; None without any."""
        return self._cutter(True)

    def _cutter(self, special: bool) -> AddedTokens | None:
        v = self.vocabulary
        names = {*v.flags, *(v.special if special else ())}
        flags = {name: v.flags.get(name, Flags()) for name in names}
        found = {name: (v.tokens[name], of) for name, of in flags.items() if special or not of.special}
        return AddedTokens(found, self._normalize_segment) if found else None

    def encode(self, text: Text, special_tokens: bool = False, place: Place = Place.BEGIN) -> Integers:
        """Return the ids of `text` (str, or bytes of any kind) as dtype (N,); no `begin` and end are added.

        The text is cleaned first, where the tokenizer has a normalizer and the text is valid UTF-8.
        In a str, surrogates that Python puts for undecodable bytes of a file name or an argument
        (surrogateescape) become those bytes again. With special_tokens=True a special token that is spelt
        out in the text becomes its id, as Hugging Face always does: not safe for text that others wrote.
        place: where in a longer text it stands, which matters to tokenizers that put a blank before a text.
        """
        cutter = self.all_added_tokens if special_tokens else self.added_tokens
        if cutter is None:
            return self._encode_at(self.normalize(text), place)
        characters = bytes(_bytes(text)).decode("utf-8", "surrogateescape")
        arrays: list[Integers] = [np.zeros(0, self.dtype)]
        for part in cutter.parts(characters):
            at = place if part.begins else Place.SEGMENT
            arrays.append(self._encode_segment(part.text, at) if part.id is None else np.array([part.id]))
        return np.concatenate(arrays).astype(self.dtype, copy=False)

    def encode_parts(self, parts: Iterable[str | int]) -> Integers:
        """Return the ids of one text, of which `parts` are texts and ids of special tokens in turn.

        No text becomes a special token, so texts may be what others wrote.
        """
        arrays: list[Integers] = [np.zeros(0, self.dtype)]
        place = Place.BEGIN
        for is_text, some in groupby(parts, lambda part: isinstance(part, str)):
            if is_text:
                arrays.append(self.encode("".join(map(str, some)), place=place))
            else:
                arrays.append(np.array([*some], self.dtype))
            place = Place.SEGMENT
        return np.concatenate(arrays)

    def encode_prompt(self, text: Text) -> Integers:
        """Return the ids of `text` as a model reads it from its beginning: `begin`, and those of encode()."""
        return np.concatenate([np.array(self.begin, self.dtype), self.encode(text)])

    def decode_bytes(self, ids: Ids, skip_special_tokens: bool = True) -> bytes:
        """Return the bytes of `ids` (any iterable of integers), by default without the special tokens.

        TypeError for ids that are no integers, ValueError for ids outside 0..V-1.
        """
        ids = np.asarray(list(ids) if isinstance(ids, Iterator) else ids)
        ids = ids.ravel() if ids.size else np.zeros(0, np.uint32)
        if not np.issubdtype(ids.dtype, np.integer):
            raise TypeError(f"decode: ids must be integers, got {ids.dtype}")
        if ids.size and not 0 <= ids.min() <= ids.max() < self.vocab_size:
            raise ValueError(f"decode: ids must be in 0..{self.vocab_size - 1}, got {ids.min()}..{ids.max()}")
        if skip_special_tokens:
            ids = ids[~np.isin(ids, list(self.vocabulary.special.values()))]
        return self._text_of(self._decode(ids))

    def token_bytes(self, id: int, skip_special_tokens: bool = True) -> bytes:
        """Return the bytes of one id inside a text; none for one beyond the vocabulary, which only pads."""
        if id >= self.vocab_size or (skip_special_tokens and id in self.vocabulary.special.values()):
            return b""
        return self._decode(np.array([id]))

    def decode(self, ids: Ids, skip_special_tokens: bool = True) -> str:
        """Return the text of `ids`; bytes that are not UTF-8 become U+FFFD (decode_bytes keeps them)."""
        return self.decode_bytes(ids, skip_special_tokens).decode("utf-8", "replace")

    def stream(self) -> "StreamDecoder":
        """Return a decoder for ids that come one by one."""
        return StreamDecoder(self)

    def save(self, folder: PathLike, model_max_length: int) -> None:
        """Write tokenizer.json, vocab.json, merges.txt and tokenizer_config.json into `folder`."""
        tokenizer_json.write_vocabulary(folder, self.vocabulary, model_max_length)

    def _encode_at(self, data: Buffer, place: Place) -> Integers:
        """Return the ids of normalized bytes that stand at a place of a text."""
        return self._encode(data)

    def _normalize_segment(self, text: str) -> str:
        """Return what lies between two added tokens, normalized."""
        data = cleaning.normalize(text.encode("utf-8", "surrogateescape"), self.normalizer)
        return bytes(data).decode("utf-8", "surrogateescape")

    def _encode_segment(self, text: str, place: Place) -> Integers:
        """Return the ids of a normalized segment."""
        return self._encode(text.encode("utf-8", "surrogateescape"))

    def _text_of(self, data: bytes) -> bytes:
        """Return the text that became ids of these bytes."""
        return data

    @abstractmethod
    def _encode(self, data: Buffer) -> Integers:
        """Return the ids of bytes, none of them special."""

    @abstractmethod
    def _decode(self, ids: Integers) -> bytes:
        """Return the bytes of ids."""


class ByteTokenizer(Tokenizer):
    """A tokenizer of 257 ids: id b is byte b, 256 the end of text. Any two of one normalizer are equal.

    >>> ByteTokenizer().encode("ção").tolist()
    [195, 167, 195, 163, 111]
    >>> ByteTokenizer().decode([195, 167, 195, 163, 111, 256])
    'ção'
    """

    name = "bytes"
    vocabulary = Vocabulary(
        where="bytes",
        tokens=BYTES | {END_OF_TEXT: 256},
        merges=[],
        special={END_OF_TEXT: 256},
        end_of_text=END_OF_TEXT,
        words=False,
    )
    vocab_size = 257
    end_of_text = 256

    def __init__(self, normalizer: str = "none") -> None:
        """Clean text as `normalizer` says; ValueError for another one than none, light and full."""
        cleaning.check_cleaning(normalizer, "ByteTokenizer: normalizer")
        self.vocabulary = replace(ByteTokenizer.vocabulary, normalizer=normalizer)

    def _encode(self, data: Buffer) -> Integers:
        return np.frombuffer(data, np.uint8).astype(np.uint16)

    def _decode(self, ids: Integers) -> bytes:
        if (ids == 256).any():
            return b"".join(END_OF_TEXT.encode() if i == 256 else bytes([i]) for i in ids.tolist())
        return ids.astype(np.uint8).tobytes()


class BPETokenizer(Tokenizer):
    """Byte-level BPE, with GPT-2's pretokens or another's, compiled where the kernels are in use.

    A vocabulary may lack tokens of single bytes. Such a byte becomes the unknown token, if there is one; else
    it is left out, with a warning.
    """

    def __init__(self, vocabulary: Vocabulary) -> None:
        """Check the vocabulary. ValueError, naming the first fault, where it is inconsistent."""
        v, table = _checked(vocabulary)
        self.vocabulary = v
        self.name = f"bpe:{self.vocab_size}"
        names, apart = sorted(v.tokens, key=v.tokens.__getitem__), v.special.keys() | v.flags.keys()
        tokens = [n.encode() if n in apart else bytes(map(BYTES.__getitem__, n)) for n in names]
        unknown = v.tokens[v.unknown] if v.unknown else NO_ID
        ids = [v.tokens.get(c, unknown) for c in BYTE_CHARACTERS]
        self._tables = np.array(ids, np.uint32), table, tokens
        whole = [i for i, name in enumerate(names) if v.whole_pieces and name not in apart]
        kind = kernels.compiled("Bpe") or ReferenceBpe
        self._bpe: ReferenceBpe = kind(*self._tables, v.split, np.array(whole, np.uint32))
        self._missing = bytes(byte for byte, i in enumerate(ids) if i == NO_ID)

    def __reduce__(self) -> tuple[type["BPETokenizer"], tuple[Vocabulary]]:  # to another process
        return BPETokenizer, (self.vocabulary,)

    def _encode(self, data: Buffer) -> Integers:
        if self._missing and len(bytes(data).translate(None, self._missing)) < len(data):
            lost = {*bytes(data)} & {*self._missing}
            shown = " ".join(f"{byte:02X}" for byte in sorted(lost))
            self._missing = b""  # tell once
            warnings.warn(
                f"the model's vocabulary has no token for the bytes {shown}: left out", stacklevel=4
            )
        return self._bpe.encode(data)

    def _decode(self, ids: Integers) -> bytes:
        return self._bpe.decode(ids.astype(np.uint32))

    @classmethod
    def train(cls, documents: Iterable[bytes], vocab_size: int, world: World = SINGLE) -> "BPETokenizer":
        """Return a tokenizer of vocab_size tokens, trained on documents (an iterable of bytes).

        The ranks of `world` count every size-th document each; all train on the sum of the counts.

        >>> tokenizer = BPETokenizer.train([b"o mar, o mar, o mar"], 260)
        >>> [tokenizer.decode([i]) for i in tokenizer.encode("o mar")]
        ['o', ' mar']

        The ids are laid out like GPT-2's: 256 bytes in the order of their printable characters, the merges,
        the end of text. ValueError where the documents have too few pairs that occur twice.
        """
        is_integer = isinstance(vocab_size, (int, np.integer)) and not isinstance(vocab_size, bool)
        if not (is_integer and vocab_size >= MIN_VOCAB_SIZE):
            what = f"a whole number, at least {MIN_VOCAB_SIZE} (the bytes and the end of text)"
            raise ValueError(f"bpe: vocab_size must be {what}, got {vocab_size}")
        counts: ReferenceCounts = (kernels.compiled("PieceCounts") or ReferenceCounts)()
        first, every = world.rank, world.size
        for document in islice(documents, first, None, every):
            counts.add(document)
        if world.size > 1:
            tables = zip(*map(world.all_gather_arrays, counts.table()), strict=True)
            counts = type(counts)()
            for table in tables:
                counts.add_table(*table)
        order = sorted(BYTE_CHARACTERS)
        byte_ids = np.array([order.index(c) for c in BYTE_CHARACTERS], np.uint32)
        names, merges = list(order), []
        for left, right, _ in counts.train(byte_ids, int(vocab_size) - MIN_VOCAB_SIZE, MIN_COUNT).tolist():
            merges.append((names[left], names[right]))
            names.append(names[left] + names[right])
        if len(names) + 1 < vocab_size:
            raise ValueError(
                f"bpe:{vocab_size}: the text has pairs for at most {len(names) + 1} tokens; "
                "ask for fewer, or for bytes"
            )
        tokens = {name: i for i, name in enumerate([*names, END_OF_TEXT])}
        special = {END_OF_TEXT: len(names)}
        return cls(Vocabulary("bpe", tokens, merges, special, END_OF_TEXT, words=False))

    @classmethod
    def from_files(cls, vocabulary: PathLike, merges: PathLike) -> "BPETokenizer":
        """Return the tokenizer of two files: encoder.json and vocab.bpe, or vocab.json and merges.txt."""
        return cls(tokenizer_json.read_pair(vocabulary, merges))


def _bytes(text: Text) -> Buffer:
    if isinstance(text, (bytes, bytearray, memoryview, np.ndarray)):
        return text
    if not isinstance(text, str):
        raise TypeError(f"encode: text must be str or bytes, got {type(text).__name__}")
    try:
        return text.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:  # a lone surrogate of another kind, as half a JSON escape gives
        return text.encode("utf-8", "surrogatepass")


def merge_table(
    vocabulary: Vocabulary, special: Container[str], complete: bool = True
) -> list[tuple[int, int, int]]:
    """Return the merges as ids; ValueError where ids are not 0..V-1, or merges need what is no token.

    complete: also where merges do not make all tokens.
    """
    where, tokens = vocabulary.where, vocabulary.tokens
    by_id = dict(zip(tokens.values(), tokens, strict=True))
    if len(by_id) < len(tokens):
        twice = next(token for token, i in tokens.items() if by_id[i] != token)
        raise ValueError(f"{where}: {twice!r} and {by_id[tokens[twice]]!r} have the same id {tokens[twice]}")
    hole = next((i for i in range(len(tokens)) if i not in by_id), None)
    if hole is not None:
        raise ValueError(f"{where}: ids must be 0..{len(tokens) - 1} without holes, but {hole} is no token's")
    table, made, seen = [], set(), set()
    for left, right in vocabulary.merges:
        for token in (left, right, left + right):
            if token not in tokens or token in special:
                raise ValueError(f"{where}: the merge {left!r} {right!r} needs {token!r}, which is no token")
        if (left, right) in seen:
            raise ValueError(f"{where}: the merge {left!r} {right!r} is there twice")
        seen.add((left, right))
        made.add(left + right)
        table.append((tokens[left], tokens[right], tokens[left + right]))
    end = END_OF_WORD if vocabulary.words else ""
    for token in tokens if complete else ():
        if len(token.removesuffix(end)) > 1 and token not in made and token not in special:
            raise ValueError(f"{where}: no merge makes the token {token!r}")
    return table


def _checked(vocabulary: Vocabulary) -> tuple[Vocabulary, Integers]:
    """Return the vocabulary with its end of text, and its merges as ids (n, 3); ValueError for a fault."""
    where, tokens, special = vocabulary.where, vocabulary.tokens, vocabulary.special
    apart = special.keys() | vocabulary.flags.keys()
    table = merge_table(vocabulary, apart, complete=not vocabulary.whole_pieces)
    for token in tokens:
        if token not in apart and not (token and all(c in BYTES for c in token)):
            raise ValueError(f"{where}: the token {token!r} must be of characters that stand for bytes")
    return with_end(vocabulary), np.array(table, np.uint32).reshape(-1, 3)


def with_end(vocabulary: Vocabulary) -> Vocabulary:
    """Return the vocabulary with its end of text; ValueError where it has none."""
    where, special, end = vocabulary.where, vocabulary.special, vocabulary.end_of_text
    if not end:
        end = END_OF_TEXT if END_OF_TEXT in special or len(special) != 1 else next(iter(special))
    if end not in special:
        raise ValueError(f"{where}: {end} must be a special token, to end a text with")
    return replace(vocabulary, end_of_text=end)


class StreamDecoder:
    """Decodes ids that come one by one: its texts joined are decode() of all the ids.

    A character comes out once its last byte is in, so a text never ends inside one.

    >>> stream = ByteTokenizer().stream()
    >>> stream.push(195), stream.push(167), stream.close()
    ('', 'ç', '')
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._utf8 = codecs.getincrementaldecoder("utf-8")("replace")

    def push(self, *ids: int) -> str:
        """Return the text that these ids complete, often ''."""
        known = self._tokenizer.bytes_of
        for id in ids:
            if id not in known:
                known[id] = self._tokenizer.token_bytes(id)
        return self._utf8.decode(b"".join(map(known.__getitem__, ids)))

    def close(self) -> str:
        """Return the rest of the text: U+FFFD for a character that never got its last byte, else ''."""
        return self._utf8.decode(b"", final=True)
