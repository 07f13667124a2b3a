"""Which tokens keep a text inside a grammar: a mask over the vocabulary for each place, cached.

The bytes of all tokens stand in a trie. A mask is one walk over it, level by level, through a table of the
grammar's places that grows as it is needed, so that it is exact for tokens that end inside a character or
reach over several parts. V = vocabulary.
"""

import json
import re
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping
from typing import Any, TypeAlias
from weakref import WeakKeyDictionary

import numpy as np
from numpy.typing import NDArray

from npgpt.engine.types import Floats
from npgpt.text import json_schema
from npgpt.text.grammar import Grammar, Place
from npgpt.text.regex import ALL, Ranges, without
from npgpt.text.tokenizer import Tokenizer

Mask: TypeAlias = NDArray[np.bool]
MOST_PLACES = 4096  # of a table: 512 bytes each
MOST_MASKS, MOST_GRAMMARS = 512, 16  # that are kept, of a grammar and of a tokenizer
NEEDED = [*range(0x20, 0x7F), *range(0x80, 0xC0)]  # ASCII, and what stands inside characters
_KNOWN: "WeakKeyDictionary[Tokenizer, Vocabulary]" = WeakKeyDictionary()
_LOCK = threading.Lock()


class Vocabulary:
    """The bytes of a tokenizer's tokens, as a trie, and the grammars that were asked for last."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        """Raise ValueError for a tokenizer that cannot spell every text."""
        self.tokens = [tokenizer.token_bytes(id) for id in range(tokenizer.vocab_size)]
        self.longest = max(map(len, self.tokens))
        single = {token[0] for token in self.tokens if len(token) == 1}
        if tokenizer.vocabulary.words or not single.issuperset(NEEDED):
            raise ValueError(
                f"a schema needs a tokenizer with a token for each byte; {tokenizer.name} has not"
            )
        self.alphabet = _spelt_with(single)
        # nodes level by level, the children of one side by side; node 0 is the root
        nodes, self.node_of = {b"": 0}, np.zeros(len(self.tokens), np.int64)
        levels: list[set[bytes]] = [set() for _ in range(self.longest + 1)]
        for token in {*self.tokens}:
            for size in range(len(token), 0, -1):
                if token[:size] in levels[size]:
                    break
                levels[size].add(token[:size])
        for level in levels:
            nodes |= {prefix: len(nodes) + i for i, prefix in enumerate(sorted(level))}
        self.node_of[:] = [nodes[token] for token in self.tokens]
        self.byte = np.array([0, *(prefix[-1] for prefix in nodes if prefix)], np.intp)
        parents = [nodes[prefix[:-1]] for prefix in nodes if prefix]
        self.count = np.bincount(parents, minlength=len(nodes))  # of children, and the first of them
        self.first = 1 + np.cumsum(self.count) - self.count
        self._grammars: OrderedDict[str, Masks] = OrderedDict()
        self._lock = threading.Lock()

    @classmethod
    def of(cls, tokenizer: Tokenizer) -> "Vocabulary":
        """Return that of a tokenizer, made once; ValueError for one that cannot spell every text."""
        with _LOCK:
            if tokenizer not in _KNOWN:
                _KNOWN[tokenizer] = cls(tokenizer)
            return _KNOWN[tokenizer]

    def masks(self, kind: str, value: Any) -> "Masks":
        """Return the masks of a grammar: schema (JSON, or its text), regex or choice (texts).

        ValueError or TypeError for a value that gives no grammar.
        """
        if isinstance(value, str) and kind == "schema":
            try:
                value = json.loads(value)
            except (ValueError, RecursionError) as error:
                raise ValueError(f"schema must be JSON: {str(error)[:100]}") from None
        makers: dict[str, Callable[[Any, Ranges], Grammar]] = {
            "schema": json_schema.compiled,
            "regex": json_schema.of_regex,
            "choice": json_schema.of_choices,
        }
        value = list(value) if kind == "choice" and not isinstance(value, (str, dict)) else value
        try:
            key = kind + json.dumps(value, default=repr, allow_nan=False)
        except RecursionError:
            raise ValueError(f"{kind} is nested too deeply") from None
        with self._lock:
            if (found := self._grammars.get(key)) is None:
                found = self._grammars[key] = Masks(self, makers[kind](value, self.alphabet))
            self._grammars.move_to_end(key)
            if len(self._grammars) > MOST_GRAMMARS:
                self._grammars.popitem(last=False)
        return found


def _spelt_with(single: set[int]) -> Ranges:
    """Return the characters whose bytes are all among these, which those inside characters are."""
    heads = [(c, c, c) for c in range(0x80)]
    for sizes, bits in ((range(0xC2, 0xE0), 6), (range(0xE0, 0xF0), 12), (range(0xF0, 0xF5), 18)):
        mask = 0x1F if bits == 6 else 0xF if bits == 12 else 7
        heads += [(b, (b & mask) << bits, (((b & mask) + 1) << bits) - 1) for b in sizes]
    return without(ALL, [(low, high) for byte, low, high in heads if byte not in single])


class _Full(Exception):
    """The table has no room for a place."""


class Masks:
    """The masks of a grammar over a vocabulary. Threads may share it."""

    def __init__(self, vocabulary: Vocabulary, grammar: Grammar) -> None:
        self.vocabulary, self.grammar = vocabulary, grammar
        self._lock = threading.Lock()
        self._clear()

    def _clear(self) -> None:
        self._places: list[Place] = [()]  # the table's; 0 is none
        self._numbers: dict[Place, int] = {(): 0}
        self._table = np.full((64, 256), -1, np.int16)  # (place, byte) -> the next place, -1: not known yet
        self._table[0] = 0
        self._masks: OrderedDict[int, Mask] = OrderedDict()

    def mask(self, place: Place) -> Mask:
        """Return 1 for the tokens that may come at a place, 0 for the others: bool (tokens,)."""
        with self._lock:
            try:
                return self._cached(place)
            except _Full:
                self._clear()
            try:
                return self._cached(place)
            except _Full:
                self._clear()
                message = f"generate: one token would need more than {MOST_PLACES} states of the schema"
                raise ValueError(message) from None

    def _cached(self, place: Place) -> Mask:
        number = self._number(place)
        if number not in self._masks:
            self._masks[number] = self._walk(number)
            if len(self._masks) > MOST_MASKS:
                self._masks.popitem(last=False)
        self._masks.move_to_end(number)
        return self._masks[number]

    def _number(self, place: Place) -> int:
        place = self.grammar.capped(place, self.vocabulary.longest)
        if (number := self._numbers.get(place)) is None:
            number = len(self._places)
            if number > MOST_PLACES:
                raise _Full
            self._numbers[place] = number
            if number == len(self._table):
                self._table = np.concatenate([self._table, np.full_like(self._table, -1)])
            self._places.append(place)
        return number

    def _walk(self, number: int) -> Mask:
        v = self.vocabulary
        reached = np.zeros(len(v.byte), bool)
        nodes, places = np.zeros(1, np.intp), np.array([number])
        while len(nodes):
            counts = v.count[nodes]
            places = np.repeat(places, counts)
            ends = np.cumsum(counts)
            nodes = np.repeat(v.first[nodes] - ends + counts, counts) + np.arange(ends[-1])
            bytes_ = v.byte[nodes]
            after = self._table[places, bytes_]
            if (after < 0).any():
                for unknown in np.unique(places[after < 0]).tolist():
                    known: dict[int, int] = {}
                    row = []
                    for place in self.grammar.row(self._places[unknown]):
                        if id(place) not in known:
                            known[id(place)] = self._number(place)
                        row.append(known[id(place)])
                    self._table[unknown] = row
                after = self._table[places, bytes_]
            alive = after > 0
            nodes, places = nodes[alive], after[alive]
            reached[nodes] = True
        allowed: Mask = reached[v.node_of]
        return allowed


class Guide:
    """A text that grows inside a grammar: which tokens may come next."""

    def __init__(self, masks: Masks, size: int, ends: Iterable[int]) -> None:
        """size: V, of the model; ends: the ids that may come where the text may end."""
        self._masks, self._size = masks, size
        self._ends = [end for end in ends if end < size]
        self._place = masks.grammar.start

    def allowed(self) -> Mask:
        """Return which tokens may come next: bool (V,)."""
        allowed = np.zeros(self._size, bool)
        mask = self._masks.mask(self._place)[: self._size]
        allowed[: len(mask)] = mask
        if self._masks.grammar.accepts(self._place):
            allowed[self._ends] = True
        return allowed

    def ends_with(self, token: int) -> bool:
        """Go on with a token that was allowed; return whether nothing but the end may follow."""
        grammar = self._masks.grammar
        self._place = grammar.read(self._place, self._masks.vocabulary.tokens[token])
        return grammar.is_over(self._place)


def guide_of(tokenizer: Tokenizer | None, size: int, ends: Iterable[int], **asked: Any) -> Guide | None:
    """Return the guide of the one of schema, regex and choice that is given, None where none is.

    ValueError or TypeError for more than one, for what gives no grammar, and without a tokenizer.
    """
    given = {kind: value for kind, value in asked.items() if value is not None}
    if not given:
        return None
    if len(given) > 1:
        raise ValueError(f"generate: {' and '.join(given)} cannot be given together")
    if tokenizer is None:
        raise ValueError(f"generate: {next(iter(given))} needs a model with a tokenizer")
    [(kind, value)] = given.items()
    return Guide(Vocabulary.of(tokenizer).masks(kind, value), size, ends)


def bias_of(biases: Mapping[Any, float] | None, size: int) -> Floats | None:
    """Return what is added to the logits, float32 (V,), of {id: bias}; None for nothing.

    ValueError for an id that is none, or a bias that is no finite number. Ids may be strings, as in JSON.
    """
    if not biases:
        return None
    bias = np.zeros(size, np.float32)
    for id, value in biases.items():
        number = int(id) if re.fullmatch("[0-9]{1,9}", str(id)) else -1
        if not 0 <= number < size:
            raise ValueError(f"logit_bias: {str(id)[:60]!r} must be an id in 0..{size - 1}")
        if isinstance(value, bool) or not isinstance(value, (int, float, np.number)) or not abs(value) < 1e30:
            raise ValueError(f"logit_bias of id {number} must be a finite number, got {value!r:.60}")
        bias[number] = value
    return bias
