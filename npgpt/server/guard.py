"""Who may ask, and how much at once: the bounds of the server, and what stands around its routes."""

import hmac
import os
from dataclasses import dataclass, field

from starlette.datastructures import State
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from npgpt.server.responses import failure
from npgpt.server.schema import ApiError

LOCAL = {"localhost", "127.0.0.1", "[::1]"}
OPEN = {"/", "/health", "/openapi.json"}  # for those without the key too


@dataclass(frozen=True)
class Settings:
    """The bounds; seconds, bytes, tokens."""

    api_key: str | None = None
    loopback: bool = True  # only this machine's browsers and programs are meant
    sessions: int = 64  # texts that are computed at once
    queue: int = 256  # texts that wait
    requests: int = 512  # that are answered at once, what they send is held in memory
    max_tokens: int = 4096  # of an answer
    max_body: int = 4 << 20
    max_upload: int = 64 << 20
    connections: int = 2000
    header_seconds: float = 10
    body_seconds: float = 30
    write_seconds: float = 30  # for a client to take what it asked for
    keep_alive_seconds: int = 5
    grace: float = 30  # between SIGTERM and the end of what runs


@dataclass
class Traffic:
    """What came in, and what went out."""

    in_flight: int = 0  # requests that are being answered
    answers: dict[int, int] = field(default_factory=dict)  # by their status


class Guard:
    """Around everything: who may ask, whether there is room; counts requests."""

    def __init__(self, app: ASGIApp, settings: Settings, traffic: Traffic, state: State) -> None:
        self.app, self.settings, self.traffic, self.state = app, settings, traffic, state

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request, or refuse it (ASGI)."""
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        status = 0

        async def counted(message: Message) -> None:
            nonlocal status
            status = message.get("status", status)
            await send(message)

        traffic = self.traffic
        traffic.in_flight += 1
        try:
            self.check(scope)
            # files are sent whole: what Starlette says of a bad range is no error object
            scope["headers"] = [(name, value) for name, value in scope["headers"] if name != b"range"]
            await self.app(scope, receive, counted)
        except ApiError as error:
            await failure(error)(scope, receive, counted)
        except Exception:  # Starlette answers it, outside of this
            status = status or 500
            raise
        finally:
            traffic.in_flight -= 1
            traffic.answers[status] = traffic.answers.get(status, 0) + 1

    def check(self, scope: Scope) -> None:
        """ApiError 401, 403, 429 or 503 for a request that is not let in."""
        settings, headers = self.settings, dict(scope["headers"])
        host = headers.get(b"host", b"").decode("latin-1").lower()
        open_to_all = settings.loopback and not settings.api_key
        if open_to_all and host.rsplit(":", 1)[0] not in LOCAL and host not in LOCAL:
            # another site's name for this address: a page there must not reach us through its visitors
            raise ApiError(403, "the Host must be localhost or 127.0.0.1", "Host", "forbidden_host")
        origin = headers.get(b"origin", b"").decode("latin-1").lower()
        if origin and origin.partition("://")[2] != host:
            raise ApiError(403, "pages of other sites may not ask", "Origin", "forbidden_origin")
        if settings.api_key and scope["path"] not in OPEN:
            scheme, _, key = headers.get(b"authorization", b"").partition(b" ")
            known = hmac.compare_digest(key.strip(), os.fsencode(settings.api_key))
            if scheme.lower() != b"bearer" or not known:
                challenge = {"WWW-Authenticate": "Bearer"}
                raise ApiError(401, "Incorrect API key provided", None, "invalid_api_key", challenge)
        if self.state.closing and scope["path"] != "/health":
            raise ApiError(503, "the server is shutting down", None, "unavailable", {"Retry-After": "10"})
        if self.traffic.in_flight > settings.requests and scope["method"] == "POST":  # no body is read
            message = "too many requests are being answered"
            raise ApiError(429, message, None, "rate_limit_exceeded", {"Retry-After": "1"})
