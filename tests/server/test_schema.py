"""The table of fields: every fault is named, nothing is ignored."""

import pytest

from npgpt.server.openapi import describe
from npgpt.server.schema import REQUESTS, ApiError, check, check_query

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
        ({"stop": 5}, "stop", "stop must be"),
        (
            {"stream_options": {"include_obfuscation": True}},
            "stream_options.include_obfuscation",
            "is not supp",
        ),
        ({"store": True}, "store", "store is not supported by this server, but for False"),
        (
            {"service_tier": "flex"},
            "service_tier",
            "not supported by this server, but for 'auto' or 'default'",
        ),
        ({"logprobs": 6}, "logprobs", "0..5"),
        ({"prompt": [1, "a"]}, "prompt", "prompt must be"),
        ({"prompt": []}, "prompt", "prompt must be"),
        ({"prompt": {"a": 1}}, "prompt", "got an object"),
        ({"prompt": None}, "prompt", "you must provide a prompt parameter"),
        ({"stream_options": {"usage": True}}, "stream_options", "must not have 'usage'"),
        ({"logit_bias": {"5": 101}}, "logit_bias.5", "logit_bias.5 must be a number in -100..100, got 101"),
        ({"guided_grammar": "a"}, "guided_grammar", "not supported by this server"),
        ({"guided_choice": []}, "guided_choice", "guided_choice must be a list of 1 to"),
        ({"structured_outputs": {"jsn": 1}}, "structured_outputs", "must not have 'jsn'; did you mean json"),
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
        {"role": "user", "content": "a", "tool_calls": [{"id": "1"}]},
        {"role": "user", "content": "a", "name": "Ana"},
        {"role": "assistant", "content": None, "refusal": "no"},
        {"role": "assistant", "content": "a", "weight": 0},
        {"role": "assistant", "content": "a", "reasoning_content": "so"},
        "a",
    ],
)
def test_messages_that_are_refused(message):
    with pytest.raises(ApiError) as error:
        check("/v1/chat/completions", {"model": "m", "messages": [USER, message]})
    assert error.value.param.startswith("messages[1]") and "messages[1]" in str(error.value)


USER = {"role": "user", "content": "a"}
CHATS = [
    {"tools": [{"type": "function"}]},
    {"tool_choice": "required"},
    {"tool_choice": {"type": "function", "function": {"name": "f"}}},
    {"function_call": {"name": "f"}},
    {"guided_decoding_backend": "outlines"},
    {"modalities": ["text", "audio"]},
    {"reasoning_effort": "low"},
    {"verbosity": "high"},
    {"prediction": {"type": "content", "content": "a"}},
    {"web_search_options": {}},  # asks for a search
    {"moderation": {"model": "m"}},
    {"store": True},
]


@pytest.mark.parametrize("more", CHATS)
def test_what_a_chat_may_ask_elsewhere_is_refused_by_name(more):
    (name,) = more
    with pytest.raises(ApiError, match=f"{name} is not supported by this server") as error:
        check("/v1/chat/completions", {"model": "m", "messages": [USER]} | more)
    assert error.value.code == "unsupported_parameter" and error.value.param == name


def test_a_reply_that_is_put_back_and_all_else_that_asks_for_nothing():
    reply = {"role": "assistant", "content": "b", "refusal": None, "annotations": [], "audio": None}
    reply |= {"function_call": None, "tool_calls": None, "reasoning_content": None, "provider_fields": {}}
    part = {"type": "text", "text": "c", "prompt_cache_breakpoint": None}
    nothing = {
        "tool_choice": "none",
        "parallel_tool_calls": True,
        "service_tier": "auto",
        "stop": "",
        "metadata": {"a": "b"},
        "safety_identifier": "x",
        "prompt_cache_key": "x",
        "user": "u",
        "store": False,
        "stream_options": {"include_obfuscation": False, "include_usage": None},
        "tools": [],
        "functions": [],
        "response_format": {"type": "text"},
        "modalities": ["text"],
        "web_search_options": None,
        "unheard_of": None,
        "also_unheard_of": [],
    }
    body = {"model": "m", "messages": [USER | {"name": None}, reply, {"role": "user", "content": [part]}]}
    found = check("/v1/chat/completions", body | nothing)
    plain = [
        USER,
        {"role": "assistant", "content": "b"},
        {"role": "user", "content": [{"type": "text", "text": "c"}]},
    ]
    kept = [{name: value for name, value in one.items() if value != []} for one in found["messages"]]
    assert kept == plain and found["stream_options"] == {"include_obfuscation": False}
    job = {"hyperparameters": {"n_epochs": None}, "method": {"type": "supervised", "dpo": None}}
    job |= {"integrations": [], "suffix": "", "metadata": None}
    assert check("/v1/fine_tuning/jobs", {"model": "m", "training_file": "f"} | job)["hyperparameters"] == {}


@pytest.mark.parametrize("multiplier", ["auto", 1, 0.5, 2.0, 10])
def test_learning_rates_of_a_job(multiplier):
    hyper = {"learning_rate_multiplier": multiplier, "n_epochs": "auto"}
    method = {"type": "supervised", "supervised": {"hyperparameters": hyper}}
    for one in ({"hyperparameters": hyper}, {"method": method}):
        body = {"model": "m", "training_file": "f"} | one
        assert check("/v1/fine_tuning/jobs", body) == body


@pytest.mark.parametrize(
    "more, message",
    [
        ({"suffix": "o mar"}, "suffix must be at most 64 letters, digits, - and _, got 'o mar'"),
        ({"suffix": "m" * 65}, "suffix must be at most 64 letters, digits, - and _, got 'mmm"),
        ({"method": {"type": "dpo"}}, "method.type is not supported by this server, but for 'supervised'"),
        ({"method": {"type": "supervised", "dpo": {"a": 1}}}, "method.dpo is not supported"),
        ({"hyperparameters": {"n_epochs": 0}}, "hyperparameters.n_epochs must be a whole number in 1..1000"),
        (
            {"hyperparameters": {"learning_rate_multiplier": 0}},
            "hyperparameters.learning_rate_multiplier must be",
        ),
        ({"hyperparameters": {"learning_rate_multiplier": "2"}}, "learning_rate_multiplier must be"),
        ({"integrations": [{"type": "wandb"}]}, "integrations is not supported"),
        ({"metadata": {"a": 1}}, "metadata.a must be a string of at most 512 characters"),
    ],
)
def test_what_a_job_is_refused_for(more, message):
    with pytest.raises(ApiError) as error:
        check("/v1/fine_tuning/jobs", {"model": "m", "training_file": "f"} | more)
    assert message in str(error.value)


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


def test_a_query_is_checked_as_a_body_is():
    jobs, files = "/v1/fine_tuning/jobs", "/v1/files"
    assert check_query(jobs, [("limit", "5"), ("metadata[a]", "b"), ("metadata[c]", "")]) == {
        "limit": 5,
        "metadata": {"a": "b", "c": ""},
    }
    assert check_query(jobs, [("metadata", "null")]) == {"metadata": {}}
    assert check_query(files, [("order", "asc"), ("purpose", "x")]) == {"order": "asc", "purpose": "x"}
    for path, query, message in (
        (jobs, [("order", "asc")], "Unrecognized request argument supplied: order"),
        ("/v1/models", [("limit", "1")], "Unrecognized request argument supplied: limit"),
        ("", [("limit", "1")], "Unrecognized"),  # what is no GET
        (jobs, [("limit", "0")], "limit must be a whole number in 1..100, got 0"),
        (jobs, [("limit", "0" * 5000 + "9")], "limit must be a whole number in 1..100, got '000"),
        (jobs, [("limit", "1"), ("limit", "2")], "limit is given twice"),
        (jobs, [("limit[a]", "1")], "limit must be a whole number"),
        (jobs, [("metadata", "x")], "metadata must be an object"),
        (jobs, [("metadata[a]", "1"), ("metadata[a]", "2")], "metadata[a] is given twice"),
        (files, [("order", "up")], "order must be 'asc' or 'desc', got 'up'"),
    ):
        with pytest.raises(ApiError) as error:
            check_query(path, query)
        assert error.value.status == 400 and message in str(error.value)
