r"""Regular expressions as automata over characters: linear in the text by construction, bounded in size.

What is accepted here matches under Python's re, JavaScript and Rust alike: a class such as \w admits ASCII
characters alone, and \W or [^\w] leaves out all of Unicode's. What an automaton cannot do is refused by name.
"""

import functools
import re
from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

Ranges: TypeAlias = tuple[tuple[int, int], ...]  # of code points, each inclusive, in order
ALL: Ranges = ((0, 0xD7FF), (0xE000, 0x10FFFF))
MOST_STATES, MOST_WORK, MOST_DEPTH = 5000, 1_000_000, 50
LINE_ENDS = ((10, 10), (13, 13), (0x2028, 0x2029))
CONTROLS = {"n": 10, "r": 13, "t": 9, "f": 12, "v": 11, "0": 0}
ASCII = {
    "d": ((48, 57),),
    "w": ((48, 57), (65, 90), (95, 95), (97, 122)),
    "s": ((9, 13), (32, 32)),
}
UNICODE: dict[str, Callable[[str], Any]] = {
    "d": str.isdecimal,
    "w": re.compile(r"\w").match,
    "s": lambda c: c.isspace() or c == "\ufeff",
}


def normal(ranges: Iterable[tuple[int, int]]) -> Ranges:
    """Return ranges in order, with those joined that touch."""
    found: list[tuple[int, int]] = []
    for low, high in sorted(ranges):
        if found and low <= found[-1][1] + 1:
            found[-1] = found[-1][0], max(high, found[-1][1])
        else:
            found.append((low, high))
    return tuple(found)


def without(ranges: Ranges, taken: Iterable[tuple[int, int]]) -> Ranges:
    """Return the ranges without those taken."""
    left = list(ranges)
    for a, b in taken:
        cut = (part for low, high in left for part in ((low, min(high, a - 1)), (max(low, b + 1), high)))
        left = [(low, high) for low, high in cut if low <= high]
    return tuple(left)


@functools.cache
def of_class(letter: str, widest: bool) -> Ranges:
    """Return what the class of a letter of dwsDWS admits under every dialect, or `widest` under any."""
    if letter.isupper():
        return without(ALL, of_class(letter.lower(), not widest))
    if not widest:
        return ASCII[letter]
    found = (c for low, high in ALL for c in range(low, high + 1) if UNICODE[letter](chr(c)))
    return normal([*ASCII[letter], *((c, c) for c in found)])


@dataclass(frozen=True)
class Dfa:
    """A deterministic automaton over characters; state 0 begins, and from each the end can be reached."""

    rows: tuple[dict[Ranges, int], ...]  # state -> {characters: the next state}
    accepts: tuple[bool, ...]
    work: int = 0  # the steps that it took to make

    def __bool__(self) -> bool:
        """Return False where nothing is accepted."""
        return bool(self.rows)

    def matches(self, text: str) -> bool:
        """Return whether the whole text is accepted."""
        state = 0
        for c in map(ord, text):
            rows = self.rows[state].items() if self else ()
            found = (to for ranges, to in rows if any(low <= c <= high for low, high in ranges))
            if (state := next(found, -1)) < 0:
                return False
        return bool(self) and self.accepts[state]

    def within(self, alphabet: Ranges) -> "Dfa":
        """Return the automaton of those texts that have no other characters than these."""
        others = without(ALL, alphabet)
        if not self or not others:
            return self

        def row(state: int) -> dict[Ranges, int]:
            found = {without(ranges, others): to for ranges, to in self.rows[state].items()}
            found.pop((), None)
            return found

        return explored(0, row, self.accepts.__getitem__)

    def of_length(self, least: int, most: int | None) -> "Dfa":
        """Return the automaton of those texts that have least..most characters."""
        if not self or (least == 0 and most is None):
            return self
        last = least if most is None else most

        def row(at: tuple[int, int]) -> dict[Ranges, tuple[int, int]]:
            state, n = at
            if n == most:
                return {}
            return {ranges: (to, min(n + 1, last)) for ranges, to in self.rows[state].items()}

        return explored((0, 0), row, lambda at: self.accepts[at[0]] and at[1] >= least)


def explored(start: Any, row: Callable[[Any], dict[Ranges, Any]], accepts: Callable[[Any], bool]) -> Dfa:
    """Return the automaton of all that `start` leads to; ValueError if that is more than MOST_STATES."""
    states, rows = {start: 0}, []
    for state in (order := [start]):
        found = row(state)
        for to in found.values():
            if to not in states:
                states[to] = len(order)
                order.append(to)
        if len(order) > MOST_STATES:
            raise ValueError(f"it needs more than {MOST_STATES} states")
        rows.append({ranges: states[to] for ranges, to in found.items()})
    sources: list[list[int]] = [[] for _ in rows]
    for i, one in enumerate(rows):
        for to_state in one.values():
            sources[to_state].append(i)
    ends = [accepts(state) for state in order]
    live = {i for i, end in enumerate(ends) if end}
    todo = [*live]
    while todo:
        new = set(sources[todo.pop()]) - live
        live |= new
        todo += new
    if 0 not in live:
        return Dfa((), ())
    number = {state: i for i, state in enumerate(sorted(live))}
    kept = ({r: number[to] for r, to in rows[i].items() if to in number} for i in number)
    return Dfa(tuple(kept), tuple(ends[i] for i in number))


@functools.lru_cache(64)
def compiled(pattern: str, search: bool = False) -> Dfa:
    """Return the automaton of the texts that match the whole pattern, or that hold a match (`search`).

    ValueError for a pattern that is malformed, too large, or no regular expression in the strict sense.
    """
    try:
        tree = _Parser(pattern).parse()
        nfa = _Nfa(tree, search)
        return replace(nfa.deterministic(), work=nfa.work)
    except ValueError as error:
        raise ValueError(f"the regex {pattern[:60]!r} cannot be used: {error}") from None


# ---------------------------------------------------------------------------- the tree
# ("chars", ranges), ("all", trees), ("any", trees), ("repeat", tree, least, most), ("begin",), ("end",)

Tree: TypeAlias = tuple[Any, ...]
COUNTED = re.compile(r"\{(?:(\d{1,5})(,(\d{0,5}))?|,(\d{1,5}))\}")


class _Parser:
    def __init__(self, pattern: str) -> None:
        self.text, self.at, self.depth = pattern, 0, 0

    def parse(self) -> Tree:
        tree = self.alternatives()
        if self.at < len(self.text):
            raise ValueError("a ) too many")
        return tree

    def take(self, *options: str) -> str:
        """Return the first of the options that comes next, and step over it; '' if there is none."""
        found = next((one for one in options if self.text.startswith(one, self.at)), "")
        self.at += len(found)
        return found

    def next(self) -> str:
        if self.at >= len(self.text):
            raise ValueError("it ends too early")
        self.at += 1
        return self.text[self.at - 1]

    def alternatives(self) -> Tree:
        found = [self.sequence()]
        while self.take("|"):
            found.append(self.sequence())
        return ("any", found) if len(found) > 1 else found[0]

    def sequence(self) -> Tree:
        found: list[Tree] = []
        while self.at < len(self.text) and self.text[self.at] not in "|)":
            found.append(self.repeated(self.atom()))
        return ("all", found)

    def repeated(self, tree: Tree) -> Tree:
        counted = COUNTED.match(self.text, self.at)
        if counted:
            self.at = counted.end()
            low, comma, high, only_high = counted.groups()
            least = int(low or 0)
            most = int(only_high or (high if comma else low)) if only_high or high or not comma else None
            if most is not None and most < least:
                raise ValueError(f"{counted[0]} is no range")
        elif sign := self.take("*", "+", "?"):
            least, most = int(sign == "+"), 1 if sign == "?" else None
        else:
            return tree
        if self.take("+"):
            raise ValueError("possessive quantifiers are not supported")
        self.take("?")  # lazy: the same texts
        if (self.at < len(self.text) and self.text[self.at] in "*+?") or COUNTED.match(self.text, self.at):
            raise ValueError("two quantifiers in a row")
        return ("repeat", tree, least, most)

    def atom(self) -> Tree:
        c = self.next()
        if c == "(":
            return self.group()
        if c == "[":
            return ("chars", self.set())
        if c == ".":
            return ("chars", without(ALL, LINE_ENDS))
        if c in "^$":
            return ("begin",) if c == "^" else ("end",)
        if c in "*+?":
            raise ValueError(f"{c} repeats nothing")
        if c == "\\":
            return ("chars", self.escape()[0])
        return ("chars", _single(c))

    def group(self) -> Tree:
        if self.take("?"):
            if not self.take(":") and not self._name():
                raise ValueError(f"(?{self.text[self.at : self.at + 1]} is not supported")
        self.depth += 1
        if self.depth > MOST_DEPTH:
            raise ValueError(f"groups are nested deeper than {MOST_DEPTH}")
        tree = self.alternatives()
        self.depth -= 1
        if not self.take(")"):
            raise ValueError("a ) is missing")
        return tree

    def _name(self) -> bool:
        name = re.compile(r"P?<[A-Za-z_]\w*>").match(self.text, self.at)
        self.at = name.end() if name else self.at
        return bool(name)

    def escape(self, in_set: bool = False) -> tuple[Ranges, Ranges]:
        """Return what an escape admits under every dialect, and under any."""
        c = self.next()
        if c in "dwsDWS":
            return of_class(c, False), of_class(c, True)
        if c in CONTROLS and not (c == "0" and self.text[self.at : self.at + 1].isdigit()):
            return (((CONTROLS[c],) * 2,),) * 2
        if c == "b" and in_set:
            return (((8, 8),),) * 2
        if digits := re.compile("x[0-9A-Fa-f]{2}|u[0-9A-Fa-f]{4}").match(self.text, self.at - 1):
            self.at = digits.end()
            return (_single(chr(int(digits[0][1:], 16))),) * 2
        if c.isalnum():
            raise ValueError(f"\\{c} is not supported")
        return (_single(c),) * 2

    def set(self) -> Ranges:
        """Return the characters of [...]."""
        negated, parts, first = bool(self.take("^")), [], True
        while first or not self.take("]"):
            first = False
            c = self.next()
            one = self.escape(True) if c == "\\" else (_single(c),) * 2
            if self.text[self.at : self.at + 1] == "-" and self.text[self.at + 1 : self.at + 2] not in (
                "]",
                "",
            ):
                self.at += 1
                c = self.next()
                other = self.escape(True) if c == "\\" else (_single(c),) * 2
                ends = [len(r) == 1 and r[0][0] == r[0][1] for r in (one[0], other[0])]
                if not all(ends) or one[0][0][0] > other[0][0][0]:
                    raise ValueError("a range in [...] must go from one character to a later one")
                one = (without(((one[0][0][0], other[0][0][0]),), ((0xD800, 0xDFFF),)),) * 2
            parts.append(one[negated])
        ranges = normal(r for part in parts for r in part)
        return without(ALL, ranges) if negated else ranges


def _single(c: str) -> Ranges:
    if 0xD800 <= ord(c) <= 0xDFFF:
        raise ValueError("half a surrogate pair is no character")
    return ((ord(c), ord(c)),)


# ---------------------------------------------------------------------------- from the tree to states


class _Nfa:
    """Thompson's automaton of a tree; edges without characters may hold at the begin or the end alone."""

    def __init__(self, tree: Tree, search: bool) -> None:
        self.free: list[
            list[tuple[str, int]]
        ] = []  # state -> (condition "", "begin" or "end"; the next state)
        self.chars: list[tuple[Ranges, int] | None] = []
        self.start, self.search = self.state(), search
        self.end = self.add(tree, self.start)
        if search:
            before, loop = self.state(), self.state()
            self.free[before] += [("", loop), ("", self.start)]
            self.chars[loop] = ALL, before
            self.start = before
        self.work = 0

    def state(self) -> int:
        if len(self.free) >= MOST_STATES:
            raise ValueError(f"it needs more than {MOST_STATES} states")
        self.free.append([])
        self.chars.append(None)
        return len(self.free) - 1

    def add(self, tree: Tree, start: int) -> int:
        """Add the states of a tree that begins at `start`; return the state behind it."""
        kind = tree[0]
        if kind == "all":
            return functools.reduce(lambda at, one: self.add(one, at), tree[1], start)
        end = self.state()
        if kind == "chars":
            self.chars[start] = tree[1], end
            last = self.state()
            self.free[end].append(("", last))
            return last
        if kind == "any":
            for one in tree[1]:
                begin = self.state()
                self.free[start].append(("", begin))
                self.free[self.add(one, begin)].append(("", end))
        elif kind == "repeat":
            _, one, least, most = tree
            for _ in range(least):
                start = self._again(one, start)
            self.free[start].append(("", end))
            if most is None:
                self.free[self._again(one, start)] += [("", start), ("", end)]
            for _ in range((most or 0) - least):
                start = self._again(one, start)
                self.free[start].append(("", end))
        else:
            self.free[start].append((kind, end))
        return end

    def _again(self, tree: Tree, start: int) -> int:
        """Add a tree once more, from a state of its own."""
        begin = self.state()
        self.free[start].append(("", begin))
        end, last = self.add(tree, begin), self.state()
        self.free[end].append(("", last))
        return last

    def closed(self, states: Iterable[int], *conditions: str) -> frozenset[int]:
        """Return all states that are reached without a character."""
        found = set(states)
        todo = [*found]
        while todo:
            self.work += 1
            new = {
                to for condition, to in self.free[todo.pop()] if not condition or condition in conditions
            } - found
            found |= new
            todo += new
        if self.work > MOST_WORK:
            raise ValueError("it takes too many steps")
        if self.search and self.end in found and "end" not in conditions:
            return frozenset([self.end])  # whatever follows
        at_end = (i for i in found if any(condition == "end" for condition, _ in self.free[i]))
        return frozenset([*(i for i in found if self.chars[i] or i == self.end), *at_end])

    def deterministic(self) -> Dfa:
        classes = _partition({found[0] for found in self.chars if found})
        first = self.closed([self.start], "begin")
        empty = self.end in self.closed([self.start], "begin", "end")

        def row(at: tuple[frozenset[int], bool]) -> dict[Ranges, tuple[frozenset[int], bool]]:
            if self.search and at[0] == {self.end}:
                return {ALL: at}
            moves: dict[int, set[int]] = {}
            for edge in (self.chars[i] for i in at[0]):
                if edge:
                    for number in classes[edge[0]]:
                        moves.setdefault(number, set()).add(edge[1])
                    self.work += len(classes[edge[0]])
            to_of: dict[frozenset[int], list[int]] = {}
            for number, states in moves.items():
                to_of.setdefault(frozenset(states), []).append(number)
            found: dict[frozenset[int], list[tuple[int, int]]] = {}
            for to, numbers in to_of.items():
                found.setdefault(self.closed(to), []).extend(r for n in numbers for r in atoms[n])
            return {normal(ranges): (to, False) for to, ranges in found.items()}

        def accepts(at: tuple[frozenset[int], bool]) -> bool:
            return empty if at[1] else self.end in self.closed(at[0], "end")

        atoms = classes.pop(())
        return explored((first, True), row, accepts)


def _partition(sets: set[Ranges]) -> dict[Any, Any]:
    """Return {set: numbers of its atoms}, and under () the ranges of each atom: what no set tells apart."""
    bounds = sorted({b for one in sets for low, high in one for b in (low, high + 1)})
    members: list[list[int]] = [[] for _ in bounds]
    order = sorted(sets)
    if sum(map(len, order)) * len(order) > MOST_WORK:
        raise ValueError("it has too many sets of characters")
    for number, one in enumerate(order):
        for low, high in one:
            for i in range(bisect_right(bounds, low) - 1, bisect_right(bounds, high)):
                members[i].append(number)
    atoms: dict[tuple[int, ...], list[tuple[int, int]]] = {}
    for i, who in enumerate(members[:-1]):
        if who:
            atoms.setdefault(tuple(who), []).append((bounds[i], bounds[i + 1] - 1))
    found: dict[Any, Any] = {one: [] for one in order}
    for number, who_all in enumerate(atoms):
        for who_one in who_all:
            found[order[who_one]].append(number)
    return {**found, (): list(atoms.values())}


# ---------------------------------------------------------------------------- characters as bytes

Bytes: TypeAlias = tuple[tuple[int, int], ...]  # a range for each byte


@functools.lru_cache(4096)
def utf8(ranges: Ranges) -> tuple[Bytes, ...]:
    """Return the ranges of bytes, one after the other, that spell these characters in UTF-8."""
    return tuple(one for low, high in ranges for one in _utf8(low, high))


def _utf8(low: int, high: int) -> Iterator[Bytes]:
    for most in (0x7F, 0x7FF, 0xFFFF):
        if low <= most < high:
            yield from _utf8(low, most)
            low = most + 1
    for bits in (6, 12, 18):
        mask = (1 << bits) - 1
        if high > 0x7F and low & ~mask != high & ~mask:
            if low & mask:
                yield from _utf8(low, low | mask)
                yield from _utf8((low | mask) + 1, high)
                return
            if high & mask != mask:
                yield from _utf8(low, (high & ~mask) - 1)
                yield from _utf8(high & ~mask, high)
                return
    yield tuple(zip(chr(low).encode(), chr(high).encode(), strict=True))
