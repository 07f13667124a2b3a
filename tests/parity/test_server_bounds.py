"""The server among clients that are slow, broken, gone or too many: an error object, and it goes on."""

import contextlib
import json
import re
import socket
import subprocess
import sys
import time

import pytest

from tests.models import random_model
from tests.server.process import ROOT, Process
from tests.training.test_portable import WINDOWS

pytest.importorskip("uvicorn")
ENDLESS = 10**9


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models") / "praia"
    random_model(block_size=128).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def server(folder):
    seconds = {"header_seconds": 1, "body_seconds": 1, "write_seconds": 1, "connections": 1500}
    with Process(folder, "--max-tokens", ENDLESS, "--grace", 0.2, **seconds) as server:
        yield server


@pytest.fixture(autouse=True)
def it_goes_on(server):
    """After each test it answers, and no session is left."""
    yield
    fields = {"model": "praia", "prompt": "a", "max_tokens": 3}
    status, answer, _ = server.ask("/v1/completions", fields)
    assert status == 200 and answer["choices"]
    server.settles("npgpt_sessions", lambda n: n == 0)
    assert server.metric("npgpt_waiting") == 0


def is_error(answer, status, code=None):
    got, body, _ = answer
    assert got == status, body
    error = body["error"]
    assert error.keys() == {"message", "type", "param", "code"} and error["message"]
    assert "\n" not in error["message"] and len(error["message"]) < 500
    assert code in (None, error["code"])


@pytest.mark.parametrize(
    "body, message",
    [
        (b"", "must be JSON"),
        (b"{", "must be JSON"),
        (b'{"model": "praia", "prompt": "a", "temperature": NaN}', "NaN is no number"),
        (b'{"model": "praia", "prompt": "a", "temperature": -Infinity}', "no number"),
        (b'{"model": "praia", "prompt": "\xff"}', "must be UTF-8, byte 30 is not"),
        (b"[" * 100_000, "must be JSON"),
        (b'{"model": "praia", "prompt": ' + b"[" * 20_000 + b"]" * 20_000 + b"}", "must be"),
        (b'{"model": "praia", "prompt": "a", "seed": ' + b"9" * 5000 + b"}", "must be"),
        (b'{"model": "praia", "prompt": "a", "temperature": 1e999}', "temperature must be"),
        (b'{"model": "praia", "prompt": "a", "temperature": ' + b"9" * 400 + b"}", "temperature must be"),
        (b'"a"', "must be a JSON object"),
        (b"null", "must be a JSON object"),
        (b'{"model": 5, "prompt": "a"}', "model must be a string"),
        (b'{"model": "\\ud800", "prompt": "a"}', "does not exist"),
    ],
    ids=range(14),
)
def test_bodies_that_are_no_request(server, body, message):
    answer = server.ask("/v1/completions", body)
    is_error(answer, 404 if "does not exist" in message else 400)
    assert message in answer[1]["error"]["message"]


def test_half_a_surrogate_pair_is_text_like_any_other(server):
    body = b'{"model": "praia", "prompt": "\\ud83d", "echo": true, "max_tokens": 1}'
    status, answer, _ = server.ask("/v1/completions", body)
    assert status == 200 and "\ufffd" in answer["choices"][0]["text"]


def test_huge_prompts(server):
    before = server.metric("process_resident_memory_bytes")
    for _ in range(5):
        is_error(server.ask("/v1/completions", b'{"prompt": "' + b"a" * 10_000_000), 413, "body_too_large")
    long = {"model": "praia", "prompt": "a" * 3_000_000}
    is_error(server.ask("/v1/completions", long), 400, "context_length_exceeded")
    ids = {"model": "praia", "prompt": [1] * 1_000_000}
    is_error(server.ask("/v1/completions", ids), 400, "context_length_exceeded")
    assert server.metric("process_resident_memory_bytes") - before < 200e6


def test_chunked_bodies_are_counted_too(server):
    with socket.create_connection((server.host, server.port), timeout=30) as client:
        client.sendall(
            b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n"
        )
        with contextlib.suppress(OSError):  # it answers before it has read all
            for _ in range(80):
                client.sendall(b"10000\r\n" + b" " * 65536 + b"\r\n")
        assert client.recv(1000).startswith(b"HTTP/1.1 413 ")


@pytest.mark.parametrize(
    "method, path, status",
    [
        ("GET", "/v1/completions", 405),
        ("POST", "/v1/models", 405),
        ("GET", "/v2", 404),
        ("GET", "/v1/files/..%2f..%2fetc%2fpasswd", 404),
        ("GET", "/v1/files/..%2f..%2fetc%2fpasswd/content", 404),
        ("DELETE", "/v1/models/praia", 403),
        ("GET", "/v1/fine_tuning/jobs/x/events", 404),
        ("GET", "/v1/files?limit=0", 400),
        ("GET", "/v1/files?after=x", 400),
    ],
)
def test_paths_and_methods(server, method, path, status):
    is_error(server.ask(path, b"", method), status)


def test_other_sites_may_not_ask(server):
    fields = {"model": "praia", "prompt": "a"}
    is_error(server.ask("/v1/completions", fields, Origin="https://evil.example"), 403, "forbidden_origin")
    is_error(server.ask("/v1/models", b"", "GET", Host="evil.example"), 403, "forbidden_host")
    origin = f"http://127.0.0.1:{server.port}"
    assert server.ask("/v1/completions", fields, Origin=origin)[0] == 200


ASKS = {
    "Access-Control-Request-Method": "POST",
    "Access-Control-Request-Headers": "authorization,x-stainless-os",
}


def test_a_site_that_is_allowed_may_ask(folder):
    """A browser asks first, without the key, and lets the page read an answer that names its origin."""
    site, fields = "https://chat.example:8443", {"model": "praia", "prompt": "a", "max_tokens": 1}
    with Process(
        folder, "--api-key", "k", "--allow-origin", site.upper(), "--allow-origin", "null"
    ) as server:
        for origin in (site, "null"):
            status, body, headers = server.ask("/v1/completions", b"", "OPTIONS", Origin=origin, **ASKS)
            assert (status, body) == (204, None) and headers["access-control-allow-origin"] == origin
            assert headers["access-control-allow-headers"] == ASKS["Access-Control-Request-Headers"]
            assert "POST" in headers["access-control-allow-methods"] and headers["vary"] == "Origin"
        key = {"Authorization": "Bearer k"}
        for body, expected in ((fields, 200), (fields | {"best_of": 2}, 400)):  # an error is read, too
            status, _, headers = server.ask("/v1/completions", body, Origin=site, **key)
            assert status == expected and headers["access-control-allow-origin"] == site
            assert "x-request-id" in headers["access-control-expose-headers"]
        status, _, headers = server.ask("/v1/completions", fields, Origin=site)
        assert status == 401 and headers["access-control-allow-origin"] == site
        for method, more in (("OPTIONS", ASKS), ("POST", key)):
            answer = server.ask("/v1/completions", fields, method, Origin="https://evil.example", **more)
            is_error(answer, 403, "forbidden_origin")
            assert "access-control-allow-origin" not in answer[2]
    with Process(folder, "--allow-origin", "*") as server:
        assert server.ask("/v1/completions", fields, Origin=site)[2]["access-control-allow-origin"] == site
        is_error(server.ask("/v1/models", b"", "GET", Host="evil.example"), 403, "forbidden_host")


def test_each_answer_has_an_id(server):
    """Those of handlers, errors, streams and what is no request."""
    ids = [
        server.ask(path, b"", method)[2]["x-request-id"]
        for path, method in (
            ("/v1/models", "GET"),
            ("/v1/models", "POST"),
            ("/health", "GET"),
            ("/v2", "GET"),
        )
    ]
    ids.append(server.ask("/v1/models", b"", "GET", Origin="https://evil.example")[2]["x-request-id"])
    with server.stream(max_tokens=3) as client:
        ids += re.findall("x-request-id: (.*)\r\n", client.recv(2000).decode())
    ids += re.findall("x-request-id: (.*)\r\n", raw(server, b"GET / HTTP/9\r\n\r\n").decode())
    assert len({id for id in ids if re.fullmatch("req_[0-9a-f]{32}", id)}) == 7


@pytest.mark.parametrize(
    "method, path, message",
    [
        ("POST", "/v1/images", "Invalid URL (POST /v1/images)"),
        ("GET", "/v1/models/", "Invalid URL (GET /v1/models/)"),
        ("POST", "/v1/completions/", "Invalid URL (POST /v1/completions/)"),  # not a redirect
        (
            "POST",
            "/chat/completions",
            "(POST /chat/completions); did you mean /v1/chat/completions? A base_url",
        ),
        ("PUT", "/v1/files", "Not allowed to PUT on /v1/files"),
    ],
)
def test_unknown_paths_are_named(server, method, path, message):
    answer = server.ask(path, {}, method)
    is_error(answer, 405 if method == "PUT" else 404)
    assert message in answer[1]["error"]["message"]


def raw(server, data: bytes) -> bytes:
    """What comes back until the server closes."""
    with socket.create_connection((server.host, server.port), timeout=30) as client:
        client.sendall(data)
        return b"".join(iter(lambda: client.recv(65536), b""))


def test_slow_clients_get_an_error(server):
    for begin in (b"", b"POST /v1/comp", b"GET / HTTP/1.1\r\nHost: localhost\r\nX: "):
        answer = raw(server, begin)
        assert answer.startswith(b"HTTP/1.1 408 ") and b'"error"' in answer
    head = b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100\r\n\r\n{"
    assert raw(server, head).startswith(b"HTTP/1.1 408 ")
    with socket.create_connection((server.host, server.port), timeout=30) as client:
        begin = time.monotonic()
        with contextlib.suppress(OSError):  # a letter at a time
            client.sendall(b"GET / HTTP/1.1\r\nX: ")
            for _ in range(100):
                client.sendall(b"a")
                time.sleep(0.05)
        assert time.monotonic() - begin < 4


def test_what_is_no_http(server):
    for data in (b"\x16\x03\x01\x02\x00", b"GET\r\n\r\n", b"GET / HTTP/9\r\n\r\n", b"A" * 100_000):
        with contextlib.suppress(ConnectionResetError):
            answer = raw(server, data)
            assert answer.startswith((b"HTTP/1.1 400 ", b"HTTP/1.1 408 ")), answer[:80]


def test_a_client_that_goes_frees_its_session(server):
    whole = {"model": "praia", "prompt": "a", "max_tokens": ENDLESS, "ignore_eos": True}
    body = json.dumps(whole).encode()
    for n in (1, 3):
        with server.stream(max_tokens=ENDLESS, n=n) as client:
            assert client.recv(15) == b"HTTP/1.1 200 OK"
            server.settles("npgpt_sessions", lambda value, n=n: value == n)
        server.settles("npgpt_sessions", lambda n: n == 0, 2)
    with socket.create_connection((server.host, server.port)) as client:  # one that is not a stream
        head = f"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(body)}\r\n\r\n"
        client.sendall(head.encode() + body)
        server.settles("npgpt_sessions", lambda n: n == 1)
    server.settles("npgpt_sessions", lambda n: n == 0, 2)


def test_a_client_that_does_not_read_is_dropped(server):
    with server.stream(max_tokens=ENDLESS) as client:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        server.settles("npgpt_sessions", lambda n: n == 1)
        server.settles("npgpt_sessions", lambda n: n == 0, 60)


def test_thousands_of_connections(server):
    before = {name: server.metric(name) for name in ("process_open_fds", "process_resident_memory_bytes")}
    clients, refused = [], 0
    for _ in range(2500):
        client = socket.socket()
        client.settimeout(30)
        client.connect((server.host, server.port))
        clients.append(client)
    for client in clients[::-1]:
        answer = client.recv(1000)
        assert answer.startswith((b"HTTP/1.1 503 ", b"HTTP/1.1 408 ")) and b'{"error": {' in answer, answer
        refused += answer.startswith(b"HTTP/1.1 503 ")
        client.close()
    assert refused > 0
    server.settles("process_open_fds", lambda n: n <= before["process_open_fds"] + 2)
    assert server.metric("process_resident_memory_bytes") - before["process_resident_memory_bytes"] < 100e6


def test_bodies_that_never_come(server):
    head = b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: 4000000\r\n\r\n{"
    with contextlib.ExitStack() as stack:
        clients = [
            stack.enter_context(socket.create_connection((server.host, server.port), timeout=30))
            for _ in range(700)
        ]
        for client in clients:
            client.sendall(head)
        answers = [client.recv(1000) for client in clients]
    statuses = [answer.split()[1] for answer in answers]
    assert set(statuses) == {b"408", b"429"}
    assert all(b"retry-after: 1" in a for a, s in zip(answers, statuses, strict=True) if s == b"429")


def test_pages_of_its_own(server):
    status = server.get("/health")
    assert json.loads(status) == {"status": "ok"}
    assert b"<!doctype html>" in server.get("/")
    metrics = server.get("/metrics").decode()
    assert 'npgpt_answers_total{status="200"}' in metrics and "npgpt_first_token_seconds_bucket" in metrics
    run = json.loads(server.get("/run"))
    assert run["model"] == "praia" and run["context"] == 128 and run["roles"] is False


# ---------------------------------------------------------------------------- its end


def received(client) -> bytes:
    return b"".join(iter(lambda: client.recv(65536), b""))


def test_sigterm_lets_streams_end_and_takes_no_more(folder):
    with Process(folder, "--max-tokens", ENDLESS) as server:
        with server.stream(max_tokens=3000, n=8) as client:
            begun = client.recv(100)
            with socket.create_connection((server.host, server.port)) as waiting:
                server.terminate()
                time.sleep(0.3)
                with pytest.raises(OSError):
                    socket.create_connection((server.host, server.port), timeout=1)
                assert waiting.recv(100) == b""
            text = begun + received(client)
        assert b"data: [DONE]" in text and text.count(b'"finish_reason": "length"') == 8
        assert server.end() == (0, "")


def test_sigterm_ends_what_outlasts_the_grace_time(folder):
    with Process(folder, "--max-tokens", ENDLESS, "--grace", 0.5) as server:
        with server.stream(max_tokens=ENDLESS) as client:
            client.recv(100)
            begin = time.monotonic()
            server.terminate()
            assert b'data: {"error": {"message": "the server is shutting down"' in received(client)
        assert server.end() == (0, "") and time.monotonic() - begin < 5


@pytest.mark.parametrize(
    "flags, message",
    [
        ("--host 0.0.0.0", "--api-key must be given where others can connect"),
        ("--port 70000", "--port must be in 0..65535"),
        ("--allow-origin example.org", "--allow-origin must be * or an origin such as https://example.org"),
        (
            "--allow-origin https://a.org/b",
            "--allow-origin must be * or an origin such as https://example.org",
        ),
        ("--sessions 0", "--sessions: must be a whole number, at least 1, got 0"),
        ("--host 203.0.113.7 --api-key x", "cannot listen at 203.0.113.7:8000"),
    ],
)
def test_bad_flags(folder, flags, message):
    command = [sys.executable, "-m", "npgpt.serve", str(folder), *flags.split()]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=60)
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr.count("\n") == 1 and message in done.stderr


def test_without_what_only_unix_has(folder):
    with Process(folder, before=WINDOWS) as server:
        status, answer, _ = server.ask("/v1/completions", {"model": "praia", "prompt": "a", "max_tokens": 3})
        assert status == 200 and answer["usage"]["completion_tokens"] == 3
        assert server.metric("npgpt_tokens_total") == 3
