"""JSON records that others write: tables of what they may hold, in JSON Schema, and the check of a value.

One rule holds at every depth. What asks for nothing is accepted under any name where nothing is required:
null, an empty list, an empty object. What asks for something is in the table of its record, or is refused
by name. null is as if the name were not there.
"""

import re
from collections.abc import Iterable
from typing import Any

from npgpt.engine.names import meant
from npgpt.engine.types import Fields


class Fault(ValueError):
    """What is wrong with a value: the message, the place of the value such as messages[0].role, a code.

    The codes are OpenAI's: unknown_parameter, missing_required_parameter, unsupported_parameter and
    invalid_value.
    """

    def __init__(self, message: str, where: str, code: str = "invalid_value") -> None:
        super().__init__(message)
        self.where, self.code = where, code


# ---------------------------------------------------------------------------- tables

NOTHING: Fields = {"enum": [None, [], {}]}
NULL: Fields = {"type": "null"}
BOOLEAN: Fields = {"type": "boolean"}
STRING: Fields = {"type": "string"}


def number(low: float, high: float, kind: str = "number") -> Fields:
    """Return the schema of a number in low..high."""
    return {"type": kind, "minimum": low, "maximum": high}


def integer(low: float, high: float) -> Fields:
    """Return the schema of a whole number in low..high."""
    return number(low, high, "integer")


def string(most: int, pattern: str | None = None) -> Fields:
    """Return the schema of a string of at most so many characters; it may be empty, whatever the pattern."""
    return {"type": "string", "maxLength": most} | ({"pattern": pattern} if pattern else {})


def record(required: Iterable[str] = (), **properties: Any) -> Fields:
    """Return the schema of an object; under other names than these stands what asks for nothing."""
    shape = {"type": "object", "properties": properties, "required": list(required)}
    return {**shape, "additionalProperties": NOTHING}


def array(items: Fields, most: int, least: int = 1) -> Fields:
    """Return the schema of a list of least..most items."""
    return {"type": "array", "items": items, "minItems": least, "maxItems": most}


def unsupported(*values: Any, nothing: bool = True) -> Fields:
    """Return the schema of what is known and not done: only these values are accepted, and what is nothing.

    nothing=False: an empty list or object does ask for something here.
    """
    return {"enum": [*values, *([[], {}] if nothing else [])] or [None], "x-unsupported": True}


# ---------------------------------------------------------------------------- the check

TYPES = {
    "number": lambda v: isinstance(v, (int, float)) and not isinstance(v, bool),
    "integer": lambda v: isinstance(v, int) and not isinstance(v, bool),
    "string": lambda v: isinstance(v, str),
    "boolean": lambda v: isinstance(v, bool),
    "array": lambda v: isinstance(v, list),
    "object": lambda v: isinstance(v, dict),
}
LOWEST = ("minimum", "minLength", "minItems")
HIGHEST = ("maximum", "maxLength", "maxItems", "maxProperties")


def checked(schema: Fields, value: Any, where: str = "") -> Any:
    """Return a value of this schema without what asks for nothing under null; raise Fault for another one.

    `where` is its place in messages: "" for a whole request.
    """
    if fault := _fault(schema, value, where):
        raise fault
    return _without_nulls(schema, value)


def _fault(schema: Fields, value: Any, where: str) -> Fault | None:
    """Return what is wrong with a value, None if nothing is; `where` is its place.

    This is the part of JSON Schema that the tables use.
    """
    if "anyOf" in schema:
        faults = [_fault(one, value, where) for one in schema["anyOf"]]
        if None in faults:
            return None
        kinds = [_is_of_kind(one, value) for one in schema["anyOf"]]
        if sum(kinds) == 1:  # what it is meant to be, so that what is inside is named
            return faults[kinds.index(True)]
    elif _fits(schema, value):
        return _fault_inside(schema, value, where)
    if "x-unsupported" in schema:
        but = " or ".join(repr(one) for one in schema["enum"] if one not in (None, [], {}, ""))
        message = f"{where} is not supported by this server" + (f", but for {but}" if but else "")
        return Fault(message, where, "unsupported_parameter")
    return Fault(f"{where or 'the body'} must be {words(schema)}, got {shown(value)}", where)


def _is_of_kind(schema: Fields, value: Any) -> bool:
    return bool("type" in schema and TYPES[schema["type"]](value))


def _fault_inside(schema: Fields, value: Any, where: str) -> Fault | None:
    """Return what is wrong in a list or an object."""
    kind = schema.get("type")
    if kind == "array" and "items" in schema:
        items = schema["items"]
        if items.get("type") == "integer" and set(map(type, value)) == {int}:
            if items["minimum"] <= min(value) and max(value) <= items["maximum"]:
                return None  # there may be millions of them
        faults = (_fault(items, item, f"{where}[{i}]") for i, item in enumerate(value))
        return next(filter(None, faults), None)
    if kind != "object":
        return None
    known, other = schema.get("properties", {}), schema.get("additionalProperties", {})
    if "type" in known and value.get("type") is not None:  # of another type nothing else is as it should be
        if fault := _fault(known["type"], value["type"], _place(where, "type")):
            return fault
    for name, item in value.items():
        if name not in known and (fault := _fault_of_other(known, other, name, item, where)):
            return fault
    for name in schema.get("required", ()):
        if value.get(name) is None:
            message = f"{where} must have {name!r}" if where else f"you must provide a {name} parameter"
            return Fault(message, _place(where, name), "missing_required_parameter")
    given = ((name, item) for name, item in value.items() if name in known and item is not None)
    return next(filter(None, (_fault(known[n], item, _place(where, n)) for n, item in given)), None)


def _fault_of_other(known: Fields, other: Fields, name: str, item: Any, where: str) -> Fault | None:
    """Return what is wrong with a name that is not in the table of its record."""
    place = _place(where, name[:100])
    if other is not NOTHING:
        return _fault(other, item, place)
    if _fits(other, item):
        return None
    ours = meant(name[:100], known)
    hint = f"; did you mean {ours}?" if ours else ""
    if where:
        return Fault(f"{where} must not have {name[:100]!r}{hint}", where, "unknown_parameter")
    return Fault(f"Unrecognized request argument supplied: {place}{hint}", place, "unknown_parameter")


def _place(where: str, name: str) -> str:
    return f"{where}.{name}" if where else name


def _fits(schema: Fields, value: Any) -> bool:
    """Return True if a value fits, apart from what is in a list or an object."""
    if "enum" in schema:  # 1 == True, but not in JSON
        return any(value == e and type(value) is type(e) for e in schema["enum"])
    kind = schema.get("type")
    if kind is None:
        return True
    if not TYPES[kind](value):
        return False
    size = value if kind in ("number", "integer") else None if kind == "boolean" else len(value)
    # a NaN is in no range
    if not all(size >= low for low in map(schema.get, LOWEST) if low is not None):
        return False
    if not all(size <= high for high in map(schema.get, HIGHEST) if high is not None):
        return False
    return "pattern" not in schema or value == "" or bool(re.fullmatch(schema["pattern"], value))


def _without_nulls(schema: Fields, value: Any) -> Any:
    """Return a value that fits without the names of what is null, and without those that are in no table."""
    if "anyOf" in schema:
        of_kind = (one for one in schema["anyOf"] if _is_of_kind(one, value))
        return _without_nulls(next(of_kind, {}), value)
    if isinstance(value, dict) and "properties" in schema:
        known = schema["properties"]
        given = ((n, item) for n, item in value.items() if n in known and item is not None)
        return {n: _without_nulls(known[n], item) for n, item in given}
    if isinstance(value, list) and schema.get("items", {}).get("type") == "object":
        return [_without_nulls(schema["items"], item) for item in value]
    return value


def words(schema: Fields) -> str:
    """Return a schema in words, such as 'a number in 0..2' or 'a string or a list of 0 to 4 items'."""
    if "title" in schema:
        return str(schema["title"])
    if "anyOf" in schema:
        return " or ".join(map(words, schema["anyOf"]))
    if "enum" in schema:
        return " or ".join(map(repr, schema["enum"]))
    kind = schema["type"]
    if kind in ("number", "integer"):
        noun = "a number" if kind == "number" else "a whole number"
        return f"{noun} in {schema['minimum']}..{schema['maximum']}"
    if kind == "array":
        low, high = schema.get("minItems", 0), schema.get("maxItems")
        size = f"{low} to {high}" if high is not None else f"at least {low}"
        return f"a list of {size} items" + (f", each {words(schema['items'])}" if "items" in schema else "")
    if kind == "string" and "maxLength" in schema:
        return f"a string of at most {schema['maxLength']} characters"
    if kind == "object" and "maxProperties" in schema:
        return f"an object of at most {schema['maxProperties']} names"
    return {"string": "a string", "boolean": "true or false", "object": "a JSON object"}[kind]


def shown(value: Any) -> str:
    """Return a value for a message, short."""
    empty = "an " if value else "an empty "
    kind = empty.replace("an ", "a ", 1) + "list" if isinstance(value, list) else empty + "object"
    text = kind if isinstance(value, (list, dict)) else repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
