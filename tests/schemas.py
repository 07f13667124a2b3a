"""Random JSON Schemas of the keywords that npgpt knows, random values for them, and their canonical JSON."""

import json
import random
from typing import Any

WORDS = ["", "a", "ab", "abc", "né", "日", 'q"\\', "\n\x01", "😀x", "a-b_1", "zzzz"]
PATTERNS = ["^[a-c]+$", "b", "^(ab|né)*$", r"^\d{1,3}-[xyz]?$", "^[^a]{2}$", "x|^$", "[0-9a-z]$"]
RECURSIVE: dict[str, Any] = {
    "type": "object",
    "properties": {
        "v": {"enum": [1, "é", None]},
        "next": {"anyOf": [{"$ref": "#/$defs/list"}, {"type": "null"}]},
    },
    "required": ["v", "next"],
    "additionalProperties": False,
}


def canonical(value: Any) -> str:
    """Return a value as npgpt writes it."""
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))


def schema_of(rng: random.Random, depth: int = 3) -> dict[str, Any]:
    """Return a random schema; it may be one that nothing meets."""
    made = _schema(rng, depth)
    if '"anyOf"' in (text := json.dumps(made)):  # an alternative's other names may be another's, in its order
        made = json.loads(
            text.replace('"additionalProperties": {"type": "integer"}', '"additionalProperties": false')
        )
    return made | {"$defs": {"list": RECURSIVE}} if "#/$defs/list" in json.dumps(made) else made


def _schema(rng: random.Random, depth: int) -> dict[str, Any]:
    kinds = ["string", "pattern", "integer", "number", "plain", "enum", "types"]
    kind = rng.choice([*kinds, *["object", "array", "either", "ref"] * 2] if depth else kinds)
    some = [rng.randrange(4), rng.randrange(4)]
    if kind in ("string", "pattern"):
        made: dict[str, Any] = {"type": "string", "title": "t"}
        made |= rng.choice([{}, {"minLength": min(some)}, {"maxLength": max(some)}])
        return made | ({"pattern": rng.choice(PATTERNS)} if kind == "pattern" else {})
    if kind in ("integer", "number"):
        bounds = sorted(
            rng.choice([-1000, -17, -2.5, -1, 0, 0.25, 1, 3, 9.75, 10, 99, 100000]) for _ in range(2)
        )
        names = rng.choice(
            [("minimum", "maximum"), ("exclusiveMinimum", "exclusiveMaximum"), ("minimum",), ("maximum",), ()]
        )
        return {"type": kind} | {n: bounds["aximum" in n] for n in names}
    if kind == "plain":
        return rng.choice([{"type": "boolean"}, {"type": "null"}, {"const": rng.choice(WORDS)}])
    if kind == "enum":
        return {"enum": rng.sample([*WORDS, 1, 2.5, None, True, [1, "a"], {"k": "é"}], 3)}
    if kind == "types":
        return {"type": ["integer", "null", "string"], "maxLength": 2, "minimum": -3}
    if kind == "object":
        names = sorted(rng.sample(WORDS, rng.randrange(4)))
        other = rng.choice([False, False, False, {"type": "integer"}])
        made = {"type": "object", "properties": {n: _schema(rng, depth - 1) for n in names}}
        return made | {"required": [n for n in names if rng.random() < 0.5], "additionalProperties": other}
    if kind == "array":
        sizes = rng.choice([{"maxItems": max(some)}, {"minItems": min(some), "maxItems": max(some)}, {}])
        return {"type": "array", "items": _schema(rng, depth - 1), **sizes}
    if kind == "ref":
        return {"$ref": "#/$defs/list"}
    return {"anyOf": [_schema(rng, depth - 1) for _ in range(rng.randrange(1, 4))]}


def value_of(rng: random.Random, schema: dict[str, Any], depth: int = 3) -> Any:
    """Return a value that is often one of the schema's, its names in order."""
    if rng.random() < 0.05 or depth < -3:
        return rng.choice([*WORDS, -3, 0, 0.25, 7, 100001, None, True, [], {}])
    if "$ref" in schema:
        return value_of(rng, RECURSIVE, depth - 1)
    if "anyOf" in schema:
        return value_of(rng, rng.choice(schema["anyOf"]), depth)
    if "enum" in schema or "const" in schema:
        return rng.choice(schema.get("enum", [schema.get("const")]))
    kind = schema["type"] if isinstance(schema["type"], str) else rng.choice(schema["type"])
    if kind == "string":
        letters = rng.choice([["ab", "né"], ["a", "b", "c"], ["1", "-", "x"], [*'né日"\\\t😀_z', "x"]])
        return "".join(rng.choice(letters) for _ in range(rng.randrange(5)))
    if kind in ("integer", "number"):
        near = [v for k, v in schema.items() if "imum" in k] + [0, 5]
        value = rng.choice(near) + rng.choice([0, 0, 1, -1, 0.25, -0.5, 1000])
        return int(value) if kind == "integer" else value or 0
    if kind == "array":
        return [value_of(rng, schema["items"], depth - 1) for _ in range(rng.randrange(4))]
    if kind == "object":
        given = {
            n: value_of(rng, s, depth - 1) for n, s in schema["properties"].items() if rng.random() < 0.85
        }
        return given | ({"more": 5} if rng.random() < 0.1 else {})
    return None if kind == "null" else rng.random() < 0.5
