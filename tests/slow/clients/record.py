"""`python tests/slow/clients/record.py RUN OUT.json -- COMMAND...`: write what a client sends to a server.

COMMAND finds the server by OPENAI_BASE_URL and the model's name by MODEL. Of each request OUT.json keeps the
method, path, type of content, body, status of the answer, and the id of what was made, which later requests
name. {model} stands for the model's name. tests/parity/test_clients.py sends it all again.
"""

import http.client
import http.server
import json
import os
import re
import subprocess
import sys
import threading
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[3]))

from tests.server.process import Process

BOUNDARY = "boundary-of-the-recording"
PASSED = ("content-type", "authorization", "transfer-encoding", "accept")


def recorder(server: Process, kept: list) -> http.server.ThreadingHTTPServer:
    """A server on a free port that hands requests on, and appends each to `kept`."""

    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def answer(self):
            chunked = "chunked" in self.headers.get("transfer-encoding", "")
            body = self.chunks() if chunked else self.rfile.read(int(self.headers.get("content-length", 0)))
            headers = {name: self.headers[name] for name in PASSED if self.headers[name] and not chunked}
            if chunked:
                headers = {"content-type": self.headers["content-type"], "transfer-encoding": "chunked"}
            connection = http.client.HTTPConnection(server.host, server.port, timeout=60)
            sent = iter([body]) if chunked else body
            connection.request(self.command, self.path, sent, headers, encode_chunked=chunked)
            answer = connection.getresponse()
            data = answer.read()
            request = recorded(self.command, self.path, headers, body, server.name) | {
                "status": answer.status
            }
            made = re.search(rb'"id": "((?:(?:file|ftjob)-|resp_)[0-9a-f]+)"', data)
            if self.command == "POST" and made and data[:1] == b"{":  # no stream
                request["made"] = made[1].decode()
            if not kept or request != kept[-1]:  # a job that is waited for
                kept.append(request)
            self.send_response(answer.status)
            for name in ("content-type", "x-request-id", "retry-after"):
                if answer.headers[name]:
                    self.send_header(name, answer.headers[name])
            self.send_header("content-length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        do_GET = do_POST = do_DELETE = answer

        def chunks(self) -> bytes:
            body = b""
            while size := int(self.rfile.readline(), 16):
                body += self.rfile.read(size)
                self.rfile.readline()
            self.rfile.readline()
            return body

        def log_message(self, *_):
            pass

    return http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)


def recorded(method: str, path: str, headers: dict, body: bytes, model: str) -> dict:
    """A request as it is kept."""
    kind, text = headers.get("content-type", ""), body.decode()
    if found := re.search("boundary=(.*)", kind):
        kind, text = (part.replace(found[1], BOUNDARY) for part in (kind, text))
    request = {"method": method, "path": path.replace(f":{model}:", ":{model}:")}
    if kind == "application/json" and text:
        return request | {
            "json": json.loads(
                text.replace(json.dumps(model), '"{model}"').replace(f":{model}:", ":{model}:")
            )
        }
    chunked = {"chunked": True} if "transfer-encoding" in headers else {}
    return request | ({"type": kind, "text": text, **chunked} if text else {})


def main(model: str, out: str, _, *command: str) -> int:
    kept: list = []
    with Process(model) as server:
        proxy = recorder(server, kept)
        threading.Thread(target=proxy.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{proxy.server_port}/v1"
        environment = {"OPENAI_BASE_URL": url, "OPENAI_API_KEY": "none", "MODEL": server.name}
        code = subprocess.run(command, env=os.environ | environment).returncode
        proxy.shutdown()
    lines = ",\n".join(json.dumps(one, ensure_ascii=False) for one in kept)
    Path(out).write_text(f"[\n{lines}\n]\n", encoding="utf-8")
    return code


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
