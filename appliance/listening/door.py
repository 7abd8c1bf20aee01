"""Who may ask a server: on loopback whoever is on this machine, elsewhere who has the token; and what answers carry.

A page of somebody else's must not reach this server through a browser that may: neither under a name of its own that
leads here (DNS rebinding), nor from a frame, a form or a script.
"""

from __future__ import annotations

import hmac
import ipaddress
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, Mapping, MutableMapping
from dataclasses import dataclass
from typing import Any

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
class Answer:
    """What is sent without asking the app. `kind`: its content type."""

    status: int
    text: str
    kind: str = "text/plain; charset=utf-8"
    headers: tuple[tuple[bytes, bytes], ...] = ()


@dataclass(frozen=True)
class Door(ABC):
    """`token`: None if whoever reaches the port may ask. Then the name that was asked for must be loopback's."""

    token: str | None

    def instead(self, scope: Scope) -> Answer | None:
        """What is answered in the app's place; None if the request may go on to it."""
        headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}
        if self.token is None and not is_loopback_name(headers.get("host", "")):
            return self.refused(421, "This server answers to 127.0.0.1 and localhost only.")
        site, mode = headers.get("sec-fetch-site", "none"), headers.get("sec-fetch-mode", "navigate")
        if site not in ("none", "same-origin") and not (mode == "navigate" and scope["method"] in ("GET", "HEAD")):
            return self.refused(403, "Another site asked for this.")
        if self.token is None or scope["path"] == HEALTH or self.has_token(headers):
            return None
        return self.refused(401, self.how_to_give_it)

    how_to_give_it = "A token is needed."

    @abstractmethod
    def has_token(self, headers: Mapping[str, str]) -> bool:
        """Whether the request shows that its sender has the token. Compared in constant time."""

    def refused(self, status: int, why: str) -> Answer:
        return Answer(status, f"{why}\n")

    def is_token(self, given: str) -> bool:
        return hmac.compare_digest(given.encode(), (self.token or "").encode())


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


def require_token(address: str, token: str | None, *, published_on_loopback: bool, given_by: str) -> None:
    """Raises RecipeError (exit 2): a server on `address` would be open to others, or its token can be guessed.

    `given_by`: what gives it a token, such as "APPLIANCE_WATCH_TOKEN or --token-file".
    """
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
            hint=f"set {given_by}, or leave --host out; {_A_TOKEN}",
        )


class Guarded:
    """The app behind a door, which gives every answer its headers.

    `policy`: the Content-Security-Policy.
    """

    def __init__(self, app: App, door: Door, policy: str) -> None:
        self._app, self._door = app, door
        headers = _HEADERS | {"content-security-policy": policy}
        self._headers = [(name.encode(), value.encode()) for name, value in headers.items()]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self._app(scope, receive, send)
        if answer := self._door.instead(scope):
            return await _send(self._with_headers(send), answer)
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


async def _send(send: Send, answer: Answer) -> None:
    body = answer.text.encode()
    headers = [(b"content-type", answer.kind.encode()), (b"content-length", str(len(body)).encode()), *answer.headers]
    await send({"type": "http.response.start", "status": answer.status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
