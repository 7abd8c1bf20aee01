"""Listens, and serves until a signal ends it."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from appliance.errors import EnvironmentUnavailable, RecipeError
from appliance.process import console, known_secrets, signals
from appliance.web import door

PORT = 8321
TOKEN_VARIABLE = "APPLIANCE_WATCH_TOKEN"
INSTALL = "uv pip install -c constraints.txt '.[web]'"
_MOST_CONNECTIONS = 128


def token_of(token_file: Path | None, environ: Mapping[str, str] = os.environ) -> str | None:
    """The token, masked from here on in whatever is written. Raises RecipeError: it cannot be read."""
    token, hint = environ.get(TOKEN_VARIABLE) or None, "name a file that holds the token alone"
    if token_file is not None:
        try:
            token = token_file.read_text(encoding="utf-8").strip()
        except (OSError, ValueError) as error:
            reason = error.strerror if isinstance(error, OSError) else "not UTF-8"
            raise RecipeError(f"--token-file {token_file}: {reason}", hint=hint) from error
        if not token:
            raise RecipeError(f"--token-file {token_file} is empty", hint=hint)
    known_secrets.learn(token)
    return token


def serve(
    runs_dir: Path, run: Path | None, *, host: str, port: int, token: str | None, published_on_loopback: bool
) -> None:
    """Serves the runs of `runs_dir`, or `run` alone, and returns never: SIGINT, SIGTERM and SIGHUP end the process.

    Raises EnvironmentUnavailable: the extra `web` is not installed, or the port is taken. RecipeError: `host` is no
    address of this machine, or others could look without a token.
    """
    try:
        import uvicorn

        from appliance.web import app
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] not in ("uvicorn", "starlette", "sse_starlette", "anyio"):
            raise
        raise EnvironmentUnavailable(f"watch needs {error.name}, which is not installed", hint=INSTALL) from error

    class Server(uvicorn.Server):
        @contextmanager
        def capture_signals(self) -> Iterator[None]:
            """Ours end the process at once: there is nothing to save, and streams would be waited for."""
            yield

    family, address = _address(host, port)
    entrance = door.door_for(address[0], token, published_on_loopback=published_on_loopback)
    with _listening(family, address, host) as listening:
        shown = f"[{address[0]}]" if family == socket.AF_INET6 else address[0]
        shown = "127.0.0.1" if published_on_loopback else shown
        asked = "/?token=… (the token)" if entrance.token else "/"
        console.say(f"watching {run or runs_dir} on http://{shown}:{listening.getsockname()[1]}{asked}; Ctrl-C ends it")
        site = app.Site(None if run else runs_dir, run)
        config = uvicorn.Config(
            app.create(site, entrance),
            log_config=None,
            access_log=False,  # addresses may hold the token
            server_header=False,
            proxy_headers=False,
            lifespan="off",
            limit_concurrency=_MOST_CONNECTIONS,
        )
        signals.end_at_once()
        Server(config).run(sockets=[listening])


def _address(host: str, port: int) -> tuple[socket.AddressFamily, tuple[str, int]]:
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
    except (OSError, UnicodeError) as error:
        raise RecipeError(
            f"--host {host}: not an address of this machine", hint="127.0.0.1 is the default; 0.0.0.0 is all of them"
        ) from error
    return family, (str(address[0]), port)


def _listening(family: socket.AddressFamily, address: tuple[str, int], host: str) -> socket.socket:
    try:
        return socket.create_server(address, family=family)
    except OSError as error:
        where = f"{host} port {address[1]}"
        raise EnvironmentUnavailable(
            f"cannot listen on {where}: {error.strerror}", hint="another port: --port NUMBER; 0 takes any free one"
        ) from error
