"""The body of a request: bounded in bytes and seconds, then JSON, then what the schema allows."""

import asyncio
import json
from typing import NoReturn

from starlette.requests import Request
from starlette.types import Message

from npgpt.engine.types import Fields
from npgpt.server import schema
from npgpt.server.guard import Settings
from npgpt.server.schema import ApiError

SLOW_BODY = 1 << 16  # bytes that are parsed beside the event loop


async def checked(request: Request, settings: Settings) -> Fields:
    """Return the fields of a JSON request; raise ApiError for what the schema does not allow."""
    data = await read(request, settings.max_body, settings.body_seconds)
    if len(data) > SLOW_BODY:
        return await asyncio.to_thread(parse, data, request.url.path)
    return parse(data, request.url.path)


def parse(data: bytearray, path: str) -> Fields:
    """Return the fields of a body for this path; raise ApiError 400 for what is no JSON or not allowed."""
    try:
        found = json.loads(data.decode("utf-8"), parse_constant=_no_number)
    except UnicodeDecodeError as error:
        message = f"the body must be UTF-8, byte {error.start} is not"
        raise ApiError(400, message, None, "invalid_body") from None
    except (ValueError, RecursionError) as error:
        raise ApiError(400, f"the body must be JSON: {str(error)[:100]}", None, "invalid_body") from None
    return schema.check(path, found)


async def read(request: Request, most: int, seconds: float) -> bytearray:
    """Return the body of a request; raise ApiError 413 beyond `most` bytes, 408 after so many seconds."""
    data = bytearray()
    try:
        async with asyncio.timeout(seconds):
            async for chunk in bounded(request, most).stream():
                data += chunk
    except TimeoutError:
        closing = {"Connection": "close"}
        raise ApiError(408, "the body did not come in time", None, "timeout", closing) from None
    return data


def bounded(request: Request, most: int) -> Request:
    """Return a request whose body is counted as it comes, with a Content-Length or in chunks.

    Raise ApiError 413 for a body of more than `most` bytes: now if it says so, else while it is read.
    """
    too_large = ApiError(413, f"the body must be at most {most} bytes", None, "body_too_large")
    length = request.headers.get("content-length", "0")
    if length.isdigit() and int(length[:18]) > most:
        raise too_large
    came = 0

    async def receive() -> Message:
        nonlocal came
        message = await request.receive()
        came += len(message.get("body", b""))
        if came > most:
            raise too_large
        return message

    return Request(request.scope, receive)


def _no_number(name: str) -> NoReturn:
    raise ValueError(f"{name} is no number")
