"""/v1/responses as the openai client sees it: strictly its types, its stream helper, and what is kept."""

import functools
import json
import os
import time

import pytest

from npgpt.server.store import Store
from npgpt.text import examples
from tests.models import model_with_roles
from tests.server.process import Process

openai = pytest.importorskip("openai")
pydantic = pytest.importorskip("pydantic")
pytest.importorskip("uvicorn")
from openai.types.responses import Response, ResponseStreamEvent  # noqa: E402
from pydantic import TypeAdapter  # noqa: E402

EVENT = TypeAdapter(ResponseStreamEvent)
LOGPROBS = ["message.output_text.logprobs"]
ORDER = ["created", "in_progress", "output_item.added", "content_part.added", "output_text.delta"]
ORDER += ["output_text.done", "content_part.done", "output_item.done"]


@pytest.fixture(scope="module")
def model():
    return model_with_roles()


@pytest.fixture(scope="module")
def folder(model, tmp_path_factory):
    folder = tmp_path_factory.mktemp("models") / "praia"
    model.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def server(folder):
    with Process(folder) as server:
        yield server


def client_of(server, key="none"):
    return openai.OpenAI(base_url=server.url + "/v1", api_key=key, max_retries=0)


@pytest.fixture(scope="module")
def client(server):
    with client_of(server) as client:
        yield client


@pytest.fixture
def create(client):
    return functools.partial(client.responses.create, model="praia", max_output_tokens=12)


def written(model, turns, seed, most=12):
    ids = examples.encode_chat(model.tokenizer, turns)
    return len(ids), model.generate(ids, max_new_tokens=most, temperature=1.0, seed=seed)


def strict(response):
    """The same by the client's types, none of which may be another's."""
    return Response.model_validate_json(response.model_dump_json(exclude={"store"}), strict=False)


@pytest.mark.parametrize("seed", range(4))
def test_an_answer_is_what_generate_writes(create, model, seed):
    turns = [{"role": "system", "content": "Responda."}, {"role": "user", "content": "oi"}]
    read, expected = written(model, turns, seed)
    answer = create(input="oi", instructions="Responda.", extra_body={"seed": seed}, metadata={"a": "b"})
    assert strict(answer).output == answer.output and answer.output_text == expected
    assert answer.usage.input_tokens == read and answer.instructions == "Responda."
    assert answer.usage.total_tokens == read + answer.usage.output_tokens and answer.metadata == {"a": "b"}
    if answer.usage.output_tokens == 12:
        assert (answer.status, answer.incomplete_details.reason) == ("incomplete", "max_output_tokens")
        assert answer.output[0].status == "incomplete" and answer.completed_at is None
    else:
        assert (answer.status, answer.incomplete_details) == ("completed", None)
    parts = [{"type": "input_text", "text": "o"}, {"type": "input_text", "text": "i"}]
    items = [{"role": "developer", "content": "Responda."}]
    items += [{"type": "message", "role": "user", "content": parts, "status": "completed"}]
    same = create(input=items, extra_body={"seed": seed})
    assert same.output_text == expected and same.usage.input_tokens == read


def test_an_answer_that_ends(create):
    """Of a model that has learnt nothing, an end comes by chance."""
    answers = [create(input="oi", max_output_tokens=300, extra_body={"seed": seed}) for seed in range(40, 46)]
    assert {answer.status for answer in answers} >= {"completed"}
    assert all(a.completed_at for a in answers if a.status == "completed")


@pytest.mark.parametrize("include", [None, LOGPROBS])
def test_events_come_in_the_order_that_clients_check(create, include):
    how = {"input": "oi", "include": include, "extra_body": {"seed": 3}}
    how |= {"top_logprobs": 2} if include else {}
    whole, events = create(**how), list(create(stream=True, **how))
    kinds = [event.type.removeprefix("response.") for event in events]
    deltas = kinds.count("output_text.delta")
    assert kinds == ORDER[:5] + ["output_text.delta"] * (deltas - 1) + ORDER[5:] + [whole.status]
    assert [event.sequence_number for event in events] == list(range(len(events)))
    for event in events:
        EVENT.validate_json(event.model_dump_json())
    last = events[-1].response
    assert last.output[0].content == whole.output[0].content and last.usage.output_tokens == 12
    assert "".join(e.delta for e in events if e.type.endswith("text.delta")) == whole.output_text
    told = [t for e in events if e.type.endswith("text.delta") for t in e.logprobs]
    assert [t.logprob for t in told] == [t.logprob for t in whole.output[0].content[0].logprobs]
    if include:
        assert len(told) == 12 and all(len(t.top_logprobs) == 2 for t in told)
        assert all(t.bytes for t in whole.output[0].content[0].logprobs)
    ids = {e.item_id for e in events if hasattr(e, "item_id")}
    assert ids == {last.output[0].id} and len({e.response.id for e in events if hasattr(e, "response")}) == 1


def test_the_clients_own_stream(client, create):
    how = {"model": "praia", "input": "oi", "max_output_tokens": 300}
    seeds = [
        s
        for s in range(40, 46)
        if create(input="oi", max_output_tokens=300, extra_body={"seed": s}).status == "completed"
    ]
    with client.responses.stream(**how, extra_body={"seed": seeds[0]}) as stream:
        text = "".join(event.delta for event in stream if event.type == "response.output_text.delta")
        final = stream.get_final_response()
    assert final.output_text == text and final.status == "completed" and final.usage.output_tokens > 0
    assert client.responses.retrieve(final.id).output_text == text


def test_a_conversation_goes_on(client, create, model):
    first = create(input="oi", instructions="Responda.", extra_body={"seed": 1})
    second = create(input="e o mar?", previous_response_id=first.id, extra_body={"seed": 2})
    turns = [{"role": "user", "content": "oi"}, {"role": "assistant", "content": first.output_text}]
    turns += [{"role": "user", "content": "e o mar?"}]  # instructions are those of one answer
    read, expected = written(model, turns, 2)
    assert second.output_text == expected and second.usage.input_tokens == read
    assert second.previous_response_id == first.id
    items = [{"role": "user", "content": "oi"}, *first.output, {"role": "user", "content": "e o mar?"}]
    by_hand = create(input=items, store=False, extra_body={"seed": 2})
    assert by_hand.output_text == expected
    reply = {"type": "item_reference", "id": first.output[0].id}
    for one in (reply, {"id": first.output[0].id}):  # as the AI SDK puts a reply back
        assert create(input=[items[0], one, items[2]], extra_body={"seed": 2}).output_text == expected
    listed = list(client.responses.input_items.list(second.id, order="asc", limit=2))
    assert [item.role for item in listed] == ["user", "assistant", "user"]
    assert [item.content[0].text for item in listed] == ["oi", first.output_text, "e o mar?"]
    assert [i.id for i in client.responses.input_items.list(second.id)] == [i.id for i in listed][::-1]
    assert client.responses.retrieve(second.id) == second
    client.responses.delete(first.id)
    with pytest.raises(openai.NotFoundError):
        client.responses.retrieve(first.id)
    assert create(input="?", previous_response_id=second.id).usage.input_tokens > read  # it has all it needs
    for gone in (reply["id"], by_hand.output[0].id, second.id, "msg_../x", ""):
        with pytest.raises(openai.NotFoundError, match="only replies are kept, and none with store: false"):
            create(input=[{"type": "item_reference", "id": gone}])
    for gone in (first.id, by_hand.id, "resp_../x"):
        with pytest.raises(openai.BadRequestError, match="Previous response with id") as error:
            create(input="?", previous_response_id=gone)
        assert error.value.code == "previous_response_not_found"


def test_the_oldest_turns_go_where_the_client_says_so(create, model):
    turns = [{"role": "system", "content": "S"}]
    for n in range(9):
        turns += [
            {"role": "user", "content": f"pergunta {n}"},
            {"role": "assistant", "content": f"resposta {n}"},
        ]
    turns += [{"role": "user", "content": "fim"}]
    with pytest.raises(openai.BadRequestError, match="maximum context length is 128 tokens"):
        create(input=turns)
    answer = create(input=turns, truncation="auto", extra_body={"seed": 5})
    sizes = {cut: written(model, turns[:1] + turns[cut:], 5, 1)[0] for cut in range(1, len(turns), 2)}
    cut = min(cut for cut, size in sizes.items() if size <= 128)
    assert (answer.usage.input_tokens, answer.output_text) == written(model, turns[:1] + turns[cut:], 5)
    with pytest.raises(openai.BadRequestError, match="maximum context length"):
        create(input="a" * 200, truncation="auto")


class Person(pydantic.BaseModel):
    name: str = pydantic.Field(max_length=8)
    age: int = pydantic.Field(ge=0, le=120)


def test_an_answer_that_cannot_leave_a_form(create, client):
    for _ in range(3):  # of which the later ones begin with what the cache holds
        done = client.responses.parse(
            model="praia", input="Quem?", text_format=Person, extra_body={"seed": 3}
        )
        assert done.status == "completed" and isinstance(done.output_parsed, Person)
        assert done.text.format.type == "json_schema" and done.text.format.name == "Person"
    assert done.usage.input_tokens_details.cached_tokens == done.usage.input_tokens
    with client.responses.stream(
        model="praia", input="Quem?", text_format=Person, extra_body={"seed": 3}
    ) as events:
        for _ in events:
            pass
        assert events.get_final_response().output_parsed == done.output_parsed
    # three tokens are enough for {} and its end, which some seeds draw
    text = create(input="Quem?", text={"format": {"type": "json_object"}}, max_output_tokens=1)
    assert text.output_text.startswith("{") and text.incomplete_details.reason == "max_output_tokens"


NOTHING = {
    "tools": [], "tool_choice": "auto", "parallel_tool_calls": True, "reasoning": {}, "background": False,
    "include": ["reasoning.encrypted_content"], "text": {"format": {"type": "text"}}, "service_tier": "auto",
    "truncation": "disabled", "prompt": None, "conversation": None, "user": "u", "safety_identifier": "s",
    "prompt_cache_key": "k", "max_tool_calls": 3, "context_management": [], "store": False,
}  # fmt: skip
REFUSED = {
    "tools": [{"type": "web_search"}],
    "tool_choice": "required",
    "reasoning.effort": {"reasoning": {"effort": "low"}},
    "background": True,
    "text.format.schema": {"text": {"format": {"type": "json_schema", "name": "n"}}},
    "text.format": {"text": {"format": {"type": "json_schema", "name": "n", "schema": {"type": "a"}}}},
    "conversation": "conv_1",
    "prompt": {"id": "pmpt_1"},
    "service_tier": "flex",
    "input[0].content[0].type": {
        "input": [{"role": "user", "content": [{"type": "input_image", "image_url": "data:"}]}]
    },
    "input[0].type": {"input": [{"type": "function_call_output", "call_id": "1", "output": "x"}]},
    "input[0].role": {"input": [{"content": "x"}]},
    "input[1].content": {"input": [{"role": "user", "content": "x"}, {"role": "user", "id": "msg_1"}]},
    "top_logprobs": 2,
    "max_tokens": 5,
    "include[0]": {"include": ["message.thoughts"]},
}


def test_what_asks_for_nothing_is_accepted(create):
    assert create(input="oi", extra_body=NOTHING).status in ("completed", "incomplete")


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_not_done_is_refused_by_name(create, name):
    value = REFUSED[name]
    body = (
        value
        if isinstance(value, dict) and set(value) & {name.split(".")[0].split("[")[0]}
        else {name: value}
    )
    with pytest.raises(openai.BadRequestError) as error:
        create(**{"input": "oi", "extra_body": body})
    assert error.value.param == name and name in str(error.value)


def test_nobody_reads_another_keys_answers(folder):
    with Process(folder, "--api-key", "a", "--api-key", "b") as server:
        a, b = (client_of(server, key) for key in "ab")
        kept = a.responses.create(model="praia", input="segredo", max_output_tokens=3)
        assert a.responses.retrieve(kept.id) == kept
        for ask in (b.responses.retrieve, b.responses.delete, b.responses.input_items.list):
            with pytest.raises(openai.NotFoundError):
                ask(kept.id)
        with pytest.raises(openai.BadRequestError, match="not found"):
            b.responses.create(model="praia", input="?", previous_response_id=kept.id)
        with pytest.raises(openai.NotFoundError, match="not found"):
            b.responses.create(model="praia", input=[{"type": "item_reference", "id": kept.output[0].id}])
        assert a.responses.retrieve(kept.id) == kept
        line = '{"messages": [{"role": "user", "content": "1"}, {"role": "assistant", "content": "2"}]}\n'
        file = a.files.create(file=("a.jsonl", line.encode() * 20), purpose="fine-tune")
        tuning = {"model": "praia", "training_file": file.id, "hyperparameters": {"n_epochs": 1}}
        job = a.fine_tuning.jobs.create(**tuning)
        ours = b.fine_tuning.jobs
        for ask in (b.files.retrieve, b.files.content, b.files.delete):
            with pytest.raises(openai.NotFoundError):
                ask(file.id)
        for ask in (ours.retrieve, ours.list_events, ours.checkpoints.list, ours.cancel):
            with pytest.raises(openai.NotFoundError):
                ask(job.id)
        with pytest.raises(openai.NotFoundError):
            ours.create(**tuning)
        assert not list(b.files.list()) and not list(ours.list())
        assert [one.id for one in a.files.list()] == [file.id] and a.files.content(file.id).text == line * 20
        assert [one.id for one in a.fine_tuning.jobs.list()] == [job.id]
        while (job := a.fine_tuning.jobs.retrieve(job.id)).finished_at is None:
            time.sleep(0.2)
        assert job.status == "succeeded"
        for client in (a, b):
            client.close()
    with Process(folder, "--api-key", "b", "--api-key", "a") as server:  # which lists it again
        a, b = (client_of(server, key) for key in "ab")
        assert [one.id for one in a.fine_tuning.jobs.list()] == [job.id] and not list(
            b.fine_tuning.jobs.list()
        )
        assert [one.id for one in a.files.list()] == job.result_files and not list(b.files.list())
        a.models.delete(job.fine_tuned_model)
        for client in (a, b):
            client.close()


def test_what_is_kept_outlives_a_server_that_is_killed(folder, tmp_path):
    with Process(folder, "--store", tmp_path / "kept") as server, client_of(server) as client:
        kept = client.responses.create(model="praia", input="oi", max_output_tokens=3)
    (tmp_path / "kept" / ("resp_" + "0" * 48 + "..json.new")).write_text("{")  # half of one
    with Process(folder, "--store", tmp_path / "kept") as server, client_of(server) as client:
        assert client.responses.retrieve(kept.id) == kept
        client.responses.delete(kept.id)
        assert list((tmp_path / "kept").iterdir()) == []


def test_a_disk_that_is_full_costs_no_answer(folder, tmp_path):
    before = "import npgpt.server.store as s\n"
    before += "def full(*_): raise OSError(28, 'No space left on device')\ns.os.fsync = full\n"
    with Process(folder, "--store", tmp_path / "kept", before=before) as server, client_of(server) as client:
        answer = client.responses.create(model="praia", input="oi", max_output_tokens=3)
        assert answer.output_text is not None and answer.model_extra["store"] is False
        assert answer.model_extra["warnings"] == ["it could not be stored: No space left on device"]
    assert list((tmp_path / "kept").iterdir()) == []


def test_a_failure_is_an_event(model, tmp_path):
    broken = model_with_roles()
    with broken.edit():
        broken.flat_params *= 1e37  # it overflows
    broken.save_pretrained(tmp_path / "praia")
    with Process(tmp_path / "praia") as server, client_of(server) as client:
        *_, last = client.responses.create(model="praia", input="oi", stream=True)
        assert last.type == "response.failed" and "finite" in last.response.error.message
        EVENT.validate_json(last.model_dump_json())
        with pytest.raises(openai.NotFoundError):
            client.responses.retrieve(last.response.id)


def id_of(n):
    return f"resp_{n:048x}"


def test_the_store_is_bounded(tmp_path):
    store = Store(tmp_path, 500, 100.0)
    for n in range(20):
        store.put(id_of(n), "", {"n": n, "text": "x" * 80})
        assert store.bytes == sum(path.stat().st_size for path in tmp_path.iterdir()) <= 500
    assert store.get(id_of(19), "") and not store.get(id_of(0), "")
    for path in tmp_path.iterdir():
        assert path.stat().st_mode & 0o77 == 0
    old = time.time() - 101
    os.utime(tmp_path / f"{id_of(19)}..json", (old, old))
    again = Store(tmp_path, 500, 100.0)
    assert not again.get(id_of(19), "") and again.get(id_of(18), "") == {"n": 18, "text": "x" * 80}
    assert not again.get(id_of(18), "0" * 16) and not again.delete(id_of(18), "0" * 16)
    assert Store(tmp_path, 0, 100.0).bytes == 0 and not list(tmp_path.iterdir())
    assert json.dumps(again.get(id_of(18), "")) == "null"
