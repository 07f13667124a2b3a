#!/usr/bin/env bash
# uvicorn 0.54.0 (h11): limit_concurrency, for a server whose model answers so many requests at once.
# Guess: limit_concurrency=1 answers one request at a time and sends 503 to a second that comes meanwhile.
# Seen: limit_concurrency=1 sends 503 to every request, even to a single client. With 2, a kept-alive
#   connection that asks nothing fills the only place, and a second client gets 503 while the server is idle.
# Why it matters: connections are counted, the asking one among them, not running requests. Clients with a
#   pool (the openai package) keep connections open, so the limit must be the clients' connections + 1; limit
#   work with a semaphore.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
export PATH="$folder/venv/bin:$PATH"
pip install -q --no-compile --disable-pip-version-check uvicorn==0.54.0
cat >"$folder/look.py" <<'EOF'
import http.client
import sys
import threading
import time

import uvicorn


async def app(scope, receive, send):
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"2")]})
    await send({"type": "http.response.body", "body": b"ok"})


def statuses(limit):
    """Return the answers to two clients in turn; the first stays connected and asks nothing more."""
    config = uvicorn.Config(
        app, port=0, http="h11", lifespan="off", log_level="critical", limit_concurrency=limit
    )
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        time.sleep(0.01)
    port = server.servers[0].sockets[0].getsockname()[1]
    clients, seen = [], []
    for _ in range(2):
        clients.append(http.client.HTTPConnection("127.0.0.1", port, timeout=10))
        clients[-1].request("GET", "/")
        answer = clients[-1].getresponse()
        answer.read()
        seen.append(answer.status)
    for client in clients:
        client.close()
    server.should_exit = True
    thread.join(10)
    return seen


seen = {limit: statuses(limit) for limit in (1, 2, 3)}
for limit, both in seen.items():
    print(f"limit_concurrency={limit}: first client {both[0]}, second client after it {both[1]}")
sys.exit(seen != {1: [503, 503], 2: [200, 503], 3: [200, 200]})
EOF
if python "$folder/look.py"; then
    echo "OK: still so"
else
    echo "CHANGED: not as stated at the head of this file"
    exit 1
fi
