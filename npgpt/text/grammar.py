"""What a text may be, byte by byte: automata for its parts, and a stack for parts inside parts.

A Grammar is a tree of nodes over bytes. A place in a text is a tuple of configurations, each a part that may
be under way and the stack of what must follow. From every configuration the end can be reached, so that
leaving some out, where there would be too many, makes fewer texts possible and never an impossible one.
"""

import functools
import math
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple, TypeAlias

from npgpt.text.regex import Bytes, Dfa, Ranges, utf8

MOST_CONFIGURATIONS = 512  # of one place
DEPTH = 24  # references inside each other


class Node:
    """A part of a text. height: so many references deep is it at least; infinite where it is impossible."""

    height: float = 0.0

    def children(self) -> Iterable["Node"]:
        """Return the nodes that it is made of."""
        return ()

    def measure(self) -> float:
        """Return the height by those of its children."""
        return max((one.height for one in self.children()), default=0.0)


class Literal(Node):
    """These bytes."""

    def __init__(self, data: bytes) -> None:
        self.tail: Bytes = tuple((b, b) for b in data)


class All(Node):
    """One node after the other."""

    def __init__(self, *parts: Node) -> None:
        self.parts = parts

    def children(self) -> Iterable[Node]:
        """Return its parts."""
        return self.parts


class Any_(Node):
    """One of several nodes; impossible where there are none."""

    def __init__(self, *parts: Node) -> None:
        self.parts = parts

    def children(self) -> Iterable[Node]:
        """Return its parts."""
        return self.parts

    def measure(self) -> float:
        """Return its height."""
        return min((one.height for one in self.parts), default=math.inf)


class Repeat(Node):
    """A node that is not empty, `least` to `most` times; most None: any number of times."""

    def __init__(self, part: Node, least: int, most: int | None) -> None:
        self.part, self.least, self.most = part, least, most
        self.height = part.height

    def children(self) -> Iterable[Node]:
        """Return its parts."""
        return (self.part,)

    def measure(self) -> float:
        """Return its height."""
        impossible = self.most is not None and self.most < self.least
        return math.inf if impossible else self.part.height if self.least else 0.0

    def rest(self) -> "Repeat":
        """Return what may follow once the part has come."""
        rest = Repeat(self.part, max(0, self.least - 1), self.most and self.most - 1)
        rest.height = rest.measure()
        return rest

    def capped(self, most: int) -> "Repeat":
        """Return a node that admits the same next `most` bytes."""
        many = None if self.most is None or self.most > most else self.most
        capped = Repeat(self.part, min(self.least, most + 1), many)
        capped.height = capped.measure()
        return capped

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Repeat):
            return False
        return self.part is other.part and (self.least, self.most) == (other.least, other.most)

    def __hash__(self) -> int:
        return hash((id(self.part), self.least, self.most))


class Reference(Node):
    """The node of a definition, by name."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.height = math.inf


Edges: TypeAlias = list[tuple[Bytes, Any]]  # what is spelt, and the state behind it


class Leaf(Node):
    """An automaton: its states are any hashable values."""

    start: Any = 0

    def edges(self, state: Any) -> Edges:
        """Return what may come next, and the states that it leads to."""
        raise NotImplementedError

    def accepts(self, state: Any) -> bool:
        """Return whether it may end here."""
        raise NotImplementedError

    def capped(self, state: Any, most: int) -> Any:
        """Return a state that admits the same next `most` bytes."""
        return state


class Pattern(Leaf):
    """The texts of an automaton over characters, as they are or inside a JSON string."""

    def __init__(self, dfa: Dfa, quoted: bool) -> None:
        self.dfa, self.spell = dfa, spelt if quoted else utf8
        self._edges: dict[int, Edges] = {}

    def measure(self) -> float:
        """Return its height."""
        return 0.0 if self.dfa else math.inf

    def edges(self, state: int) -> Edges:
        """Return what may come next, and where it leads."""
        if state not in self._edges:
            rows = self.dfa.rows[state].items()
            self._edges[state] = [(one, to) for ranges, to in rows for one in self.spell(ranges)]
        return self._edges[state]

    def accepts(self, state: int) -> bool:
        """Return whether it may end here."""
        return self.dfa.accepts[state]


class Characters(Leaf):
    """least..most characters inside a JSON string; a state counts those that must and that may come."""

    def __init__(self, least: int, most: int | None, alphabet: Ranges) -> None:
        self.start, self.characters = (least, most), spelt(alphabet)

    def measure(self) -> float:
        """Return its height."""
        least, most = self.start
        return math.inf if most is not None and most < least else 0.0

    def edges(self, state: tuple[int, int | None]) -> Edges:
        """Return what may come next, and where it leads."""
        least, most = state
        after = max(0, least - 1), most and most - 1
        return [] if most == 0 else [(one, after) for one in self.characters]

    def accepts(self, state: tuple[int, int | None]) -> bool:
        """Return whether it may end here."""
        return state[0] == 0

    def capped(self, state: tuple[int, int | None], most: int) -> tuple[int, int | None]:
        """Return a state with capped counters."""
        least, many = state
        return min(least, most + 1), None if many is None or many > most else many


class Choice(Leaf):
    """One of these texts, or any inside of a JSON string but these, of `others`; its states are a trie's."""

    def __init__(self, texts: Iterable[bytes], others: Ranges = ()) -> None:
        self.others, self.rows, self.ends = spelt(others), [dict[Bytes, int]()], set[int]()
        for text in texts:
            at = 0
            for one in _letters(text) if others else (((b, b),) for b in text):
                if one not in self.rows[at]:
                    self.rows[at][one] = len(self.rows)
                    self.rows.append({})
                at = self.rows[at][one]
            self.ends.add(at)

    def measure(self) -> float:
        """Return its height."""
        return 0.0 if self.ends or self.others else math.inf

    def edges(self, state: int) -> Edges:
        """Return what may come next, and where it leads."""
        row = self.rows[state] if state >= 0 else {}
        if not self.others:
            return list(row.items())
        if not row:
            return [(one, -1) for one in self.others]
        left = [one for letters in self.others for one in _except(letters, [*row])]
        return [*row.items(), *((one, -1) for one in left)]

    def accepts(self, state: int) -> bool:
        """Return whether it may end here."""
        return (state in self.ends) != bool(self.others)


def _letters(text: bytes) -> Iterator[Bytes]:
    """Yield the characters of a string's inside, escapes whole."""
    at = 0
    while at < len(text):
        size = 6 if text[at : at + 2] == b"\\u" else 2 if text[at] == 92 else len(_head(text[at]))
        yield tuple((b, b) for b in text[at : at + size])
        at += size


def _head(byte: int) -> str:
    return "." * (1 if byte < 0x80 else 2 if byte < 0xE0 else 3 if byte < 0xF0 else 4)


def _except(letters: Bytes, taken: list[Bytes]) -> list[Bytes]:
    """Return what these ranges of bytes spell, but for the single spellings taken."""
    mine = [one for one in taken if len(one) == len(letters) and _within(one[0], letters[0])]
    if not mine:
        return [letters]
    (low, high), rest = letters[0], letters[1:]
    heads = sorted({one[0][0] for one in mine})
    found: list[Bytes] = []
    at = low
    for head in heads:
        if at < head:
            found.append(((at, head - 1), *rest))
        if rest:
            deeper = _except(rest, [one[1:] for one in mine if one[0][0] == head])
            found += [((head, head), *one) for one in deeper]
        at = head + 1
    return found + ([((at, high), *rest)] if at <= high else [])


def _within(one: tuple[int, int], many: tuple[int, int]) -> bool:
    return many[0] <= one[0] <= many[1]


ESCAPES = {34: '\\"', 92: "\\\\", 10: "\\n", 13: "\\r", 9: "\\t", 8: "\\b", 12: "\\f"}


@functools.lru_cache(4096)
def spelt(ranges: Ranges) -> tuple[Bytes, ...]:
    """Return how characters are spelt inside a JSON string: each in one way, escaped where it must be."""
    plain, found = [], []
    for low, high in ranges:
        for c in (c for c in (*range(32), 34, 92) if low <= c <= high):
            found.append(Literal(ESCAPES.get(c, f"\\u{c:04x}").encode()).tail)
        inside = ((max(low, 32), 33), (max(low, 35), 91), (max(low, 93), high))
        plain += [(max(a, low), min(b, high)) for a, b in inside if max(a, low) <= min(b, high)]
    return utf8(tuple(plain)) + tuple(found)


class Frame:
    """What must follow a part: a node, how many references may be inside it, and the frame below."""

    __slots__ = ("_hash", "budget", "node", "parent", "short")

    def __init__(self, node: Node, budget: int, parent: "Frame | None") -> None:
        self.node, self.budget, self.parent = node, budget, parent
        self._hash = hash((node, budget, parent))
        self.short: Frame | None = None  # the same, capped

    def __hash__(self) -> int:
        return self._hash

    def __eq__(self, other: object) -> bool:
        if self is other:
            return True
        if not isinstance(other, Frame) or self._hash != other._hash or self.node != other.node:
            return False
        return (self.budget, self.parent) == (other.budget, other.parent)


class Configuration(NamedTuple):
    """A part under way: the bytes that must come, then the automaton and its state, then the stack.

    Without bytes and automaton the text may end.
    """

    tail: Bytes
    leaf: Leaf | None
    state: Any
    stack: Frame | None


Place: TypeAlias = tuple[Configuration, ...]


class Grammar:
    """The texts of a node, whose references are names of `definitions`; ValueError if there is no text."""

    def __init__(self, root: Node, definitions: dict[str, Node] | None = None) -> None:
        self.definitions = definitions or {}
        references = _measured([root, *self.definitions.values()], self.definitions)
        if root.height > DEPTH:
            why = "its references never end" if references else "no text can meet it"
            raise ValueError(why)
        self.start = self._closed([(root, DEPTH, None)])

    def after(self, place: Place, byte: int) -> Place:
        """Return the place behind a byte; an empty one if the byte may not come."""
        return self._closed(move for low, high, move in self._moves(place) if low <= byte <= high)

    def read(self, place: Place, data: bytes) -> Place:
        """Return the place behind some bytes; an empty one if they may not come."""
        for byte in data:
            place = self.after(place, byte)
        return place

    def row(self, place: Place) -> list[Place]:
        """Return the place behind each byte (256)."""
        moves: list[list[Any]] = [[] for _ in range(256)]
        for low, high, move in self._moves(place):
            for byte in range(low, high + 1):
                moves[byte].append(move)
        known: dict[tuple[Any, ...], Place] = {}
        found = []
        for some in map(tuple, moves):
            if some not in known:
                known[some] = self._closed(some)
            found.append(known[some])
        return found

    def accepts(self, place: Place) -> bool:
        """Return whether the text may end here."""
        return any(not one.tail and one.leaf is None for one in place)

    def is_over(self, place: Place) -> bool:
        """Return whether the text ends here, as nothing may follow."""
        return all(not one.tail and (one.leaf is None or not one.leaf.edges(one.state)) for one in place)

    def matches(self, text: str | bytes) -> bool:
        """Return whether a whole text is one of the grammar's."""
        return self.accepts(self.read(self.start, text.encode() if isinstance(text, str) else text))

    def capped(self, place: Place, most: int) -> Place:
        """Return a place that admits the same next `most` bytes, and stands for many such."""
        return tuple(
            dict.fromkeys(
                Configuration(tail, leaf, leaf.capped(state, most) if leaf else state, _short(stack, most))
                for tail, leaf, state, stack in place
            )
        )

    def _moves(self, place: Place) -> Iterator[tuple[int, int, Any]]:
        """Yield (low, high, what a byte of low..high leads to, which _closed reads)."""
        for tail, leaf, state, stack in place:
            if tail:
                yield *tail[0], Configuration(tail[1:], leaf, state, stack)
            elif leaf:
                for letters, to in leaf.edges(state):
                    yield *letters[0], Configuration(letters[1:], leaf, to, stack)

    def _closed(self, moves: Iterable[Any]) -> Place:
        """Return what is reached without a byte, from configurations or from (node, budget, stack)."""
        found: dict[Configuration, None] = {}
        seen = set()
        todo = [*moves][::-1]
        while todo and len(found) < MOST_CONFIGURATIONS:
            one = todo.pop()
            if one in seen:
                continue
            seen.add(one)
            if isinstance(one, Configuration):
                tail, leaf, state, stack = one
                if tail or (leaf and leaf.edges(state)):
                    found[one] = None
                if tail or (leaf and not leaf.accepts(state)):
                    continue
                if stack is None:
                    found[Configuration((), None, None, None)] = None
                else:
                    todo.append((stack.node, stack.budget, stack.parent))
            else:
                todo += reversed(self._expanded(*one))
        return tuple(found)

    def _expanded(self, node: Node, budget: int, stack: Frame | None) -> list[Any]:
        """Return what a node begins with, in order, as _closed reads it."""
        if node.height > budget:
            return []
        if isinstance(node, Literal):
            return [Configuration(node.tail, None, None, stack)]
        if isinstance(node, Leaf):
            return [Configuration((), node, node.start, stack)]
        if isinstance(node, Any_):
            return [(one, budget, stack) for one in node.parts]
        if isinstance(node, Reference):
            return [(self.definitions[node.name], budget - 1, stack)]
        if isinstance(node, Repeat):
            found: list[Any] = []
            if node.most != 0 and node.part.height <= budget:
                found.append((node.part, budget, Frame(node.rest(), budget, stack)))
            return found + ([] if node.least else [Configuration((), None, None, stack)])
        assert isinstance(node, All)
        for one in node.parts[:0:-1]:
            stack = Frame(one, budget, stack)
        return [(node.parts[0], budget, stack)] if node.parts else [Configuration((), None, None, stack)]


def _short(frame: Frame | None, most: int) -> Frame | None:
    """Return a stack with all counters capped."""
    path = []
    while frame and not frame.short:
        path.append(frame)
        frame = frame.parent
    short = frame and frame.short
    for one in reversed(path):
        node = one.node.capped(most) if isinstance(one.node, Repeat) else one.node
        one.short = short = Frame(node, one.budget, short)
        short.short = short
    return short


def _measured(roots: Iterable[Node], definitions: dict[str, Node]) -> int:
    """Set the height of every node under the roots; return how many references there are."""
    order: list[Node] = []  # children first
    seen, references = set(), list[Reference]()
    todo: list[tuple[Node, bool]] = [(root, False) for root in roots]
    while todo:
        node, done = todo.pop()
        if done:
            order.append(node)
        elif id(node) not in seen:
            seen.add(id(node))
            if isinstance(node, Reference):
                references.append(node)
            todo += [(node, True), *((one, False) for one in node.children())]
    for _ in range(DEPTH + 1):
        for node in order:
            if not isinstance(node, Reference):
                node.height = node.measure()
        before = [reference.height for reference in references]
        for reference in references:
            reference.height = 1 + definitions[reference.name].height
        if before == [reference.height for reference in references]:
            break
    return len(references)
