"""`appliance watch`: the page of a run, or of all runs, live in a browser. No logic."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from appliance.cli.options import RunsOption

_PORT = 8321
_KEY_VARIABLE = "APPLIANCE_API_KEY"  # of `appliance serve`


def watch(
    run_dir: Annotated[
        Path | None, typer.Argument(metavar="RUN_DIR", help="One run. Default: a list of all runs, each linked.")
    ] = None,
    host: Annotated[
        str, typer.Option("--host", metavar="ADDRESS", help="Where to listen. Beyond this machine a token is needed.")
    ] = "127.0.0.1",
    port: Annotated[
        int, typer.Option("--port", metavar="NUMBER", min=0, max=65535, help="Its port; 0 takes any free one.")
    ] = _PORT,
    token_file: Annotated[
        Path | None,
        typer.Option(
            "--token-file",
            metavar="FILE",
            help="Holds the token that a browser must give. Or: APPLIANCE_WATCH_TOKEN.",
        ),
    ] = None,
    published_on_loopback: Annotated[
        bool,
        typer.Option(
            "--published-on-loopback",
            help="In a container: its port is published on the host's 127.0.0.1 only. No token is asked for then.",
        ),
    ] = False,
    chat_server: Annotated[
        str,
        typer.Option(
            "--chat-server",
            metavar="ADDRESS",
            envvar="APPLIANCE_CHAT_SERVER",
            help="Where `appliance serve` runs, for the chat on a run's page. Its key, if any: APPLIANCE_API_KEY.",
        ),
    ] = "http://127.0.0.1:8322",
    runs_dir: RunsOption = Path("runs"),
) -> None:
    """Watch runs in a browser. The page of report.html, live: progress, curves, sample answers and the log.

    Reads run directories and writes nothing. Needs the extra `web`.

    appliance watch

    appliance watch runs/demo --port 9000
    """
    from appliance.listening import start
    from appliance.rundir import find as rundir_find
    from appliance.web import server

    if run_dir is not None:
        rundir_find.require_run(run_dir)
    server.serve(
        runs_dir,
        run_dir,
        host=host,
        port=port,
        token=start.token_of(token_file, option=server.TOKEN_OPTION, variable=server.TOKEN_VARIABLE),
        published_on_loopback=published_on_loopback,
        chat_server=(chat_server, start.token_of(None, option="", variable=_KEY_VARIABLE)),
    )
