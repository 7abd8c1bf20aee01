"""Who may look: on loopback whoever is on this machine, elsewhere who has the token; and what every answer carries.

A page of somebody else's must not read this one through a browser that may: neither under a name of its own that leads
here (DNS rebinding), nor from a frame or a script.
"""

from __future__ import annotations

import hmac
import ipaddress
from collections.abc import Awaitable, Callable, MutableMapping
from dataclasses import dataclass
from html import escape
from http.cookies import CookieError, SimpleCookie
from typing import Any
from urllib.parse import parse_qs, quote

from appliance.errors import RecipeError
from appliance.machine import place

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

LEAST_TOKEN = 16  # characters
HEALTH = "/health"  # says nothing about any run
_A_TOKEN = "python3 -c 'import secrets; print(secrets.token_urlsafe())' makes one"
_HEADERS = {
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    "referrer-policy": "no-referrer",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "permissions-policy": "camera=(), microphone=(), geolocation=()",
    "cache-control": "no-store",
}


@dataclass(frozen=True)
class Door:
    """`token`: None if whoever reaches the port may look. Then the name that a browser asked for must be loopback's."""

    token: str | None

    @property
    def _cookie(self) -> str:
        """What the browser keeps in the token's place: cookies reach every port of a host, the token does not."""
        return hmac.digest((self.token or "").encode(), b"appliance watch", "sha256").hex()

    def refusal(self, scope: Scope) -> tuple[int, str] | None:
        """(status, text) for a request that may not look; None if it may."""
        headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}
        if self.token is None and not is_loopback_name(headers.get("host", "")):
            return 421, "This page answers to 127.0.0.1 and localhost only.\n"
        site, mode = headers.get("sec-fetch-site", "none"), headers.get("sec-fetch-mode", "navigate")
        if site not in ("none", "same-origin") and mode != "navigate":
            return 403, "Another site asked for this page.\n"
        if self.token is None or scope["path"] == HEALTH:
            return None
        try:
            given = SimpleCookie(headers.get("cookie", ""))[_COOKIE].value
        except (KeyError, CookieError):
            given = ""
        if hmac.compare_digest(given.encode(), self._cookie.encode()):
            return None
        return 401, "A token is needed: open this page once as ?token=TOKEN.\n"

    def entry(self, scope: Scope) -> tuple[str, str] | None:
        """(cookie, page) for a request that brings the token in its address; None if it does not.

        The page leads to the same address without the token. A redirect would not do: a browser that came from
        another site's link sends no strict cookie along.
        """
        given = parse_qs(scope["query_string"].decode("latin-1")).get("token")
        if self.token is None or not given or not hmac.compare_digest(given[0].encode(), self.token.encode()):
            return None
        path = escape("/" + quote(scope["path"].lstrip("/")))
        page = f'<!doctype html><meta http-equiv="refresh" content="0; url={path}"><a href="{path}">Go on</a>\n'
        return f"{_COOKIE}={self._cookie}; HttpOnly; SameSite=Strict; Path=/", page


_COOKIE = "appliance-watch"


def is_loopback_name(host: str) -> bool:
    """Whether a Host header, port included, names this machine's loopback."""
    name = host.rpartition(":")[0] if host.rpartition(":")[2].isdecimal() and not host.endswith("]") else host
    name = name.removeprefix("[").removesuffix("]").lower()
    return name == "localhost" or is_loopback(name)


def is_loopback(address: str) -> bool:
    try:
        return ipaddress.ip_address(address).is_loopback
    except ValueError:
        return False


def door_for(address: str, token: str | None, *, published_on_loopback: bool) -> Door:
    """The door of a server that listens on `address`. Raises RecipeError (exit 2): it would be open to others."""
    if token is not None and len(token) < LEAST_TOKEN:
        raise RecipeError(f"the token has {len(token)} characters, expected at least {LEAST_TOKEN}", hint=_A_TOKEN)
    if published_on_loopback and not place.place().container:
        raise RecipeError(
            "--published-on-loopback is for a container whose port is published on 127.0.0.1; this is none",
            hint="leave it out, with --host: 127.0.0.1 is the default",
        )
    if token is None and not (published_on_loopback or is_loopback(address)):
        raise RecipeError(
            f"{address} can be reached from other machines: a token is needed",
            hint=f"set APPLIANCE_WATCH_TOKEN or --token-file, or leave --host out; {_A_TOKEN}",
        )
    return Door(token)


class Guarded:
    """The app behind a door: refuses, lets in, and gives every answer its headers.

    `policy`: the Content-Security-Policy.
    """

    def __init__(self, app: App, door: Door, policy: str) -> None:
        self._app, self._door = app, door
        headers = _HEADERS | {"content-security-policy": policy}
        self._headers = [(name.encode(), value.encode()) for name, value in headers.items()]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self._app(scope, receive, send)
        if entered := self._door.entry(scope):
            cookie, page = entered
            more = [(b"set-cookie", cookie.encode())]
            return await _answer(self._with_headers(send), 200, page, b"text/html; charset=utf-8", more)
        if refused := self._door.refusal(scope):
            return await _answer(self._with_headers(send), *refused)
        await self._app(scope, receive, self._with_headers(send))
        return None

    def _with_headers(self, send: Send) -> Send:
        names = {name for name, _ in self._headers}

        async def sends(message: Message) -> None:
            if message["type"] == "http.response.start":
                kept = [(name, value) for name, value in message.get("headers", []) if name.lower() not in names]
                message = {**message, "headers": [*kept, *self._headers]}
            await send(message)

        return sends


async def _answer(
    send: Send,
    status: int,
    text: str,
    kind: bytes = b"text/plain; charset=utf-8",
    more: list[tuple[bytes, bytes]] | None = None,
) -> None:
    body = text.encode()
    headers = [(b"content-type", kind), (b"content-length", str(len(body)).encode()), *(more or [])]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
