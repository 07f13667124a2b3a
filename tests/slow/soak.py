"""`python tests/slow/soak.py [--minutes 3]`: a server under clients that come and go as they like.

Streams that are left in the middle, whole answers, chats, embeddings, requests that are refused, connections
that say nothing; replies held to a form, prompts with a beginning in common, /v1/responses with its store,
and one fine-tuning job after the other, whose models are asked and deleted. All the while one seed gives one
text; at the end sessions, descriptors and memory are back.
"""

import argparse
import asyncio
import json
import random
import re
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
SHARED = "O sol brilha no mar. " * 9  # the beginning of many prompts
SCHEMA = {
    "type": "object",
    "properties": {"a": {"enum": [1, 2]}, "b": {"type": "string", "maxLength": 5}},
    "required": ["a", "b"],
    "additionalProperties": False,
}
LINE = '{"messages": [{"role": "user", "content": "7"}, {"role": "assistant", "content": "8"}]}\n'
FORM = (
    '--x\r\nContent-Disposition: form-data; name="purpose"\r\n\r\nfine-tune\r\n'
    '--x\r\nContent-Disposition: form-data; name="file"; filename="a.jsonl"\r\n\r\n'
    f"{LINE * 20}\r\n--x--\r\n"
)
FIXED = {"seed": 1, "max_tokens": 80, "ignore_eos": True}


async def ask(server, path, fields, leave=None, method="POST") -> tuple[int, bytes]:
    """(status, what came) of a request, or what came until the client left after `leave` reads."""
    body = b"" if method != "POST" else json.dumps({"model": server.name, **fields}).encode()
    reader, writer = await asyncio.open_connection(server.host, server.port)
    head = f"{method} {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n"
    head += f"Content-Length: {len(body)}\r\n\r\n"
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


async def held_to_a_form(server, dice):
    """Ask for a reply of a form, and check it."""
    kind = dice.choice(("choice", "regex", "schema"))
    if kind == "schema":
        messages, form = [{"role": "user", "content": "e" * dice.randint(1, 50)}], {"schema": SCHEMA}
        asked = {"messages": messages, "response_format": {"type": "json_schema", "json_schema": form}}
        status, data = await ask(server, "/v1/chat/completions", asked)
    else:
        how = {"guided_choice": ["sol", "solar"]} if kind == "choice" else {"guided_regex": "[a-c]{3,9}"}
        status, data = await ask(server, "/v1/completions", {"prompt": "f" * dice.randint(1, 200)} | how)
    if status == 429:
        return
    choice = json.loads(data)["choices"][0]
    assert status == 200 and choice["finish_reason"] == "stop", data
    if kind == "schema":
        found = json.loads(choice["message"]["content"])
        assert set(found) == {"a", "b"} and found["a"] in (1, 2) and len(found["b"]) <= 5, found
    else:
        assert re.fullmatch("sol|solar" if kind == "choice" else "[a-c]{3,9}", choice["text"]), choice


async def turns(server, dice):
    """Ask /v1/responses twice, the second time as a stream that knows the first; half of them are deleted."""
    asked = {"input": "g" * dice.randint(1, 60), "max_output_tokens": dice.randint(1, 30)}
    status, data = await ask(server, "/v1/responses", asked)
    assert status in (200, 429), data
    if status == 429:
        return
    answer = json.loads(data)
    assert answer["store"], answer  # it says why it could not be stored
    id = answer["id"]
    more = {"input": "h", "max_output_tokens": 9, "previous_response_id": id, "stream": True, "store": False}
    status, data = await ask(server, "/v1/responses", more)
    assert status == 429 or b'"type": "response.' in data, (status, data[-200:])
    method = dice.choice(("GET", "DELETE"))
    status, data = await ask(server, f"/v1/responses/{id}", None, method=method)
    assert status == 200, data


async def tuner(server, end, counts):
    """Make one fine-tuning job after the other: a third is cancelled, the models of the others deleted."""
    dice = random.Random(0)

    async def call(path, body=b"", method="POST", **headers):
        return await asyncio.to_thread(server.ask, path, body, method, **headers)

    while time.monotonic() < end:
        counts["job"] = counts.get("job", 0) + 1
        kind = {"Content-Type": "multipart/form-data; boundary=x"}
        status, file, _ = await call("/v1/files", FORM.encode(), **kind)
        assert status == 200, file
        how = {
            "hyperparameters": {"n_epochs": 1, "learning_rate_multiplier": 0.5},
            "validation_file": file["id"],
        }
        status, job, _ = await call(
            "/v1/fine_tuning/jobs", {"model": server.name, "training_file": file["id"], **how}
        )
        assert status == 200, job
        place = f"/v1/fine_tuning/jobs/{job['id']}"
        if counts["job"] % 3 == 0:
            await asyncio.sleep(dice.random() * 3)
            await call(f"{place}/cancel")
        while (job := (await call(place, method="GET"))[1])["finished_at"] is None:
            await asyncio.sleep(0.5)
        assert job["status"] in ("succeeded", "cancelled"), job
        if model := job["fine_tuned_model"]:
            asked = {"model": model, "prompt": "O sol", "max_tokens": 5}
            assert (await call("/v1/completions", asked))[0] in (200, 429)
            for id in job["result_files"]:
                await call(f"/v1/files/{id}", method="DELETE")
            assert (await call(f"/v1/models/{model}", method="DELETE"))[0] == 200
        await call(f"/v1/files/{file['id']}", method="DELETE")


KINDS = (
    "left", "left", "stream", "whole", "chat", "embedding", "bad", "silent", "fixed", "form", "turns",
    "shared",
)  # fmt: skip


async def visit(server, kind, number, dice, expected):
    """Ask once what a client of this kind asks, and check what comes; `number` is the client's."""
    many = {"prompt": "a" * dice.randint(1, 250), "max_tokens": dice.randint(1, 400), "ignore_eos": True}
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
        status, _ = await ask(server, "/v1/chat/completions", {"messages": messages, "max_tokens": 50})
        assert status in (200, 429), status
    elif kind == "embedding":
        status, _ = await ask(server, "/v1/embeddings", {"input": ["c" * dice.randint(1, 250)] * 5})
        assert status in (200, 429), status
    elif kind == "bad":
        status, _ = await ask(server, "/v1/completions", {"prompt": "d" * 300} if number % 2 else {"n": 99})
        assert status == 400, status
    elif kind == "form":
        await held_to_a_form(server, dice)
    elif kind == "turns":
        await turns(server, dice)
    elif kind == "shared":
        asked = {"prompt": SHARED + "i" * dice.randint(0, 40), "max_tokens": 3, "n": dice.randint(1, 3)}
        status, data = await ask(server, "/v1/completions", asked)
        assert status in (200, 429), data
    elif kind == "silent":
        _, writer = await asyncio.open_connection(server.host, server.port)
        await asyncio.sleep(dice.random() * 2)
        writer.close()
    else:
        prompt = dice.choice([*expected])
        status, data = await ask(server, "/v1/completions", FIXED | {"prompt": prompt})
        assert status == 429 or json.loads(data)["choices"][0]["text"] == expected[prompt], data


async def client(server, number, end, counts, expected):
    """Visit the server until `end`, each time for something else."""
    dice = random.Random(number)
    while time.monotonic() < end:
        kind = dice.choice(KINDS)
        counts[kind] = counts.get(kind, 0) + 1
        try:
            await visit(server, kind, number, dice, expected)
        except ConnectionError:
            counts["reset"] = counts.get("reset", 0) + 1


def served(n_layer=4, n_embd=128) -> tuple[npgpt.GPT, dict[str, str]]:
    """A model with roles, and what it writes on each prompt that asks for the same text again."""
    tokenizer = examples.add_roles(ByteTokenizer())
    shape = {"n_layer": n_layer, "n_head": 4, "n_embd": n_embd, "block_size": 256}
    model = npgpt.GPT(npgpt.GPTConfig(**shape, vocab_size=tokenizer.vocab_size), tokenizer=tokenizer)
    fixed = {"temperature": 1.0, "seed": 1, "ignore_eos": True}
    return model, {prompt: model.generate(prompt, 80, **fixed) for prompt in ("O sol", SHARED)}


def state(server) -> dict:
    names = ("npgpt_sessions", "npgpt_waiting", "process_open_fds", "process_resident_memory_bytes")
    return {name: server.metric(name) for name in names}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--minutes", type=float, default=3)
    minutes = parser.parse_args().minutes
    model, expected = served()
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(Path(folder) / "soak")
        with Process(Path(folder) / "soak", "--sessions", 16, "--queue", 32, "--cache-mb", 8) as server:

            async def run(seconds, report):
                end, counts = time.monotonic() + seconds, {}
                clients = [client(server, i, end, counts, expected) for i in range(CLIENTS)]
                everyone = asyncio.gather(*clients, tuner(server, end, counts))
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
