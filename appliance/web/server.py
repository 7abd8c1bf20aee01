"""Listens, and serves until a signal ends it."""

from __future__ import annotations

import re
from pathlib import Path

from appliance.errors import RecipeError
from appliance.listening import door as listening_door
from appliance.listening import start
from appliance.listening.start import Place
from appliance.process import console
from appliance.web.door import Door

PORT = 8321
TOKEN_VARIABLE, TOKEN_OPTION = "APPLIANCE_WATCH_TOKEN", "--token-file"


def serve(
    runs_dir: Path,
    run: Path | None,
    *,
    host: str,
    port: int,
    token: str | None,
    published_on_loopback: bool,
    chat_server: tuple[str, str | None],
) -> None:
    """Serves the runs of `runs_dir`, or `run` alone, and returns never: SIGINT, SIGTERM and SIGHUP end the process.

    `chat_server`: address and key of a server that may have a run's model, as `appliance serve` starts it.
    Raises EnvironmentUnavailable: the extra `web` is not installed, or the port is taken. RecipeError: `host` is no
    address of this machine, others could look without a token, or `chat_server` is not an address.
    """
    with start.needing_web("watch"):
        import uvicorn  # noqa: F401

        from appliance.web import app
        from appliance.web.chat import ChatServer
    if not re.fullmatch(r"https?://[^/?#@\s]+/?", chat_server[0]):
        raise RecipeError(
            f"--chat-server {chat_server[0]}: expected http://HOST:PORT", hint="http://127.0.0.1:8322 is the default"
        )
    place = Place.of(host, port)
    listening_door.require_token(
        place.address,
        token,
        published_on_loopback=published_on_loopback,
        given_by=f"{TOKEN_VARIABLE} or {TOKEN_OPTION}",
    )
    with place.listen() as listening:
        url = place.url(listening, published_on_loopback=published_on_loopback)
        asked = "/?token=… (the token)" if token else "/"
        console.say(f"watching {run or runs_dir} on {url}{asked}; Ctrl-C ends it")
        site = app.Site(None if run else runs_dir, run, ChatServer(*chat_server))
        # nothing to save, and streams would be waited for: a signal ends it at once
        start.run(app.create(site, Door(token)), listening)
