"""Asking a run's model from its page, through a server of `appliance serve` that is running anyway.

The page's own server passes questions on: it loads no model, starts nothing and keeps nothing. So watching stays light,
whoever may look may ask, by the same rules, and the browser needs neither the other server's address nor its key. The
other way round, with the pages inside `serve`, watching a training would need a model in memory, and answering would
hold up the pages.

The server is asked what it serves, and is used for the run whose model that is: by its name and when it was merged.
"""

from __future__ import annotations

import asyncio
import json
import shlex
import time
from collections.abc import AsyncGenerator, AsyncIterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
from sse_starlette import ServerSentEvent

from appliance import bounds
from appliance.process import terminal, typed
from appliance.rundir import proven

SERVER = "http://127.0.0.1:8322"
KEY_VARIABLE = "APPLIANCE_API_KEY"
_SECONDS = 3.0  # to connect, and to be told what is served
_LONGEST = 3600.0  # for an answer, the wait for it included; the server has bounds of its own
_MOST_BYTES = 8 << 20  # of what the server sends for one question
_KEPT_SECONDS = 2.0  # what was told, for everybody who asks: a page asks every few seconds
Events = AsyncGenerator[ServerSentEvent, None]
_FAULTS = (httpx.HTTPError, httpx.InvalidURL, ValueError, LookupError, TypeError, TimeoutError)


@dataclass(frozen=True)
class State:
    """Whether a run's model can be asked; if not, `said` tells why, and `command` starts what is missing."""

    is_ready: bool
    said: str = ""
    command: str = ""


class Fault(Exception):
    """The server did not answer as it should; the text says how."""


class ChatServer:
    """`address`: http://HOST:PORT; `key`: what it asks for, if anything. Nothing is asked before somebody does."""

    def __init__(self, address: str, key: str | None) -> None:
        self.address, self._key = address.rstrip("/"), key
        self._client: httpx.AsyncClient | None = None
        self._told: tuple[float, Any] = (0.0, None)
        self._lock = asyncio.Lock()

    async def state(self, run_path: Path) -> State:
        """Whether the server has the model of this run now."""
        command = _command(run_path)
        try:
            found = await self._models()
        except Fault as fault:
            return State(False, str(fault))
        except _FAULTS:
            return State(False, f"No server answers at {self.address}. This starts one:", command)
        if any(one["id"] == proven.served_name(run_path) and one["created"] == _made(run_path) for one in found):
            return State(True)
        names = ", ".join(terminal.printable(str(one["id"])) for one in found) or "nothing"
        return State(False, f"The server at {self.address} serves {names:.200}. Instead of it, start:", command)

    async def answer(
        self, run_path: Path, messages: Sequence[Mapping[str, str]]
    ) -> AsyncGenerator[ServerSentEvent, None]:
        """Events `piece` (text), then `end` (reason, left_out: how many messages the model was not given); or `error`.

        If it is closed before its end, the server is left, too, and stops answering.
        """
        body = {"model": proven.served_name(run_path), "messages": list(messages), "stream": True}
        try:
            async with (
                asyncio.timeout(_LONGEST),
                self._http.stream("POST", "/v1/chat/completions", json=body) as answer,
            ):
                async for event in _events(answer):
                    yield event
        except Fault as fault:
            yield _event("error", {"said": str(fault)})
        except _FAULTS as error:
            yield _event("error", {"said": f"The server at {self.address} ended the answer: {type(error).__name__}"})

    @property
    def _http(self) -> httpx.AsyncClient:
        if self._client is None:
            # without a key the server answers to names of loopback only, and in a container its name is another
            headers = {"authorization": f"Bearer {self._key}"} if self._key else {"host": "127.0.0.1"}
            timeout = httpx.Timeout(_LONGEST, connect=_SECONDS)
            self._client = httpx.AsyncClient(
                base_url=self.address,
                headers=headers,
                timeout=timeout,
                limits=httpx.Limits(max_keepalive_connections=0),  # nothing stays open that would have to be closed
                trust_env=False,
            )
        return self._client

    async def _models(self) -> list[dict[str, Any]]:
        async with self._lock:
            if not self._told[0] or time.monotonic() - self._told[0] > _KEPT_SECONDS:
                try:
                    told: Any = await self._asked()
                except (Fault, *_FAULTS) as fault:
                    told = fault
                self._told = (time.monotonic(), told)
            if isinstance(self._told[1], Exception):
                raise self._told[1]
            return list(self._told[1])

    async def _asked(self) -> list[dict[str, Any]]:
        async with asyncio.timeout(_SECONDS), self._http.stream("GET", "/v1/models") as answer:
            found = bounds.json_of((await _read(answer)).decode())
        if answer.status_code == 401:
            raise Fault(f"The server at {self.address} asks for a key: start watch with {KEY_VARIABLE} set.")
        return [{"id": str(one["id"]), "created": int(one["created"])} for one in found["data"]]


async def _events(answer: httpx.Response) -> AsyncIterator[ServerSentEvent]:
    """Raises Fault: the server refused, or told of a failure."""
    if answer.status_code != 200:
        raise Fault(_said(bounds.json_of((await _read(answer)).decode())))
    left_out, reason, size = int(answer.headers.get("x-appliance-turns-left-out", "0")), "", 0
    async for line in answer.aiter_lines():
        size += len(line)
        if size > _MOST_BYTES:
            raise Fault("The answer is too long.")
        if not line.startswith("data: {"):
            continue
        chunk = bounds.json_of(line[6:])
        if "error" in chunk:
            raise Fault(_said(chunk))
        for choice in chunk["choices"]:
            if text := choice["delta"].get("content"):
                yield _event("piece", {"text": terminal.printable(str(text))})
            reason = choice["finish_reason"] or reason
    yield _event("end", {"reason": reason, "left_out": left_out})


async def _read(answer: httpx.Response) -> bytes:
    body = bytearray()
    async for part in answer.aiter_bytes():
        body += part
        if len(body) > _MOST_BYTES:
            raise Fault("The server's answer is too long.")
    return bytes(body)


def _said(error: Any) -> str:
    return terminal.printable(f"{error['error']['message']:.500}")


def _event(name: str, data: Mapping[str, Any]) -> ServerSentEvent:
    return ServerSentEvent(json.dumps(data, ensure_ascii=False), event=name)


def _made(run_path: Path) -> int | None:
    try:
        return proven.merged_at(run_path)
    except OSError:  # it is being merged again
        return None


def _command(run_path: Path) -> str:
    return typed.as_typed(f"`appliance serve {shlex.quote(str(run_path))}`").strip("`")


def messages_of(body: bytes) -> list[dict[str, str]]:
    """The turns of a conversation, `{"messages": [{"role": …, "content": …}, …]}`. Raises ValueError: anything else."""
    found = bounds.json_of(body.decode())
    messages = found.get("messages") if isinstance(found, dict) else None
    if not isinstance(messages, list) or not messages:
        raise ValueError("expected messages, a list")
    for one in messages:
        if not isinstance(one, dict) or not all(isinstance(one.get(name), str) for name in ("role", "content")):
            raise ValueError("expected messages with role and content")
        one["content"].encode()
    return [{"role": one["role"], "content": one["content"]} for one in messages]
