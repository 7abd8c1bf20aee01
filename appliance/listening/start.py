"""Where a server listens, with which token, and what it needs to be installed. uvicorn does the rest."""

from __future__ import annotations

import errno
import os
import re
import socket
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from appliance.errors import EnvironmentUnavailable, RecipeError
from appliance.listening.door import App
from appliance.process import known_secrets, signals

INSTALL = "uv pip install -c constraints.txt '.[web]'"
_ADDRESSES = "127.0.0.1 is the default; 0.0.0.0 is all of this machine's"
_MOST_CONNECTIONS = 128
_OF_THE_EXTRA = ("uvicorn", "starlette", "sse_starlette", "anyio")


def token_of(
    token_file: Path | None, *, option: str, variable: str, environ: Mapping[str, str] = os.environ
) -> str | None:
    """The token, masked from here on in whatever is written.

    Raises RecipeError: it cannot be read, or no request can carry it.

    `option`: what named the file, which wins over `variable`, one of the environment.
    """
    given_by, token = variable, environ.get(variable, "").strip() or None
    hint = "name a file that holds the token alone"
    if token_file is not None:
        given_by = f"{option} {token_file}"
        try:
            token = token_file.read_text(encoding="utf-8-sig").strip()  # Notepad begins a file with a BOM
        except (OSError, ValueError) as error:
            reason = error.strerror if isinstance(error, OSError) else "not UTF-8"
            raise RecipeError(f"{option} {token_file}: {reason}", hint=hint) from error
        if not token:
            raise RecipeError(f"{option} {token_file} is empty", hint=hint)
    known_secrets.learn(token)
    if token and not re.fullmatch("[ -~]+", token):
        what = f"holds {len(lines)} lines" if len(lines := token.splitlines()) > 1 else "holds more than visible ASCII"
        raise RecipeError(f"{given_by} {what}: no client could give that in a header", hint=hint)
    return token


@contextmanager
def needing_web(command: str) -> Iterator[None]:
    """While the block imports what serves. Raises EnvironmentUnavailable: the extra `web` is not installed."""
    try:
        yield
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] not in _OF_THE_EXTRA:
            raise
        raise EnvironmentUnavailable(f"{command} needs {error.name}, which is not installed", hint=INSTALL) from error


@dataclass(frozen=True)
class Place:
    """An address of this machine, of any family. `host`: as the user gave it."""

    host: str
    family: socket.AddressFamily
    address: str
    port: int

    @classmethod
    def of(cls, host: str, port: int) -> Place:
        """Raises RecipeError: `host` is not an address of this machine."""
        try:
            found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
        except (OSError, UnicodeError) as error:
            raise RecipeError(
                f"--host {host}: not an address of this machine",
                hint=_ADDRESSES,
            ) from error
        return cls(host, found[0], str(found[4][0]), port)

    def listen(self) -> socket.socket:
        """Raises EnvironmentUnavailable: the port is taken, or may not be used, or the address is another machine's."""
        try:
            return socket.create_server((self.address, self.port), family=self.family)
        except OSError as error:
            is_elsewhere = error.errno == errno.EADDRNOTAVAIL
            raise EnvironmentUnavailable(
                f"cannot listen on {self.host} port {self.port}: {os.strerror(error.errno or 0)}",
                hint=_ADDRESSES if is_elsewhere else "another port: --port NUMBER; 0 takes any free one",
            ) from error

    def url(self, listening: socket.socket, *, published_on_loopback: bool) -> str:
        """As somebody on this machine writes it, without a path."""
        shown = f"[{self.address}]" if self.family == socket.AF_INET6 else self.address
        return f"http://{'127.0.0.1' if published_on_loopback else shown}:{listening.getsockname()[1]}"


def run(app: App, listening: socket.socket, *, on_end: Callable[[int], None] | None = None) -> int:
    """Serves until SIGINT, SIGTERM or SIGHUP ends the process.

    At once, without `on_end`. With it, the first signal calls it with its number, in the event loop, and then nobody
    new is let in: this returns the number when everybody has been answered. A second signal ends the process.
    """
    import uvicorn

    ended_by: list[int] = []

    class Server(uvicorn.Server):
        @contextmanager
        def capture_signals(self) -> Iterator[None]:
            """They are ours. By uvicorn's own handler sse-starlette would notice the end, and cut the streams."""
            yield

        def finish(self, number: int) -> None:
            ended_by.append(number)
            self.should_exit = True

        async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
            if on_end:
                on_end(ended_by[0])
            await super().shutdown(sockets)

    server = Server(
        uvicorn.Config(
            app,
            log_config=None,
            access_log=False,  # addresses may hold the token
            server_header=False,
            proxy_headers=False,
            lifespan="off",
            limit_concurrency=_MOST_CONNECTIONS,
        )
    )
    if on_end:
        signals.first_one_calls(server.finish)
    else:
        signals.end_at_once()
    server.run(sockets=[listening])
    return ended_by[0] if ended_by else 0
