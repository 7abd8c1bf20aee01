"""How a run ends: its page is written, and the cautions about its verdict and its proof are printed."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from appliance.errors import RunDirError
from appliance.machine import write_errors
from appliance.process import console
from appliance.report import page
from appliance.rundir import results


@dataclass
class Page:
    """`is_due`: the run has something new to show; None while its stages have not begun."""

    is_due: bool | None = None


@contextmanager
def shown(run_path: Path) -> Iterator[Page]:
    """Writes the page and says the cautions however the block ends, once how it ended is on record."""
    page_of_run = Page()
    try:
        yield page_of_run
    finally:
        if page_of_run.is_due is not None:
            end(run_path, page_is_due=page_of_run.is_due)


def end(run_path: Path, *, page_is_due: bool) -> None:
    """Called however the run ended: nothing here may hide what went wrong before."""
    try:
        if page_is_due or not (run_path / "report.html").is_file():
            page.write_html(run_path)
    except (OSError, ValueError, RunDirError) as error:  # a full disk, a damaged result file
        told = write_errors.explained(error, run_path / "report.html")
        again = f"; then `appliance report {run_path}` writes it" if told else ""
        console.say(f"report.html cannot be written: {told or error}{again}", style="warning")
    say_cautions(run_path)


def say_cautions(run_path: Path) -> None:
    """Prints each caution and the rows that it is about. The rows, a user's data, don't get into the log."""
    try:
        cautions = results.read_cautions(run_path)
    except RunDirError as error:
        console.say(str(error), style="warning")
        return
    for caution in cautions:
        console.say(f"caution about {run_path.name}: {caution.sentence}", style="warning")
        if caution.rows:
            rows = [(str(row.row), _one_line(row.wanted), _one_line(row.got)) for row in caution.rows]
            console.table("", ("row", "wanted", "got"), rows, logged=False)


def _one_line(text: str) -> str:
    return " ".join(text.split())
