"""uvicorn, bounded: how many connections, how long a header may take, how a signal ends it.

Its own limits are for applications behind a proxy: nothing there ends a client that never finishes a header.
"""

import asyncio
import contextlib
import json
import logging
import os
import signal
import socket
from collections.abc import Iterator
from types import FrameType
from typing import Any

import uvicorn
from starlette.applications import Starlette
from uvicorn.protocols.http.h11_impl import H11Protocol

from npgpt.server.guard import Settings
from npgpt.server.schema import ApiError

SPARE = 64  # descriptors that are no connections: files, the library, the worker


def listen(host: str, port: int) -> socket.socket:
    """A socket that listens; ValueError, which names the address, where there is none to have."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    # by its protocol, or asyncio leaves Nagle's algorithm on: 40 ms before each answer
    listening = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    if os.name != "nt":  # where it would let two servers have one address
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listening.bind((host, port))
        listening.listen(1024)
    except OSError as error:
        listening.close()
        raise ValueError(f"cannot listen at {host}:{port}: {error.strerror}") from None
    return listening


def _descriptors(wanted: int) -> int:
    """How many of so many file descriptors this process gets."""
    try:
        import resource
    except ImportError:  # Windows has no such limit
        return wanted
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < wanted:
        soft = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    return soft


def make_server(app: Starlette, host: str, port: int, settings: Settings) -> uvicorn.Server:
    """A server that has not begun."""
    limit = min(settings.connections, _descriptors(settings.connections + SPARE) - SPARE)

    class Connection(H11Protocol):
        """One client; abort() of request.state drops it with what it has not read."""

        timer: asyncio.TimerHandle | None = None

        def connection_made(self, transport: Any) -> None:
            super().connection_made(transport)
            self.app_state = {**self.app_state, "abort": transport.abort}
            if hasattr(socket, "TCP_USER_TIMEOUT"):  # a peer that answers nothing at all
                peer, milliseconds = transport.get_extra_info("socket"), int(settings.write_seconds * 2000)
                peer.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, milliseconds)
            if len(self.connections) > limit:
                return self.refuse(503, "Service Unavailable", "too many connections")
            self.timer = self.loop.call_later(settings.header_seconds, self.too_slow)

        def data_received(self, data: bytes) -> None:
            if self.transport.is_closing():
                return
            super().data_received(data)
            idle = self.cycle is None or self.cycle.response_complete
            if self.timer and not idle:
                self.timer.cancel()
                self.timer = None
            elif idle and not self.timer and not self.timeout_keep_alive_task:
                self.timer = self.loop.call_later(settings.header_seconds, self.too_slow)

        def connection_lost(self, exc: Exception | None) -> None:
            if self.timer:
                self.timer.cancel()
            super().connection_lost(exc)

        def too_slow(self) -> None:
            self.timer = None
            if self.cycle is None or self.cycle.response_complete:
                self.refuse(408, "Request Timeout", "the header did not come in time")

        def send_400_response(self, msg: str) -> None:
            self.refuse(400, "Bad Request", "the request must be valid HTTP")

        def refuse(self, status: int, reason: str, message: str) -> None:
            """An error object by hand: there is no request that the application could answer."""
            body = json.dumps(ApiError(status, message).object()).encode()
            head = f"HTTP/1.1 {status} {reason}\r\ncontent-type: application/json\r\nconnection: close\r\n"
            self.transport.write(f"{head}content-length: {len(body)}\r\n\r\n".encode() + body)
            self.transport.close()

    class Server(uvicorn.Server):
        """SIGTERM and SIGINT: no new work, what runs may end within the grace time, exit code 0."""

        hurry = False

        @contextlib.contextmanager
        def capture_signals(self) -> Iterator[None]:
            before = {n: signal.signal(n, self.handle_exit) for n in (signal.SIGINT, signal.SIGTERM)}
            try:
                yield
            finally:
                for number, handler in before.items():
                    signal.signal(number, handler)

        def handle_exit(self, sig: int, frame: FrameType | None) -> None:
            self.hurry = self.should_exit  # the second one does not wait for the grace time
            self.should_exit = app.state.closing = True

        async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
            async def last_call() -> None:
                end = asyncio.get_running_loop().time() + settings.grace
                while asyncio.get_running_loop().time() < end and not self.hurry:
                    await asyncio.sleep(0.05)
                await asyncio.to_thread(app.state.stop)

            task = asyncio.create_task(last_call())
            await super().shutdown(sockets)
            task.cancel()

    logging.getLogger("python_multipart").setLevel(logging.CRITICAL)  # what clients send is not for the log
    config = uvicorn.Config(
        app,
        host=host,
        port=port,
        http=Connection,
        ws="none",
        loop="asyncio",
        log_level="error",
        access_log=False,
        server_header=False,
        timeout_keep_alive=settings.keep_alive_seconds,
        timeout_graceful_shutdown=int(settings.grace) + 5,
    )
    return Server(config)
