"""A real headless Chromium, driven and looked at."""

import base64
import json
import os
import shutil
import subprocess
import tempfile
import time
from pathlib import Path

CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
KEYS = {"Enter": 13, "Escape": 27, "Tab": 9, "End": 35}
KEYS |= {"ArrowLeft": 37, "ArrowUp": 38, "ArrowRight": 39, "ArrowDown": 40}


class Browser:
    """Chromium over the DevTools protocol: JSON with a NUL behind it through two pipes."""

    def __init__(self, *flags):
        (read, theirs), (ours, write) = os.pipe(), os.pipe()
        self.folder = tempfile.TemporaryDirectory(ignore_cleanup_errors=True)
        flags = [f"--user-data-dir={self.folder.name}", "--headless", "--no-sandbox", "--disable-gpu", *flags]
        command = " ".join([CHROMIUM, *flags, "--remote-debugging-pipe", f"3<&{ours}", f"4>&{theirs}"])
        quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        self.process = subprocess.Popen(["bash", "-c", "exec " + command], pass_fds=(ours, theirs), **quiet)
        os.close(ours), os.close(theirs)
        self.read, self.write = os.fdopen(read, "rb"), os.fdopen(write, "wb", buffering=0)
        self.count, self.rest, self.session, self.errors = 0, b"", None, []
        target = self("Target.createTarget", url="about:blank")["targetId"]
        self.session = self("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log"):
            self(f"{domain}.enable")

    def __call__(self, method, **params):
        """A command's result; what the page complains of meanwhile is kept in errors."""
        self.count += 1
        command = {"id": self.count, "method": method, "params": params}
        if self.session:
            command["sessionId"] = self.session
        self.write.write(json.dumps(command).encode() + b"\0")
        while True:
            while b"\0" not in self.rest:
                data = self.read.read1(1 << 20)
                assert data, "Chromium ended"
                self.rest += data
            line, _, self.rest = self.rest.partition(b"\0")
            message = json.loads(line)
            if message.get("method") in ("Runtime.exceptionThrown", "Log.entryAdded"):
                self.errors.append(message["params"])
            if message.get("id") == self.count:
                assert "error" not in message, message
                return message["result"]

    def js(self, code):
        """The value of an expression."""
        answer = self("Runtime.evaluate", expression=code, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in answer, answer
        return answer["result"].get("value")

    def until(self, code, seconds=30):
        """The value of an expression once it is true."""
        end = time.monotonic() + seconds
        while not (value := self.js(code)):
            assert time.monotonic() < end, f"not yet: {code}"
            time.sleep(0.02)
        return value

    def press(self, key, modifiers=0):
        more = {"key": key, "code": key, "windowsVirtualKeyCode": KEYS[key], "modifiers": modifiers}
        if key == "Enter":
            more["text"] = "\r"
        self("Input.dispatchKeyEvent", type="keyDown", **more)
        self("Input.dispatchKeyEvent", type="keyUp", **more)

    def tab_to(self, id):
        """Tab until the element has the focus."""
        for _ in range(60):
            if self.js("document.activeElement.id") == id:
                return
            self.press("Tab")
        raise AssertionError(f"Tab does not reach {id}")

    def write_by_keys(self, more, seed):
        """Have a page of the server write on behind its prompt and `more`, without a mouse."""
        self.tab_to("prompt")
        self.press("End", modifiers=2)
        self("Input.insertText", text=more)
        self.tab_to("seed")
        self("Input.insertText", text=seed)
        self.press("Enter", modifiers=2)  # Ctrl
        self.until("!document.getElementById('keep').disabled")

    def look(self, name):
        """A screenshot, kept where NPGPT_SCREENSHOTS says -> its bytes."""
        picture = base64.b64decode(self("Page.captureScreenshot", captureBeyondViewport=True)["data"])
        if folder := os.environ.get("NPGPT_SCREENSHOTS"):
            Path(folder, f"{name}.png").write_bytes(picture)
        return picture

    def close(self):
        self("Browser.close")
        self.process.wait(30)
        self.read.close(), self.write.close()
        self.folder.cleanup()
