"""One request and one reply as plain values, and the refusals that become replies. Knows no endpoint."""

from __future__ import annotations

import hashlib
import hmac
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit


@dataclass
class Request:
    method: str
    target: str  # path and query as sent
    headers: dict[str, str]  # names in lower case
    body: bytes = b""

    @property
    def path(self) -> str:
        return urlsplit(self.target).path

    @property
    def segments(self) -> list[str]:
        """The path, split first and decoded afterwards: an encoded slash stays inside its segment."""
        return [unquote(segment) for segment in self.path.strip("/").split("/")]

    @property
    def query(self) -> dict[str, list[str]]:
        return parse_qs(urlsplit(self.target).query, keep_blank_values=True)

    def asked(self, name: str) -> bool:
        return self.query.get(name, ["false"])[0].lower() in ("1", "true")

    def json(self) -> Any:
        try:
            return json.loads(self.body)
        except ValueError as error:
            raise Refusal(400, "the body is not JSON") from error

    @property
    def token(self) -> str | None:
        scheme, _, value = self.headers.get("authorization", "").partition(" ")
        return value.strip() if scheme.lower() == "bearer" and value.strip() else None


@dataclass
class Reply:
    status: int = 200
    body: bytes = b""
    headers: dict[str, str] = field(default_factory=dict)

    @classmethod
    def of(cls, value: Any, status: int = 200, headers: Mapping[str, str] = MappingProxyType({})) -> Reply:
        return cls(status, json.dumps(value).encode(), {"Content-Type": "application/json; charset=utf-8", **headers})


class Refusal(Exception):
    """An error as the Hub words it: status, X-Error-Message, and the X-Error-Code by which the client names it."""

    def __init__(
        self, status: int, message: str, code: str = "", headers: Mapping[str, str] = MappingProxyType({})
    ) -> None:
        super().__init__(message)
        self.status, self.message, self.code = status, message, code
        self.headers = dict(headers)

    def reply(self) -> Reply:
        headers = {**self.headers, "X-Error-Message": self.message.replace("\n", " ")}
        if self.code:
            headers["X-Error-Code"] = self.code
        return Reply.of({"error": self.message}, self.status, headers)


def sign(key: bytes, what: str) -> str:
    """The right to one upload or download, as storage links carry it: their requests carry no token."""
    return hmac.new(key, what.encode(), hashlib.sha256).hexdigest()


def ranged(content: bytes, header: str | None) -> Reply:
    """The whole content, or the one range of bytes that `header` asks for (206); a range past the end is a 416."""
    if not header or not header.startswith("bytes=") or "," in header:
        return Reply(200, content, {"Accept-Ranges": "bytes"})
    first, _, last = header.removeprefix("bytes=").partition("-")
    size = len(content)
    start = int(first) if first else max(0, size - int(last))
    stop = min(int(last) + 1, size) if first and last else size
    if start >= size:
        return Reply(416, b"", {"Content-Range": f"bytes */{size}"})
    headers = {"Accept-Ranges": "bytes", "Content-Range": f"bytes {start}-{stop - 1}/{size}"}
    return Reply(206, content[start:stop], headers)
