"""The body of a request: JSON, of a bounded size, within a bounded time."""

from __future__ import annotations

import asyncio

from starlette.requests import Request

SECONDS = 30.0  # for it to arrive


class Refused(Exception):
    """The request is not read. `code`: OpenAI's word for the fault, if it has one."""

    def __init__(self, status: int, said: str, code: str | None = None) -> None:
        super().__init__(said)
        self.status, self.said, self.code = status, said, code


async def of(request: Request, most_bytes: int) -> bytes:
    """Raises Refused: it is too large or too slow, or says that it is not JSON. ClientDisconnect."""
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/json":  # a page of another site can send anything else without asking first
        raise Refused(415, f"content-type is {kind or 'missing'}, expected application/json")
    too_large = Refused(413, f"the request is larger than {most_bytes:,} bytes", "request_too_large")
    declared = request.headers.get("content-length", "0")
    if not declared.isdecimal() or int(declared) > most_bytes:
        raise too_large
    body = bytearray()
    try:
        async with asyncio.timeout(SECONDS):
            async for part in request.stream():
                body += part
                if len(body) > most_bytes:
                    raise too_large
    except TimeoutError as error:
        raise Refused(408, f"the request did not arrive within {SECONDS:.0f} s") from error
    return bytes(body)
