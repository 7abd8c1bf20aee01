"""The token of a page: given once in its address, kept by the browser as a cookie."""

from __future__ import annotations

import hmac
from collections.abc import Mapping
from dataclasses import dataclass
from html import escape
from http.cookies import CookieError, SimpleCookie
from urllib.parse import parse_qs, quote

from appliance.listening import door
from appliance.listening.door import Answer, Scope

_COOKIE = "appliance-watch"


@dataclass(frozen=True)
class Door(door.Door):
    """As its base; a request that brings the token in its address gets a cookie."""

    how_to_give_it = "A token is needed: open this page once as ?token=TOKEN."

    @property
    def _cookie(self) -> str:
        """What the browser keeps in the token's place: cookies reach every port of a host, the token does not."""
        return hmac.digest((self.token or "").encode(), b"appliance watch", "sha256").hex()

    def instead(self, scope: Scope) -> Answer | None:
        return self._entry(scope) or super().instead(scope)

    def has_token(self, headers: Mapping[str, str]) -> bool:
        try:
            given = SimpleCookie(headers.get("cookie", ""))[_COOKIE].value
        except (KeyError, CookieError):
            given = ""
        return hmac.compare_digest(given.encode(), self._cookie.encode())

    def _entry(self, scope: Scope) -> Answer | None:
        """The cookie and a page, for a request that brings the token in its address; None if it does not.

        The page leads to the same address without the token. A redirect would not do: a browser that came from
        another site's link sends no strict cookie along.
        """
        given = parse_qs(scope["query_string"].decode("latin-1")).get("token")
        if self.token is None or not given or not self.is_token(given[0]):
            return None
        path = escape("/" + quote(scope["path"].lstrip("/")))
        page = f'<!doctype html><meta http-equiv="refresh" content="0; url={path}"><a href="{path}">Go on</a>\n'
        cookie = f"{_COOKIE}={self._cookie}; HttpOnly; SameSite=Strict; Path=/"
        return Answer(200, page, "text/html; charset=utf-8", ((b"set-cookie", cookie.encode()),))
