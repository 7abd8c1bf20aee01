"""The pages: a list of runs, a page a run, and a stream of events for each. Reads only; starts nothing.

Needs the extra `web`.
"""

from __future__ import annotations

import json
from base64 import b64encode
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import aclosing
from dataclasses import asdict, dataclass, field
from functools import partial
from hashlib import sha256
from pathlib import Path
from typing import Any
from urllib.parse import quote

from sse_starlette import EventSourceResponse, ServerSentEvent
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import HTMLResponse, JSONResponse, PlainTextResponse, RedirectResponse, Response
from starlette.routing import Route

from appliance.listening import body
from appliance.listening.door import HEALTH, App, Door, Guarded
from appliance.report import page
from appliance.web import chat, views, watched
from appliance.web.chat import SERVER, ChatServer
from appliance.web.views import PACKAGE, View
from appliance.web.watched import Watched
from appliance.wording import counted

MOST_STREAMS = 16  # at a time; each may hold one event in memory
SEND_SECONDS = 30.0  # for one event; a reader that takes longer is let go
MOST_CHATS = 8  # at a time; the server that answers has a queue of its own
_PING_SECONDS = 15
_MOST_CHAT_BYTES = 1 << 18


@dataclass
class Site:
    """What is served: the runs of a folder, or one run alone."""

    runs_dir: Path | None
    run: Path | None = None
    chat: ChatServer = field(default_factory=lambda: ChatServer(SERVER, None))
    streams: int = 0
    chats: int = 0
    _watched: dict[str, Watched] = field(default_factory=dict)

    def found(self, name: str) -> Path:
        """The folder of a run. Raises HTTPException 404: there is none of this name here."""
        known = {self.run.name: self.run} if self.run else views.names_in(self.runs_dir) if self.runs_dir else {}
        if name not in known:
            raise HTTPException(404, f"no run {name!r} here\n")
        return known[name]

    def watch(self, name: str, look: Callable[[], View]) -> Watched:
        """The one that everybody shares who watches `name`; others, which nobody watches any longer, are dropped."""
        self._watched = {key: one for key, one in self._watched.items() if key == name or not one.is_idle}
        return self._watched.setdefault(name, Watched(look))

    def of_runs(self) -> Watched:
        assert self.runs_dir
        return self.watch("", partial(views.of_runs, self.runs_dir))

    def of_run(self, name: str) -> Watched:
        return self.watch(name, watched.run(self.found(name)))


def create(site: Site, door: Door) -> App:
    """The ASGI application."""
    pages = Starlette(routes=routes(site))
    pages.router.redirect_slashes = False  # it would lead to whatever host the request names
    return Guarded(pages, door, policy())


def routes(site: Site) -> list[Route]:
    async def home(_: Request) -> Response:
        if site.run:
            return RedirectResponse(_path_of(site.run.name), 303)
        return await _page(site.of_runs(), events="/events")

    async def run(request: Request) -> Response:
        name = request.path_params["name"]
        return await _page(
            site.of_run(name), events=f"{_path_of(name)}/events", home="" if site.run else "/", name=name
        )

    async def events_of_runs(request: Request) -> Response:
        return _stream(site, site.of_runs(), request)

    async def events_of_run(request: Request) -> Response:
        return _stream(site, site.of_run(request.path_params["name"]), request)

    async def can_chat(request: Request) -> Response:
        return JSONResponse(asdict(await site.chat.state(site.found(request.path_params["name"]))))

    async def ask(request: Request) -> Response:
        return await _chat(site, request)

    async def health(_: Request) -> Response:
        return PlainTextResponse("ok\n")

    async def no_icon(_: Request) -> Response:
        return Response(status_code=204)

    found = [Route("/", home), Route("/runs/{name}", run), Route("/runs/{name}/events", events_of_run)]
    found += [Route("/runs/{name}/chat", can_chat), Route("/runs/{name}/chat", ask, methods=["POST"])]
    found += [Route(HEALTH, health), Route("/favicon.ico", no_icon)]
    return found if site.run else [*found, Route("/events", events_of_runs)]


def policy() -> str:
    """The Content-Security-Policy: our own script and style, by their hashes; nothing else."""
    return "; ".join(
        (
            "default-src 'none'",
            f"script-src {_hash(''.join(map(page.asset, page.SCRIPTS)) + _script())}",
            f"style-src {_hash(''.join(map(page.asset, page.STYLES)) + _style())}",
            "connect-src 'self'",
            "img-src 'self'",
            "base-uri 'none'",
            "form-action 'none'",
            "frame-ancestors 'none'",
        )
    )


async def _page(it: Watched, *, events: str, home: str = "", name: str = "") -> Response:
    view = await it.view()
    state = {"events": events, "parts": view.hashes, "chat": f"{_path_of(name)}/chat" if name else ""}
    lead = page.rendered_by("lead.html.j2", {"lead": view.lead, "home": home, "state": state}, PACKAGE)
    html = page.whole(name or view.name, view.parts, lead=lead, title=view.title, css=_style(), script=_script())
    return HTMLResponse(html)


def _stream(site: Site, it: Watched, request: Request) -> Response:
    if site.streams >= MOST_STREAMS:
        text = f"{MOST_STREAMS} pages are watching already.\n"
        return PlainTextResponse(text, 503, {"retry-after": "10"})
    have = frozenset(request.query_params.get("have", "").split(","))
    return EventSourceResponse(_events(site, it, have), ping=_PING_SECONDS, send_timeout=SEND_SECONDS)


async def _chat(site: Site, request: Request) -> Response:
    run = site.found(request.path_params["name"])
    if site.chats >= MOST_CHATS:
        said = f"{counted(MOST_CHATS, 'question is', 'questions are')} being answered already.\n"
        return PlainTextResponse(said, 429, {"retry-after": "5"})
    try:
        messages = chat.messages_of(await body.of(request, _MOST_CHAT_BYTES))
    except body.Refused as fault:
        return PlainTextResponse(f"{fault.said}\n", fault.status)
    except ValueError as error:
        return PlainTextResponse(f"{error}\n", 400)
    except ClientDisconnect:
        return Response(status_code=499)  # nobody reads this
    return EventSourceResponse(_answer(site, run, messages), ping=_PING_SECONDS, send_timeout=SEND_SECONDS, sep="\n")


async def _answer(site: Site, run: Path, messages: list[dict[str, str]]) -> AsyncIterator[ServerSentEvent]:
    site.chats += 1
    try:
        async with aclosing(site.chat.answer(run, messages)) as events:
            async for event in events:
                yield event
    finally:
        site.chats -= 1


async def _events(site: Site, it: Watched, have: frozenset[str]) -> AsyncIterator[ServerSentEvent]:
    """`have`: hashes of the sections that the reader shows already."""
    if site.streams >= MOST_STREAMS:  # others came between its request and its first event
        return
    site.streams += 1
    sent: Mapping[str, str] | None = None
    title = ""
    try:
        async for view in it.views():
            changed = {
                one.id: str(one.html)
                for one in view.parts
                if (view.hashes[one.id] not in have if sent is None else sent.get(one.id) != view.hashes[one.id])
            }
            if sent is None or changed or list(sent) != list(view.hashes) or title != view.title:
                yield _event(view, changed)
            sent, title = view.hashes, view.title
    finally:
        site.streams -= 1


def _event(view: View, changed: Mapping[str, str]) -> ServerSentEvent:
    data: dict[str, Any] = {
        "title": view.title,
        "order": [[one.id, one.title, one.label] for one in view.parts],
        "parts": changed,
        "hashes": {name: view.hashes[name] for name in changed},
    }
    return ServerSentEvent(json.dumps(data, ensure_ascii=False), event="view")


def _path_of(name: str) -> str:
    return f"/runs/{quote(name, safe='')}"


def _style() -> str:
    return "".join(page.asset(name, PACKAGE) for name in ("watch.css", "chat.css"))


def _script() -> str:
    return "".join(page.asset(name, PACKAGE) for name in ("chat.js", "watch.js"))


def _hash(text: str) -> str:
    """As CSP names the content of an element of the page, which begins behind a line break: see _page.html.j2."""
    return f"'sha256-{b64encode(sha256(f'{chr(10)}{text}'.encode()).digest()).decode()}'"
