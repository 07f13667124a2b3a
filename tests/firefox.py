"""A real headless Firefox, asked over its Marionette protocol."""

import json
import shutil
import socket
import subprocess
import tempfile
import time
from pathlib import Path

FIREFOX = shutil.which("firefox-esr") or shutil.which("firefox")


class Firefox:
    """One window: messages are JSON with their length before them, over TCP."""

    def __init__(self, languages="en-US"):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        self.folder = tempfile.TemporaryDirectory(ignore_cleanup_errors=True)
        settings = {"marionette.port": port, "intl.accept_languages": languages, "network.dns.disabled": True}
        lines = [f"user_pref({json.dumps(name)}, {json.dumps(value)});\n" for name, value in settings.items()]
        Path(self.folder.name, "user.js").write_text("".join(lines), encoding="utf-8")
        command = [FIREFOX, "--headless", "--marionette", "--no-remote", "--profile", self.folder.name]
        quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        self.process = subprocess.Popen(
            command, env={"HOME": self.folder.name, "PATH": "/usr/bin:/bin"}, **quiet
        )
        end = time.monotonic() + 60
        while True:
            try:
                self.socket = socket.create_connection(("127.0.0.1", port), timeout=120)
                break
            except OSError:
                assert time.monotonic() < end and self.process.poll() is None, "Firefox does not listen"
                time.sleep(0.1)
        self.file, self.count = self.socket.makefile("rb"), 0
        self.read()  # its greeting
        self("WebDriver:NewSession", capabilities={"alwaysMatch": {"unhandledPromptBehavior": "ignore"}})

    def read(self):
        length = b""
        while (byte := self.file.read(1)) != b":":
            assert byte, "Firefox ended"
            length += byte
        return json.loads(self.file.read(int(length)))

    def __call__(self, method, **params):
        """A command's result."""
        self.count += 1
        data = json.dumps([0, self.count, method, params])
        self.socket.sendall(f"{len(data)}:{data}".encode())
        _, number, error, result = self.read()
        assert number == self.count and error is None, error
        return result

    def js(self, code):
        """The value of an expression, or of what it promises."""
        return self("WebDriver:ExecuteScript", script=f"return ({code});", args=[])["value"]

    def until(self, code, seconds=60):
        """The value of an expression once it is true."""
        end = time.monotonic() + seconds
        while not (value := self.js(code)):
            assert time.monotonic() < end, f"not yet: {code}"
            time.sleep(0.05)
        return value

    def close(self):
        self("Marionette:Quit", flags=["eForceQuit"])
        self.process.wait(30)
        self.file.close(), self.socket.close()
        self.folder.cleanup()
