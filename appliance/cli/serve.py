"""`appliance serve`: a run's model behind OpenAI's API. No logic."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from appliance.cli.options import RunsOption, TurnsOption

_PORT = 8322


def serve(
    run_dir: Annotated[
        Path | None, typer.Argument(metavar="RUN_DIR", help="A run directory. Default: the newest proven model.")
    ] = None,
    host: Annotated[
        str, typer.Option("--host", metavar="ADDRESS", help="Where to listen. Beyond this machine a key is needed.")
    ] = "127.0.0.1",
    port: Annotated[
        int, typer.Option("--port", metavar="NUMBER", min=0, max=65535, help="Its port; 0 takes any free one.")
    ] = _PORT,
    key_file: Annotated[
        Path | None,
        typer.Option(
            "--key-file", metavar="FILE", help="Holds the API key that a client must give. Or: APPLIANCE_API_KEY."
        ),
    ] = None,
    published_on_loopback: Annotated[
        bool,
        typer.Option(
            "--published-on-loopback",
            help="In a container: its port is published on the host's 127.0.0.1 only. No key is asked for then.",
        ),
    ] = False,
    turns: TurnsOption = None,
    queue: Annotated[
        int,
        typer.Option("--queue", metavar="NUMBER", min=0, max=1000, help="How many questions may wait for their turn."),
    ] = 16,
    seconds: Annotated[
        float,
        typer.Option(
            "--seconds",
            metavar="SECONDS",
            min=1,
            max=86400,
            help="The longest that an answer may take, and the longest that a question may wait.",
        ),
    ] = 300,
    runs_dir: RunsOption = Path("runs"),
) -> None:
    """Serve a run's model behind OpenAI's API. Chat, completions and models; one answer at a time.

    Only a proven model is served. Needs the extra `web`.

    appliance serve

    appliance serve runs/demo --port 9000
    """
    from appliance.listening import start
    from appliance.rundir import proven
    from appliance.serving import server

    server.serve(
        proven.find(run_dir, runs_dir),
        host=host,
        port=port,
        key=start.token_of(key_file, option=server.KEY_OPTION, variable=server.KEY_VARIABLE),
        published_on_loopback=published_on_loopback,
        keep_turns=turns,
        most_waiting=queue,
        seconds=seconds,
    )
