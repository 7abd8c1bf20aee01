"""What is said when a command on a run has ended: the run, how it ended, the figures, where to look.

It may be read by others than the user: it holds no row and no secret, and names no user and no home folder.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from appliance.errors import ApplianceError, Interrupted, RunDirError
from appliance.findings import qualified
from appliance.process import console, quoted_rows, redact
from appliance.rundir import find, outcome, overview
from appliance.rundir.directory import RunDir

_SHOWN = ("evaluate", "merge", "publish")  # the stages whose summaries hold what a run has found
_LONGEST = 600  # characters of a line; some services cut a message at 2,000


@dataclass(frozen=True)
class Message:
    """`kind`: as Apprise names them; services choose a colour or a sign by it."""

    title: str
    body: str
    kind: Literal["info", "success", "warning", "failure"]


def of_run(run_dir: RunDir, until: str, error: BaseException | None) -> Message:
    """After a command whose last stage is `until`; `error`: what ended it early. Its end is on record by now."""
    seen = overview.of_run(run_dir, at_work=False)
    verdict = qualified(seen["verdict"], len(seen["cautions"])) if seen["verdict"] else ""
    lines = [
        *([_told(error)] if error else []),
        *(f"{stage}: {summary}" for stage in _SHOWN if (summary := _summary(run_dir, stage))),
        f"time in all stages: {console.duration(seen['seconds'])}",
        *(f"published: {place}" for place in seen["published"] if until == "publish" and not error),
        f"where: {_where(run_dir.path)}",
    ]
    if error is None:
        how = "done" if until == "publish" else f"{until} done"
        how += f" ({verdict})" if verdict else ""
        kind = "success" if seen["verdict"] == "better" else "info"
    else:
        ended = outcome.kind_of(error)
        how = f"{ended} at {run_dir.under_way}" if run_dir.under_way else ended
        kind = "failure" if ended == "failed" else "warning"
    title = f"{run_dir.path.name}: {how}"
    return Message(_clean(title), "\n".join(map(_clean, lines)), kind)  # type: ignore[arg-type]


def _told(error: BaseException) -> str:
    """An error's own words; of one that is a bug, which may quote anything, only its class."""
    if isinstance(error, ApplianceError | Interrupted):
        return str(error)
    return f"{type(error).__name__}; what happened is in appliance.log"


def _summary(run_dir: RunDir, stage: str) -> str:
    """What a finished stage has found; empty if it is not done, or its record is damaged."""
    try:
        record = run_dir.record(stage)
    except RunDirError:
        return ""
    return record.summary if record else ""


def _where(run_path: Path) -> Path:
    """The page, or the folder if there is none, as the user knows it."""
    page = run_path / "report.html"
    here = page if page.is_file() else run_path
    shown = find.shown_path(here, run_path.parent)
    return here.absolute() if shown == here else shown


def _clean(line: str) -> str:
    """As in appliance.log, but for its length."""
    line = redact.redact(" ".join(quoted_rows.masked(line).split()), redact.names_here())
    return line if len(line) <= _LONGEST else f"{line[:_LONGEST]}…"
