"""The fields of requests: one table in JSON Schema, which checks them and which openapi.py publishes.

The rule of npgpt.text.records holds: what asks for nothing is accepted, what asks for something is done or
refused by name. Nothing is ignored, in bodies, forms and queries.
"""

import re
from collections.abc import Iterable, Mapping

from npgpt.engine.types import Fields
from npgpt.text.messages import ITEM, MANY_MESSAGES, MESSAGE
from npgpt.text.records import (
    BOOLEAN,
    STRING,
    Fault,
    array,
    checked,
    integer,
    number,
    record,
    shown,
    string,
    unsupported,
)


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


PROMPTS, INPUTS = 64, 2048  # of one request
ID = integer(0, 2**31 - 1)
IDS = {"type": "array", "items": ID, "minItems": 1, "title": "a list of ids"}
STOP = string(1000)
AUTO = {"enum": ["auto"]}


def texts(most: int) -> Fields:
    """Return the schema of one text or up to `most`, as strings or as ids."""
    strings = array(STRING, most) | {"title": f"a list of 1 to {most} strings"}
    rows = array(IDS, most) | {"title": f"a list of 1 to {most} such"}
    return {"anyOf": [STRING, IDS, strings, rows]}


METADATA = {"type": "object", "additionalProperties": string(512), "maxProperties": 16}
ABOUT: Fields = {  # who asks and what for: no reply depends on it
    "user": STRING,
    "metadata": METADATA,
    "safety_identifier": STRING,
    "prompt_cache_key": STRING,
}
# replies that cannot leave a form, in OpenAI's words and in vLLM's
SCHEMA: Fields = {"type": "object"}
NAMED: Fields = {"name": STRING, "description": STRING, "strict": BOOLEAN, "schema": SCHEMA}
TYPE: Fields = {"enum": ["text", "json_object", "json_schema"]}
TEXT_FORMAT = record(["type"], type=TYPE, **NAMED)  # of /v1/responses
CHOICES = array(STRING, 10_000)
JSON: Fields = {"anyOf": [SCHEMA, STRING]}
GUIDED: Fields = {
    "response_format": record(["type"], type=TYPE, json_schema=record(**NAMED)),
    "guided_json": JSON,
    "guided_regex": STRING,
    "guided_choice": CHOICES,
    "guided_grammar": unsupported(),
    "guided_decoding_backend": unsupported("auto"),
    "guided_whitespace_pattern": unsupported(),
    "structured_outputs": record(
        json=JSON,
        regex=STRING,
        choice=CHOICES,
        json_object=BOOLEAN,
        grammar=unsupported(),
        structural_tag=unsupported(),
    ),
}
SAMPLING: Fields = {
    "model": STRING,
    "temperature": number(0, 2),
    "top_p": number(0, 1),
    "n": integer(1, 16),
    "stream": BOOLEAN,
    "stream_options": record(include_usage=BOOLEAN, include_obfuscation=unsupported(False)),
    "stop": {"anyOf": [STOP, array(STOP, 4, least=0)]},
    "max_tokens": integer(0, 2**31 - 1),
    "presence_penalty": number(-2, 2),
    "frequency_penalty": number(-2, 2),
    "seed": integer(-(2**63), 2**64 - 1),
    "logit_bias": {"type": "object", "additionalProperties": number(-100, 100)},
    "service_tier": unsupported("auto", "default"),
    "store": unsupported(False),
    **ABOUT,
    # beyond OpenAI's, by the names that other servers have for them
    "top_k": integer(0, 2**31 - 1),
    "min_p": number(0, 1),
    "repetition_penalty": number(0.1, 10),
    "ignore_eos": BOOLEAN,
    **GUIDED,
}
COMPLETION: Fields = {
    **SAMPLING,
    "prompt": texts(PROMPTS),
    "logprobs": integer(0, 5),
    "echo": BOOLEAN,
    "best_of": unsupported(1),
    "suffix": unsupported(""),
}
CHAT: Fields = {
    **SAMPLING,
    "messages": array(MESSAGE, MANY_MESSAGES),
    "max_completion_tokens": integer(1, 2**31 - 1),
    "logprobs": BOOLEAN,
    "top_logprobs": integer(0, 20),
    "tools": unsupported(),
    "tool_choice": unsupported("none", "auto"),
    "parallel_tool_calls": BOOLEAN,  # of tools, which there are none
    "functions": unsupported(),
    "function_call": unsupported("none", "auto"),
    "modalities": unsupported(["text"]),
    "reasoning_effort": unsupported("none"),
    "verbosity": unsupported("medium"),
    "prediction": unsupported(),
    "audio": unsupported(),
    "moderation": unsupported(nothing=False),
    "web_search_options": unsupported(nothing=False),  # {} asks for a search
    "prompt_cache_options": unsupported({"mode": "implicit"}),
    "prompt_cache_retention": unsupported("in_memory", "in-memory"),
}
TEXT_LOGPROBS = "message.output_text.logprobs"
INCLUDED = (  # the others are about tools, images and reasoning, which there are none of
    TEXT_LOGPROBS,
    "reasoning.encrypted_content",
    "message.input_image.image_url",
    "file_search_call.results",
    "web_search_call.results",
    "web_search_call.action.sources",
    "code_interpreter_call.outputs",
    "computer_call_output.output.image_url",
)
BEYOND = ("temperature", "top_p", "stream", "seed", "top_k", "min_p", "repetition_penalty", "ignore_eos")
RESPONSE: Fields = {
    "model": STRING,
    "input": {"anyOf": [STRING, array(ITEM, MANY_MESSAGES)]},
    **{name: SAMPLING[name] for name in (*BEYOND, "service_tier", *ABOUT)},
    "instructions": STRING,
    "previous_response_id": STRING,
    "store": BOOLEAN,
    "max_output_tokens": integer(1, 2**31 - 1),
    "top_logprobs": integer(0, 20),
    "include": array({"enum": [*INCLUDED]}, 16, least=0),
    "truncation": {"enum": ["disabled", "auto"]},
    "stream_options": record(include_obfuscation=unsupported(False)),
    "text": record(format=TEXT_FORMAT, verbosity=unsupported("medium")),
    "reasoning": record(effort=unsupported("none"), summary=unsupported(), generate_summary=unsupported()),
    "background": unsupported(False),
    "max_tool_calls": integer(1, 2**31 - 1),
    **{
        name: CHAT[name]
        for name in (
            "tools",
            "tool_choice",
            "parallel_tool_calls",
            "moderation",
            "prompt_cache_options",
            "prompt_cache_retention",
        )
    },
    "conversation": unsupported(),
    "prompt": unsupported(),
    "context_management": unsupported(),
}
EMBEDDING: Fields = {
    "model": STRING,
    "input": texts(INPUTS),
    "encoding_format": {"enum": ["float", "base64"]},
    "dimensions": integer(1, 2**31 - 1),
    **ABOUT,
}
HYPERPARAMETERS = record(
    n_epochs={"anyOf": [AUTO, integer(1, 1000)]},
    batch_size={"anyOf": [AUTO, integer(1, 1024)]},
    learning_rate_multiplier={"anyOf": [AUTO, number(1e-6, 1e6)]},
)
METHOD = record(
    ["type"],
    type=unsupported("supervised", nothing=False),
    supervised=record(hyperparameters=HYPERPARAMETERS),
    dpo=unsupported(),
    reinforcement=unsupported(),
)
SUFFIX = string(64, "[A-Za-z0-9_-]+") | {"title": "at most 64 letters, digits, - and _"}
JOB: Fields = {
    "model": STRING,
    "training_file": STRING,
    "validation_file": STRING,
    "suffix": SUFFIX,
    "seed": integer(0, 2**31 - 1),
    "hyperparameters": HYPERPARAMETERS,
    "method": METHOD,
    "metadata": METADATA,
    "integrations": unsupported(),
}
UPLOAD = record(
    ["file", "purpose"],
    file=STRING,
    purpose={"enum": ["fine-tune"]},
    expires_after=unsupported(),
)
REQUESTS: dict[str, tuple[Fields, tuple[str, ...]]] = {  # path -> (fields, those that must be there)
    "/v1/completions": (COMPLETION, ("model", "prompt")),
    "/v1/chat/completions": (CHAT, ("model", "messages")),
    "/v1/responses": (RESPONSE, ("model", "input")),
    "/v1/embeddings": (EMBEDDING, ("model", "input")),
    "/v1/fine_tuning/jobs": (JOB, ("model", "training_file")),
    "/explain": ({"model": STRING, "text": {"anyOf": [STRING, IDS]}}, ("model", "text")),
}
PAGE: Fields = {"after": STRING, "limit": integer(1, 100)}
QUERIES: dict[str, Fields] = {  # path of GET -> its parameters; another path and method has none
    "/v1/files": {
        "after": STRING,
        "limit": integer(1, 10_000),
        "order": {"enum": ["asc", "desc"]},
        "purpose": STRING,
    },
    "/v1/responses/{id}/input_items": {**PAGE, "order": {"enum": ["asc", "desc"]}},
    "/v1/fine_tuning/jobs": {**PAGE, "metadata": METADATA},
    "/v1/fine_tuning/jobs/{id}/events": PAGE,
    "/v1/fine_tuning/jobs/{id}/checkpoints": PAGE,
}


def check(path: str, body: object) -> Fields:
    """Return the fields that a request gives; raise ApiError 400 for the first that is not allowed."""
    fields, required = REQUESTS[path]
    if not isinstance(body, dict):
        raise ApiError(400, f"the body must be a JSON object, got {shown(body)}")
    return check_record(record(required, **fields), body)


def check_query(path: str, parameters: Iterable[tuple[str, str]]) -> Fields:
    """Return the parameters of a GET of this path; raise ApiError 400 for the first that is not allowed."""
    known, query = QUERIES.get(path, {}), nested(parameters)
    for name, value in query.items():
        kind = known.get(name, {}).get("type")
        if kind == "integer" and isinstance(value, str) and re.fullmatch("[0-9]{1,8}", value):
            query[name] = int(value)
        elif kind == "object" and value == "null":  # as OpenAI says that there must be none
            query[name] = {}
    return check_record(record(**known), query)


def nested(pairs: Iterable[tuple[str, object]]) -> Fields:
    """Return the pairs of a query or a form as an object, name[key]=value as an object inside it.

    Raise ApiError 400 for a name that is given twice.
    """
    found: Fields = {}
    for name, value in pairs:
        inside = re.fullmatch(r"([^\[\]]+)\[([^\[\]]+)\]", name)
        into, key = (found.setdefault(inside[1], {}), inside[2]) if inside else (found, name)
        if not isinstance(into, dict) or key in into:
            raise ApiError(400, f"{name[:100]} is given twice", name[:100], "invalid_value")
        into[key] = value
    return found


def check_record(schema: Fields, found: Fields) -> Fields:
    """Return a record without what asks for nothing; raise ApiError 400 for what is not allowed."""
    try:
        return dict(checked(schema, found))
    except Fault as fault:
        raise ApiError(400, str(fault), fault.where or None, fault.code) from None
