"""The command line: parse, call, map errors to exit codes. No logic; nothing heavy is imported before it is needed."""

from __future__ import annotations

import errno
import os
import sys
from pathlib import Path
from typing import Annotated, NoReturn

import typer

from appliance import __version__
from appliance.cli import report
from appliance.cli.dataset import generate, hub, sources, upload
from appliance.cli.look import doctor, inspect, replay, status
from appliance.cli.recipe import recipe_app
from appliance.cli.run import check, demo, publish, run, stage_command
from appliance.cli.talk import ask, chat
from appliance.errors import ApplianceError, Interrupted
from appliance.process import signals

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    help="""Fine-tune a language model on a CSV: check, train, compare, merge, prove, release.

    appliance demo

    appliance run chatbot-cpu --set data.csv=data/train.csv""",
)
app.add_typer(recipe_app, name="recipe")
app.add_typer(sources.dataset_app, name="dataset")
for _commands in (generate, hub, upload):
    _commands.register(sources.dataset_app)
app.command("report")(report.report)
_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EROFS, errno.EEXIST, errno.ENOTDIR, errno.EISDIR)


def main() -> None:
    """Entry point. Expected failures become one message, a hint and the exit code of their class; a bug becomes 1."""
    # Threads that wait should sleep, not spin: with one core taken by another program, spinning made training four
    # times slower, sleeping as slow as one thread; on a quiet machine both are equal. OpenMP reads it when torch loads.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    signals.install()
    try:
        app()
    except (ApplianceError, Interrupted) as error:
        _fail(str(error), error.hint, error.exit_code)
    except OSError as error:
        if error.errno not in _DISK:
            raise
        hint = "make room, name a folder instead of a file, or give it to this user; then the same command continues"
        _fail(f"{error.filename or 'writing'}: {error.strerror}{_room_at(error)}", hint, 4)
    except Exception as error:
        if not getattr(error, "__notes__", None):
            raise
        _fail(f"this is a bug: {type(error).__name__}: {error}", "; ".join(error.__notes__), 1)


def _room_at(error: OSError) -> str:
    """What is free where the disk is full."""
    if error.errno not in (errno.ENOSPC, errno.EDQUOT) or not isinstance(error.filename, str):
        return ""
    from appliance.machine import disk

    free = disk.free_disk_bytes(Path(error.filename))
    return f": {free} bytes ({disk.human(free)}) are free there"


def _fail(message: str, hint: str, exit_code: int) -> NoReturn:
    from appliance.process import console

    signals.end_at_once()
    console.error(message, hint)
    sys.exit(exit_code)


@app.callback(invoke_without_command=True)
def _root(version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False) -> None:
    if version:
        typer.echo(__version__)
        raise typer.Exit


# In the order in which --help lists them.
app.command()(run)
app.command()(demo)
app.command()(check)
app.command("prepare")(stage_command("prepare", "Read the CSV, account for every row, split it."))
app.command("rehearse")(stage_command("rehearse", "Try a few steps of everything that follows, before the long run."))
app.command("train")(stage_command("train", "Train the adapter."))
app.command("evaluate")(stage_command("evaluate", "Answer the test rows with the base and with the tuned model."))
app.command("merge")(stage_command("merge", "Merge the adapter into the base and prove the result."))
app.command()(publish)
app.command()(status)
app.command()(inspect)
app.command()(replay)
app.command()(chat)
app.command()(ask)
app.command()(doctor)
