"""The bounds of the server, and the guard around its routes: who may ask, and how much at once."""

import hashlib
import hmac
import os
from dataclasses import dataclass, field
from pathlib import Path

from starlette.requests import HTTPConnection
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from npgpt.server.origins import may_ask, preflight
from npgpt.server.responses import failure
from npgpt.server.schema import ApiError

LOCAL = {"localhost", "127.0.0.1", "[::1]"}
OPEN = {"/", "/health", "/openapi.json"}  # for those without the key too


@dataclass(frozen=True)
class Settings:
    """The bounds of a server, in seconds, bytes and tokens."""

    api_keys: tuple[str, ...] = ()
    origins: tuple[str, ...] = ()  # of pages of other sites that may ask, "*" for all
    loopback: bool = True  # only this machine's browsers and programs are meant
    sessions: int = 64  # texts that are computed at once
    queue: int = 256  # texts that wait
    requests: int = 512  # that are answered at once, what they send is held in memory
    max_tokens: int = 4096  # of an answer
    cache_bytes: int = 512 << 20  # of keys and values of prompts
    shared_cache: bool = False  # between API keys
    store: Path | None = None  # the folder of answers that are kept; None: they go with the server
    store_bytes: int = 256 << 20
    store_seconds: float = 30 * 86400  # as OpenAI keeps them
    max_body: int = 4 << 20
    max_upload: int = 64 << 20
    connections: int = 2000
    header_seconds: float = 10
    body_seconds: float = 30
    write_seconds: float = 30  # for a client to take what it asked for
    keep_alive_seconds: int = 5
    explain_tokens: int = 128  # of a text, the last ones
    explain_seconds: float = 60
    grace: float = 30  # between SIGTERM and the end of what runs


@dataclass
class Status:
    """The state of the server, which the event loop's thread writes and reads."""

    closing: bool = False  # it takes no new work
    in_flight: int = 0  # requests that are being answered
    answers: dict[int, int] = field(default_factory=dict)  # HTTP status -> number of answers


def owner_of(request: HTTPConnection) -> str:
    """Return what stands for the API key of a request: "" where the server has none."""
    return str(getattr(request.state, "owner", ""))


def may_read(asker: str | None, owner: str) -> bool:
    """Return True if an owner's thing is there for who asks: that of "" is all's, and None may read all."""
    return asker is None or owner in ("", asker)


class Guard:
    """ASGI middleware around all routes: it refuses requests that may not come in, and counts all."""

    def __init__(self, app: ASGIApp, settings: Settings, status: Status) -> None:
        self.app, self.settings, self.status = app, settings, status

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request, or refuse it (ASGI)."""
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        code = 0

        async def counted(message: Message) -> None:
            nonlocal code
            code = message.get("status", code)
            await send(message)

        self.status.in_flight += 1
        try:
            self.check_site(scope)
            if answer := preflight(scope, self.settings.origins):  # browsers send no key with it
                return await answer(scope, receive, counted)
            self.check(scope)
            # files are sent whole: what Starlette says of a bad range is no error object
            scope["headers"] = [(name, value) for name, value in scope["headers"] if name != b"range"]
            await self.app(scope, receive, counted)
        except ApiError as error:
            await failure(error)(scope, receive, counted)
        except Exception:  # Starlette answers it, outside of this
            code = code or 500
            raise
        finally:
            self.status.in_flight -= 1
            self.status.answers[code] = self.status.answers.get(code, 0) + 1

    def check_site(self, scope: Scope) -> None:
        """Raise ApiError 403 for a request that another site's page has a browser send."""
        settings, headers = self.settings, dict(scope["headers"])
        host = headers.get(b"host", b"").decode("latin-1").lower()
        open_to_all = settings.loopback and not settings.api_keys
        if open_to_all and host.rsplit(":", 1)[0] not in LOCAL and host not in LOCAL:
            # another site's name for this address: a page there must not reach us through its visitors
            raise ApiError(403, "the Host must be localhost or 127.0.0.1", "Host", "forbidden_host")
        origin = headers.get(b"origin", b"").decode("latin-1").lower()
        if origin and not may_ask(origin, host, settings.origins):
            message = f"pages of other sites may not ask; --allow-origin {origin[:100]} lets this one"
            raise ApiError(403, message, "Origin", "forbidden_origin")

    def check(self, scope: Scope) -> None:
        """Raise ApiError 401, 429 or 503 for a request that may not come in."""
        settings, headers = self.settings, dict(scope["headers"])
        if settings.api_keys and scope["path"] not in OPEN:
            scheme, _, key = headers.get(b"authorization", b"").partition(b" ")
            known = [hmac.compare_digest(key.strip(), os.fsencode(one)) for one in settings.api_keys]
            if scheme.lower() != b"bearer" or not any(known):
                challenge = {"WWW-Authenticate": "Bearer"}
                raise ApiError(401, "Incorrect API key provided", None, "invalid_api_key", challenge)
            owner = hashlib.sha256(key.strip()).hexdigest()[:16]
            scope["state"] = {**scope.get("state", {}), "owner": owner}
        if self.status.closing and scope["path"] != "/health":
            raise ApiError(503, "the server is shutting down", None, "unavailable", {"Retry-After": "10"})
        if self.status.in_flight > settings.requests and scope["method"] == "POST":  # no body is read
            message = "too many requests are being answered"
            raise ApiError(429, message, None, "rate_limit_exceeded", {"Retry-After": "1"})
