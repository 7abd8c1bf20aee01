"""OpenAI's HTTP API over one loaded model: chat, completions, models; errors as OpenAI's clients read them.

Why not `transformers serve`, which is the server nearest at hand (5.17, tried with a tiny release): three seeds at
temperature 1.5 gave one answer, because a release decodes greedily and the request's temperature does not change that;
`max_completion_tokens` was ignored; the recipe's own stop texts are unknown to it; a message without a role and a
temperature that is a word were 500; its list of models was empty; it answered to any Host name; a request of 20 MB was
taken; a client that left held the only slot for longer than a minute, and SIGTERM did not end it. Around it every
request, every answer and the model's life would have had to be replaced.

Shapes as in OpenAI's API reference. Needs the extra `web`.
"""

from __future__ import annotations

import asyncio
import json
import time
import uuid
from collections.abc import AsyncIterator, Awaitable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

from sse_starlette import EventSourceResponse, ServerSentEvent
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from appliance.errors import ApplianceError
from appliance.listening import body
from appliance.listening.door import HEALTH, App, Guarded
from appliance.serving import requests
from appliance.serving.answering import Answer, Answered, Answering, NoPrompt, Question
from appliance.serving.api_door import Door, error_body
from appliance.serving.line import Closing, Full, TooLong
from appliance.serving.requests import Asked, AskedInChat, AskedToComplete, BadRequest
from appliance.wording import counted

MOST_BYTES = 1 << 20  # of a request: several times the text that any model's positions hold
_SEND_SECONDS = 30.0  # for one piece; a reader that takes longer is let go
_PING_SECONDS = 15
_TRY_AGAIN = {"retry-after": "5"}
_POLICY = "default-src 'none'; frame-ancestors 'none'; base-uri 'none'; form-action 'none'"
LEFT_OUT = "x-appliance-turns-left-out"
_Made = TypeVar("_Made")


@dataclass(frozen=True)
class Served:
    """`name`: of the model; `made`: when it was merged, seconds since 1970."""

    name: str
    made: int
    answering: Answering
    keeps_turns: bool

    def listed(self) -> dict[str, Any]:
        return {"id": self.name, "object": "model", "created": self.made, "owned_by": "finetune-appliance"}


class _Gone(Exception):
    """Who asked has left."""


def create(served: Served, door: Door) -> App:
    """The ASGI application."""
    api = Starlette(routes=_routes(served), exception_handlers={HTTPException: _unknown, Exception: _bug})
    api.router.redirect_slashes = False  # it would lead to whatever host the request names
    return Guarded(api, door, _POLICY)


def _routes(served: Served) -> list[Route]:
    async def chat(request: Request) -> Response:
        return await _answered(served, request, AskedInChat)

    async def complete(request: Request) -> Response:
        return await _answered(served, request, AskedToComplete)

    async def models(_: Request) -> Response:
        return JSONResponse({"object": "list", "data": [served.listed()]})

    async def model(request: Request) -> Response:
        name = request.path_params["name"]
        return JSONResponse(served.listed()) if name == served.name else _no_model(served, name)

    async def health(_: Request) -> Response:
        return (
            JSONResponse({"status": "ending"}, 503)
            if served.answering.line.is_closing
            else JSONResponse({"status": "ok"})
        )

    return [
        Route("/v1/chat/completions", chat, methods=["POST"]),
        Route("/v1/completions", complete, methods=["POST"]),
        Route("/v1/models", models),
        Route("/v1/models/{name:path}", model),
        Route(HEALTH, health),
    ]


async def _answered(served: Served, request: Request, kind: type[Asked]) -> Response:
    try:
        asked = requests.read(kind, await body.of(request, MOST_BYTES))
        if asked.model not in (None, served.name):
            return _no_model(served, str(asked.model))
        question, left_out = _question(served, asked)
        answer = await _unless_gone(request, served.answering.begin(question))
        answers = _Answers(served, asked, answer, {LEFT_OUT: str(left_out)} if left_out else {})
        return answers.stream() if asked.stream else await answers.whole(request)
    except body.Refused as fault:
        return _error(fault.status, fault.said, code=fault.code)
    except BadRequest as fault:
        return _error(400, fault.message, param=fault.param, code=fault.code)
    except NoPrompt as fault:
        return _error(400, str(fault), param="messages" if kind is AskedInChat else "prompt", code=fault.code)
    except Full:
        said = f"{counted(served.answering.line.waiting, 'question')} waiting already: try again later"
        return _error(429, said, code="rate_limit_exceeded", headers=_TRY_AGAIN)
    except TooLong:
        return _error(503, "the turn of this question did not come in time: try again later", headers=_TRY_AGAIN)
    except Closing:
        return _error(503, "this server is ending: it finishes the answer that it has begun", headers=_TRY_AGAIN)
    except (_Gone, ClientDisconnect):
        return Response(status_code=499)  # as nginx logs it; nobody reads this
    except ApplianceError as error:  # the GPU ran out of memory, for one
        return _error(503, str(error))


def _question(served: Served, asked: Asked) -> tuple[Question, int]:
    """(question, how many earlier messages are left out of it)."""
    left_out = 0
    text: Any
    if isinstance(asked, AskedInChat):
        text, left_out = requests.messages_for(
            asked.messages,
            trained_on_turns=served.answering.model.trained_on_turns,
            keeps_turns=served.keeps_turns,
        )
    else:
        assert isinstance(asked, AskedToComplete)
        text = asked.prompt
    return Question(text, asked.limit, asked.temperature, asked.top_p, asked.seed, asked.stops), left_out


async def _unless_gone(request: Request, work: Awaitable[_Made]) -> _Made:
    """The result of `work`. Raises _Gone: who asked has left first; then `work` is cancelled."""
    working, leaving = asyncio.ensure_future(work), asyncio.ensure_future(_leaves(request))
    try:
        await asyncio.wait({working, leaving}, return_when=asyncio.FIRST_COMPLETED)
        if working.done():
            return working.result()
        raise _Gone
    finally:
        leaving.cancel()
        working.cancel()


async def _leaves(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


class _Answers:
    """One answer in OpenAI's shapes: whole, or as a stream."""

    def __init__(self, served: Served, asked: Asked, answer: Answer, headers: Mapping[str, str]) -> None:
        self._asked, self._answer, self._headers = asked, answer, headers
        self._is_chat = isinstance(asked, AskedInChat)
        self._model = served.name
        self._id = f"{'chatcmpl' if self._is_chat else 'cmpl'}-{uuid.uuid4().hex}"
        self._created = int(time.time())

    async def whole(self, request: Request) -> Response:
        try:
            done = await _unless_gone(request, asyncio.shield(self._answer.result))
        finally:
            self._answer.let_go()
        said = {"message": {"role": "assistant", "content": done.text}} if self._is_chat else {"text": done.text}
        found = self._object("chat.completion" if self._is_chat else "text_completion", said, _reason(done))
        return JSONResponse(found | {"usage": _usage(done)}, headers=self._headers)

    def stream(self) -> Response:
        return _Streamed(self._events(), self._answer, self._headers)

    async def _events(self) -> AsyncIterator[ServerSentEvent]:
        if self._is_chat:
            yield self._event({"delta": {"role": "assistant", "content": ""}})
        async for piece in self._answer.pieces():
            yield self._event({"delta": {"content": piece}} if self._is_chat else {"text": piece})
        if (failed := self._answer.result.exception()) is not None:
            yield _sent(error_body(503, _told(failed)))
            if not isinstance(failed, ApplianceError):
                raise failed
            return
        done = self._answer.result.result()
        yield self._event({"delta": {}} if self._is_chat else {"text": ""}, _reason(done))
        if self._asked.wants_usage:
            yield _sent(self._chunk() | {"choices": [], "usage": _usage(done)})
        yield ServerSentEvent("[DONE]")

    def _event(self, said: Mapping[str, Any], reason: str | None = None) -> ServerSentEvent:
        more = {"usage": None} if self._asked.wants_usage else {}
        return _sent(self._object(self._kind_of_chunk, said, reason) | more)

    @property
    def _kind_of_chunk(self) -> str:
        return "chat.completion.chunk" if self._is_chat else "text_completion"

    def _chunk(self) -> dict[str, Any]:
        return {"id": self._id, "object": self._kind_of_chunk, "created": self._created, "model": self._model}

    def _object(self, kind: str, said: Mapping[str, Any], reason: str | None) -> dict[str, Any]:
        choice = {"index": 0, **said, "logprobs": None, "finish_reason": reason}
        return self._chunk() | {"object": kind, "choices": [choice]}


class _Streamed(EventSourceResponse):
    """Lets its answer go however it ends, begun or not."""

    def __init__(self, events: AsyncIterator[ServerSentEvent], answer: Answer, headers: Mapping[str, str]) -> None:
        super().__init__(events, headers=headers, ping=_PING_SECONDS, send_timeout=_SEND_SECONDS, sep="\n")
        self._answer = answer

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._answer.let_go()


def _sent(value: Mapping[str, Any]) -> ServerSentEvent:
    return ServerSentEvent(json.dumps(value, ensure_ascii=False, separators=(",", ":")))


def _reason(done: Answered) -> str:
    return "stop" if done.stopped else "length"


def _usage(done: Answered) -> dict[str, int]:
    return {
        "prompt_tokens": done.prompt_tokens,
        "completion_tokens": done.tokens,
        "total_tokens": done.prompt_tokens + done.tokens,
    }


def _no_model(served: Served, name: str) -> Response:
    said = f"there is no model {name!r:.200} here; this server has {served.name!r}"
    return _error(404, said, param="model", code="model_not_found")


def _error(
    status: int,
    said: str,
    *,
    param: str | None = None,
    code: str | None = None,
    headers: Mapping[str, str] | None = None,
) -> Response:
    return JSONResponse(error_body(status, said, param=param, code=code), status, headers=headers)


async def _unknown(request: Request, error: Exception) -> Response:
    """No such path, or not by this method."""
    assert isinstance(error, HTTPException)
    said = f"{request.method} {request.url.path:.200} is not answered here; docs/serve.md lists what is"
    return _error(error.status_code, said, code="not_found", headers=error.headers)


async def _bug(_: Request, error: Exception) -> Response:
    """Starlette raises `error` again behind this answer: uvicorn then writes where it happened."""
    return _error(500, _told(error))


def _told(error: BaseException) -> str:
    """For who asked. What a bug says may hold what others asked: it stays with the server."""
    return str(error) if isinstance(error, ApplianceError) else f"this is a bug: {type(error).__name__}"
