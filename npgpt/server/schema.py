"""The fields of requests: one table in JSON Schema, which checks them and which openapi.py publishes.

A field that is not in the table is refused, and so is one that asks for what this server does not do
(UNSUPPORTED): nothing is ignored. A field that is null has its default.
"""

import re
from collections.abc import Iterable, Mapping
from typing import Any

from npgpt.engine.names import meant
from npgpt.engine.types import Fields


class ApiError(Exception):
    """An error that the client gets as OpenAI's error object, with an HTTP status."""

    def __init__(
        self,
        status: int,
        message: str,
        param: str | None = None,
        code: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.param, self.code, self.headers = status, param, code, headers or {}
        kinds = {429: "rate_limit_error"}
        self.type = kinds.get(status, "invalid_request_error" if status < 500 else "server_error")

    def object(self) -> Fields:
        """Return the body of the response."""
        return {"error": {"message": str(self), "type": self.type, "param": self.param, "code": self.code}}


def number(low: float, high: float, kind: str = "number") -> Fields:
    """Return the schema of a number in low..high."""
    return {"type": kind, "minimum": low, "maximum": high}


def integer(low: float, high: float) -> Fields:
    """Return the schema of a whole number in low..high."""
    return number(low, high, "integer")


def record(required: Iterable[str] = (), closed: bool = False, **properties: Any) -> Fields:
    """Return the schema of an object; a closed one has no other properties."""
    shape = {"type": "object", "properties": properties, "required": list(required)}
    return {**shape, "additionalProperties": False} if closed else shape


def array(items: Fields, most: int) -> Fields:
    """Return the schema of a list of 1..most items."""
    return {"type": "array", "items": items, "minItems": 1, "maxItems": most}


BOOLEAN, NULL = {"type": "boolean"}, {"type": "null"}
STRING = {"type": "string"}
MANY = 64  # prompts, inputs, messages' parts in one request
ID = integer(0, 2**31 - 1)
IDS = {"type": "array", "items": ID, "minItems": 1, "title": "a list of ids"}
TEXTS = array(STRING, MANY) | {"title": f"a list of 1 to {MANY} strings"}
ROWS = array(IDS, MANY) | {"title": f"a list of 1 to {MANY} such"}
STOP = {"type": "string", "minLength": 1, "maxLength": 1000}
STREAM_OPTIONS = record(closed=True, include_usage=BOOLEAN)
PART = record(["type", "text"], closed=True, type={"enum": ["text"]}, text=STRING)
CONTENT = {"anyOf": [STRING, array(PART, MANY)]}
ROLE = {"enum": ["system", "developer", "user", "assistant"]}
MESSAGE = record(["role", "content"], closed=True, role=ROLE, content=CONTENT, name=STRING)
NOTHING = {"type": "object", "maxProperties": 0}

# fields of no effect here are allowed as long as they ask for none
UNSUPPORTED: Fields = {
    "best_of": {"enum": [1]},
    "suffix": {"enum": [""]},
    "logit_bias": NOTHING,
    "tools": {"type": "array", "maxItems": 0},
    "functions": {"type": "array", "maxItems": 0},
    "response_format": record(["type"], closed=True, type={"enum": ["text"]}),
    "store": {"enum": [False]},
    "modalities": {"enum": [["text"]]},
}

SAMPLING: Fields = {
    "model": STRING,
    "temperature": number(0, 2),
    "top_p": number(0, 1),
    "n": integer(1, 16),
    "stream": BOOLEAN,
    "stream_options": STREAM_OPTIONS,
    "stop": {"anyOf": [STOP, {"type": "array", "items": STOP, "maxItems": 4}]},
    "max_tokens": integer(0, 2**31 - 1),
    "presence_penalty": number(-2, 2),
    "frequency_penalty": number(-2, 2),
    "seed": integer(-(2**63), 2**64 - 1),
    "user": STRING,
    # beyond OpenAI's, by the names that other servers have for them
    "top_k": integer(0, 2**31 - 1),
    "min_p": number(0, 1),
    "repetition_penalty": number(0.1, 10),
    "ignore_eos": BOOLEAN,
}
COMPLETION: Fields = {
    **SAMPLING,
    "prompt": {"anyOf": [STRING, IDS, TEXTS, ROWS]},
    "logprobs": integer(0, 5),
    "echo": BOOLEAN,
    **{name: UNSUPPORTED[name] for name in ("best_of", "suffix", "logit_bias")},
}
CHAT: Fields = {
    **SAMPLING,
    "messages": array(MESSAGE, 1024),
    "max_completion_tokens": integer(1, 2**31 - 1),
    "logprobs": BOOLEAN,
    "top_logprobs": integer(0, 20),
    **{name: shape for name, shape in UNSUPPORTED.items() if name not in ("best_of", "suffix")},
}
EMBEDDING: Fields = {
    "model": STRING,
    "input": {"anyOf": [STRING, IDS, TEXTS, ROWS]},
    "encoding_format": {"enum": ["float", "base64"]},
    "user": STRING,
}
AUTO = {"enum": ["auto"]}
HYPERPARAMETERS = record(
    closed=True,
    n_epochs={"anyOf": [AUTO, integer(1, 1000)]},
    batch_size={"anyOf": [AUTO, integer(1, 1024)]},
    learning_rate_multiplier={"enum": ["auto", 1, 1.0]},
)
SUPERVISED = record(closed=True, hyperparameters=HYPERPARAMETERS)
METHOD = record(["type"], closed=True, type={"enum": ["supervised"]}, supervised=SUPERVISED)
JOB: Fields = {
    "model": STRING,
    "training_file": STRING,
    "validation_file": STRING,
    "suffix": {"type": "string", "minLength": 1, "maxLength": 64, "pattern": "^[A-Za-z0-9_-]+$"},
    "seed": integer(0, 2**31 - 1),
    "hyperparameters": HYPERPARAMETERS,
    "method": METHOD,
}
REQUESTS: dict[str, tuple[Fields, tuple[str, ...]]] = {  # path -> (fields, those that must be there)
    "/v1/completions": (COMPLETION, ("model", "prompt")),
    "/v1/chat/completions": (CHAT, ("model", "messages")),
    "/v1/embeddings": (EMBEDDING, ("model", "input")),
    "/v1/fine_tuning/jobs": (JOB, ("model", "training_file")),
}


def check(path: str, body: object) -> Fields:
    """Return the fields that a request gives; raise ApiError 400 for the first that is not allowed."""
    fields, required = REQUESTS[path]
    if not isinstance(body, dict):
        raise ApiError(400, f"the body must be a JSON object, got {_shown(body)}")
    for name in body:
        if name not in fields:
            message = f"Unrecognized request argument supplied: {name[:100]}"
            if ours := meant(name[:100], fields):
                message += f"; did you mean {ours}?"
            raise ApiError(400, message, name[:100], "unknown_parameter")
    given = {name: value for name, value in body.items() if value is not None}
    for name in required:
        if name not in given:
            message = f"you must provide a {name} parameter"
            raise ApiError(400, message, name, "missing_required_parameter")
    for name, value in given.items():
        fault = _fault(fields[name], value, name)
        if fault and name in UNSUPPORTED:
            raise ApiError(400, f"{name} is not supported by this server", name, "unsupported_parameter")
        if fault:
            raise ApiError(400, fault, name, "invalid_value")
    return given


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


def _fault(schema: Fields, value: Any, where: str) -> str | None:
    """Return what is wrong with a value, None if nothing is; `where` names the value.

    This is the part of JSON Schema that the tables use.
    """
    if not _fits(schema, value):
        return f"{where} must be {_words(schema)}, got {_shown(value)}"
    kind = schema.get("type")
    if kind == "array" and schema.get("items") is ID and set(map(type, value)) == {int}:
        if ID["minimum"] <= min(value) and max(value) <= ID["maximum"]:
            return None  # there may be millions of them
    if kind == "array" and "items" in schema:
        of_items = (_fault(schema["items"], item, f"{where}[{i}]") for i, item in enumerate(value))
        return next(filter(None, of_items), None)
    if kind == "object" and "properties" in schema:
        for name, item in value.items():
            if name not in schema["properties"]:
                return f"{where} must not have {name[:100]!r}"
            if fault := _fault(schema["properties"][name], item, f"{where}.{name}"):
                return fault
        for name in schema.get("required", ()):
            if name not in value:
                return f"{where} must have {name!r}"
    return None


def _fits(schema: Fields, value: Any) -> bool:
    """Return True if a value fits, apart from what is in a list or an object."""
    if "anyOf" in schema:
        return any(_fault(one, value, "") is None for one in schema["anyOf"])
    if "enum" in schema:  # 1 == True, but not in JSON
        return any(value == e and type(value) is type(e) for e in schema["enum"])
    kind = schema["type"]
    if not TYPES[kind](value):
        return False
    size = value if kind in ("number", "integer") else None if kind == "boolean" else len(value)
    # a NaN is in no range
    if not all(size >= low for low in map(schema.get, LOWEST) if low is not None):
        return False
    if not all(size <= high for high in map(schema.get, HIGHEST) if high is not None):
        return False
    return "pattern" not in schema or bool(re.fullmatch(schema["pattern"], value))


def _words(schema: Fields) -> str:
    """Return a schema in words, such as 'a number in 0..2' or 'a string or a list of 0 to 4 items'."""
    if "title" in schema:
        return str(schema["title"])
    if "anyOf" in schema:
        return " or ".join(map(_words, schema["anyOf"]))
    if "enum" in schema:
        return " or ".join(map(repr, schema["enum"]))
    kind = schema["type"]
    if kind in ("number", "integer"):
        noun = "a number" if kind == "number" else "a whole number"
        return f"{noun} in {schema['minimum']}..{schema['maximum']}"
    if kind == "array":
        low, high = schema.get("minItems", 0), schema.get("maxItems")
        size = f"{low} to {high}" if high is not None else f"at least {low}"
        return f"a list of {size} items" + (f", each {_words(schema['items'])}" if "items" in schema else "")
    if kind == "string" and "maxLength" in schema:
        letters = " of _-, letters and digits" if "pattern" in schema else ""
        return f"a string of {schema['minLength']} to {schema['maxLength']} characters{letters}"
    return {"string": "a string", "boolean": "true or false", "object": "an object"}[kind]


def _shown(value: Any) -> str:
    text = "a list" if isinstance(value, list) else "an object" if isinstance(value, dict) else repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
