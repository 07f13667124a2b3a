"""The table of fields: every fault is named, nothing is ignored."""

import pytest

from npgpt.server.openapi import describe
from npgpt.server.schema import REQUESTS, ApiError, check

COMPLETION = {"model": "m", "prompt": "a"}


@pytest.mark.parametrize(
    "more, param, message",
    [
        ({"temperature": 2.5}, "temperature", "temperature must be a number in 0..2, got 2.5"),
        ({"temperature": True}, "temperature", "got True"),
        ({"temperature": "1"}, "temperature", "a number in 0..2, got '1'"),
        ({"n": 1.5}, "n", "n must be a whole number in 1..16, got 1.5"),
        ({"n": 0}, "n", "got 0"),
        ({"stream": "yes"}, "stream", "stream must be true or false"),
        ({"stop": ["a"] * 5}, "stop", "stop must be"),
        ({"stop": ""}, "stop", "stop must be"),
        ({"logprobs": 6}, "logprobs", "0..5"),
        ({"prompt": [1, "a"]}, "prompt", "prompt must be"),
        ({"prompt": []}, "prompt", "prompt must be"),
        ({"prompt": {"a": 1}}, "prompt", "got an object"),
        ({"prompt": None}, "prompt", "you must provide a prompt parameter"),
        ({"stream_options": {"usage": True}}, "stream_options", "must not have 'usage'"),
        ({"logit_bias": {"5": 1}}, "logit_bias", "logit_bias is not supported by this server"),
        ({"suffix": "x"}, "suffix", "not supported"),
        ({"best_of": 2}, "best_of", "not supported"),
        ({"temprature": 1}, "temprature", "supplied: temprature; did you mean temperature?"),
        ({"max_new_tokens": 9}, "max_new_tokens", "supplied: max_new_tokens; did you mean max_tokens?"),
        ({"x" * 1000: 1}, "x" * 100, "Unrecognized"),
        ({"seed": 2**64}, "seed", "seed must be"),
    ],
)
def test_what_is_refused(more, param, message):
    with pytest.raises(ApiError) as error:
        check("/v1/completions", COMPLETION | more)
    assert error.value.status == 400 and error.value.param == param and message in str(error.value)
    assert len(str(error.value)) < 500


@pytest.mark.parametrize(
    "message",
    [
        {"role": "tool", "content": "a"},
        {"role": "user"},
        {"role": "user", "content": None},
        {"role": "user", "content": [{"type": "image_url", "image_url": {}}]},
        {"role": "user", "content": "a", "tool_calls": []},
        "a",
    ],
)
def test_messages_that_are_refused(message):
    with pytest.raises(ApiError):
        check("/v1/chat/completions", {"model": "m", "messages": [message]})


def test_each_of_many_ids_is_checked():
    many = {"model": "m", "prompt": [1] * 2_000_000}
    assert check("/v1/completions", many) == many
    for ids in ([True], [1.0], [-1], [2**31], [[True]], [[1], [2**31]]):
        with pytest.raises(ApiError, match="prompt"):
            check("/v1/completions", {"model": "m", "prompt": ids})


def test_what_asks_for_nothing_is_allowed():
    nothing = {"best_of": 1, "logit_bias": {}, "suffix": None, "user": "me", "stop": None}
    assert check("/v1/completions", COMPLETION | nothing) == COMPLETION | {
        name: value for name, value in nothing.items() if value is not None
    }
    chat = {"model": "m", "messages": [{"role": "user", "content": "a"}]}
    assert check("/v1/chat/completions", chat | {"response_format": {"type": "text"}, "tools": []})


@pytest.mark.parametrize("body", [None, 1, [], "a", True])
def test_a_body_that_is_no_object(body):
    with pytest.raises(ApiError, match="must be a JSON object"):
        check("/v1/completions", body)


def test_the_description_has_every_field():
    description = describe("1", ["m"])
    for path, (fields, required) in REQUESTS.items():
        schema = description["paths"][path]["post"]["requestBody"]["content"]["application/json"]["schema"]
        assert schema["properties"].keys() == fields.keys() and schema["required"] == list(required)
