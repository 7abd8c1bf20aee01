"""The command line: parse, call, map errors to exit codes. No logic; nothing heavy is imported before it is needed."""

from __future__ import annotations

import os
import sys
from typing import Annotated, NoReturn

import typer

from appliance import __version__
from appliance.cli import report
from appliance.cli.dataset import feedback, generate, hub, sources, upload
from appliance.cli.export import export
from appliance.cli.fleet import fleet
from appliance.cli.help import HelpGroup, lay_out
from appliance.cli.look import doctor, inspect, replay, status
from appliance.cli.recipe import recipe_app
from appliance.cli.recipe_command import RecipeCommand
from appliance.cli.run import check, demo, publish, run, stage_command
from appliance.cli.serve import serve
from appliance.cli.sweep import sweep
from appliance.cli.talk import ask, chat
from appliance.cli.watch import watch
from appliance.errors import ApplianceError, Interrupted
from appliance.machine import path_names
from appliance.process import masked_streams, signals, std_streams, terminal

app = typer.Typer(
    cls=HelpGroup,
    context_settings={"help_option_names": ["-h", "--help"]},
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    help="""Fine-tune a language model on a CSV: check, train, compare, merge, prove, release.

    appliance demo

    appliance run chatbot-cpu --set data.csv=data/train.csv""",
)
app.add_typer(recipe_app, name="recipe")
app.add_typer(sources.dataset_app, name="dataset")
for _commands in (generate, hub, feedback, upload):
    _commands.register(sources.dataset_app)


def main() -> None:
    """Entry point. An expected failure becomes one message, a hint and its class's exit code; a bug exits with 1."""
    # Waiting threads should sleep, not spin: with one core taken by another program, spinning made training four times
    # slower, sleeping no slower than a single thread; on a quiet machine both are equal. OpenMP reads this when torch
    # loads.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")  # trl reports to the Hub that it is used, from any training
    os.umask(os.umask(0o077) & 0o077)  # one that takes rights from the user would leave files that nobody can read
    std_streams.make_usable()
    terminal.replace_what_cannot_be_shown()
    masked_streams.install()
    signals.install()
    try:
        try:
            with signals.causing():
                _answer()
        finally:
            sys.stdout.flush()  # a disk that does not take the results is an error, see below
    except (ApplianceError, Interrupted) as error:
        _fail(str(error), error.hint, error.exit_code)
    except Exception as error:
        from appliance.machine import write_errors

        if refused := write_errors.explained(error):
            _fail(str(refused), refused.hint, refused.exit_code)
        if not getattr(error, "__notes__", None):
            raise
        _fail(f"this is a bug: {type(error).__name__}: {error}", "; ".join(error.__notes__), 1)


def _answer() -> None:
    if sys.argv[1:] == ["--version"]:  # to read any option, typer loads pydantic, which takes longer than all the rest
        typer.echo(__version__)
        sys.exit(0)
    path_names.refuse_foreign(sys.argv[1:], os.environ)
    app()


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
app.command(cls=RecipeCommand)(run)
app.command(cls=RecipeCommand)(demo)
app.command(cls=RecipeCommand)(fleet)
app.command(cls=RecipeCommand)(check)
for _stage, _what in (
    ("prepare", "Read the CSV and account for every row. Then split the rows into train, val and test."),
    ("rehearse", "Try every later stage for a few steps. Faults show before the long run."),
    ("train", "Train the adapter."),
    ("evaluate", "Score the base and the tuned model. Both answer the test rows."),
    ("merge", "Merge the adapter and prove the result."),
):
    app.command(_stage, cls=RecipeCommand)(stage_command(_stage, _what))
app.command(cls=RecipeCommand)(publish)
app.command()(export)
app.command(cls=RecipeCommand)(sweep)
app.command()(status)
app.command()(watch)
app.command()(report.report)
app.command()(inspect)
app.command()(replay)
app.command()(chat)
app.command()(ask)
app.command()(serve)
app.command()(doctor)
lay_out(app)
