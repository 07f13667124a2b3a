"""Replies that cannot leave a form: from the fields that ask for one to masks of tokens."""

from typing import Any

from npgpt.engine.types import Fields
from npgpt.runtime.guide import Masks, Vocabulary
from npgpt.server.schema import ApiError
from npgpt.text.tokenizer import Tokenizer

KINDS = {"json": "schema", "regex": "regex", "choice": "choice"}  # vLLM's name -> ours


def masks_of(fields: Fields, tokenizer: Tokenizer) -> Masks | None:
    """Return the masks of what a request asks its texts to be, None where they are free.

    Raise ApiError 400, which names the field, for what is not supported, malformed, too large or asked twice.
    """
    asked = {"response_format": of_format(fields.get("response_format"), "response_format")}
    asked["text.format"] = of_format(fields.get("text", {}).get("format"), "text.format")
    asked |= {f"guided_{name}": (kind, fields.get(f"guided_{name}")) for name, kind in KINDS.items()}
    more = fields.get("structured_outputs", {})
    asked |= {f"structured_outputs.{name}": (kind, more.get(name)) for name, kind in KINDS.items()}
    if more.get("json_object"):
        asked["structured_outputs.json_object"] = "schema", {"type": "object"}
    given = {param: one for param, one in asked.items() if one and one[1] is not None}
    if not given:
        return None
    param = [*given][-1]
    if len(given) > 1:
        raise ApiError(400, f"{' and '.join(given)} cannot be given together", param, "invalid_value")
    for name in ("stop", "ignore_eos"):
        if fields.get(name):
            message = f"{name} is not supported with {param}, which says where the text ends"
            raise ApiError(400, message, name, "unsupported_parameter")
    return masks(*given[param], param, tokenizer)


def of_format(format: Fields | None, param: str) -> tuple[str, Any] | None:
    """Return the kind of grammar that a response_format or a text.format asks for, and its value, or None."""
    kind = (format or {}).get("type", "text")
    if format is None or kind == "text":
        return None
    if kind == "json_object":
        return "schema", {"type": "object"}
    inside = format if "schema" in format else format.get("json_schema", {})
    if "schema" not in inside:
        place = f"{param}.schema" if param == "text.format" else f"{param}.json_schema.schema"
        raise ApiError(400, f"you must provide {place}", place, "missing_required_parameter")
    return "schema", inside["schema"]


def masks(kind: str, value: Any, param: str, tokenizer: Tokenizer) -> Masks:
    """Return the masks of a grammar; raise ApiError 400, which names `param`, where there can be none."""
    try:
        return Vocabulary.of(tokenizer).masks(kind, value)
    except (ValueError, TypeError) as error:
        raise ApiError(400, f"{param}: {error}"[:500], param, "invalid_value") from None
