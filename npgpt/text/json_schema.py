"""From a JSON Schema to the grammar of the JSON texts that meet it, without blanks; it fails closed.

A keyword that is not in the tables below is refused by name. An object's names come in the order of
`properties`; where additionalProperties is not given beside `properties` or `required`, no other name comes.
Numbers have no exponent, and at most 15 digits unless their bounds have more. Strings escape what they must.
"""

import functools
import json
import math
import re
from collections.abc import Callable, Iterable
from decimal import Decimal
from typing import Any, TypeAlias
from urllib.parse import unquote

from npgpt.engine.names import meant
from npgpt.engine.types import Fields
from npgpt.text import regex
from npgpt.text.grammar import (
    All,
    Any_,
    Characters,
    Choice,
    Grammar,
    Literal,
    Node,
    Pattern,
    Reference,
    Repeat,
)
from npgpt.text.records import TYPES as KINDS
from npgpt.text.records import shown

MOST_PARTS, MOST_DEPTH, MOST_TEXT, MOST_DIGITS, MOST_COUNT = 5000, 100, 100_000, 60, 1_000_000
DIGITS = 15
OF_TYPE = {  # type -> its keywords
    "object": ("properties", "required", "additionalProperties"),
    "array": ("prefixItems", "items", "minItems", "maxItems"),
    "string": ("pattern", "format", "minLength", "maxLength"),
    "number": ("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum"),
    "integer": (),  # those of number
    "boolean": (),
    "null": (),
}
NOTES = {  # which no text depends on
    "title", "description", "default", "examples", "deprecated", "readOnly", "writeOnly", "$comment",
    "$schema", "$defs", "definitions", "discriminator",
}  # fmt: skip
JOINED = ("$ref", "anyOf", "oneOf", "allOf")
KEYWORDS = {"type", "enum", "const", *JOINED, *NOTES, *(k for some in OF_TYPE.values() for k in some)}
DATE = r"(19|20)\d\d-(0[1-9]|1[0-2])-(0[1-9]|1\d|2[0-8])"  # days that each month has
TIME = r"([01]\d|2[0-3]):[0-5]\d:[0-5]\dZ"
BYTE = r"(\d|[1-9]\d|1\d\d|2[0-4]\d|25[0-5])"
FORMATS = {  # what each reader of the format takes
    "date": DATE,
    "time": TIME,
    "date-time": f"{DATE}T{TIME}",
    "uuid": "[0-9a-f]{8}-([0-9a-f]{4}-){3}[0-9a-f]{12}",
    "ipv4": rf"({BYTE}\.){{3}}{BYTE}",
}
TYPES: dict[str, Callable[[Any], bool]] = {
    **KINDS,
    "integer": lambda v: KINDS["number"](v) and abs(v) < math.inf and v == int(v),
    "null": lambda v: v is None,
}
ANYTHING = "anything"  # the definition of any value


def compiled(schema: Any, alphabet: regex.Ranges = regex.ALL) -> Grammar:
    """Return the grammar of a schema; ValueError, which names the place, for what is not supported.

    `alphabet` has the characters that can be written, ASCII among them but for control characters.
    """
    maker = _Maker(schema, alphabet)
    try:
        root = maker.node(schema, "schema")
    except ValueError as error:
        message = str(error)
        raise ValueError(message if len(message) <= 400 else f"...{message[-400:]}") from None
    try:
        return Grammar(root, maker.definitions)
    except ValueError as error:
        raise ValueError(f"schema: {error}") from None


class _Maker:
    """Makes the nodes of a schema, and the definitions that its references name."""

    def __init__(self, whole: Any, alphabet: regex.Ranges) -> None:
        self.whole, self.definitions, self.parts = whole, dict[str, Node](), 0
        self.work = self.depth = 0
        self.alphabet = regex.normal([*alphabet, (0, 31)])  # control characters are escaped

    def node(self, schema: Any, where: str) -> Node:
        """Return the node of a schema that stands at `where`."""
        self.parts, self.depth = self.parts + 1, self.depth + 1
        if self.parts > MOST_PARTS or self.depth > MOST_DEPTH:
            raise ValueError("the schema is too large")
        node = self.node_of(schema, where)
        self.depth -= 1
        return node

    def node_of(self, schema: Any, where: str) -> Node:
        """Return the node of a schema, for node()."""
        if isinstance(schema, bool):
            return self.anything() if schema else Any_()
        self.check(schema, where)
        asks = {name: value for name, value in schema.items() if name not in NOTES}
        if "$ref" in asks:
            _alone(asks, "$ref", where)
            return self.reference(asks["$ref"], where)
        if "allOf" in asks:
            return self.all_of(asks, where)
        if name := next((name for name in ("anyOf", "oneOf") if name in asks), None):
            beside = {other: value for other, value in asks.items() if other != name}
            if name == "oneOf":
                self.require_disjoint(asks[name], f"{where}.oneOf")
            return Any_(
                *(self.either(beside, one, f"{where}.{name}[{i}]") for i, one in enumerate(asks[name]))
            )
        types = asks.get("type", [name for name, some in OF_TYPE.items() if any(k in asks for k in some)])
        types = [types] if isinstance(types, str) else types
        if "enum" in asks or "const" in asks:
            name = "enum" if "enum" in asks else "const"
            _alone({k: v for k, v in asks.items() if k not in ("enum", "const", "type")}, name, where)
            return self.literal(asks, types, f"{where}.{name}")
        if not types and "type" not in asks:
            return self.anything()
        return Any_(*(getattr(self, f"of_{one}")(asks, where) for one in types))

    def pattern(self, dfa: regex.Dfa, work: int = 0, quoted: bool = False) -> Node:
        """Return the node of an automaton; ValueError where all of the schema's together take too long."""
        self.work += work + 2 * len(dfa.rows)
        if self.work > regex.MOST_WORK:
            raise ValueError("the schema's patterns and numbers take too many steps")
        return Pattern(dfa, quoted)

    def check(self, schema: Any, where: str) -> None:
        """Raise ValueError for a keyword that is not known, or has a value that it cannot have."""
        if not isinstance(schema, dict):
            raise ValueError(f"{where} must be a JSON object, got {shown(schema)}")
        for name, value in schema.items():
            if name not in KEYWORDS:
                ours = meant(str(name)[:60], KEYWORDS)
                hint = f"; did you mean {ours}?" if ours else ""
                raise ValueError(f"{where}: the keyword {str(name)[:60]!r} is not supported{hint}")
            if what := _wrong(name, value):
                raise ValueError(f"{where}.{name} must be {what}, got {shown(value)}")

    def anything(self) -> Node:
        """Return the node of any value."""
        if ANYTHING not in self.definitions:
            self.definitions[ANYTHING] = Any_()  # for those inside it
            self.definitions[ANYTHING] = self.node({"type": [*OF_TYPE]}, "schema")
        return Reference(ANYTHING)

    def reference(self, pointer: str, where: str) -> Node:
        """Return the node of a $ref."""
        if pointer not in self.definitions:
            target = self.target(pointer, where)
            self.definitions[pointer] = Any_()
            self.definitions[pointer] = self.node(target, f"{where}.$ref")
        return Reference(pointer)

    def target(self, pointer: str, where: str) -> Any:
        """Return the part of the schema that a $ref names; ValueError where there is none."""
        steps = unquote(pointer).split("/")
        target = self.whole
        for step in steps[1:]:
            name = step.replace("~1", "/").replace("~0", "~")
            inside = target.get(name) if isinstance(target, dict) else None
            if isinstance(target, list) and name.isdecimal() and int(name[:6]) < len(target):
                inside = target[int(name[:6])]
            target = inside
        if steps[0] != "#" or target is None:
            raise ValueError(f"{where}.$ref must name a part of the schema, got {shown(pointer)}")
        return target

    def all_of(self, asks: Fields, where: str) -> Node:
        """Return the node of allOf: one schema with the keywords of all, where these can be joined."""
        beside = {name: value for name, value in asks.items() if name != "allOf"}
        parts = [(one, f"{where}.allOf[{i}]") for i, one in enumerate(asks["allOf"]) if one is not True]
        if not beside and len(parts) == 1:
            return self.node(*parts[0])
        for one, place in parts:
            if one is False:
                return Any_()
            self.check(one, place)
            asked = {name: value for name, value in one.items() if name not in NOTES}
            if asked.keys() == {"$ref"}:
                asked = self.target(asked["$ref"], place)
                self.check(asked, f"{place}.$ref")
            beside = self.joined(beside, asked, place)
        return self.node(beside, where)

    def require_disjoint(self, parts: list[Any], where: str) -> None:
        """Raise ValueError unless no value meets two alternatives of oneOf, which is anyOf then."""
        for i, one in enumerate(parts):
            for j, other in enumerate(parts[:i]):
                if not self.disjoint(one, other, where):
                    why = "they need types, constants, or a required property of their own"
                    raise ValueError(f"{where}: no value may meet both [{j}] and [{i}]; {why}")

    def disjoint(self, one: Any, other: Any, where: str, depth: int = 0) -> bool:
        """Return True if no value meets both schemas, as far as types, constants and properties show it."""
        sizes = [len(str(part)) // 8 for part in (one, other)]
        self.work += 20 + sum(sizes)  # for check(), and the constants
        if depth > MOST_DEPTH or self.work > regex.MOST_WORK:
            raise ValueError("the schema is too large")
        for part in (one, other):
            if part is False:
                return True
            if part is True:
                return False
            self.check(part, where)
        for part, rest in ((one, other), (other, one)):
            if "$ref" in part:
                return self.disjoint(self.target(part["$ref"], where), rest, where, depth + 1)
        values = [[*map(_key, v)] if (v := _values(part)) is not None else None for part in (one, other)]
        if values[0] is not None and values[1] is not None:
            return not set(values[0]) & set(values[1])
        types = [
            {part["type"]} if isinstance(part.get("type"), str) else part.get("type") for part in (one, other)
        ]
        for some, known, part in ((values[0], types[1], one), (values[1], types[0], other)):
            if some is not None:
                return known is not None and not any(TYPES[t](v) for t in known for v in _values(part) or ())
        if types[0] is None or types[1] is None:
            return False
        wide = [{"number" if t == "integer" else t for t in some} for some in types if some is not None]
        shared = wide[0] & wide[1]
        if shared != {"object"}:
            return not shared
        names = set(one.get("required", ())) & set(other.get("required", ()))
        inside = [part.get("properties", {}) for part in (one, other)]
        return any(
            self.disjoint(inside[0][name], inside[1][name], where, depth + 1)
            for name in sorted(names)
            if name in inside[0] and name in inside[1]
        )

    def either(self, beside: Fields, one: Any, where: str) -> Node:
        """Return the node of an alternative of anyOf, for which the keywords beside it hold too."""
        if not beside or one is False:
            return self.node(one, where)
        if one is True:
            return self.node(beside, where)
        self.check(one, where)
        return self.node(self.joined(beside, one, where), where)

    def joined(self, beside: Fields, one: Fields, where: str) -> Fields:
        """Return a schema with the keywords of both, which asks for both; ValueError where it would not."""
        both = {name: value for name, value in one.items() if name not in NOTES}
        inner = [name for name in ("properties", "additionalProperties", *JOINED) if name in both]
        outer = [name for name in ("properties", "additionalProperties") if name in beside]
        clash = [name for name in both if name in beside and name not in ("required", "type")]
        # items are those behind prefixItems of the same schema
        clash += [name for name in ("items", "prefixItems") if (name in both) != (name in beside)][1:]
        if beside and (clash or (inner and (outer or inner[0] in JOINED))):
            raise ValueError(f"{where}: {(clash or inner)[0]} is not supported here with what is beside it")
        if "required" in beside and "required" in both:
            both["required"] = [*dict.fromkeys([*beside["required"], *both["required"]])]
        if "type" in beside and "type" in both:
            some = [[t] if isinstance(t, str) else t for t in (beside["type"], both["type"])]
            both["type"] = [t for t in some[0] if t in some[1] or (t == "integer" and "number" in some[1])]
            both["type"] += [
                t for t in some[1] if t == "integer" and "number" in some[0] and t not in both["type"]
            ]
        return {**beside, **both}

    def literal(self, asks: Fields, types: list[str], where: str) -> Node:
        """Return the node of enum and const."""
        values = asks.get("enum", [asks.get("const")])
        if "enum" in asks and "const" in asks:
            values = [v for v in values if _text(v, where) == _text(asks["const"], where)]
        if "type" in asks:
            values = [v for v in values if any(TYPES[t](v) for t in types)]
        texts = [_text(v, where) for v in values]
        if sum(map(len, texts)) > MOST_TEXT:
            raise ValueError(f"{where} must be at most {MOST_TEXT} bytes")
        return Choice(text for text in texts if self.can_write(text))

    def can_write(self, text: bytes) -> bool:
        return all(any(low <= c <= high for low, high in self.alphabet) for c in map(ord, text.decode()))

    # ------------------------------------------------ types

    def of_null(self, asks: Fields, where: str) -> Node:
        return Literal(b"null")

    def of_boolean(self, asks: Fields, where: str) -> Node:
        return Choice([b"true", b"false"])

    def of_string(self, asks: Fields, where: str) -> Node:
        least, most = asks.get("minLength", 0), asks.get("maxLength")
        inside: Node = Characters(least, most, self.alphabet)
        if "pattern" in asks and "format" in asks:
            raise ValueError(f"{where}: pattern is not supported beside format")
        if "pattern" in asks or "format" in asks:
            try:
                free = "pattern" in asks
                dfa = regex.compiled(asks["pattern"] if free else FORMATS[asks["format"]], search=free)
                some = dfa.within(self.alphabet).of_length(least, most)
                inside = self.pattern(some, dfa.work, quoted=True)
            except ValueError as error:
                raise ValueError(f"{where}.pattern: {error}") from None
        return All(Literal(b'"'), inside, Literal(b'"'))

    def of_integer(self, asks: Fields, where: str) -> Node:
        return self.of_number(asks, where, whole=True)

    def of_number(self, asks: Fields, where: str, whole: bool = False) -> Node:
        low, high = _bound(asks, "inimum", whole, True), _bound(asks, "aximum", whole, False)
        digits = max(DIGITS, 0, *(len(_digits(b)) for b, _ in filter(None, (low, high))))
        if digits > MOST_DIGITS:
            raise ValueError(f"{where}: the bounds of a number must be at most {MOST_DIGITS} digits")
        if digits > DIGITS and any(b and b[1] and b[0] for b in (low, high)):
            raise ValueError(
                f"{where}: a bound that is left out must be beside one of at most {DIGITS} digits"
            )
        found: list[Node] = []
        if high is None or high[0] >= 0:
            found.append(self.pattern(_magnitude(low, high, whole, digits)))
        if low is None or low[0] < 0:
            least = (-high[0], high[1]) if high and high[0] < 0 else (Decimal(0), True)  # there is no -0
            size = _magnitude(least, low and (-low[0], low[1]), whole, digits)
            found.append(All(Literal(b"-"), self.pattern(size)))
        return Any_(*found)

    def of_array(self, asks: Fields, where: str) -> Node:
        least, most = asks.get("minItems", 0), asks.get("maxItems")
        first = [
            self.node(one, f"{where}.prefixItems[{i}]") for i, one in enumerate(asks.get("prefixItems", []))
        ]
        item, end, comma = self.node(asks.get("items", True), f"{where}.items"), Literal(b"]"), Literal(b",")
        n = max(1, len(first))  # after so many come items alone
        many = None if most is None else most - n
        options: list[Node] = []
        if many is None or many >= 0:
            options.append(All(Repeat(All(comma, item), max(0, least - n), many), end))
        for i in reversed(range(n)):  # what may come behind i items
            one = first[i] if i < len(first) else item
            more = All(*([comma] if i else []), one, Any_(*options))
            options = ([end] if i >= least else []) + ([more] if most is None or i < most else [])
        return All(Literal(b"["), Any_(*options))

    def of_object(self, asks: Fields, where: str) -> Node:
        known, required = asks.get("properties", {}), asks.get("required", [])
        other = asks.get("additionalProperties", not (known or required))
        nodes = {name: self.node(one, f"{where}.properties{_step(name)}") for name, one in known.items()}
        for name in required:
            if name not in nodes:
                where_other = f"{where}.additionalProperties"
                nodes[name] = self.node(asks.get("additionalProperties", True), where_other)
        first, later = Literal(b"}"), Literal(b"}")  # what may follow: at the beginning, and behind a pair
        ends: list[Node] = [first, later]
        if other is not False:
            names = Choice((_text(name, where)[1:-1] for name in nodes), self.alphabet)
            value = self.node(other, f"{where}.additionalProperties")
            pair = All(Literal(b'"'), names, Literal(b'":'), value)
            more = All(Repeat(All(Literal(b","), pair), 0, None), Literal(b"}"))
            ends = [Any_(All(pair, more), first), more]
        for name, node in reversed(nodes.items()):
            key = _text(name, where) + b":"
            node = node if self.can_write(key) else Any_()
            options: list[list[Node]] = [[All(Literal(comma + key), node, ends[1])] for comma in (b"", b",")]
            if name not in required:
                options = [[*some, end] for some, end in zip(options, ends, strict=True)]
            ends = [Any_(*some) for some in options]
        return All(Literal(b"{"), ends[0])


def _step(name: str) -> str:
    """Return a name as a step of a place in a schema, in one line."""
    return f".{name}" if re.fullmatch(r"\w{1,60}", name) else f"[{name!r:.60}]"


def _alone(asks: Fields, name: str, where: str) -> None:
    """Raise ValueError where other keywords stand beside one that they cannot be joined with."""
    if more := [other for other in asks if other != name]:
        raise ValueError(f"{where}: {more[0]} is not supported beside {name}")


def _wrong(name: str, value: Any) -> str:
    """Return what the value of a keyword must be, "" if it is so."""
    strings = isinstance(value, list) and all(isinstance(v, str) for v in value)
    if name == "type":
        known = [value] if isinstance(value, str) else value if strings else [""]
        return "" if all(one in TYPES for one in known) else "a type of JSON, or a list of such"
    if name == "required":
        return "" if strings else "a list of names"
    if name == "format":
        return "" if isinstance(value, str) and value in FORMATS else f"one of {', '.join(FORMATS)}"
    if name in ("enum", "anyOf", "oneOf", "allOf", "prefixItems"):
        return "" if isinstance(value, list) and value else "a list that is not empty"
    if name in ("pattern", "$ref"):
        return "" if isinstance(value, str) else "a string"
    if name in ("properties", "$defs", "definitions"):
        return "" if isinstance(value, dict) else "a JSON object"
    if name in OF_TYPE["number"]:
        return "" if KINDS["number"](value) and abs(value) < 1e50 else "a number below 1e50"
    if name.startswith(("min", "max")):
        good = KINDS["number"](value) and 0 <= value <= MOST_COUNT and value == int(value)
        return "" if good and isinstance(value, int) else f"a whole number in 0..{MOST_COUNT}"
    return ""


def _values(schema: Fields) -> list[Any] | None:
    """Return the values of enum and const, which other keywords may leave fewer of; None without these."""
    if "enum" in schema:
        return list(schema["enum"])
    return [schema["const"]] if "const" in schema else None


def _key(value: Any) -> Any:
    """Return what is equal for values that are equal in JSON: 1 and 1.0, but not 1 and true."""
    if isinstance(value, list):
        return "list", tuple(map(_key, value))
    if isinstance(value, dict):
        return "object", frozenset((name, _key(one)) for name, one in value.items())
    return isinstance(value, bool), value


def _text(value: Any, where: str) -> bytes:
    """Return a value as JSON."""
    try:
        return json.dumps(value, ensure_ascii=False, separators=(",", ":"), allow_nan=False).encode()
    except ValueError:
        raise ValueError(f"{where} must be JSON in UTF-8, got {shown(value)}") from None


# ---------------------------------------------------------------------------- numbers


Bound: TypeAlias = tuple[Decimal, bool] | None  # the number, and whether it is left out itself


def _bound(asks: Fields, name: str, whole: bool, lowest: bool) -> Bound:
    """Return the tighter of two bounds.

    A reader makes a double of a number. Decimals of up to 15 digits are different doubles in the same order,
    so that they are compared as they are written; a bound that has more is taken to the next double inside.
    """
    found, way = [], 1 if lowest else -1
    for key, excluded in (("m" + name, False), ("exclusiveM" + name, True)):
        if (value := asks.get(key)) is None:
            continue
        if whole:
            nearest = math.ceil(value) if lowest else math.floor(value)
            found.append((Decimal(nearest + way * (excluded and nearest == value)), False))
        elif len(_digits(Decimal(repr(value)))) <= DIGITS:
            found.append((Decimal(repr(value)), excluded))
        else:
            double = float(value)
            if excluded or (isinstance(value, int) and (int(double) - value) * way < 0):
                double = math.nextafter(double, way * math.inf)
            found.append((Decimal(repr(double)), False))
    return max(found, key=lambda b: (way * b[0], b[1]), default=None)


def _digits(number: Decimal) -> str:
    return f"{abs(number):f}".replace(".", "")


@functools.lru_cache(256)
def _magnitude(low: Bound, high: Bound, whole: bool, digits: int) -> regex.Dfa:
    """Return the automaton of numbers without a sign in low..high, of at most so many digits.

    A state is the part (0 begin, 1 a lone zero, 2 whole digits, 3 the point, 4 behind it), the number of
    digits, that of those behind the point, how the digits so far compare with those of the bounds at the same
    places (-1, 0, 1), and whether all are zeros.
    """
    positive = low is not None and low[1] and low[0] == 0
    low = None if low is not None and low[0] <= 0 else low
    bounds = [f"{b[0]:f}".partition(".")[::2] if b else ("", "") for b in (low, high)]

    def ended(state: Any) -> list[int]:
        """Return how the whole part, which ends here, compares with those of the bounds."""
        sizes = [state[1] - len(whole_digits) for whole_digits, _ in bounds]
        return [(1 if size > 0 else -1) if size else c for size, c in zip(sizes, state[3], strict=True)]

    def compare(c: int, digit: str, bound: str, at: int, behind: bool) -> int:
        other = bound[at : at + 1] or ("0" if behind else digit)
        return c or (digit > other) - (digit < other)

    def row(state: Any) -> dict[regex.Ranges, Any]:
        part, n, m, compared, zeros = state
        found: dict[Any, list[tuple[int, int]]] = {}
        if part in (0, 2, 3, 4) and n < digits:
            for digit in "0123456789":
                behind = part >= 3
                at = m if behind else n
                each = zip(compared, bounds, strict=True)
                new = [compare(c, digit, b[behind], at, behind) for c, b in each]
                if behind:
                    tied = any(c == 0 for c in new)
                    to = (4, n + 1, m + 1 if tied else 0, tuple(new), zeros and digit == "0")
                else:
                    new = [1 if n >= len(b[0]) else c for c, b in zip(new, bounds, strict=True)]
                    to = (
                        1 if part == 0 and digit == "0" else 2,
                        n + 1,
                        0,
                        tuple(new),
                        zeros and digit == "0",
                    )
                found.setdefault(to, []).append((ord(digit), ord(digit)))
        if part in (1, 2) and not whole and n < digits:
            found[(3, n, 0, tuple(ended(state)), zeros)] = [(46, 46)]
        return {regex.normal(ranges): to for to, ranges in found.items()}

    def accepts(state: Any) -> bool:
        part, _, m, compared, zeros = state
        if part in (0, 3) or (zeros and positive):
            return False
        final = ended(state) if part < 4 else compared
        final = [
            c or -bool(b[1][m if part == 4 else 0 :].strip("0")) for c, b in zip(final, bounds, strict=True)
        ]
        return (low is None or final[0] >= low[1]) and (high is None or final[1] <= -high[1])

    return regex.explored((0, 0, 0, (0, 0), True), row, accepts)


def of_choices(texts: Iterable[str], alphabet: regex.Ranges = regex.ALL) -> Grammar:
    """Return the grammar of these texts; ValueError where they are none, or too much."""
    texts = [texts] if isinstance(texts, str) else list(texts)
    if not texts or not all(isinstance(one, str) and one for one in texts):
        raise ValueError(f"choice must be strings that are not empty, got {texts!r:.60}")
    if sum(map(len, texts)) > MOST_TEXT:
        raise ValueError(f"choice must be at most {MOST_TEXT} characters in all")
    for one in texts:
        if not all(any(low <= c <= high for low, high in alphabet) for c in map(ord, one)):
            raise ValueError(f"choice: {one!r:.60} has a character that this model's tokenizer cannot write")
    return Grammar(Choice(one.encode() for one in texts))


def of_regex(pattern: str, alphabet: regex.Ranges = regex.ALL) -> Grammar:
    """Return the grammar of the texts that a regex matches as a whole; ValueError for one that cannot be."""
    if not isinstance(pattern, str):
        raise TypeError(f"regex must be a string, got {pattern!r:.60}")
    dfa = regex.compiled(pattern).within(alphabet)
    if not dfa or not dfa.rows[0]:
        raise ValueError(
            f"the regex {pattern[:60]!r} matches no text" + (" but the empty one" if dfa else "")
        )
    return Grammar(Pattern(dfa, quoted=False))
