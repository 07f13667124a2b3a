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


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """A server of a model with roles, which has learnt nothing."""
    model = model_with_roles()
    folder = tmp_path_factory.mktemp("models") / "praia"
    model.save_pretrained(folder)
    with Process(folder, "--max-tokens", 24) as server:  # so that a turn more fits the context
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
def test_what_a_client_sent_is_answered_as_then(path, server):
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
    clients = {"ai-sdk", "lm-eval", "openai-agents", "openai-node", "openai-node-responses", "openai-python"}
    clients |= {"openai-responses", "pydantic-ai"}
    assert {path.stem.rsplit("-", 1)[0] for path in RECORDED} == clients
