"""The command line: parse, call, map errors to exit codes. No logic; nothing heavy is imported before it is needed."""

from __future__ import annotations

import errno
import json
import os
import sys
import time
from pathlib import Path
from typing import Annotated, NoReturn

import typer

from appliance import __version__, cli_dataset, cli_generate, cli_hub, cli_report, cli_upload, interrupts
from appliance.errors import ApplianceError, Interrupted, RecipeError

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    help="""Fine-tune a language model on a CSV: check, train, compare, merge, prove, release.

    appliance demo

    appliance run chatbot-cpu --set data.csv=data/train.csv""",
)
_RECIPE_HELP = """Look at recipes.

    appliance recipe list

    appliance recipe schema"""
recipe_app = typer.Typer(no_args_is_help=True, rich_markup_mode=None, help=_RECIPE_HELP)
app.add_typer(recipe_app, name="recipe")
app.add_typer(cli_dataset.dataset_app, name="dataset")
for _commands in (cli_generate, cli_hub, cli_upload):
    _commands.register(cli_dataset.dataset_app)
app.command("report")(cli_report.report)

RecipeArgument = Annotated[
    str | None,
    typer.Argument(
        metavar="[RECIPE|RUN_DIR]",
        envvar="APPLIANCE_RECIPE",
        show_default=False,
        help="A shipped recipe's name, a YAML file, or a run directory. "
        "Without it data/recipe.yaml where that exists, else the recipe `default`.",
    ),
]
RunDirOrNewest = Annotated[
    Path | None, typer.Argument(metavar="[RUN_DIR]", help="A run directory; without it the newest run.")
]
RunDirArgument = Annotated[Path, typer.Argument(metavar="RUN_DIR", help="A run directory, such as runs/demo.")]
SetOption = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Set one field, for example train.epochs=1. May be repeated."),
]
RedoOption = Annotated[
    str | None, typer.Option("--redo", metavar="STAGE", help="Run this stage and all after it once more.")
]
RunsOption = Annotated[Path, typer.Option("--runs-dir", envvar="APPLIANCE_RUNS_DIR", help="Where run directories are.")]
CacheOption = Annotated[
    Path, typer.Option("--cache-dir", envvar="APPLIANCE_CACHE_DIR", help="Where models made here are kept.")
]
EvenIfWorseOption = Annotated[
    bool, typer.Option("--even-if-worse", help="Release a model that the verdict speaks against; its card says so.")
]
IntoExistingOption = Annotated[
    bool, typer.Option("--into-existing", help="Publish to a repository that holds something else.")
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON for machines.")]
TokensOption = Annotated[
    int | None, typer.Option("--max-new-tokens", min=1, help="Longest answer in tokens; without it the recipe's.")
]
TemperatureOption = Annotated[
    float | None,
    typer.Option("--temperature", min=0.0, help="0 takes the likeliest token; without it the recipe's sampling."),
]
_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EROFS, errno.EEXIST, errno.ENOTDIR, errno.EISDIR)
_CACHE = Path.home() / ".cache" / "finetune-appliance"


def main() -> None:
    """Entry point. Expected failures become one message, a hint and the exit code of their class; a bug becomes 1."""
    # Threads that wait should sleep, not spin: with one core taken by another program, spinning made training four
    # times slower, sleeping as slow as one thread; on a quiet machine both are equal. OpenMP reads it when torch loads.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    interrupts.install()
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
    from appliance import machine

    free = machine.free_disk_bytes(Path(error.filename))
    return f": {free} bytes ({machine.human(free)}) are free there"


def _fail(message: str, hint: str, exit_code: int) -> NoReturn:
    from appliance import console

    interrupts.end_at_once()
    console.error(message, hint)
    sys.exit(exit_code)


@app.callback(invoke_without_command=True)
def _root(version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False) -> None:
    if version:
        typer.echo(__version__)
        raise typer.Exit


@app.command()
def run(
    source: RecipeArgument = None,
    set_: SetOption = None,
    redo: RedoOption = None,
    even_if_worse: EvenIfWorseOption = False,
    into_existing: IntoExistingOption = False,
    runs_dir: RunsOption = Path("runs"),
    cache_dir: CacheOption = _CACHE,
) -> None:
    """Run all stages of a recipe; what is done is skipped, what was stopped continues.

    appliance run demo

    appliance run my.yaml --set train.epochs=1 --set name=short
    """
    from appliance import resolve

    allowed = {"even_if_worse": even_if_worse, "into_existing": into_existing}
    _run(source or resolve.usual_recipe(), set_, redo, runs_dir, cache_dir, until="publish", **allowed)


@app.command()
def demo(
    set_: SetOption = None,
    redo: RedoOption = None,
    runs_dir: RunsOption = Path("runs"),
    cache_dir: CacheOption = _CACHE,
) -> None:
    """Run the whole pipeline on a small model made on the spot: no GPU, no Hub, no data needed.

    appliance demo

    appliance demo --set train.seed=7 --set name=demo-7
    """
    _run("demo", set_, redo, runs_dir, cache_dir, until="publish")


def _stage_command(stage: str, what: str) -> None:
    def command(
        run_dir: RunDirOrNewest = None,
        set_: SetOption = None,
        redo: RedoOption = None,
        runs_dir: RunsOption = Path("runs"),
        cache_dir: CacheOption = _CACHE,
    ) -> None:
        _run_until(stage, run_dir, set_, redo, runs_dir, cache_dir)

    command.__doc__ = f"""{what}

    Stages before it that are not done yet run first; a finished one is skipped.

    appliance {stage} runs/demo

    appliance {stage} runs/demo --redo {stage}
    """
    app.command(stage)(command)


@app.command()
def check(
    source: Annotated[str, typer.Argument(metavar="RECIPE|RUN_DIR|CSV", help="A recipe, a run directory, or a CSV.")],
    set_: SetOption = None,
    runs_dir: RunsOption = Path("runs"),
    cache_dir: CacheOption = _CACHE,
    as_json: JsonOption = False,
) -> None:
    """Say whether a recipe can run here, or what a CSV holds. Trains nothing, fetches no weights.

    appliance check chatbot-cpu --set data.csv=data/train.csv

    appliance check data/train.csv --set data.columns.instruction=Q --set data.columns.output=A
    """
    from appliance import console, views

    if views.is_recipe(source):
        run_path, since = _run_path(source, set_, runs_dir), time.time()
        try:
            _run(source, set_, None, runs_dir, cache_dir, until="check", announce=False)
        finally:  # also what was found before something refused
            findings = views.check_table(run_path, since)
            if as_json:
                console.result(json.dumps(findings, ensure_ascii=False, indent=2))
            elif findings:
                console.table("", tuple(findings[0]), [tuple(row.values()) for row in findings], to_stdout=True)
        return
    checked = views.check_csv(source, set_ or [])
    if as_json:
        console.result(checked.as_json())
    else:
        console.table("", ("what", "found"), checked.rows, to_stdout=True)
        for line in ("", *checked.preview):
            console.result(line)
    if checked.refusal:
        raise checked.refusal


_stage_command("prepare", "Read the CSV, account for every row, split it.")
_stage_command("rehearse", "Try a few steps of everything that follows, before the long run.")
_stage_command("train", "Train the adapter.")
_stage_command("evaluate", "Answer the test rows with the base and with the tuned model.")
_stage_command("merge", "Merge the adapter into the base and prove the result.")


@app.command()
def publish(
    run_dir: RunDirOrNewest = None,
    set_: SetOption = None,
    redo: RedoOption = None,
    even_if_worse: EvenIfWorseOption = False,
    into_existing: IntoExistingOption = False,
    runs_dir: RunsOption = Path("runs"),
    cache_dir: CacheOption = _CACHE,
) -> None:
    """Build the release, put it through the gates, upload it where publish.repo_id says so.

    Stages before it that are not done yet run first. After a failed upload the same command continues.

    appliance publish runs/demo

    appliance publish runs/demo --redo publish --set publish.repo_id=me/my-model
    """
    allowed = {"even_if_worse": even_if_worse, "into_existing": into_existing}
    _run_until("publish", run_dir, set_, redo, runs_dir, cache_dir, **allowed)


@app.command()
def status(runs_dir: RunsOption = Path("runs"), as_json: JsonOption = False) -> None:
    """List the runs and how far each one is.

    appliance status

    appliance status --runs-dir /runs --json
    """
    from appliance import console, rundir

    runs = rundir.overview(runs_dir)
    if as_json:
        console.result(json.dumps(runs, ensure_ascii=False, indent=2))
    elif runs:
        console.table("", ("run", *rundir.STAGES), [tuple(run.values()) for run in runs], to_stdout=True)
    else:
        console.result(f"no runs in {runs_dir}")


@app.command()
def inspect(
    run_dir: RunDirArgument,
    row: Annotated[int | None, typer.Option("--row", help="The row's line in the CSV; without it the first.")] = None,
    cache_dir: CacheOption = _CACHE,
) -> None:
    """Show a row as the model sees it: masked tokens dim, trained tokens bright, EOS visible.

    appliance inspect runs/demo

    appliance inspect runs/demo --row 17
    """
    from appliance import console, views

    for line in views.inspect(run_dir, row, cache_dir):
        console.result_markup(line)


@app.command()
def replay(run_dir: RunDirArgument, cache_dir: CacheOption = _CACHE, as_json: JsonOption = False) -> None:
    """Look at a released run again, without training: every file's hash, every gate.

    appliance replay runs/demo

    appliance replay runs/demo --json
    """
    from dataclasses import asdict

    from appliance import console, machine, replay, views

    views.require_run(run_dir)
    findings = replay.run(run_dir, cache_dir)
    if as_json:
        console.result(json.dumps([asdict(finding) for finding in findings], ensure_ascii=False, indent=2))
    else:
        console.table("", machine.COLUMNS, [finding.cells() for finding in findings], to_stdout=True)
    replay.refuse(findings)


@app.command()
def chat(
    run_dir: Annotated[Path | None, typer.Argument(help="A run directory; without it the newest proven model.")] = None,
    max_new_tokens: TokensOption = None,
    temperature: TemperatureOption = None,
    runs_dir: RunsOption = Path("runs"),
) -> None:
    """Talk to the model that a run made. /new starts over, /quit or Ctrl-D ends.

    Through a pipe: a question a line in, an answer a line out, its line breaks written as \\n.

    appliance chat

    appliance chat runs/demo --temperature 0.7
    """
    from appliance import chat as talk

    talk.chat(run_dir, runs_dir, max_new_tokens=max_new_tokens, temperature=temperature)


@app.command()
def ask(
    words: Annotated[list[str], typer.Argument(metavar="[RUN_DIR] QUESTION", help="Without RUN_DIR the newest model.")],
    input_: Annotated[str, typer.Option("--input", metavar="TEXT", help="Further context of the question.")] = "",
    max_new_tokens: TokensOption = None,
    temperature: TemperatureOption = None,
    runs_dir: RunsOption = Path("runs"),
    as_json: JsonOption = False,
) -> None:
    """Ask the model that a run made one question.

    appliance ask "How long does the delivery take?"

    appliance ask runs/demo "How long does the delivery take?" --json
    """
    from appliance import chat as talk

    talk.ask(
        words, runs_dir, input_text=input_, max_new_tokens=max_new_tokens, temperature=temperature, as_json=as_json
    )


@app.command()
def doctor(runs_dir: RunsOption = Path("runs"), cache_dir: CacheOption = _CACHE, as_json: JsonOption = False) -> None:
    """Say what this machine has and what it lacks. Needs no recipe.

    appliance doctor

    appliance doctor --json
    """
    from dataclasses import asdict

    from appliance import console, doctor, machine

    findings = doctor.run(runs_dir, cache_dir, Path("data"))
    if as_json:
        console.result(json.dumps([asdict(finding) for finding in findings], ensure_ascii=False, indent=2))
    else:
        console.table("", machine.COLUMNS, [finding.cells() for finding in findings], to_stdout=True)
    if any(finding.verdict == "fails" for finding in findings):
        raise typer.Exit(4)


@recipe_app.command("list")
def recipe_list() -> None:
    """List the recipes that come with the package, and what each needs.

    appliance recipe list

    appliance recipe show chatbot-cpu
    """
    from appliance import catalogue, console

    rows = [(entry.name, entry.headline, entry.needs) for entry in catalogue.entries()]
    console.table("", ("recipe", "what it is for", "what it needs"), rows, to_stdout=True)


@recipe_app.command("show")
def recipe_show(
    name: Annotated[str, typer.Argument(help="A shipped recipe's name, a file, or a run directory.")],
) -> None:
    """Print a recipe, to edit a copy of it.

    appliance recipe show chatbot-cpu > my.yaml

    appliance recipe show runs/demo
    """
    from appliance import resolve

    typer.echo(resolve.read_text(resolve.locate(name)), nl=False)


@recipe_app.command("schema")
def recipe_schema(as_json: JsonOption = False) -> None:
    """Print every field of a recipe with its meaning and default.

    appliance recipe schema

    appliance recipe schema --json
    """
    from appliance import console, recipe

    if as_json:
        typer.echo(json.dumps(recipe.Recipe.model_json_schema(), ensure_ascii=False, indent=2))
    else:
        console.table("", ("field", "default", "meaning"), recipe.documentation(), to_stdout=True)


def _run_until(
    stage: str,
    run_dir: Path | None,
    set_: list[str] | None,
    redo: str | None,
    runs_dir: Path,
    cache_dir: Path,
    **allowed: bool,
) -> None:
    from appliance import views

    run_dir = run_dir or views.newest_run(runs_dir)
    views.require_run(run_dir)
    path = run_dir.absolute()  # a run called `demo` is not the shipped recipe
    _run(str(path), set_, redo, path.parent, cache_dir, until=stage, **allowed)


def _run(
    source: str,
    set_: list[str] | None,
    redo: str | None,
    runs_dir: Path,
    cache_dir: Path,
    *,
    until: str,
    announce: bool = True,
    **allowed: bool,
) -> None:
    from appliance import console, pipeline, resolve, views
    from appliance.rundir import STAGES, RunDir

    stages = STAGES[: STAGES.index(until) + 1]
    if redo is not None and redo not in stages:
        raise RecipeError(f"--redo {redo}: expected a stage of this command", hint=f"one of {', '.join(stages)}")
    resolved = resolve.load(source, overrides=set_ or [])
    run_dir = RunDir(_run_path(source, set_, runs_dir))
    pipeline.run(resolved, run_dir, cache_dir, redo=redo, until=until, **allowed)
    if announce:
        for name, path in views.whereabouts(run_dir):
            console.result(f"{name:<14} {views.shown_path(path, runs_dir)}")


def _run_path(source: str, set_: list[str] | None, runs_dir: Path) -> Path:
    """The run directory itself where one is given, unless --set name=… asks for a new one beside it."""
    from appliance import resolve

    path = Path(source).absolute() if source not in resolve.shipped() else runs_dir / "-"
    if (path / "recipe.yaml").is_file():
        renamed = any(item.startswith("name=") for item in set_ or [])
        return path.parent / resolve.load(source, overrides=set_ or []).recipe.name if renamed else path
    return runs_dir / resolve.load(source, overrides=set_ or []).recipe.name
