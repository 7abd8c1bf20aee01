"""Write a run's report.html: one file without a reference to any other. Reads the run directory; decides nothing.

A page is a list of sections, each rendered by templates/ID.html.j2 alone, so that a page that is watched can be renewed
section by section. All of it is there without scripts; assets/*.js add filters, hovering and copying.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

from markupsafe import Markup

from appliance.engines import matmul_rate
from appliance.findings import qualified
from appliance.machine import disk
from appliance.process import console, files, terminal
from appliance.recipe import resolve
from appliance.report import facts, gate_words
from appliance.rundir import results
from appliance.wording import counted

if TYPE_CHECKING:
    from jinja2 import Environment

# In the order of the page. A section that has nothing to show yet is left out; the first has no heading of its own.
TITLES = {
    "outcome": "",
    "scores": "Before and after",
    "export": "GGUF files",
    "answers": "Answers",
    "extra": "Extra questions",
    "training": "Training",
    "chosen": "Settings tried",
    "rows": "Rows",
    "proof": "Proof",
    "release": "Release",
    "use": "How to use it",
    "stages": "Stages",
    "recipe": "Recipe",
}
# Facts without which a template writes nothing, one of which is enough: of a run that has only been checked, most are
# missing, and to compile their templates takes longer than the check.
_SHOWS = {
    "scores": ("metrics",),
    "export": ("exports",),
    "answers": ("test_answers",),
    "extra": ("extra_answers",),
    "training": ("curves", "samples"),
    "chosen": ("chosen",),
    "rows": ("prepare",),
    "proof": ("proof",),
    "release": ("hub",),
    "use": ("uses",),
}
OURS = "appliance.report"
STYLES = ("page.css", "answers.css", "charts.css")
SCRIPTS = ("copy.js", "answers.js", "charts.js")


@dataclass(frozen=True)
class Section:
    """A part of the page. `id`: its anchor, and the name of its template. `html`: without the heading.

    `label`: what it is called if it has no title.
    """

    id: str
    title: str
    html: Markup
    label: str = "Result"


def write_html(run_dir: Path) -> Path:
    """Write report.html of a run, finished or not. Returns its path. Raises RunDirError: a result file is damaged."""
    with results.damage_named(run_dir):
        return write_shown(run_dir, facts.of(run_dir))


def write_shown(run_dir: Path, shown: Mapping[str, Any]) -> Path:
    """`write_html` of what was read before. `shown`: facts.of(run_dir)."""
    path = run_dir / "report.html"
    files.write_text(path, whole(shown["name"], sections(shown), lead=lead(shown)))
    return path


def sections(shown: Mapping[str, Any], titles: Mapping[str, str] = TITLES) -> list[Section]:
    """The sections that have something to show. `shown`: facts.of(run_dir), or what the templates of `titles` need."""
    some = [(name, title) for name, title in titles.items() if name not in _SHOWS or any(map(shown.get, _SHOWS[name]))]
    rendered = ((name, title, rendered_by(f"{name}.html.j2", shown)) for name, title in some)
    return [Section(name, title, html) for name, title, html in rendered if html.strip()]


def lead(shown: Mapping[str, Any]) -> Markup:
    """The lines below the name of the run."""
    return rendered_by("_lead.html.j2", shown)


def whole(
    name: str, parts: Sequence[Section], *, lead: str = "", title: str = "", css: str = "", script: str = ""
) -> str:
    """A page of sections, with everything it needs inside. `title`: of its tab; a run's name is the usual one.

    `css`, `script`: our own, behind those of every page.
    """
    given = {
        "name": name,
        "title": title or f"{name} · fine-tuning report",
        "lead": lead,
        "sections": parts,
        "css": Markup("".join(map(asset, STYLES)) + css),  # nosec B704: our own files
        "script": Markup("".join(map(asset, SCRIPTS)) + script),  # nosec B704
    }
    return str(rendered_by("_page.html.j2", given))


def rendered_by(template: str, given: Mapping[str, Any], package: str = OURS) -> Markup:
    """A template of templates/ with these variables; `package`: that of the folder, which may use those of this one.

    Raises ValueError: the variables are not what it expects.
    """
    from jinja2 import TemplateError

    try:
        return Markup(_environment(package).get_template(template).render(given))  # nosec B704: autoescaped
    except TemplateError as error:
        raise ValueError(str(error)) from error


@cache
def asset(name: str, package: str = OURS) -> str:
    """A file of assets/, as text."""
    return resources.files(package).joinpath("assets", name).read_text(encoding="utf-8")


@cache
def _environment(package: str) -> Environment:
    from jinja2 import ChoiceLoader, Environment, PackageLoader

    environment = Environment(
        loader=ChoiceLoader([PackageLoader(name, "templates") for name in dict.fromkeys((package, OURS))]),
        autoescape=True,
        trim_blocks=True,
        finalize=_harmless,
    )
    environment.filters |= {
        "percent": "{:.1%}".format,
        "duration": console.duration,
        "printable": as_text,
        "name": _as_name,
        "plain": terminal.printable,
        "data": _as_data,
        "qualified": qualified,
        "flops_rate": matmul_rate.human,
        "gib": disk.human,
        "counted": counted,
        "in_words": lambda gate, answers: gate_words.of(gate, answers=answers),
        "as_yaml": resolve.as_yaml,
    }
    return environment


def _harmless(value: object) -> object:
    """What a template prints: no text has control characters or ends of a pair that UTF-8 lacks, whoever wrote it."""
    return terminal.printable(value) if isinstance(value, str) and not isinstance(value, Markup) else value


def as_text(text: str) -> Markup:
    """Somebody's text in a page: nothing in it acts, and its direction ends with it."""
    return Markup("<bdi>{}</bdi>").format(terminal.printable(text))


def _as_name(text: str) -> Markup:
    """As `as_text`; a line may break behind a slash or an underscore, and so need not within a word."""
    parts = re.split("(?<=[/_])", terminal.printable(text))
    return Markup("<bdi>{}</bdi>").format(Markup("<wbr>").join(parts))


def _as_data(value: Any) -> Markup:
    """JSON within a script element: nothing in it ends the element."""
    from jinja2.utils import htmlsafe_json_dumps

    return htmlsafe_json_dumps(value, separators=(",", ":"))
