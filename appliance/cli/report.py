"""`appliance report RUN_DIR…`: a run's page, or the scores of several runs in one table. No logic."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

RunDirs = Annotated[list[Path], typer.Argument(metavar="RUN_DIR", help="One run, or several to compare.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print machine-readable JSON.")]


def report(run_dirs: RunDirs, as_json: JsonOption = False) -> None:
    """Print the scores of one or several runs. Writes each run's report.html.

    Several runs are compared on the same test rows.

    appliance report runs/demo

    appliance report runs/korquad runs/with-paraphrases --json
    """
    from appliance.evaluation import compare_runs
    from appliance.process import console
    from appliance.report import ending
    from appliance.report import page as report_page
    from appliance.rundir import find as rundir_find
    from appliance.rundir import results

    for path in run_dirs:
        rundir_find.require_run(path)
        results.refuse_damaged(path)
    lines = compare_runs.across(run_dirs)
    if as_json:
        console.result(json.dumps([line.as_json() for line in lines], ensure_ascii=False, indent=2))
    else:
        console.table("", compare_runs.COLUMNS, [line.cells() for line in lines], to_stdout=True)
    for path in run_dirs:
        ending.say_cautions(path)
        written = report_page.write_html(path)
        console.say(f"written: {written}")
