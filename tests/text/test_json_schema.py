"""JSON Schemas as grammars: the values that jsonschema accepts, and what is not done is refused by name."""

import datetime
import ipaddress
import itertools
import json
import random
import uuid

import pytest

from npgpt.text import json_schema
from tests.schemas import RECURSIVE, canonical, schema_of, value_of

CLOSED = {"type": "object", "additionalProperties": False}


def test_a_value_is_accepted_where_jsonschema_accepts_it():
    jsonschema = pytest.importorskip("jsonschema")
    rng, counts, made = random.Random(5), [0, 0], 0
    while made < 150:
        schema = schema_of(rng)
        values = [value_of(rng, schema) for _ in range(20)]
        theirs = jsonschema.Draft202012Validator(schema)
        try:
            grammar = json_schema.compiled(schema)
        except ValueError as error:
            assert "no text can meet it" in str(error)
            assert not any(map(theirs.is_valid, values)), schema
            continue
        made += 1
        for value in values:
            valid = theirs.is_valid(value)
            assert grammar.matches(canonical(value)) == valid, (schema, value)
            counts[valid] += 1
    assert min(counts) > 500


def written(grammar, rng, most=400):
    """Bytes drawn from a grammar, and whether they ended."""
    place, data = grammar.start, bytearray()
    while len(data) < most:
        if grammar.is_over(place) or (grammar.accepts(place) and rng.random() < 0.3):
            return bytes(data), True
        row = [byte for byte, to in enumerate(grammar.row(place)) if to]
        closing = [byte for byte in row if byte in b'"}],']
        data.append(rng.choice(closing if closing and rng.random() < 0.4 else row))
        place = grammar.after(place, data[-1])
    return bytes(data), False


def test_whatever_is_written_is_valid():
    jsonschema = pytest.importorskip("jsonschema")
    rng, ended, made = random.Random(6), 0, 0
    while made < 60:
        schema = schema_of(rng)
        try:
            grammar = json_schema.compiled(schema)
        except ValueError:
            continue
        made += 1
        for _ in range(3):
            data, over = written(grammar, rng)
            if over:
                value = json.loads(data)
                jsonschema.validate(value, schema, jsonschema.Draft202012Validator)
                assert grammar.matches(data)
                ended += 1
    assert ended > 120


@pytest.mark.parametrize("kind", ["integer", "number"])
def test_bounds_of_numbers_digit_by_digit(kind):
    numbers = [
        *range(-130, 131),
        998,
        999,
        1000,
        1001,
        12345,
        0.5,
        0.6,
        0.75,
        0.76,
        -0.5,
        9.99,
        10.5,
        -119.9,
        -120.1,
    ]
    for low, high in [
        (None, None),
        (0, 0),
        (-5, 7),
        (99, 101),
        (1000, None),
        (None, -12),
        (-120, -7),
        (0.5, 0.75),
        (-1, 1),
    ]:
        for names in (("minimum", "maximum"), ("exclusiveMinimum", "exclusiveMaximum")):
            bounds = {n: b for n, b in zip(names, (low, high), strict=True) if b is not None}
            tight = [
                n for n in numbers if (kind == "number" or n == int(n)) and _inside(n, low, high, names[0])
            ]
            try:
                grammar = json_schema.compiled({"type": kind, **bounds})
            except ValueError:
                assert not tight
                continue
            assert [n for n in numbers if grammar.matches(canonical(n))] == tight, bounds


def _inside(n, low, high, name):
    strict = name.startswith("exclusive")
    return all(b is None or (b < n if strict else b <= n) for b in (low,)) and all(
        b is None or (n < b if strict else n <= b) for b in (high,)
    )


def test_numbers_have_at_most_15_digits_unless_their_bounds_have_more():
    free = json_schema.compiled({"type": "number"})
    assert free.matches("-123456789.012345") and not free.matches("1234567890.123456")
    assert not any(map(free.matches, ("01", "1e5", "-0", "+1", "1.", ".5", " 1", "1 ", "")))
    assert json_schema.compiled({"type": "integer", "minimum": 10**18}).matches(str(10**18 + 1))
    tiny = json_schema.compiled({"type": "number", "exclusiveMinimum": 0, "maximum": 1e-20})
    assert tiny.matches("0.00000000000000000001") and not tiny.matches("0")
    # a bound of 17 digits that is left out: what a reader makes of the text must be another double
    third = json_schema.compiled({"type": "number", "exclusiveMinimum": 0.1 + 0.2})
    assert not third.matches("0.3") and third.matches("0.30000000000001")


def test_objects():
    schema = {"properties": {"a": {"type": "null"}, "é": True}, "required": ["b"]}
    grammar = json_schema.compiled(schema)
    assert grammar.matches('{"a":null,"é":[1],"b":{"x":[]}}') and grammar.matches('{"b":0}')
    assert not any(
        map(grammar.matches, ('{"a":null}', '{"b":0,"a":null}', '{"b":0,"c":1}', '{"b": 0}', "{}"))
    )
    open_ = json_schema.compiled({"properties": {"ab": {"type": "null"}}, "additionalProperties": True})
    assert open_.matches('{"a":1,"abc":2,"é\\n":3}') and not open_.matches('{"ab":1}')  # a name has one value
    assert json_schema.compiled({"type": "object"}).matches('{"any":[{"thing":"é"}]}')


def test_tuples():
    jsonschema = pytest.importorskip("jsonschema")
    for least, most in itertools.product((0, 1, 2, 3), (None, 0, 1, 2, 3, 4)):
        for items in (True, False, {"type": "null"}):
            schema = {
                "prefixItems": [{"type": "integer"}, {"type": "string"}],
                "items": items,
                "minItems": least,
            }
            schema |= {"type": "array"} | ({} if most is None else {"maxItems": most})
            theirs = jsonschema.Draft202012Validator(schema)
            values = [
                [],
                [1],
                [1, "a"],
                ["a"],
                [1, "a", None],
                [1, "a", 5],
                [1, "a", None, None],
                [1, "a", *[None] * 3],
            ]
            if not any(map(theirs.is_valid, values)):
                continue
            grammar = json_schema.compiled(schema)
            assert list(map(grammar.matches, map(canonical, values))) == list(map(theirs.is_valid, values)), (
                schema
            )


def test_formats_are_read_by_python_and_pydantic_alike():
    readers = {
        "date": datetime.date.fromisoformat,
        "time": datetime.time.fromisoformat,
        "date-time": datetime.datetime.fromisoformat,
        "uuid": uuid.UUID,
        "ipv4": ipaddress.IPv4Address,
    }
    assert readers.keys() == json_schema.FORMATS.keys()
    for name, read in readers.items():
        grammar, rng = json_schema.compiled({"type": "string", "format": name}), random.Random(4)
        for _ in range(30):
            data, over = written(grammar, rng)
            assert over
            assert read(json.loads(data))


def test_references():
    tree = {"$ref": "#/$defs/t", "$defs": {"t": {"type": "array", "items": {"$ref": "#/$defs/t"}}}}
    grammar = json_schema.compiled(tree)
    assert grammar.matches("[[],[[[]]]]") and grammar.matches("[" * 20 + "]" * 20)
    assert not grammar.matches("[" * 30 + "]" * 30)  # as deep as DEPTH alone
    place = grammar.read(grammar.start, b"[" * 24)
    assert [byte for byte, to in enumerate(grammar.row(place)) if to] == [ord("]")]
    whole = {"properties": {"child": {"anyOf": [{"$ref": "#"}, {"type": "null"}]}}, "required": ["child"]}
    assert json_schema.compiled(whole).matches('{"child":{"child":null}}')
    path = {"type": "array", "items": {"$ref": "#/definitions/a~1b"}, "definitions": {"a/b": {"const": 1}}}
    assert json_schema.compiled(path).matches("[1,1]")


def test_any_of_beside_other_keywords():
    schema = {"type": "string", "maxLength": 3, "anyOf": [{"minLength": 2}, {"pattern": "^x"}]}
    grammar = json_schema.compiled(schema)
    assert [t for t in ("a", "x", "ab", "xabc") if grammar.matches(f'"{t}"')] == ["x", "ab"]


PET = {"type": "object", "required": ["kind"], "additionalProperties": False}
JOINED = [  # schema, values that meet it, values that do not
    (
        {"oneOf": [{"type": "string", "maxLength": 2}, {"type": ["integer", "null"]}, {"enum": [True, [1]]}]},
        ["ab", 3, None, True, [1]],
        ["abc", 1.5, False, [2]],
    ),
    (  # a discriminated union, as pydantic writes it
        {
            "$defs": {
                name: PET | {"properties": {"kind": {"const": name}, "n": {"type": "integer"}}}
                for name in ("cat", "dog")
            },
            "oneOf": [{"$ref": "#/$defs/cat"}, {"$ref": "#/$defs/dog"}],
            "discriminator": {"propertyName": "kind", "mapping": {"cat": "#/$defs/cat"}},
        },
        [{"kind": "cat"}, {"kind": "dog", "n": 2}],
        [{"kind": "cow"}, {"n": 2}, {"kind": "dog", "n": "2"}],
    ),
    (
        {"type": ["string", "integer"], "oneOf": [{"type": "string", "pattern": "^a"}, {"type": "integer"}]},
        ["ab", 1],
        ["b", 1.5, None],
    ),
    (
        {
            "$defs": {"s": {"type": "string"}},
            "allOf": [{"$ref": "#/$defs/s"}, {"maxLength": 2}, {"pattern": "a"}],
        },
        ["a", "ba"],
        ["bab", "b", 1],
    ),
    (
        PET | {"properties": {"kind": {}, "n": {"type": "null"}}, "allOf": [{"required": ["n"]}, True]},
        [{"kind": 1, "n": None}],
        [{"kind": 1}, {"n": None}],
    ),
    (
        {
            "properties": {
                "a": {"allOf": [{"$ref": "#/$defs/list"}], "description": "as pydantic writes it"}
            },
            "required": ["a"],
            "$defs": {"list": {"type": "array", "items": {"allOf": [{"$ref": "#/$defs/list"}]}}},
        },
        [{"a": []}, {"a": [[], [[]]]}],
        [{"a": [1]}, {}],
    ),
    (
        {"allOf": [{"type": "number"}, {"type": ["integer", "string"]}, {"minimum": 2}]},
        [2, 17],
        [1, 2.5, "a"],
    ),
]


@pytest.mark.parametrize(("schema", "good", "bad"), JOINED)
def test_one_of_and_all_of(schema, good, bad):
    jsonschema = pytest.importorskip("jsonschema")
    grammar, theirs = json_schema.compiled(schema), jsonschema.Draft202012Validator(schema)
    for value in good + bad:
        assert grammar.matches(canonical(value)) == theirs.is_valid(value) == (value in good), value


def test_alternatives_of_one_of_are_disjoint_where_it_is_taken():
    """What is taken for disjoint has no value in both, and so oneOf has those of anyOf."""
    jsonschema = pytest.importorskip("jsonschema")
    rng, taken, refused, met = random.Random(7), 0, 0, 0
    while taken < 100:
        parts = [schema_of(rng, 2) for _ in range(2)]
        defs = {"$defs": {"list": RECURSIVE}}
        both = [jsonschema.Draft202012Validator(part | defs) for part in parts]
        try:
            grammar = json_schema.compiled({"oneOf": parts, **defs})
        except ValueError:
            refused += 1
            continue
        taken += 1
        for value in [value_of(rng, part) for part in parts for _ in range(15)]:
            valid = [one.is_valid(value) for one in both]
            assert not all(valid), (parts, value)
            assert grammar.matches(canonical(value)) == any(valid), (parts, value)
            met += any(valid)
    assert refused > 20 and met > 500


def test_items_beside_the_first_ones_of_another_schema_are_not_joined():
    schema = {"anyOf": [{"items": {"type": "string"}}, {"type": "null"}], "type": ["array", "null"]}
    assert json_schema.compiled(schema).matches('["a"]')


@pytest.mark.parametrize(
    ("schema", "why"),
    [
        (5, "schema must be a JSON object, got 5"),
        ({"not": {}}, "schema: the keyword 'not' is not supported"),
        (
            {"properties": {"a": {"items": {"allOf": []}}}},
            r"schema.properties.a.items.allOf must be a list that is not empty",
        ),
        ({"oneOf": [{"type": "integer"}, {"type": "number"}]}, r"no value may meet both \[0\] and \[1\]"),
        ({"oneOf": [{"type": "string"}, {"maxLength": 3}]}, r"no value may meet both \[0\] and \[1\]"),
        (
            {"oneOf": [{"const": 1}, {"type": "null"}, {"enum": [2, 1.0]}]},
            r"no value may meet both \[0\] and",
        ),
        ({"oneOf": [CLOSED | {"properties": {"a": {"const": n}}} for n in (1, 2)]}, "required property"),
        ({"oneOf": [{"$ref": "#"}, {"$ref": "#"}]}, "required property of their own"),
        (
            {"oneOf": [{"$ref": "#/$defs/a"}, {}], "$defs": {"a": {"$ref": "#/$defs/a"}}},
            "schema is too large",
        ),
        ({"oneOf": [{"const": i} for i in range(1000)]}, "the schema is too large"),
        ({"oneOf": [{"enum": 3}, {}]}, "enum must be a list"),
        (
            {"allOf": [{"minLength": 2}, {"minLength": 3}]},
            r"schema.allOf\[1\]: minLength is not supported here",
        ),
        ({"allOf": [{"properties": {"a": {}}}, {"additionalProperties": False}]}, "is not supported here"),
        ({"allOf": [{"$ref": "#"}, {"type": "object"}]}, "is not supported here"),
        ({"prefixItems": [{}], "anyOf": [{"items": {"type": "null"}}]}, "is not supported here"),
        ({"$defs": {"a": {"x": 1}}, "$ref": "#/$defs/a"}, r"schema.\$ref: the keyword 'x' is not supported"),
        ({"type": "strin"}, "schema.type must be a type of JSON"),
        ({"type": "string", "minlength": 1}, "'minlength' is not supported; did you mean minLength"),
        ({"type": "string", "minLength": -1}, "minLength must be a whole number in 0..1000000, got -1"),
        ({"type": "string", "maxLength": 1.5}, "maxLength must be a whole number"),
        ({"type": "string", "pattern": "(?=a)"}, r"schema.pattern: the regex '\(\?=a\)' cannot be used"),
        ({"type": "integer", "minimum": "1"}, "minimum must be a number"),
        ({"type": "integer", "minimum": 10**400}, "minimum must be a number below"),
        ({"type": "number", "minimum": 5e-324}, "at most 60 digits"),
        (
            {"type": "string", "format": "email"},
            "schema.format must be one of date, time, date-time, uuid, ipv4",
        ),
        ({"format": "date", "pattern": "1"}, "pattern is not supported beside format"),
        (
            {"properties": {"a.b\n": {"x": 1}}},
            r"^schema.properties\['a.b\\n'\]: the keyword 'x' is not supported$",
        ),
        ({"required": "a"}, "required must be a list of names"),
        ({"anyOf": []}, "anyOf must be a list that is not empty"),
        ({"enum": []}, "enum must be a list that is not empty"),
        ({"enum": ["\ud800"]}, "schema.enum must be JSON in UTF-8"),
        ({"enum": [1], "minimum": 0}, "minimum is not supported beside enum"),
        ({"$ref": "#/a"}, "must name a part of the schema"),
        ({"$ref": "https://x/y"}, "must name a part of the schema"),
        ({"$ref": "#", "type": "object"}, "type is not supported beside"),
        ({"$ref": "#"}, "its references never end"),
        ({"properties": {"a": {"$ref": "#"}}, "required": ["a"]}, "its references never end"),
        ({"properties": {"a": {}}, "anyOf": [{"properties": {"b": {}}}]}, "properties is not supported here"),
        ({"type": "integer", "minimum": 3, "maximum": 2}, "no text can meet it"),
        ({"type": "array", "items": False, "minItems": 1}, "no text can meet it"),
        ({"type": "string", "pattern": "^aa$", "maxLength": 1}, "no text can meet it"),
        ({"type": "string", "pattern": "^[a-z]+$", "maxLength": 10**6}, "more than 5000 states"),
        (False, "no text can meet it"),
        ({"enum": ["x" * 200_000]}, "at most 100000 bytes"),
        ({"properties": {str(i): {"type": "null"} for i in range(6000)}}, "the schema is too large"),
        ({"properties": {str(i): {"pattern": f"^(a?){{{i}}}$"} for i in range(300)}}, "too many steps"),
    ],
    ids=lambda one: str(one)[:40],
)
def test_what_is_not_done_is_refused_by_name(schema, why):
    with pytest.raises(ValueError, match=why):
        json_schema.compiled(schema)


def test_many_ways_at_once_stay_bounded_and_inside():
    """Alternatives that double with each level are left out beyond a bound, and what is left can end."""
    deep = {"$ref": "#/$defs/t"}
    either = [{"type": "array", "items": deep, "minItems": n} for n in (0, 1, 2)]
    grammar = json_schema.compiled({**deep, "$defs": {"t": {"anyOf": [*either, {"type": "integer"}]}}})
    place = grammar.read(grammar.start, b"[" * 15)
    assert 0 < len(place) <= 512
    data, over = written(grammar, random.Random(1), 5000)
    assert grammar.matches(data) if over else grammar.read(grammar.start, data)
