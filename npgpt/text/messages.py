"""Messages of conversations in OpenAI's format: one table, for chats and for the lines of training files."""

from typing import Any

from npgpt.engine.types import Fields
from npgpt.text.records import STRING, array, record, unsupported

MANY_PARTS, MANY_MESSAGES = 64, 1024
PART = record(["type", "text"], type={"enum": ["text"]}, text=STRING)
ROLE = {"enum": ["system", "developer", "user", "assistant"]}
FIELDS: Fields = {
    "role": ROLE,
    "content": {"anyOf": [STRING, array(PART, MANY_PARTS)]},
    # a reply that a client puts back has these, and they ask for nothing as long as they are empty
    "name": unsupported(""),
    "refusal": unsupported(""),
    "annotations": unsupported(),
    "audio": unsupported(),
    "function_call": unsupported(),
    "tool_calls": unsupported(),
    "tool_call_id": unsupported(),
}
MESSAGE = record(["role", "content"], **FIELDS)
LEARNT = record(["role", "content"], **FIELDS, weight={"enum": [0, 1, 0.0, 1.0]})  # in a training file
REFERENCE = "item_reference"
ITEM = record(  # a message as the responses API writes it, which has role and content, or the id of one kept
    type=unsupported("message", REFERENCE, nothing=False),
    role=ROLE,
    content={
        "anyOf": [
            STRING,
            array(
                record(
                    ["type", "text"],
                    type=unsupported("input_text", "output_text", nothing=False),
                    text=STRING,
                    annotations=unsupported(),
                    logprobs={},  # of a reply that is put back
                ),
                MANY_PARTS,
            ),
        ]
    },
    id=STRING,
    status={"enum": ["completed", "incomplete", "in_progress"]},
    phase=unsupported("final_answer"),
)
CONVERSATION = record(
    ["messages"],
    messages=array(LEARNT, MANY_MESSAGES) | {"title": f"a list of messages, 1 to {MANY_MESSAGES}"},
    tools=unsupported(),
    functions=unsupported(),
    parallel_tool_calls={"type": "boolean"},  # of tools, which there are none
)


def role_of(message: Fields) -> str:
    """Return a message's role as templates know it: a developer's is the system's."""
    return str(message["role"]).replace("developer", "system")


def text_of(content: Any) -> str:
    """Return the text of a content, which is a string or a list of parts."""
    return content if isinstance(content, str) else "".join(part["text"] for part in content)
