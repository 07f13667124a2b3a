"""The server as the openai client sees it: a real process on loopback, nothing changed but base_url."""

import concurrent.futures
import contextlib
import functools
import http.client
import json
import re
import subprocess
import sys
import time
import unicodedata
import urllib.request

import numpy as np
import pytest

import npgpt
from npgpt.text import examples
from npgpt.text.tokenizer import ByteTokenizer
from tests.chat_templates import KINDS, tokenizer_of
from tests.models import model_with_roles, random_model, write_speller
from tests.server.process import Process

openai = pytest.importorskip("openai")
pytest.importorskip("uvicorn")
GREEDY = {"temperature": 0, "max_tokens": 20}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A model's folder: it ends a text now and then."""
    model = random_model(block_size=128)
    folder = tmp_path_factory.mktemp("models") / "praia"
    model.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def model(folder):
    return npgpt.load(folder)


@pytest.fixture(scope="module")
def server(folder):
    with Process(folder) as server:
        yield server


@pytest.fixture(scope="module")
def client(server):
    with openai.OpenAI(base_url=server.url + "/v1", api_key="none", max_retries=0) as client:
        yield client


def complete(client, prompt="O sol", **fields):
    return client.completions.create(model="praia", prompt=prompt, **fields)


def counted(answer):
    """The tokens of an answer, whatever was known of its prompt."""
    return answer.usage.model_dump(exclude={"prompt_tokens_details"})


def test_models(client):
    assert [model.id for model in client.models.list()] == ["praia"]
    assert client.models.retrieve("praia").owned_by == "npgpt"
    with pytest.raises(openai.NotFoundError) as error:
        client.models.retrieve("gpt-4/turbo")
    assert error.value.code == "model_not_found"


@pytest.mark.parametrize("seed", range(5))
def test_a_text_whole_and_streamed_is_what_generate_writes(client, model, seed):
    how = {"temperature": 0.9, "seed": seed, "top_p": 0.95}
    expected = model.generate("Olá, ", max_new_tokens=200, **how)
    whole = complete(client, "Olá, ", max_tokens=200, **how)
    assert whole.choices[0].text == expected and whole.object == "text_completion"
    ids = model.generate("Olá, ", max_new_tokens=200, return_ids=True, **how)
    assert whole.choices[0].finish_reason == ("length" if len(ids) == 200 else "stop")
    assert whole.usage.prompt_tokens == 6 and whole.usage.completion_tokens == len(ids)
    chunks = list(complete(client, "Olá, ", max_tokens=200, stream=True, **how))
    assert "".join(chunk.choices[0].text for chunk in chunks) == expected
    assert [chunk.choices[0].finish_reason for chunk in chunks[:-1]] == [None] * (len(chunks) - 1)
    assert chunks[-1].choices[0].finish_reason == whole.choices[0].finish_reason


def test_prompts_in_all_forms_and_several_answers(client, model):
    a, b = (model.generate(prompt, max_new_tokens=20, temperature=0) for prompt in ("ab", "ção"))
    ids = [list(b"ab"), list("ção".encode())]
    for prompt, texts in (("ab", [a]), (["ab", "ção"], [a, b]), (ids[1], [b]), (ids, [a, b])):
        assert [choice.text for choice in complete(client, prompt, **GREEDY).choices] == texts
    three = complete(client, "ab", n=3, seed=7, max_tokens=20)
    alone = [complete(client, "ab", seed=7 + k, max_tokens=20).choices[0].text for k in range(3)]
    assert [choice.text for choice in three.choices] == alone
    assert three.usage.prompt_tokens == 2
    streamed = ["", "", ""]
    options = {"stream": True, "stream_options": {"include_usage": True}}
    *chunks, last = complete(client, "ab", n=3, seed=7, max_tokens=20, **options)
    for chunk in chunks:
        assert chunk.usage is None
        streamed[chunk.choices[0].index] += chunk.choices[0].text
    assert streamed == alone and last.choices == [] and counted(last) == counted(three)
    assert complete(client, "", **GREEDY).choices[0].text == model.generate("", 20, temperature=0)


def test_stop_echo_and_what_each_token_had(client, model):
    whole = complete(client, echo=True, logprobs=3, **GREEDY).choices[0]
    logprobs = whole.logprobs
    assert whole.text.startswith("O sol") and logprobs.token_logprobs[0] is None
    assert len(logprobs.tokens) == len(logprobs.top_logprobs) == len(logprobs.text_offset)
    known = [token if not token.startswith("bytes:") else "?" for token in logprobs.tokens[:5]]
    assert "".join(known) == "O sol" and logprobs.text_offset[:5] == [0, 1, 2, 3, 4]
    for token, logprob, top in list(
        zip(logprobs.tokens, logprobs.token_logprobs, logprobs.top_logprobs, strict=True)
    )[5:]:
        assert top[token] == logprob == max(top.values()) and 3 <= len(top) <= 4  # greedy
    total = sum(logprobs.token_logprobs[1:5])
    assert total == pytest.approx(model.score("O", " sol"), abs=1e-3)
    assert complete(client, echo=True, max_tokens=0).choices[0].text == "O sol"
    text = whole.text[5:]
    stop = text[8:10]
    stopped = complete(client, stop=[stop, "never there"], logprobs=0, **GREEDY).choices[0]
    assert stopped.text == text[: text.find(stop)] and stopped.finish_reason == "stop"
    assert all(offset < len(stopped.text) for offset in stopped.logprobs.text_offset)


@pytest.mark.parametrize("drawn", [0, 1, 8])
def test_each_token_of_a_prompt_is_told_that_is_one_longer_than_the_context(client, model, drawn):
    """As for a rolling perplexity: the last token's probability needs those before it alone."""
    context = model.config.block_size
    ids = [int(id) for id in np.random.default_rng(2).integers(0, 256, context + 1)]
    z = model.logits(np.array([ids[:-1]]))[0].astype(np.float64)
    expected = (z - np.logaddexp.reduce(z, axis=1, keepdims=True))[np.arange(context), ids[1:]]
    asked = {"max_tokens": drawn, "temperature": 0, "extra_body": {"ignore_eos": True}}
    choice = complete(client, ids, echo=True, logprobs=1, **asked).choices[0]
    told = choice.logprobs.token_logprobs
    np.testing.assert_allclose(np.array(told[1 : context + 1]), expected, atol=1e-5)
    assert len(told) == context + 1 + drawn
    if drawn:  # from the newer half, as where a text grows beyond the context
        rest = complete(client, ids[-(context // 2) :], logprobs=1, **asked).choices[0].logprobs
        np.testing.assert_array_equal(told[context + 1 :], rest.token_logprobs)
    for more in ({"prompt": [*ids, 1]}, {"echo": False}, {"logprobs": None}):
        with pytest.raises(openai.BadRequestError, match="maximum context length"):
            client.completions.create(model="praia", **{"prompt": ids, "echo": True, "logprobs": 1} | more)


def test_a_prompt_is_cleaned_as_the_text_was(model, tmp_path):
    tokenizer = examples.add_roles(model.tokenizer.normalizing("light"))
    random_model(vocab_size=261, block_size=128).save_pretrained(tmp_path / "praia")
    tokenizer.save(tmp_path / "praia", 128)
    clean = "A canção\né do mar"
    answers = []
    with (
        Process(tmp_path / "praia") as server,
        openai.OpenAI(base_url=server.url + "/v1", api_key="none") as client,
    ):
        for prompt in (clean, unicodedata.normalize("NFD", "\ufeff" + clean.replace("\n", "\r\n"))):
            text = complete(client, prompt, echo=True, logprobs=1, seed=1).choices[0]
            vector = client.embeddings.create(model="praia", input=prompt).data[0].embedding
            talk = [{"role": "user", "content": prompt}]
            reply = client.chat.completions.create(model="praia", messages=talk, seed=1, max_tokens=5)
            answers.append((text.text, text.logprobs, vector, reply.choices[0].message.content))
    assert answers[0] == answers[1] and text.text.startswith(clean)
    offsets = text.logprobs.text_offset[: len(clean.encode())]  # a character's bytes share its place
    assert offsets == [len(clean.encode()[:n].decode("utf-8", "ignore")) for n in range(len(clean.encode()))]


def test_settings_of_the_sampler_count(client, model):
    for how in ({"top_k": 3}, {"min_p": 0.1}, {"repetition_penalty": 1.5}):
        expected = model.generate("ab", max_new_tokens=30, temperature=1.0, seed=3, **how)
        assert complete(client, "ab", max_tokens=30, seed=3, extra_body=how).choices[0].text == expected
    bytes_ = {"max_tokens": 60, "seed": 1, "logprobs": 0}
    often = complete(client, "ab", temperature=0, **bytes_).choices[0].logprobs.tokens
    rarely = complete(client, "ab", temperature=0, frequency_penalty=2, **bytes_).choices[0].logprobs.tokens
    assert len(set(rarely)) > len(set(often))


def test_many_clients_at_once_get_what_each_would_alone(client):
    def ask(seed):
        return complete(client, f"{seed}: ", seed=seed, max_tokens=100).choices[0].text

    alone = [ask(seed) for seed in range(16)]
    with concurrent.futures.ThreadPoolExecutor(16) as pool:
        assert list(pool.map(ask, range(16))) == alone


def test_embeddings(client):
    one = client.embeddings.create(model="praia", input=["O sol", "o mar"])  # base64 on the wire
    plain = client.embeddings.create(model="praia", input=["O sol", "o mar"], encoding_format="float")
    assert one.usage.prompt_tokens == 10 and [entry.index for entry in one.data] == [0, 1]
    for a, b in zip(one.data, plain.data, strict=True):
        np.testing.assert_allclose(a.embedding, b.embedding)
        assert np.linalg.norm(a.embedding) == pytest.approx(1, abs=1e-5)
    assert one.data[0].embedding != one.data[1].embedding


def test_as_many_embeddings_as_openai_takes_and_texts_longer_than_the_context(client):
    texts = [f"{n} mar" for n in range(2048)]
    many = client.embeddings.create(model="praia", input=texts, dimensions=64)
    assert [one.index for one in many.data] == list(range(2048)) and many.model_extra == {}
    few = client.embeddings.create(model="praia", input=[texts[n] for n in (0, 70, 2047)])
    for n, one in zip((0, 70, 2047), few.data, strict=True):
        assert many.data[n].embedding == one.embedding
    assert many.usage.prompt_tokens == sum(map(len, texts))
    long = client.embeddings.create(model="praia", input=["a b c " * 50, "a"])
    assert long.usage.prompt_tokens == 301 and np.linalg.norm(long.data[0].embedding) == pytest.approx(1)
    (warning,) = long.model_extra["warnings"]
    assert warning.startswith("1 of 2 inputs are longer than the context: they were read in windows of 128")
    for fields, message in (
        ({"input": [*texts, "a"]}, "input must be .* a list of 1 to 2048 strings"),
        ({"input": "a" * 300_001}, "at most 300000 tokens in all, got 300001"),
        ({"dimensions": 32}, "dimensions is not supported by this server, but for 64"),
    ):
        with pytest.raises(openai.BadRequestError, match=message):
            client.embeddings.create(**{"model": "praia", "input": "a"} | fields)


def test_more_tokens_than_the_server_writes_are_met_as_far_as_it_goes(folder):
    with Process(folder, "--max-tokens", 8) as server:
        with openai.OpenAI(base_url=server.url + "/v1", api_key="none", max_retries=0) as client:
            how = {"max_tokens": 5000, "temperature": 0, "extra_body": {"ignore_eos": True}}
            said = ["max_tokens is 5000, and this server writes at most 8 tokens"]
            whole = complete(client, **how)
            assert whole.usage.completion_tokens == 8 and whole.choices[0].finish_reason == "length"
            assert whole.model_extra["warnings"] == said
            chunks = list(complete(client, stream=True, **how))
            assert "".join(chunk.choices[0].text for chunk in chunks) == whole.choices[0].text
            assert [chunk.model_extra.get("warnings") for chunk in chunks if chunk.model_extra] == [said]
            assert complete(client, **how | {"max_tokens": 8}).model_extra == {}


def test_an_end_of_text_at_the_head_of_a_prompt_is_the_token(client, speaker):
    for prompt, ids in (("<|endoftext|>ab", [256, *b"ab"]), ("a<|endoftext|>", [*b"a<|endoftext|>"])):
        asked = [complete(client, one, echo=True, logprobs=1, **GREEDY) for one in (prompt, ids)]
        assert asked[0].choices == asked[1].choices and asked[0].usage.prompt_tokens == len(ids)
    _, client = speaker
    talk = [{"role": "user", "content": "<|endoftext|>ab"}]  # never in a chat
    usage = client.chat.completions.create(model="praia", messages=talk, max_tokens=1).usage
    assert usage.prompt_tokens == len("<|endoftext|>ab") + 3


@pytest.mark.parametrize(
    "fields, error, code",
    [
        ({"model": "gpt-4"}, openai.NotFoundError, "model_not_found"),
        ({"temperature": 3}, openai.BadRequestError, "invalid_value"),
        ({"logit_bias": {"257": 1}}, openai.BadRequestError, "invalid_value"),
        ({"suffix": "a"}, openai.BadRequestError, "unsupported_parameter"),
        ({"extra_body": {"temprature": 1}}, openai.BadRequestError, "unknown_parameter"),
        ({"prompt": "a" * 129}, openai.BadRequestError, "context_length_exceeded"),
        ({"prompt": [1, 257]}, openai.BadRequestError, "invalid_value"),
        ({"n": 16, "prompt": ["a"] * 17}, openai.BadRequestError, "invalid_value"),
        ({"stream_options": {"include_usage": True}}, openai.BadRequestError, "invalid_value"),
    ],
)
def test_errors_are_the_clients_own(client, fields, error, code):
    with pytest.raises(error) as raised:
        client.completions.create(**{"model": "praia", "prompt": "a"} | fields)
    assert raised.value.code == code and raised.value.type == "invalid_request_error"


def test_a_model_without_roles_says_how_to_get_some(client):
    with pytest.raises(openai.BadRequestError, match=r"npgpt.finetune RUN") as error:
        client.chat.completions.create(model="praia", messages=[{"role": "user", "content": "oi"}])
    assert error.value.code == "model_has_no_roles"


@pytest.fixture(scope="module")
def speaker(tmp_path_factory):
    """(model, client) of one that has roles; it has learnt nothing."""
    model = model_with_roles()
    folder = tmp_path_factory.mktemp("models") / "praia"
    model.save_pretrained(folder)
    with Process(folder) as server:
        with openai.OpenAI(base_url=server.url + "/v1", api_key="none", max_retries=0) as client:
            yield model, client


def test_a_reply_is_put_back_into_the_conversation(speaker):
    """As every client does it, and with all else that asks for nothing."""
    _, client = speaker
    asked = {"role": "user", "content": "oi"}
    chat = functools.partial(client.chat.completions.create, model="praia", max_tokens=4, temperature=0)
    message = chat(messages=[asked], logit_bias={}).choices[0].message
    plain = {"role": "assistant", "content": message.content}
    expected = chat(messages=[asked, plain, asked])
    nothing = {"tool_choice": "none", "parallel_tool_calls": True, "service_tier": "auto", "stop": ""}
    nothing |= {"metadata": {"a": "b"}, "safety_identifier": "x", "user": "u", "store": False, "tools": []}
    for reply in (message, message.model_dump()):
        answer = chat(messages=[asked, reply, asked], **nothing)
        assert answer.choices[0].message == expected.choices[0].message
        assert counted(answer) == counted(expected)
    options = {"include_obfuscation": False, "include_usage": None}
    assert list(chat(messages=[asked], stream=True, stream_options=options))
    with pytest.raises(openai.BadRequestError, match=r"messages\[1\].tool_calls is not supported") as error:
        chat(messages=[asked, plain | {"tool_calls": [{"id": "1", "type": "function"}]}])
    assert (error.value.param, error.value.code) == ("messages[1].tool_calls", "unsupported_parameter")


MESSAGES = [
    {"role": "developer", "content": "Responda."},
    {"role": "user", "content": [{"type": "text", "text": "Quem "}, {"type": "text", "text": "é? <|end|>"}]},
]


def test_a_chat_whole_and_streamed(speaker):
    model, client = speaker
    plain = [{"role": "system", "content": "Responda."}, {"role": "user", "content": "Quem é? <|end|>"}]
    ids = examples.encode_chat(model.tokenizer, plain)
    chat = functools.partial(client.chat.completions.create, model="praia", messages=MESSAGES)
    for seed in range(4):
        expected = model.generate(ids, max_new_tokens=60, temperature=1.0, seed=seed)
        whole = chat(seed=seed, max_completion_tokens=60)
        assert whole.choices[0].message.content == expected and whole.object == "chat.completion"
        assert whole.choices[0].message.role == "assistant" and whole.usage.prompt_tokens == len(ids)
        options = {"stream": True, "stream_options": {"include_usage": True}}
        *chunks, last = chat(seed=seed, max_tokens=60, **options)
        assert chunks[0].choices[0].delta.role == "assistant"
        assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == expected
        assert chunks[-1].choices[0].finish_reason == whole.choices[0].finish_reason
        assert counted(last) == counted(whole)
    two = chat(seed=0, n=2, max_tokens=9).choices
    assert [choice.message.content for choice in two] == [
        chat(seed=seed, max_tokens=9).choices[0].message.content for seed in (0, 1)
    ]


def test_what_each_token_of_a_chat_had(speaker):
    _, client = speaker
    chat = functools.partial(client.chat.completions.create, model="praia", messages=MESSAGES, seed=2)
    choice = chat(logprobs=True, top_logprobs=4, max_tokens=30).choices[0]
    tokens = choice.logprobs.content
    data = b"".join(bytes(token.bytes) for token in tokens if not token.token.startswith("<|"))
    assert data.decode("utf-8", "replace") == choice.message.content
    for token in tokens:
        assert len(token.top_logprobs) == 4 and token.logprob <= token.top_logprobs[0].logprob
    streamed = [
        token
        for chunk in chat(logprobs=True, max_tokens=30, stream=True)
        if chunk.choices[0].logprobs
        for token in chunk.choices[0].logprobs.content
    ]
    assert [token.bytes for token in streamed] == [token.bytes for token in tokens]
    with pytest.raises(openai.BadRequestError, match="top_logprobs is allowed only with logprobs"):
        chat(top_logprobs=4)
    with pytest.raises(openai.BadRequestError, match="maximum context length") as error:
        chat(messages=[{"role": "user", "content": "a" * 200}])
    assert error.value.code == "context_length_exceeded"


def test_the_end_of_the_base_ends_a_reply(tmp_path):
    """A model that was taught to talk has learnt two ends."""
    tokenizer = examples.add_roles(ByteTokenizer())
    messages = [{"role": "user", "content": "?"}]
    before = examples.encode_chat(tokenizer, messages)
    first = tokenizer.vocabulary.special["<|endoftext|>"]
    write_speller(tmp_path / "m", tokenizer, [*b"sim", first, *b"nunca"], len(before))
    with Process(tmp_path / "m") as server:
        for path, fields in (
            ("/v1/chat/completions", {"messages": messages}),
            ("/v1/completions", {"prompt": before}),
        ):
            fields |= {"model": "m", "max_tokens": 9, "temperature": 0}
            for ignored, text, finish in ((False, "sim", "stop"), (True, "simnunca", "length")):
                answer = server.ask(path, fields | {"ignore_eos": ignored})[1]
                (choice,) = answer["choices"]
                found = choice["message"]["content"] if "message" in choice else choice["text"]
                assert (found, choice["finish_reason"]) == (text, finish)


@pytest.fixture(scope="module")
def templated(tmp_path_factory):
    """(tokenizer, server, client) of a model with another's chat template, that says "um mar" to "oi"."""
    few = "{% if messages|length > 3 %}{{ raise_exception('three messages at most') }}{% endif %}"
    tokenizer = tokenizer_of(KINDS["chatml"]._replace(source=few + KINDS["chatml"].source))
    said = [*tokenizer.encode("um mar").tolist(), tokenizer.vocabulary.special["<|im_end|>"], 65]
    before = len(examples.encode_chat(tokenizer, [{"role": "user", "content": "oi"}]))
    folder = tmp_path_factory.mktemp("models") / "chatml"
    write_speller(folder, tokenizer, said, before)
    with Process(folder) as server:
        with openai.OpenAI(base_url=server.url + "/v1", api_key="none", max_retries=0) as client:
            yield tokenizer, server, client


def test_a_chat_by_a_template(templated):
    tokenizer, server, client = templated
    chat = functools.partial(client.chat.completions.create, model="chatml", temperature=0, max_tokens=30)
    question = [{"role": "user", "content": [{"type": "text", "text": "oi"}]}]
    whole = chat(messages=question)
    assert (whole.choices[0].message.content, whole.choices[0].finish_reason) == ("um mar", "stop")
    assert whole.usage.prompt_tokens == len(
        examples.encode_chat(tokenizer, [{"role": "user", "content": "oi"}])
    )
    *chunks, last = chat(messages=question, stream=True)
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == "um mar"
    assert last.choices[0].finish_reason == "stop"
    about = json.loads(server.get("/run"))
    assert about["roles"] and about["ends"] == []  # what spells an end is text


def test_a_message_that_spells_control_tokens_is_text(templated):
    tokenizer, _, client = templated
    message = {"role": "user", "content": "<|im_end|>\n<|im_start|>system\n"}
    ids = examples.encode_chat(tokenizer, [message])
    assert [i for i in ids if i in tokenizer.vocabulary.special.values()] == [
        tokenizer.vocabulary.special[name] for name in ("<|im_start|>", "<|im_end|>", "<|im_start|>")
    ]
    answer = client.chat.completions.create(model="chatml", messages=[message], max_tokens=1)
    assert answer.usage.prompt_tokens == len(ids)


def test_a_template_that_refuses_is_an_error_of_the_client_s(templated):
    _, _, client = templated
    messages = [{"role": "user", "content": "oi"}] * 4
    with pytest.raises(openai.BadRequestError, match="chat template: three messages at most") as error:
        client.chat.completions.create(model="chatml", messages=messages)
    assert error.value.param == "messages" and error.value.code == "invalid_value"


def test_a_template_that_fails_leaves_completions(tmp_path):
    tokenizer = tokenizer_of(KINDS["chatml"]._replace(source="{{ ''.__class__ }}"))
    write_speller(tmp_path / "m", tokenizer, [65], 1)
    with Process(tmp_path / "m") as server:
        assert not json.loads(server.get("/run"))["roles"]
        status, answer, _ = server.ask("/v1/chat/completions", {"model": "m", "messages": MESSAGES})
        assert (
            status == 400 and "chat template: line 1: reaches for '__class__'" in answer["error"]["message"]
        )
        assert server.ask("/v1/completions", {"model": "m", "prompt": "a"})[0] == 200


def test_a_key(folder):
    with Process(folder, "--api-key", "sësame") as server:
        url = server.url + "/v1"
        with openai.OpenAI(base_url=url, api_key="wrong", max_retries=0) as client:
            with pytest.raises(openai.AuthenticationError) as error:
                client.models.list()
        assert error.value.code == "invalid_api_key"
        assert error.value.response.headers["www-authenticate"] == "Bearer"
        headers = {"Authorization": "Bearer sësame".encode()}
        assert server.ask("/v1/models", b"", "GET", **headers)[0] == 200
        assert server.ask("/metrics", b"", "GET")[0] == server.ask("/run", b"", "GET")[0] == 401
        assert server.ask("/health", b"", "GET")[0] == 200


def test_the_queue_is_full(folder):
    with Process(folder, "--sessions", 1, "--queue", 1, "--max-tokens", 10**9, "--grace", 0.2) as server:
        with server.stream(max_tokens=10**9), server.stream(max_tokens=10**9):
            server.settles("npgpt_waiting", lambda n: n == 1)
            with openai.OpenAI(base_url=server.url + "/v1", api_key="x", max_retries=0) as client:
                with pytest.raises(openai.RateLimitError) as error:
                    complete(client)
            assert error.value.response.headers["retry-after"] == "1"
        server.settles("npgpt_sessions", lambda n: n == 0)
        with openai.OpenAI(base_url=server.url + "/v1", api_key="x") as client:
            assert complete(client, **GREEDY).choices


def test_a_gguf_file_is_served_as_it_is(model, tmp_path):
    from npgpt.interop.gguf import write_gguf

    write_gguf(tmp_path / "praia.gguf", model, model.tokenizer, "f32")
    with Process(tmp_path / "praia.gguf") as server:
        with openai.OpenAI(base_url=server.url + "/v1", api_key="x") as client:
            text = complete(client, "ab", **GREEDY).choices[0].text
            assert text == model.generate("ab", 20, temperature=0)
            with pytest.raises(openai.BadRequestError, match="this model is a file"):
                client.fine_tuning.jobs.create(model="praia", training_file="file-1")


def test_the_description_holds(folder, tmp_path):
    """schemathesis asks what the OpenAPI description allows and what it does not."""
    pytest.importorskip("schemathesis")
    checks = "not_a_server_error,status_code_conformance,content_type_conformance,response_schema_conformance"
    command = [sys.executable, "-m", "schemathesis.cli", "run"]
    flags = ["--checks", checks + ",negative_data_rejection", "--max-examples", "12", "--seed", "1"]
    with Process(folder, "--max-tokens", 16) as server:
        command += [server.url + "/openapi.json", *flags]
        done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    generated, passed = map(int, re.search(r"(\d+) generated, (\d+) passed", done.stdout).groups())
    assert generated == passed > 500


def test_an_upload_in_chunks(client, folder):
    """As Node sends a stream of a file: without a Content-Length."""
    form = b'--x\r\nContent-Disposition: form-data; name="purpose"\r\n\r\nfine-tune\r\n--x\r\n'
    form += b'Content-Disposition: form-data; name="file"; filename="d.jsonl"\r\n\r\n%b\r\n--x--\r\n'
    kind = {"Content-Type": "multipart/form-data; boundary=x"}

    def upload(server, data):
        connection = http.client.HTTPConnection(server.host, server.port, timeout=60)
        with contextlib.closing(connection):
            body = form % data
            parts = (body[n : n + 1000] for n in range(0, len(body), 1000))
            with contextlib.suppress(OSError):  # refused before all is sent
                connection.request("POST", "/v1/files", parts, kind, encode_chunked=True)
            answer = connection.getresponse()
            return answer.status, json.loads(answer.read())

    with Process(folder, max_upload=100_000) as server:
        data = b'{"prompt": "a", "completion": "b"}\n' * 2000
        status, file = upload(server, data)
        assert status == 200 and file["bytes"] == len(data) and file["filename"] == "d.jsonl"
        content = urllib.request.urlopen(f"{server.url}/v1/files/{file['id']}/content", timeout=60)
        assert content.read() == data
        status, answer = upload(server, data * 2)
        assert status == 413 and answer["error"]["code"] == "body_too_large"
        answer = server.ask("/v1/files", form % (data * 2), **kind)
        assert answer[0] == 413 and answer[1]["error"]["code"] == "body_too_large"


def test_files(client, server, tmp_path):
    path = tmp_path / "dados.jsonl"
    path.write_bytes('{"prompt": "O céu é", "completion": " azul."}\n'.encode())
    made = [client.files.create(file=path, purpose="fine-tune") for _ in range(3)]
    assert made[0].filename == "dados.jsonl" and made[0].bytes == path.stat().st_size
    assert [file.id for file in client.files.list(limit=2)] == [file.id for file in made[::-1]]
    assert client.files.retrieve(made[1].id) == made[1]
    assert client.files.content(made[1].id).read() == path.read_bytes()
    for head in ("/v1/files", f"/v1/files/{made[1].id}", "/v1/fine_tuning/jobs", f"/v1/models/{server.name}"):
        assert server.ask(head, b"", "HEAD")[0] == 200  # as GET: nothing is made or deleted
    assert client.files.retrieve(made[1].id) == made[1]
    assert server.ask(f"/v1/files/{made[1].id}/content", b"", "GET", Range="bytes=abc")[0] == 200
    for limit in ("0" * 5000 + "9", "00000000199", "x"):
        assert server.ask(f"/v1/files?limit={limit}", b"", "GET")[0] == 400
    assert [file.id for file in client.files.list(order="asc")] == [file.id for file in made]
    assert [file.id for file in client.files.list(order="asc", after=made[0].id, limit=1).data] == [
        made[1].id
    ]
    assert client.files.list(purpose="assistants").data == []
    assert client.files.list(purpose="fine-tune", limit=10_000).data
    for ask in (client.files.list, client.models.list, client.fine_tuning.jobs.list):
        with pytest.raises(openai.BadRequestError, match="Unrecognized request argument supplied: before"):
            ask(extra_query={"before": "x"})
    with pytest.raises(openai.BadRequestError, match="argument supplied: limit"):
        complete(client, extra_query={"limit": 1})
    with pytest.raises(openai.BadRequestError, match="expires_after is not supported by this server"):
        expires = {"anchor": "created_at", "seconds": 3600}
        client.files.create(file=path, purpose="fine-tune", expires_after=expires)
    for file in made:
        assert client.files.delete(file.id).deleted
    with pytest.raises(openai.NotFoundError):
        client.files.retrieve(made[0].id)
    away = ("../../../../tmp/away.jsonl", path.read_bytes())
    file = client.files.create(file=away, purpose="fine-tune")
    assert file.filename == "away.jsonl" and client.files.content(file.id).read() == path.read_bytes()
    client.files.delete(file.id)
    for purpose, error in (("assistants", "purpose must be 'fine-tune'"), ("x", "purpose must be")):
        with pytest.raises(openai.BadRequestError, match=error):
            client.files.create(file=path, purpose=purpose)
    kind = {"Content-Type": "multipart/form-data; boundary=x"}
    for body in (
        b"",
        b"--x\r\n\r\n",
        b"--x--",
        b"\xff" * 100,
        b'--x\r\nContent-Disposition: form-data; name="file"\r\n\r\n5\r\n--x--',
    ):
        assert server.ask("/v1/files", body, **kind)[0] == 400
    form = b'--x\r\nContent-Disposition: form-data; name="purpose"\r\n\r\nfine-tune\r\n--x--\r\n'
    strange = {"Content-Type": "multipart/form-data; boundary=x; charset=undefined"}
    assert server.ask("/v1/files", form, **strange)[0] == 400
    assert list(client.files.list()) == []


JOBS = b"".join(
    b'{"messages": [{"role": "user", "content": "%d"}, {"role": "assistant", "content": "%d"}]}\n'
    % (n, n + 1)
    for n in range(40)
)


def ended(client, id, seconds=120):
    """The job once it has ended."""
    end = time.monotonic() + seconds
    while (job := client.fine_tuning.jobs.retrieve(id)).finished_at is None:
        assert time.monotonic() < end, job
        time.sleep(0.1)
    return job


def test_a_model_is_tuned_and_answers(folder, client):
    """Upload, tune in a worker while the server goes on, chat with what came of it; one that is cancelled."""
    file = client.files.create(file=("d.jsonl", JOBS), purpose="fine-tune")
    val = client.files.create(file=("v.jsonl", JOBS[:400].rpartition(b"\n")[0]), purpose="fine-tune")
    bad = client.files.create(file=("bad.jsonl", b'{"prompt": 5}\n'), purpose="fine-tune")
    other = client.files.create(
        file=("other.jsonl", b'{"prompt": "a", "completion": "b"}'), purpose="fine-tune"
    )
    wide = client.files.create(file=("wide.jsonl", JOBS.decode().encode("utf-16")), purpose="fine-tune")
    tune = functools.partial(client.fine_tuning.jobs.create, model="praia", training_file=file.id)
    how = {"type": "supervised", "supervised": {"hyperparameters": {"n_epochs": 2, "batch_size": 8}}}
    first = tune(method=how, suffix="conta", seed=3, validation_file=val.id)
    assert first.status in ("queued", "running") and first.hyperparameters.n_epochs == 2
    assert first.validation_file == val.id
    for files, name, message in (  # when the job is made
        ({"training_file": bad.id}, "training_file", "training_file: line 1: must have the fields of one of"),
        ({"validation_file": bad.id}, "validation_file", "validation_file: line 1: must have"),
        (
            {"training_file": wide.id},
            "training_file",
            "training_file: must be UTF-8: .* likely UTF-16; iconv",
        ),
        (
            {"validation_file": other.id},
            "validation_file",
            "validation_file: line 1: must be of one form with",
        ),
    ):
        with pytest.raises(openai.BadRequestError, match=message) as error:
            tune(**files)
        assert (error.value.param, error.value.code) == (name, f"invalid_{name}")
        assert "\n" not in error.value.body["message"]
    assert len(client.fine_tuning.jobs.list().data) == 1
    endless = tune(hyperparameters={"n_epochs": 1000, "batch_size": 1})
    marked = tune(metadata={"who": "me"}, hyperparameters={"n_epochs": 1000})
    listed = client.fine_tuning.jobs.list(metadata={"who": "me"}).data
    assert [job.id for job in listed] == [marked.id] and listed[0].metadata == {"who": "me"}
    assert client.fine_tuning.jobs.list(metadata={"who": "you"}).data == []
    without = client.fine_tuning.jobs.list(extra_query={"metadata": "null"}).data
    assert [job.id for job in without] == [endless.id, first.id]
    client.fine_tuning.jobs.cancel(marked.id)
    queued = tune()
    client.files.delete(file.id)  # it was copied
    assert client.fine_tuning.jobs.cancel(queued.id).status == "cancelled"
    assert complete(client, **GREEDY).choices  # meanwhile

    done = ended(client, first.id)
    assert done.status == "succeeded" and done.fine_tuned_model == f"ft:praia::conta:{first.id[-8:]}", done
    events = [event.message for event in client.fine_tuning.jobs.list_events(first.id, limit=100)]
    assert events[-1] == "Created fine-tuning job" and "successfully completed" in events[0]
    assert any(re.match(r"step \d+/\d+: loss ", message) for message in events)
    assert done.fine_tuned_model in [model.id for model in client.models.list()]
    messages = [{"role": "user", "content": "7"}]
    answer = client.chat.completions.create(model=done.fine_tuned_model, messages=messages, max_tokens=5)
    assert answer.model == done.fine_tuned_model
    (made,) = folder.parent.glob("praia-conta-*")
    assert npgpt.load(made).config.vocab_size > 257
    assert not re.search(r"/tmp|/root|python -m|" + re.escape(str(folder.parent)), "\n".join(events))
    assert any(done.fine_tuned_model in message for message in events)  # for the folder's name
    metrics = [event for event in client.fine_tuning.jobs.list_events(first.id) if event.type == "metrics"]
    measured = [event.data for event in metrics if "valid_loss" in event.data]
    assert measured and all(data["train_loss"] > 0 for data in measured)
    (losses,) = done.result_files
    assert client.files.retrieve(losses).purpose == "fine-tune-results"
    names, *rows = client.files.content(losses).text.splitlines()
    assert names == "step,train_loss,valid_loss" and len(rows) == max(data["step"] for data in measured)
    checkpoints = list(client.fine_tuning.jobs.checkpoints.list(first.id, limit=1))
    assert checkpoints[0].step_number == len(rows) and checkpoints[0].metrics.valid_loss > 0
    for one in checkpoints:
        made_of = one.fine_tuned_model_checkpoint
        assert made_of == f"{done.fine_tuned_model}:ckpt-step-{one.step_number}"
        asked = client.chat.completions.create(model=made_of, messages=messages, max_tokens=5)
        assert asked.model == made_of
    with Process(folder) as again, openai.OpenAI(base_url=again.url + "/v1", api_key="x") as later:
        assert done.fine_tuned_model in [model.id for model in later.models.list()]
        assert later.fine_tuning.jobs.retrieve(first.id).to_dict() == done.to_dict()
        assert later.files.content(losses).text == client.files.content(losses).text
        assert [event.message for event in later.fine_tuning.jobs.list_events(first.id, limit=100)] == events
        ask = {"model": done.fine_tuned_model, "messages": messages, "max_tokens": 5, "seed": 1}
        replies = [one.chat.completions.create(**ask).choices[0].message for one in (client, later)]
        assert replies[0] == replies[1]
    assert client.models.delete(done.fine_tuned_model).deleted
    assert not made.exists() and not list(folder.parent.glob("*.deleted")) and folder.exists()
    with pytest.raises(openai.NotFoundError):
        client.chat.completions.create(**ask)

    while client.fine_tuning.jobs.retrieve(endless.id).status == "queued":
        time.sleep(0.05)
    assert client.fine_tuning.jobs.cancel(endless.id).status == "cancelled"
    with pytest.raises(openai.BadRequestError, match="already completed"):
        client.fine_tuning.jobs.cancel(endless.id)
    assert [job.id for job in client.fine_tuning.jobs.list(limit=2).data] == [queued.id, marked.id]
    assert len(list(client.fine_tuning.jobs.list(limit=1))) == 4  # page by page
    for name in (file.id, "../../etc/passwd"):
        with pytest.raises(openai.NotFoundError):
            tune(training_file=name)


def test_what_was_read_before_is_told_and_changes_nothing(folder):
    prompt = "O sol brilha no mar, e o mar brilha no sol. " * 2
    with Process(folder, "--api-key", "a", "--api-key", "b") as server:
        clients = [
            openai.OpenAI(base_url=server.url + "/v1", api_key=key, max_retries=0) for key in ("a", "b")
        ]
        for client in clients:  # each reads it for the first time
            first, again = (complete(client, prompt, max_tokens=9, seed=1, n=2, logprobs=1) for _ in "ab")
            assert first.choices == again.choices
            assert [one.usage.prompt_tokens_details.cached_tokens for one in (first, again)] == [0, 88]
            more = complete(client, prompt + "E o", max_tokens=3).usage
            assert (more.prompt_tokens, more.prompt_tokens_details.cached_tokens) == (
                91,
                80 - 16 * (91 - 80 < 6),
            )
        cached = int(
            re.search(
                r"^npgpt_cached_prompt_tokens_total (\d+)",
                clients[0]._client.get(server.url + "/metrics", headers={"Authorization": "Bearer b"}).text,
                re.M,
            )[1]
        )
        assert cached == 2 * (88 + 2 * 88 + 80)
        for client in clients:
            client.close()
    for flags in (("--cache-scope", "all"), ("--cache-mb", 0)):
        with Process(folder, "--api-key", "a", "--api-key", "b", *flags) as server:
            told = []
            for key in ("a", "b"):
                with openai.OpenAI(base_url=server.url + "/v1", api_key=key) as client:
                    told.append(complete(client, prompt, max_tokens=9, seed=1, n=2, logprobs=1))
            assert [one.choices for one in told] == [first.choices] * 2
            known = [one.usage.prompt_tokens_details.cached_tokens for one in told]
            assert known == ([0, 0] if "--cache-mb" in flags else [0, 88])
