"""`appliance run`, `demo`, `check`, `publish` and the other stages. No logic."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer

from appliance.cli.options import (
    USUAL_CACHE_DIR,
    CacheOption,
    EvenIfWorseOption,
    FromOption,
    GgufTooOption,
    IntoExistingOption,
    JsonOption,
    RecipeArgument,
    RedoOption,
    RepoOption,
    RunDirOrNewest,
    RunsOption,
    SetOption,
    VerboseOption,
    VisibilityOption,
)
from appliance.errors import RecipeError


def run(
    source: RecipeArgument = None,
    from_: FromOption = None,
    set_: SetOption = None,
    redo: RedoOption = None,
    even_if_worse: EvenIfWorseOption = False,
    into_existing: IntoExistingOption = False,
    runs_dir: RunsOption = Path("runs"),
    cache_dir: CacheOption = USUAL_CACHE_DIR,
    verbose: VerboseOption = False,
) -> None:
    """Run all stages of a recipe. Finished stages are skipped; an interrupted one continues.

    Given a CSV, it takes data/recipe.yaml, or else the recipe `default` on a GPU and `chatbot-cpu` on a CPU.

    appliance run demo

    appliance run data/train.csv

    appliance run my.yaml --set train.epochs=1 --set name=short

    appliance run --from runs/shop data/more.csv
    """
    from appliance.recipe import resolve

    allowed = {"even_if_worse": even_if_worse, "into_existing": into_existing}
    if from_:
        from appliance.pipeline import next_run

        source, values = next_run.of_run(from_, source)
        set_ = [*values, *(set_ or [])]
    elif source and resolve.is_csv(source):
        from appliance.pipeline import first_run

        source, values = first_run.of_csv(source)
        set_ = [*values, *(set_ or [])]
    _run(source or resolve.usual_recipe(), set_, redo, runs_dir, cache_dir, until="publish", verbose=verbose, **allowed)


def demo(
    set_: SetOption = None,
    redo: RedoOption = None,
    runs_dir: RunsOption = Path("runs"),
    cache_dir: CacheOption = USUAL_CACHE_DIR,
    verbose: VerboseOption = False,
) -> None:
    """Run the whole pipeline on a tiny model. It is made on the spot: no GPU, Hub or data needed.

    appliance demo

    appliance demo --set train.seed=7 --set name=demo-7
    """
    _run("demo", set_, redo, runs_dir, cache_dir, until="publish", verbose=verbose)


def stage_command(stage: str, what: str) -> Callable[..., None]:
    def command(
        run_dir: RunDirOrNewest = None,
        set_: SetOption = None,
        redo: RedoOption = None,
        runs_dir: RunsOption = Path("runs"),
        cache_dir: CacheOption = USUAL_CACHE_DIR,
        verbose: VerboseOption = False,
    ) -> None:
        _run_until(stage, run_dir, set_, redo, runs_dir, cache_dir, verbose=verbose)

    command.__doc__ = f"""{what}

    Earlier stages that are not done yet run first; finished ones are skipped.

    appliance {stage} runs/demo

    appliance {stage} runs/demo --redo {stage}
    """
    return command


def check(
    source: Annotated[str, typer.Argument(metavar="RECIPE|RUN_DIR|CSV", help="A recipe, a run directory, or a CSV.")],
    set_: SetOption = None,
    runs_dir: RunsOption = Path("runs"),
    cache_dir: CacheOption = USUAL_CACHE_DIR,
    verbose: VerboseOption = False,
    as_json: JsonOption = False,
) -> None:
    """Check a recipe for this machine, or a CSV. Trains nothing, downloads no weights.

    appliance check chatbot-cpu --set data.csv=data/train.csv

    appliance check data/train.csv --set data.columns.instruction=Q --set data.columns.output=A
    """
    from appliance.cli import check_csv
    from appliance.process import console
    from appliance.recipe import resolve

    if resolve.is_recipe(source):
        run_path = _run_path(source, set_, runs_dir)
        before = check_csv.table_before(run_path)
        try:
            _run(source, set_, None, runs_dir, cache_dir, until="check", verbose=verbose, announce=False)
        finally:  # also show what was found before a refusal
            findings = check_csv.check_table(run_path, before)
            if as_json:
                console.result(json.dumps(findings, ensure_ascii=False, indent=2))
            elif findings:
                console.findings_table([tuple(row.values()) for row in findings], to_stdout=True)
        return
    checked = check_csv.check_csv(source, set_ or [])
    if as_json:
        console.result(checked.as_json())
    else:
        console.table("", ("what", "found"), checked.rows, to_stdout=True)
        for line in ("", *checked.preview):
            console.result(line)
    if checked.refusal:
        raise checked.refusal


def publish(
    run_dir: RunDirOrNewest = None,
    repo_id: RepoOption = None,
    visibility: VisibilityOption = None,
    gguf: GgufTooOption = None,
    set_: SetOption = None,
    redo: RedoOption = None,
    even_if_worse: EvenIfWorseOption = False,
    into_existing: IntoExistingOption = False,
    runs_dir: RunsOption = Path("runs"),
    cache_dir: CacheOption = USUAL_CACHE_DIR,
    verbose: VerboseOption = False,
) -> None:
    """Build the release and upload it. It has to pass the gates, and stays local unless a repository is named.

    Earlier stages that are not done yet run first. After a failed upload, the same command continues.

    appliance publish runs/demo

    appliance publish runs/demo --repo-id me/my-model

    appliance publish runs/demo --gguf q8_0
    """
    types = f"[{', '.join(gguf)}]" if gguf else None
    named = {"publish.repo_id": repo_id, "publish.visibility": visibility, "publish.gguf": types}
    set_ = [*(set_ or []), *(f"{key}={value}" for key, value in named.items() if value)]
    allowed = {"even_if_worse": even_if_worse, "into_existing": into_existing, "elsewhere": any(named.values())}
    _run_until("publish", run_dir, set_, redo, runs_dir, cache_dir, verbose=verbose, **allowed)


def _run_until(
    stage: str,
    run_dir: Path | None,
    set_: list[str] | None,
    redo: str | None,
    runs_dir: Path,
    cache_dir: Path,
    *,
    verbose: bool,
    **allowed: bool,
) -> None:
    from appliance.rundir import find as rundir_find

    run_dir = run_dir or rundir_find.newest_run(runs_dir)
    rundir_find.require_run(run_dir)
    path = run_dir.absolute()  # a run called `demo` is not the shipped recipe
    _run(str(path), set_, redo, path.parent, cache_dir, until=stage, verbose=verbose, **allowed)


def _run(
    source: str,
    set_: list[str] | None,
    redo: str | None,
    runs_dir: Path,
    cache_dir: Path,
    *,
    until: str,
    verbose: bool,
    announce: bool = True,
    **allowed: bool,
) -> None:
    from appliance.process import imports

    with imports.uncollected("appliance.pipeline.run"):
        from appliance.pipeline import run as pipeline_run
        from appliance.process import console
        from appliance.recipe import resolve
        from appliance.rundir import find as rundir_find
        from appliance.rundir.directory import STAGES, RunDir

    stages = STAGES[: STAGES.index(until) + 1]
    if redo is not None and redo not in stages:
        hint = f"choose one of {', '.join(stages)}"
        raise RecipeError(f"--redo {redo}: expected a stage that this command runs", hint=hint)
    console.shows_all = verbose
    resolved = resolve.load(source, overrides=set_ or [])
    run_dir = RunDir(_run_path(source, set_, runs_dir))
    pipeline_run.run(resolved, run_dir, cache_dir, redo=redo, until=until, **allowed)
    if announce:
        for name, path in rundir_find.whereabouts(run_dir):
            console.result(f"{name:<14} {rundir_find.shown_path(path, runs_dir)}")


def _run_path(source: str, set_: list[str] | None, runs_dir: Path) -> Path:
    """`source` itself if it is a run directory, unless --set name=… asks for a new one next to it."""
    from appliance.recipe import resolve

    path = Path(source).absolute() if source not in resolve.shipped() else runs_dir / "-"
    if (path / "recipe.yaml").is_file():
        renamed = any(item.startswith("name=") for item in set_ or [])
        return path.parent / resolve.load(source, overrides=set_ or []).recipe.name if renamed else path
    return runs_dir / resolve.load(source, overrides=set_ or []).recipe.name
