"""`python tests/slow/soak.py [--minutes 3]`: a server under clients that come and go as they like.

Streams that are left in the middle, whole answers, chats, embeddings, requests that are refused, connections
that say nothing. All the while one seed gives one text; at the end sessions, descriptors and memory are back.
"""

import argparse
import asyncio
import json
import random
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import npgpt
from npgpt.text import examples
from npgpt.text.tokenizer import ByteTokenizer
from tests.server.process import Process

CLIENTS = 32
FIXED = {"prompt": "O sol", "seed": 1, "max_tokens": 80, "ignore_eos": True}


async def ask(server, path, fields, leave=None) -> tuple[int, bytes]:
    """(status, what came) of a request, or what came until the client left after `leave` reads."""
    body = json.dumps({"model": server.name, **fields}).encode()
    reader, writer = await asyncio.open_connection(server.host, server.port)
    head = (
        f"POST {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    try:
        writer.write(head.encode() + body)
        data = b""
        while chunk := await reader.read(1 << 16):
            data += chunk
            if leave is not None and (leave := leave - 1) < 0:
                break
        head, _, content = data.partition(b"\r\n\r\n")
        return int(head.split()[1]) if head else 0, content
    finally:
        writer.close()


async def client(server, number, end, counts, expected):
    dice = random.Random(number)
    while time.monotonic() < end:
        kind = dice.choice(("left", "left", "stream", "whole", "chat", "embedding", "bad", "silent", "fixed"))
        counts[kind] = counts.get(kind, 0) + 1
        many = {"prompt": "a" * dice.randint(1, 250), "max_tokens": dice.randint(1, 400), "ignore_eos": True}
        try:
            if kind == "left":
                many |= {"stream": True, "n": dice.randint(1, 3), "max_tokens": 4000}
                await ask(server, "/v1/completions", many, leave=dice.randint(0, 20))
            elif kind == "stream":
                status, data = await ask(server, "/v1/completions", many | {"stream": True, "logprobs": 5})
                assert status == 429 or b"data: [DONE]" in data, (status, data[-200:])
            elif kind == "whole":
                status, _ = await ask(server, "/v1/completions", many | {"logprobs": 2, "echo": True})
                assert status in (200, 429), status
            elif kind == "chat":
                messages = [{"role": "user", "content": "b" * dice.randint(1, 200)}]
                status, _ = await ask(
                    server, "/v1/chat/completions", {"messages": messages, "max_tokens": 50}
                )
                assert status in (200, 429), status
            elif kind == "embedding":
                status, _ = await ask(server, "/v1/embeddings", {"input": ["c" * dice.randint(1, 250)] * 5})
                assert status in (200, 429), status
            elif kind == "bad":
                status, _ = await ask(
                    server, "/v1/completions", {"prompt": "d" * 300} if number % 2 else {"n": 99}
                )
                assert status == 400, status
            elif kind == "silent":
                _, writer = await asyncio.open_connection(server.host, server.port)
                await asyncio.sleep(dice.random() * 2)
                writer.close()
            else:
                status, data = await ask(server, "/v1/completions", FIXED)
                assert status == 429 or json.loads(data)["choices"][0]["text"] == expected, data
        except ConnectionError:
            counts["reset"] = counts.get("reset", 0) + 1


def state(server) -> dict:
    names = ("npgpt_sessions", "npgpt_waiting", "process_open_fds", "process_resident_memory_bytes")
    return {name: server.metric(name) for name in names}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--minutes", type=float, default=3)
    minutes = parser.parse_args().minutes
    tokenizer = examples.add_roles(ByteTokenizer())
    config = npgpt.GPTConfig(n_layer=4, n_head=4, n_embd=128, block_size=256, vocab_size=tokenizer.vocab_size)
    model = npgpt.GPT(config, tokenizer=tokenizer)
    expected = model.generate(FIXED["prompt"], 80, temperature=1.0, seed=1, ignore_eos=True)
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(Path(folder) / "soak")
        with Process(Path(folder) / "soak", "--sessions", 16, "--queue", 32) as server:

            async def run(seconds, report):
                end, counts = time.monotonic() + seconds, {}
                clients = [client(server, i, end, counts, expected) for i in range(CLIENTS)]
                everyone = asyncio.gather(*clients)
                while not everyone.done():
                    await asyncio.wait([everyone], timeout=min(20, seconds))
                    now = await asyncio.to_thread(state, server)
                    if report:
                        print(
                            f"{sum(counts.values()):6} requests, {now['npgpt_sessions']:.0f} sessions, "
                            f"{now['npgpt_waiting']:.0f} wait, {now['process_open_fds']:.0f} descriptors, "
                            f"{now['process_resident_memory_bytes'] / 1e6:.0f} MB",
                            flush=True,
                        )
                await everyone
                return counts

            asyncio.run(run(20 * minutes, report=False))  # buffers grow to what this load needs
            server.settles("npgpt_sessions", lambda n: n == 0)
            time.sleep(6)  # connections that are kept alive end
            before = state(server)
            counts = asyncio.run(run(60 * minutes, report=True))
            server.settles("npgpt_sessions", lambda n: n == 0)
            server.settles("process_open_fds", lambda n: n <= before["process_open_fds"])
            after = state(server)
            tokens = server.metric("npgpt_tokens_total")
    print(", ".join(f"{n} {kind}" for kind, n in sorted(counts.items())))
    for name in before:
        print(f"{name}: {before[name]:,.0f} before, {after[name]:,.0f} after")
    assert after["npgpt_sessions"] == after["npgpt_waiting"] == 0
    grown = after["process_resident_memory_bytes"] - before["process_resident_memory_bytes"]
    assert grown < 10e6, f"memory has grown by {grown / 1e6:.1f} MB"
    print(
        f"{sum(counts.values())} requests and {tokens:,.0f} tokens in {minutes:g} minutes: sessions, "
        "descriptors and memory are back, and one seed gave one text"
    )
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
