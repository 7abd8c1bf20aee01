"""Commands that only look: `status`, `inspect`, `replay`, `doctor`. No logic."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from appliance.cli.options import USUAL_CACHE_DIR, CacheOption, JsonOption, RunDirArgument, RunsOption


def status(runs_dir: RunsOption = Path("runs"), as_json: JsonOption = False) -> None:
    """List the runs. Shows how far along each one is, its verdict, and where it was published.

    appliance status

    appliance status --runs-dir /runs --json
    """
    from appliance.process import console
    from appliance.rundir import overview

    runs = overview.overview(runs_dir)
    if as_json:
        console.result(json.dumps(runs, ensure_ascii=False, indent=2))
    elif runs:
        rows = [overview.row(run, console.duration(run["seconds"])) for run in runs]
        console.table("", overview.COLUMNS, rows, to_stdout=True)
        for run in runs:
            for note in overview.notes(run):
                console.result_prose(f"{run['run']}: {note}")
    else:
        console.result(f"no runs in {runs_dir}")


def inspect(
    run_dir: RunDirArgument,
    row: Annotated[
        int | None,
        typer.Option("--row", metavar="LINE", help="The row's line number in the CSV. Default: the first row."),
    ] = None,
    cache_dir: CacheOption = USUAL_CACHE_DIR,
) -> None:
    """Show a row as the model sees it. Each part is marked as masked or trained; EOS is visible.

    appliance inspect runs/demo

    appliance inspect runs/demo --row 17
    """
    from appliance.cli import inspect as cli_inspect
    from appliance.process import console

    for line in cli_inspect.inspect(run_dir, row, cache_dir):
        console.result_markup(line)


def replay(run_dir: RunDirArgument, cache_dir: CacheOption = USUAL_CACHE_DIR, as_json: JsonOption = False) -> None:
    """Verify a released run without training. Recomputes every file's hash and every gate.

    appliance replay runs/demo

    appliance replay runs/demo --json
    """
    from dataclasses import asdict

    from appliance import findings as appliance_findings
    from appliance.process import console
    from appliance.release import replay as release_replay
    from appliance.rundir import find as rundir_find

    rundir_find.require_run(run_dir)
    findings = release_replay.replay_findings(run_dir, cache_dir)
    if as_json:
        console.result(json.dumps([asdict(finding) for finding in findings], ensure_ascii=False, indent=2))
    else:
        console.table("", appliance_findings.COLUMNS, [finding.cells() for finding in findings], to_stdout=True)
    release_replay.refuse(findings)


def doctor(
    runs_dir: RunsOption = Path("runs"),
    cache_dir: CacheOption = USUAL_CACHE_DIR,
    measure: Annotated[
        bool,
        typer.Option("--measure", help="Measure how fast the device multiplies matrices, and keep that for the MFU."),
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Report what this machine has and lacks. Needs no recipe.

    appliance doctor

    appliance doctor --measure

    appliance doctor --json
    """
    from dataclasses import asdict

    from appliance import findings as appliance_findings
    from appliance.preflight import doctor as preflight_doctor
    from appliance.process import console

    findings = preflight_doctor.machine_findings(runs_dir, cache_dir, Path("data"), measures=measure)
    if as_json:
        console.result(json.dumps([asdict(finding) for finding in findings], ensure_ascii=False, indent=2))
    else:
        console.table("", appliance_findings.COLUMNS, [finding.cells() for finding in findings], to_stdout=True)
    if any(finding.verdict == "fails" for finding in findings):
        raise typer.Exit(4)
