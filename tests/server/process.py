"""A real server on loopback, with bounds of one's own."""

import contextlib
import http.client
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

ROOT = Path(__file__).parents[2]
START = """
import functools, sys
from npgpt.server import guard
from npgpt import serve
guard.Settings = functools.partial(guard.Settings, **{settings!r})
raise SystemExit(serve.main({flags!r}))
"""


class Process:
    """`python -m npgpt.serve MODEL --port 0 FLAGS...`, its Settings changed."""

    terminated = False

    def __init__(self, model, *flags, before="", popen=None, **settings):
        flags = [str(model), "--port", "0", *map(str, flags)]
        code = before + START.format(settings=settings, flags=flags)
        path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
        environment = os.environ | {"PYTHONPATH": path}
        more = {"env": environment, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        self.process = subprocess.Popen([sys.executable, "-c", code], **(more | (popen or {})))
        for line in self.process.stdout:
            if found := re.search(r"serving (.*) at (http://(.*):(\d+)) ", line):
                self.name, self.url, self.host = found.group(1, 2, 3)
                self.port = int(found.group(4))
                return
        raise AssertionError(f"the server ended: {self.process.communicate()[1]}")

    def get(self, path: str) -> bytes:
        with urllib.request.urlopen(self.url + path, timeout=60) as answer:
            return answer.read()

    def ask(self, path: str, body, method="POST", **headers):
        """(status, what JSON came, headers) of a raw request."""
        connection = http.client.HTTPConnection(self.host, self.port, timeout=60)
        with contextlib.closing(connection):
            data = body if isinstance(body, bytes) else json.dumps(body).encode()
            connection.request(method, path, data, headers)
            answer = connection.getresponse()
            return answer.status, json.loads(answer.read() or "null"), answer.headers

    def stream(self, **fields):
        """A socket on which a stream of a completion begins to come."""
        fields = {"model": self.name, "prompt": "a", "stream": True, "ignore_eos": True} | fields
        body = json.dumps(fields).encode()
        connection = socket.create_connection((self.host, self.port), timeout=60)
        head = f"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(body)}\r\n\r\n"
        connection.sendall(head.encode() + body)
        return connection

    def metric(self, name: str) -> float:
        return float(re.search(rf"^{name} (.*)$", self.get("/metrics").decode(), re.M).group(1))

    def settles(self, name: str, holds, seconds=20) -> float:
        """The value of a metric once it holds; an error if that takes longer."""
        end = time.monotonic() + seconds
        while not holds(value := self.metric(name)):
            assert time.monotonic() < end, f"{name} stays at {value}"
            time.sleep(0.05)
        return value

    def terminate(self) -> None:
        if not self.terminated and self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        self.terminated = True

    def end(self, seconds=60) -> tuple[int, str]:
        """(exit code, stderr) after SIGTERM."""
        self.terminate()
        try:
            _, err = self.process.communicate(timeout=seconds)
        except subprocess.TimeoutExpired:
            self.process.kill()
            raise
        return self.process.returncode, err

    def __enter__(self):
        return self

    def __exit__(self, *_):
        code, err = self.end()
        assert (code, err) == (0, ""), (code, err)
