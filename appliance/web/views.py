"""What a watched page holds at one moment: the sections of a run's report, how far it is and its log; or all runs.

The same templates as report.html; what is added lies in templates/ here. A file that is damaged or half written is
named in place of what it would have shown.
"""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from hashlib import blake2b
from pathlib import Path
from typing import Any
from urllib.parse import quote

from markupsafe import Markup

from appliance.errors import ApplianceError
from appliance.findings import qualified
from appliance.process import console
from appliance.report import facts, page
from appliance.report.page import Section
from appliance.rundir import overview, proven, results
from appliance.rundir.directory import STAGES
from appliance.web import progress
from appliance.web.progress import Progress

PACKAGE = "appliance.web"
# What reading a file raises that is missing, cut off, or of another shape than its stage left.
FAULTS = (ApplianceError, OSError, ValueError, LookupError, TypeError, AttributeError, ArithmeticError, RecursionError)
_STYLES = {"better": "good", "worse": "bad"}
_SECONDS_APART = 5  # durations that go on are shown in multiples of this: otherwise every look would be a change


@dataclass(frozen=True)
class View:
    """A page's content. `name`: its heading; `title`: of its tab; `lead`: below the heading, without what is live."""

    name: str
    title: str
    lead: Markup
    parts: tuple[Section, ...]

    @cached_property
    def hashes(self) -> dict[str, str]:
        """Section -> hash of what it shows, in the order of the page."""
        return {one.id: blake2b(one.html.encode(), digest_size=9).hexdigest() for one in self.parts}


def of_runs(runs_dir: Path) -> View:
    """The list of all runs, each linked."""
    runs = [_listed(told) for told in reversed(overview.overview(runs_dir))]
    html = _rendered("runs", {"runs": runs, "runs_dir": str(runs_dir)})
    return View("Runs", f"Runs · {runs_dir.name}", Markup(""), (Section("runs", "", html, "All runs"),))


def report_of(run_path: Path) -> tuple[Markup, tuple[Section, ...]]:
    """(lead, sections) of the run's report; one section that names the fault if a file cannot be read."""
    try:
        with results.damage_named(run_path):
            shown = facts.of(run_path)
            return page.lead(shown), tuple(_with_chat(page.sections(shown), run_path))
    except FAULTS as error:
        hint = getattr(error, "hint", "")
        said = str(error) if isinstance(error, ApplianceError | OSError) else f"{type(error).__name__}: {error}"
        html = _rendered("problem", {"said": f"{said:.2000}", "hint": hint})
        return Markup(""), (Section("problem", "", html, "Problem"),)


def _with_chat(sections: list[Section], run_path: Path) -> list[Section]:
    """The sections, and behind the first one the chat, if there is a proven model to ask."""
    if not proven.is_proven(run_path):
        return sections
    chat = Section("chat", "Chat", _rendered("chat", {"command": f"appliance serve {shlex.quote(str(run_path))}"}))
    return [*sections[:1], chat, *sections[1:]]


def of_run(run_path: Path, report: tuple[Markup, tuple[Section, ...]]) -> View:
    """`report`: from `report_of`, which may be of a moment before."""
    found, (lead, sections) = progress.of_run(run_path), report
    seconds = found.told["seconds"]
    spent = seconds // _SECONDS_APART * _SECONDS_APART if found.is_running else seconds
    left = "" if found.left is None else console.duration(_rounded(found.left))
    now = Section("now", "", _rendered("now", {"found": found, "seconds": spent, "left": left}), "Progress")
    log = _rendered("log", {"lines": progress.log_tail(run_path)})
    logged = (Section("log", "Log", log),) if log.strip() else ()
    return View(run_path.name, _title(found), lead, (now, *sections, *logged))


def _rounded(seconds: float) -> float:
    """To what an estimate can say: 5 s, from ten minutes on whole minutes."""
    unit = 60 if seconds >= 600 else _SECONDS_APART
    return max(round(seconds / unit) * unit, unit)


def _title(found: Progress) -> str:
    told = found.told
    if found.is_running:
        at = f"{told['step']}/{told['steps']}" if found.share is not None else told["stage"] or "begins"
        return f"{at} · {told['run']}"
    return f"{told['state']} · {told['run']}"


def _listed(told: Mapping[str, Any]) -> dict[str, Any]:
    """A run as a row of the list."""
    name, state, duration, scores, _ = overview.row(dict(told), console.duration(told["seconds"]))
    return {
        "name": name,
        "path": f"/runs/{quote(name, safe='')}" if name.isprintable() else "",
        "state": state,
        "duration": duration,
        "scores": scores,
        "verdict": qualified(told["verdict"], len(told["cautions"])),
        "verdict_style": {"better": "doubtful" if told["cautions"] else "good", "worse": "bad"}.get(
            told["verdict"], ""
        ),
        "message": told["message"],
        "published": [_place(one) for one in told["published"]],
    }


def _place(published: str) -> tuple[str, str]:
    """(address or "", text) of where a part was published, as the overview has it: 'https://… (private)'."""
    address = published.partition(" ")[0]
    return (address if address.startswith(("https://", "http://")) else "", published)


def _rendered(name: str, given: Mapping[str, Any]) -> Markup:
    return page.rendered_by(f"{name}.html.j2", given, PACKAGE)


def names_in(runs_dir: Path) -> dict[str, Path]:
    """Name -> folder of every run in `runs_dir`."""
    return {path.parent.name: path.parent for path in runs_dir.glob("*/recipe.yaml")}


def signature(run_path: Path) -> Sequence[tuple[str, int, int, int]]:
    """Changes whenever a file that the report is made from does: its name, time, size and number.

    The log and the lock are not among them, nor what lies deeper, such as weights.
    """
    found = []
    for folder in (run_path, *(run_path / stage for stage in STAGES)):
        try:
            entries = sorted(folder.iterdir())
        except OSError:
            continue
        for path in entries:
            if path.name.startswith(".") or path.suffix in (".log", ".html"):
                continue
            try:
                seen = path.stat()
            except OSError:
                continue  # it has just been replaced or removed
            found.append((f"{folder.name}/{path.name}", seen.st_mtime_ns, seen.st_size, seen.st_ino))
    return found
