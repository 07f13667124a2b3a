"""Replies that cannot leave a form, as the openai client and vLLM's users ask for them; any weights."""

import concurrent.futures
import datetime
import json
import re
from typing import Literal

import pytest

from npgpt.text import json_schema
from tests.models import model_with_roles
from tests.server.process import Process

openai = pytest.importorskip("openai")
pydantic = pytest.importorskip("pydantic")
pytest.importorskip("uvicorn")
ASK = [{"role": "user", "content": "Quem?"}]
SCHEMA = {
    "type": "object",
    "properties": {
        "a": {"type": "string", "maxLength": 4},
        "n": {"type": "integer", "minimum": 0, "maximum": 9},
    },
    "required": ["a", "n"],
    "additionalProperties": False,
}


class Tag(pydantic.BaseModel):
    name: Literal["mar", "sol", "não"]
    weight: int | None


class Person(pydantic.BaseModel):
    name: str = pydantic.Field(max_length=8)
    age: int = pydantic.Field(ge=0, le=120)
    height: float = pydantic.Field(gt=0, lt=3)
    code: str = pydantic.Field(pattern=r"^[A-Z]{2}\d{3}$")
    tags: list[Tag] = pydantic.Field(max_length=2)
    born: datetime.date
    pair: tuple[int, bool]


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """A server of a model with roles, which has learnt nothing."""
    folder = tmp_path_factory.mktemp("models") / "praia"
    model_with_roles().save_pretrained(folder)
    with Process(folder) as server:
        yield server


@pytest.fixture(scope="module")
def client(server):
    return openai.OpenAI(base_url=server.url + "/v1", api_key="none", max_retries=0)


def formatted(schema):
    return {"type": "json_schema", "json_schema": {"name": "s", "strict": True, "schema": schema}}


def test_parse_gives_the_object_of_a_pydantic_model(client):
    for seed in range(6):
        done = client.chat.completions.parse(
            model="praia", messages=ASK, response_format=Person, seed=seed, max_tokens=400
        )
        person = done.choices[0].message.parsed
        assert isinstance(person, Person) and done.choices[0].finish_reason == "stop"
        assert len(person.name) <= 8 and re.fullmatch(r"[A-Z]{2}\d{3}", person.code)
    with client.chat.completions.stream(
        model="praia", messages=ASK, response_format=Person, seed=5, max_tokens=400
    ) as events:
        for _ in events:
            pass
        assert events.get_final_completion().choices[0].message.parsed == person


def test_a_reply_that_max_tokens_cuts_says_so_and_is_a_beginning(client):
    grammar = json_schema.compiled(SCHEMA)
    for most in range(1, 40):
        how = {"response_format": formatted(SCHEMA), "max_tokens": most, "seed": 3}
        (choice,) = client.chat.completions.create(model="praia", messages=ASK, **how).choices
        text = choice.message.content
        assert (
            grammar.matches(text)
            if choice.finish_reason == "stop"
            else grammar.read(grammar.start, text.encode())
        )
        if choice.finish_reason == "stop":
            break
        assert not grammar.matches(text)
    else:
        raise AssertionError("it never ended")
    with pytest.raises(openai.LengthFinishReasonError):
        client.chat.completions.parse(model="praia", messages=ASK, response_format=Person, max_tokens=3)


def test_json_object_and_the_names_of_vllm(client):
    def text(**fields):
        more = {"extra_body": fields}
        done = client.completions.create(model="praia", prompt="a", max_tokens=300, seed=2, **more)
        return done.choices[0].text

    chat = client.chat.completions.create(
        model="praia", messages=ASK, response_format={"type": "json_object"}, max_tokens=2000, seed=1
    )
    assert chat.choices[0].finish_reason == "length" or isinstance(
        json.loads(chat.choices[0].message.content), dict
    )
    same = {
        text(guided_json=SCHEMA),
        text(guided_json=json.dumps(SCHEMA)),
        text(structured_outputs={"json": SCHEMA}),
    }
    assert len(same | {text(response_format=formatted(SCHEMA))}) == 1
    assert set(json.loads(same.pop())) == {"a", "n"}
    assert re.fullmatch(r"\d{4}-(é|ão)", text(guided_regex=r"\d{4}-(é|ão)"))
    assert text(guided_choice=["sim", "não"]) in ("sim", "não")
    assert text(structured_outputs={"choice": ["só"]}) == "só"
    assert len(text(response_format={"type": "text"})) > 5


def test_the_same_in_any_company_and_for_each_seed(client):
    def ask(seed, n=1):
        how = {"response_format": formatted(SCHEMA), "max_tokens": 60, "seed": seed, "n": n}
        return [
            c.message.content
            for c in client.chat.completions.create(model="praia", messages=ASK, **how).choices
        ]

    alone = [ask(seed)[0] for seed in range(6)]
    with concurrent.futures.ThreadPoolExecutor(6) as pool:
        assert [one[0] for one in pool.map(ask, range(6))] == alone
    assert ask(0, n=4) == alone[:4]
    assert len(set(alone)) > 1


def test_log_probabilities_are_the_models_own_and_tokens_are_counted(client):
    how = {
        "response_format": formatted(SCHEMA),
        "max_tokens": 60,
        "seed": 1,
        "logprobs": True,
        "top_logprobs": 2,
    }
    done = client.chat.completions.create(model="praia", messages=ASK, **how)
    (choice,) = done.choices
    told = choice.logprobs.content
    assert b"".join(bytes(t.bytes) for t in told).decode() == choice.message.content
    assert done.usage.completion_tokens == len(told)
    free = client.chat.completions.create(
        model="praia", messages=ASK, max_tokens=1, logprobs=True, top_logprobs=20, temperature=0
    )
    tops = {t.token: t.logprob for t in free.choices[0].logprobs.content[0].top_logprobs}
    first = told[0]
    assert first.token == "{" and all(tops.get(t.token, t.logprob) == t.logprob for t in first.top_logprobs)


def test_a_bias_counts(client):
    how = {"model": "praia", "prompt": "a", "max_tokens": 3}
    assert client.completions.create(**how, logit_bias={str(ord("x")): 100}).choices[0].text == "xxx"
    free = client.completions.create(**how, temperature=0).choices[0].text
    first = str(free.encode()[0])
    assert client.completions.create(**how, temperature=0, logit_bias={first: -100}).choices[0].text != free
    assert client.completions.create(**how, temperature=0, logit_bias={}).choices[0].text == free


FORMAT, DATE = "response_format", {"properties": {"d": {"format": "email"}}}


@pytest.mark.parametrize(
    ("fields", "param", "message"),
    [
        ({FORMAT: formatted({"not": {}})}, FORMAT, "the keyword 'not' is not supported"),
        ({FORMAT: formatted(DATE)}, FORMAT, r"schema.properties.d.format must be one of date"),
        ({FORMAT: formatted(False)}, f"{FORMAT}.json_schema.schema", "must be a JSON object"),
        ({FORMAT: {"type": "json_schema"}}, f"{FORMAT}.json_schema.schema", "must provide"),
        ({FORMAT: {"type": "xml"}}, f"{FORMAT}.type", "must be 'text' or 'json_object' or 'json_schema'"),
        ({"guided_json": "{"}, "guided_json", "schema must be JSON"),
        ({"guided_regex": "(?=a)"}, "guided_regex", "is not supported"),
        ({"guided_regex": "a{9999}"}, "guided_regex", "more than 5000 states"),
        ({"guided_choice": [""]}, "guided_choice", "strings that are not empty"),
        ({"guided_choice": ["a"], "guided_regex": "a"}, "guided_choice", "cannot be given together"),
        ({"guided_choice": ["a"], "stop": "a"}, "stop", "stop is not supported with guided_choice"),
        ({"guided_choice": ["a"], "ignore_eos": True}, "ignore_eos", "ignore_eos is not supported with"),
        ({"guided_grammar": "root ::= a"}, "guided_grammar", "not supported by this server"),
        ({"logit_bias": {"9999": 1}}, "logit_bias", "must be an id in 0.."),
    ],
    ids=lambda one: str(one)[:40],
)
def test_what_is_not_done_is_refused_by_name(server, fields, param, message):
    for path, more in (("completions", {"prompt": "a"}), ("chat/completions", {"messages": ASK})):
        status, answer, _ = server.ask(f"/v1/{path}", {"model": "praia", **more, **fields})
        assert status == 400 and answer["error"]["param"] == param, answer
        assert re.search(message, answer["error"]["message"])
