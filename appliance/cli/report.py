"""`appliance report RUN_DIR…`: the page of each run, and of several runs one that compares them. No logic."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

RunDirs = Annotated[list[Path], typer.Argument(metavar="RUN_DIR", help="One run, or several to compare.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print machine-readable JSON.")]
OutOption = Annotated[
    Path | None,
    typer.Option(
        "--out",
        metavar="FILE",
        help="Where the page of several runs goes. Default: compare.html beside the first.",
    ),
]


def report(run_dirs: RunDirs, out: OutOption = None, as_json: JsonOption = False) -> None:
    """Print the scores of one or several runs. Writes each run's report.html.

    Several runs are compared on the same test rows, and a page shows them side by side.

    appliance report runs/demo

    appliance report runs/korquad runs/with-paraphrases --out comparison.html
    """
    from appliance.errors import RecipeError
    from appliance.evaluation import compare_runs
    from appliance.process import console
    from appliance.report import compare as report_compare
    from appliance.report import ending, facts
    from appliance.report import page as report_page
    from appliance.rundir import find as rundir_find
    from appliance.rundir import results

    run_dirs = report_compare.without_pages(run_dirs)
    if out and len(run_dirs) == 1:
        raise RecipeError("--out is for the page of several runs", hint="a run's own page is its report.html")
    compared = (out or report_compare.usual_path(run_dirs)) if len(run_dirs) > 1 else None
    if compared:
        report_compare.refuse_other_file(compared)
    for path in run_dirs:
        rundir_find.require_run(path)
        results.refuse_damaged(path)
    lines = compare_runs.across(run_dirs)
    if as_json:
        console.result(json.dumps([line.as_json() for line in lines], ensure_ascii=False, indent=2))
    else:
        console.table("", compare_runs.COLUMNS, [line.cells() for line in lines], to_stdout=True)
    shown = []
    for path in run_dirs:
        ending.say_cautions(path)
        with results.damage_named(path):
            shown.append(facts.of(path))
            written = report_page.write_shown(path, shown[-1])
        console.say(f"written: {written}")
    if compared:
        console.say(f"written: {report_compare.write_html(run_dirs, compared, shown, lines)}")
