"""Streams for several clients at once: npgpt's server and llama.cpp's, each in a process of its own.

`python -m npgpt.measure.serving FILE THREADS CLIENTS` is llama.cpp's, from the xllamacpp wheel, until it is
ended.
"""

import asyncio
import json
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from npgpt.engine import kernels
from npgpt.engine.types import Fields
from npgpt.measure.contender import Samples, Work

PROMPT, NEW = 32, 64  # tokens of each client
CLIENTS = 8
CASES = {f"{CLIENTS} clients, GPT-2 124M, Q8_0": "q8_0"}


def prompt(number: int, length: int = PROMPT) -> str:
    """Return the prompt of a client, so many letters, which are as many tokens."""
    return "".join(chr(97 + (7 * number + i * i) % 26) for i in range(length))


class Server:
    """A server in a process of its own, on loopback."""

    def __init__(self, name: str, path: Path, clients: int = CLIENTS, cache: int = 0) -> None:
        """Start npgpt's or llama.cpp's for so many clients; RuntimeError where it ends before it listens.

        npgpt's keeps so many MB of what it read of prompts, llama.cpp's none.
        """
        threads = kernels.get_num_threads()
        words = {
            "npgpt": ["npgpt.serve", path, "--port", "0", "--threads", threads, "--cache-mb", cache],
            "llama.cpp": ["npgpt.measure.serving", path, threads, clients],
        }[name]
        self.name, self.model = name, Path(path).stem
        self.more: Fields = {"cache_prompt": False} if name == "llama.cpp" else {}
        command = [sys.executable, "-m", *map(str, words)]
        pipes: Fields = {"stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL, "text": True}
        self.process = subprocess.Popen(command, **pipes)
        for line in self.process.stdout or ():
            if found := re.search(r"http://(127\.0\.0\.1):(\d+)", line):
                self.address = found.group(1), int(found.group(2))
                return
        raise RuntimeError(f"{name}'s server ended with exit code {self.process.wait()}")

    def end(self) -> None:
        """End the process."""
        self.process.terminate()
        self.process.wait()
        assert self.process.stdout
        self.process.stdout.close()

    async def stream(self, number: int, new: int = NEW, length: int = PROMPT) -> float:
        """Return the seconds to the first token of one streamed completion of `new` tokens."""
        asked = {
            "model": self.model,
            "prompt": prompt(number, length),
            "max_tokens": new,
            "temperature": 0,
            "stream": True,
        }
        asked |= {"ignore_eos": True, "stream_options": {"include_usage": True}, **self.more}
        body = json.dumps(asked, allow_nan=False).encode()
        host, port = self.address
        reader, writer = await asyncio.open_connection(host, port)
        begin, first, tokens = time.perf_counter(), 0.0, 0
        head = f"POST /v1/completions HTTP/1.1\r\nHost: {host}:{port}\r\nContent-Type: application/json\r\n"
        writer.write(f"{head}Connection: close\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body)
        async for line in reader:
            if line.startswith(b"data: {"):
                event = json.loads(line[6:])
                if event["choices"] and event["choices"][0].get("text") and not first:
                    first = time.perf_counter() - begin
                tokens = (event.get("usage") or {}).get("completion_tokens", tokens)
        writer.close()
        if tokens != new:
            raise RuntimeError(f"{self.name} gave {tokens} tokens instead of {new}")
        return first

    async def level(self, clients: int) -> tuple[float, list[float]]:
        """Return tokens/s of so many clients in all, and the seconds to the first token of each."""
        begin = time.perf_counter()
        firsts = await asyncio.gather(*(self.stream(i) for i in range(clients)))
        return clients * NEW / (time.perf_counter() - begin), firsts


def work_of(case: str, name: str, path: Path | None) -> Work:
    """Return the work of a server, which ends with this process's stdin."""
    assert path
    server = Server(name, path)

    def turn() -> Samples:
        rate, firsts = asyncio.run(server.level(CLIENTS))
        return {"tokens/s": [rate], "ms to the first token": [1e3 * first for first in firsts]}

    return Work(turn, close=server.end)


def serve_llama(path: str, threads: int, clients: int) -> None:
    """Run llama.cpp's server until the process is ended."""
    import xllamacpp

    params: Any = xllamacpp.CommonParams()
    params.model.path, params.n_parallel = path, clients
    params.n_ctx = clients * 2 * (PROMPT + NEW)
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = threads
    server = xllamacpp.Server(params)
    print(server.listening_address, flush=True)
    time.sleep(3600)


if __name__ == "__main__":
    serve_llama(sys.argv[1], *map(int, sys.argv[2:]))
