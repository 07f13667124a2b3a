"""uvicorn with bounds: how many connections, how long a header may take, how a signal ends the server.

uvicorn's own limits are for applications behind a proxy: it never ends a client that never finishes a header.
"""

import asyncio
import contextlib
import json
import logging
import os
import signal
import socket
import time
from collections.abc import Iterator
from types import FrameType
from typing import Any

import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol
from uvicorn.server import ServerState

from npgpt.server.app import App
from npgpt.server.guard import Settings
from npgpt.server.responses import new_request_id
from npgpt.server.schema import ApiError

SPARE = 64  # descriptors that are no connections: files, the library, a job's process


def listen(host: str, port: int) -> socket.socket:
    """Return a socket that listens; raise ValueError, which names the address, if there is none to have."""
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


def notify(state: str) -> None:
    """Tell systemd the state of this service, as sd_notify does; nothing where it does not ask."""
    if address := os.environ.get("NOTIFY_SOCKET"):
        with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as one:
            one.sendto(state.encode(), "\0" + address[1:] if address[0] == "@" else address)


def _raise_descriptor_limit(wanted: int) -> int:
    """Let this process open `wanted` files if the system allows it; return how many it may open."""
    try:
        import resource
    except ImportError:  # Windows has no such limit
        return wanted
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < wanted:
        soft = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    return soft


class Config(uvicorn.Config):
    """uvicorn's configuration with the bounds of the server, so that each connection finds them."""

    def __init__(self, app: App, host: str, port: int, settings: Settings) -> None:
        super().__init__(
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
        self.settings = settings
        descriptors = _raise_descriptor_limit(settings.connections + SPARE)
        self.max_connections = min(settings.connections, descriptors - SPARE)


class Connection(H11Protocol):
    """The connection of one client.

    A request finds abort() in its ASGI state: it drops the client with all that the client has not read.
    """

    def __init__(
        self,
        config: Config,
        server_state: ServerState,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
    ) -> None:
        super().__init__(config, server_state, app_state, _loop)
        self.settings, self.max_connections = config.settings, config.max_connections
        self.timer: asyncio.TimerHandle | None = None  # runs while a header is awaited

    def connection_made(self, transport: Any) -> None:
        """Begin to wait for a header, or refuse the client if there are too many."""
        super().connection_made(transport)
        self.app_state = {**self.app_state, "abort": transport.abort}
        if hasattr(socket, "TCP_USER_TIMEOUT"):  # a peer that answers nothing at all
            peer, milliseconds = transport.get_extra_info("socket"), int(self.settings.write_seconds * 2000)
            peer.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, milliseconds)
        if len(self.connections) > self.max_connections:
            return self.refuse(503, "Service Unavailable", "too many connections")
        self._start_timer()

    def data_received(self, data: bytes) -> None:
        """Read what came; the timer runs exactly while no request is being answered."""
        if self.transport.is_closing():
            return
        super().data_received(data)
        if not self._is_idle():
            self._stop_timer()
        elif not self.timer and not self.timeout_keep_alive_task:
            self._start_timer()

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget the client."""
        self._stop_timer()
        super().connection_lost(exc)

    def send_400_response(self, msg: str) -> None:
        """Refuse what is no HTTP, by an error object where uvicorn would send plain text."""
        self.refuse(400, "Bad Request", "the request must be valid HTTP")

    def refuse(self, status: int, reason: str, message: str) -> None:
        """Send an error object by hand, as there is no request that the application could answer."""
        body = json.dumps(ApiError(status, message).object()).encode()
        head = f"HTTP/1.1 {status} {reason}\r\ncontent-type: application/json\r\nconnection: close\r\n"
        head += f"x-request-id: {new_request_id()}\r\n"
        self.transport.write(f"{head}content-length: {len(body)}\r\n\r\n".encode() + body)
        self.transport.close()

    def _is_idle(self) -> bool:
        return self.cycle is None or self.cycle.response_complete

    def _start_timer(self) -> None:
        self.timer = self.loop.call_later(self.settings.header_seconds, self._time_out)

    def _stop_timer(self) -> None:
        if self.timer:
            self.timer.cancel()
            self.timer = None

    def _time_out(self) -> None:
        self.timer = None
        if self._is_idle():
            self.refuse(408, "Request Timeout", "the header did not come in time")


class Server(uvicorn.Server):
    """uvicorn's server; SIGTERM or SIGINT ends it with exit code 0.

    It takes no new work then, and what runs may end within the grace time. A second signal ends it at once.
    """

    def __init__(self, app: App, config: Config) -> None:
        super().__init__(config)
        self.app, self.grace = app, config.settings.grace
        self.hurry = False  # after a second signal
        self.told_at = 0.0  # when systemd's watchdog was told last, on the monotonic clock

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Begin to listen, and tell systemd where it asked to be told."""
        await super().startup(sockets)
        notify("READY=1")

    async def on_tick(self, counter: int) -> bool:
        """Tell systemd's watchdog that the event loop and the scheduler go on; return True at the end."""
        seconds = int(os.environ.get("WATCHDOG_USEC", "0")) / 3e6
        now = time.monotonic()
        if seconds and now >= self.told_at + seconds and self.app.models.main.scheduler.goes_on:
            notify("WATCHDOG=1")
            self.told_at = now
        return await super().on_tick(counter)

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Handle signals while the server runs; uvicorn's own handlers raise them again afterwards."""
        before = {n: signal.signal(n, self.handle_exit) for n in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Begin to shut down, or hurry if that has begun."""
        self.hurry = self.should_exit
        self.should_exit = self.app.status.closing = True

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Let requests end, and end those that outlast the grace time."""
        last_call = asyncio.create_task(self._stop_after_grace())
        await super().shutdown(sockets)
        last_call.cancel()

    async def _stop_after_grace(self) -> None:
        loop = asyncio.get_running_loop()
        end = loop.time() + self.grace
        while loop.time() < end and not self.hurry:
            await asyncio.sleep(0.05)
        await asyncio.to_thread(self.app.models.stop)


def make_server(app: App, host: str, port: int) -> Server:
    """Return a server for the application, which run() starts."""
    logging.getLogger("python_multipart").setLevel(logging.CRITICAL)  # what clients send is not for the log
    return Server(app, Config(app, host, port, app.settings))
