"""What real clients sent is answered: recordings of tests/slow/clients, sent again to a server of now."""

import contextlib
import functools
import http.client
import json
import time
from pathlib import Path

import pytest

from tests.models import model_with_roles
from tests.server.process import Process

pytest.importorskip("uvicorn")
RECORDED = sorted((Path(__file__).parents[1] / "data" / "clients").glob("*.json"))


CONTEXT = {"dspy": 2048}  # where 128 tokens are too few for a client's prompts


@pytest.fixture(scope="module")
def servers(tmp_path_factory):
    """The server of a model that has learnt nothing, by its context; begun where it is asked for."""
    folder = tmp_path_factory.mktemp("models")
    with contextlib.ExitStack() as stack:
        begun = {}

        def server(context):
            if context not in begun:
                model = folder / str(context) / "praia"
                model_with_roles(context).save_pretrained(model)
                # so that a turn more fits the context
                begun[context] = stack.enter_context(Process(model, "--max-tokens", 24))
            return begun[context]

        yield server


def sent(server, request: dict, known: dict[str, str]) -> tuple[int, bytes]:
    """(status, body) of the answer to a recorded request; `known` has what its ids are now."""
    text = functools.reduce(lambda text, one: text.replace(*one), known.items(), json.dumps(request))
    request = json.loads(text.replace("{model}", server.name))
    body = json.dumps(request["json"]) if "json" in request else request.get("text", "")
    kind = {"Content-Type": request.get("type", "application/json")}
    connection = http.client.HTTPConnection(server.host, server.port, timeout=60)
    with contextlib.closing(connection):
        chunked = request.get("chunked", False)
        data = iter([body.encode()]) if chunked else body.encode()
        connection.request(request["method"], request["path"], data, kind, encode_chunked=chunked)
        answer = connection.getresponse()
        return answer.status, answer.read()


def wait_for(server, job: str) -> None:
    end = time.monotonic() + 120
    while server.ask(f"/v1/fine_tuning/jobs/{job}", b"", "GET")[1]["finished_at"] is None:
        assert time.monotonic() < end
        time.sleep(0.1)


@pytest.mark.parametrize("path", RECORDED, ids=lambda path: path.stem)
def test_what_a_client_sent_is_answered_as_then(path, servers):
    server = servers(CONTEXT.get(path.stem.rsplit("-", 1)[0], 128))
    known: dict[str, str] = {}
    for request in json.loads(path.read_text(encoding="utf-8")):
        if "ft:" in json.dumps(request):  # the client has waited for the model
            wait_for(server, next(now for now in known.values() if now.startswith("ftjob-")))
        status, body = sent(server, request, known)
        assert status == request["status"], (request, body)
        if "made" in request:
            then, now = request["made"], json.loads(body)["id"]
            # an answer's name is that of its message too
            known |= {then.removeprefix("resp_"): now.removeprefix("resp_"), then[-8:]: now[-8:]}
        if request.get("json", {}).get("stream") and request["path"] == "/v1/responses":
            assert b'"type": "response.completed"' in body or b'"type": "response.incomplete"' in body
        elif request.get("json", {}).get("stream"):
            assert body.endswith(b"data: [DONE]\n\n")
        elif request["path"].endswith("completions"):
            answer, asked = json.loads(body), request["json"]
            assert answer["choices"]
            if asked.get("echo"):  # of each prompt all tokens are told, and the one that is drawn
                told = [len(choice["logprobs"]["token_logprobs"]) for choice in answer["choices"]]
                assert sum(told) == answer["usage"]["prompt_tokens"] + len(told)


def test_recordings_have_each_client():
    from tests.slow.clients.every import CLIENTS

    assert {path.stem for path in RECORDED} == set(CLIENTS)
