"""The key of OpenAI's API: `Authorization: Bearer KEY`. What is refused is said in OpenAI's shape."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from appliance.listening import door
from appliance.listening.door import Answer

_TYPES = {400: "invalid_request_error", 401: "authentication_error", 403: "permission_error", 429: "rate_limit_error"}
_CODES = {401: "invalid_api_key"}


def error_body(status: int, said: str, *, param: str | None = None, code: str | None = None) -> dict[str, Any]:
    """An error object as OpenAI's clients read it."""
    kind = _TYPES.get(status) or ("server_error" if status >= 500 else "invalid_request_error")
    return {"error": {"message": said, "type": kind, "param": param, "code": code or _CODES.get(status)}}


@dataclass(frozen=True)
class Door(door.Door):
    how_to_give_it = "A key is needed: Authorization: Bearer KEY, which OpenAI's clients send as their api_key."

    def has_token(self, headers: Mapping[str, str]) -> bool:
        kind, _, given = headers.get("authorization", "").partition(" ")
        return kind.lower() == "bearer" and self.is_token(given.strip())

    def refused(self, status: int, why: str) -> Answer:
        more = ((b"www-authenticate", b"Bearer"),) if status == 401 else ()
        return Answer(status, json.dumps(error_body(status, why)), "application/json", more)
