"""Pages of other sites: which may ask (--allow-origin), and what a browser is told about it (CORS)."""

import re
from collections.abc import Collection

from starlette.responses import Response
from starlette.types import Scope

ORIGIN = re.compile(r"\*|null|[a-z][a-z0-9+.-]*://([a-z0-9_.-]+|\[[0-9a-f:.]+\])(:[0-9]{1,5})?")
EXPOSED = "x-request-id, retry-after"  # what a page's code may read of an answer's headers
METHODS = "GET, POST, DELETE, HEAD"
PREFLIGHT_SECONDS = 600


def check_origin(text: str) -> str:
    """Return an origin as browsers send it; raise ValueError for what is none, such as one with a path."""
    origin = text.lower()
    if not ORIGIN.fullmatch(origin):
        raise ValueError(
            f"--allow-origin must be * or an origin such as https://example.org:8080, got {text!r:.60}"
        )
    return origin


def may_ask(origin: str, host: str, allowed: Collection[str]) -> bool:
    """Return True if a page of this origin may ask: the server's own, or one of another site allowed."""
    return origin.partition("://")[2] == host or origin in allowed or "*" in allowed


def preflight(scope: Scope, allowed: Collection[str]) -> Response | None:
    """Return the answer to a browser that asks whether a page of another site may ask, None for all else."""
    headers = dict(scope["headers"])
    if scope["method"] != "OPTIONS" or b"access-control-request-method" not in headers or not allowed:
        return None
    told = {
        "Access-Control-Allow-Methods": METHODS,
        "Access-Control-Allow-Headers": headers.get(b"access-control-request-headers", b"").decode("latin-1"),
        "Access-Control-Max-Age": str(PREFLIGHT_SECONDS),
    }
    if b"access-control-request-private-network" in headers:
        told["Access-Control-Allow-Private-Network"] = "true"
    return Response(status_code=204, headers=told)


def told(scope: Scope, allowed: Collection[str]) -> list[tuple[bytes, bytes]]:
    """Return the headers of every answer that let a page of another site read it."""
    if not allowed:
        return []
    origin = dict(scope["headers"]).get(b"origin", b"")
    headers = [(b"vary", b"Origin")]
    if origin.decode("latin-1").lower() in allowed or (origin and "*" in allowed):
        headers += [
            (b"access-control-allow-origin", origin),
            (b"access-control-expose-headers", EXPOSED.encode()),
        ]
    return headers
