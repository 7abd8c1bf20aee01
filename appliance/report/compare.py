"""Write the page of several runs: their verdicts, scores with intervals, curves, recipes and answers side by side.

Made of the parts of a run's own page (report/page.py), to which it links. Reads the run directories; decides nothing.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

from appliance.errors import RecipeError
from appliance.evaluation import compare_runs, scores
from appliance.process import files
from appliance.recipe import resolve
from appliance.report import answers, curves, facts, page
from appliance.rundir import base_asked, results

FILE = "compare.html"
TITLES = {
    "runs": "",
    "runs_scores": "Scores",
    "runs_answers": "Answers",
    "runs_curves": "Training",
    "runs_recipes": "Recipes",
}
# A row by how many runs answer it right, worst first.
NONE, SOME, ALL = "right in no run", "right in some runs", "right in all runs"
_STYLES = {NONE: "bad", SOME: "doubtful", ALL: "good"}
_NO_VALUE = "–"
_MOST_BYTES = 1_200_000  # of the table of answers
_LABEL = 40  # characters


def usual_path(run_dirs: Sequence[Path]) -> Path:
    """Where the page is written unless something else is asked for: beside the first run."""
    first = run_dirs[0]
    return (first if first.name not in ("", "..") else first.resolve()).parent / FILE


def without_pages(paths: Sequence[Path]) -> list[Path]:
    """Without pages of this kind: `runs/*` names the one that lies beside the runs."""
    return [path for path in paths if path.name != FILE or not _is_page(path)] or list(paths)


def refuse_other_file(path: Path) -> None:
    """Raises RecipeError: what is there is not a page that may be overwritten, or its folder is missing."""
    if not path.absolute().parent.is_dir():
        raise RecipeError(f"{path}: {path.absolute().parent} is not a folder", hint="create it first")
    if (path.is_symlink() or path.exists()) and not _is_page(path):
        hint = "choose another name with --out"
        raise RecipeError(f"{path} exists and is not a page that may be replaced", hint=hint)


def _is_page(path: Path) -> bool:
    if path.is_symlink() or not path.is_file():
        return False
    with path.open("rb") as handle:
        return handle.read(15).lower() == b"<!doctype html>"


def write_html(
    run_dirs: Sequence[Path],
    path: Path,
    shown: Sequence[Mapping[str, Any]],
    lines: Sequence[compare_runs.Line] | None = None,
) -> Path:
    """Write the page. `shown`: facts.of each run; `lines`: compare_runs.across(run_dirs), if they are there already.

    Raises RunDirError: the runs cannot be compared, or a file is damaged.
    """
    with results.damage_named(*run_dirs):
        found = of(run_dirs, shown, path.absolute().parent, lines)
        names = ", ".join(found["labels"])
        parts = page.sections(found, TITLES)
        html = page.whole("Comparison of runs", parts, title=f"{names[:100]} · comparison of fine-tuning runs")
    files.write_text(path, html)
    return path


def write_apart(run_dirs: Sequence[Path], path: Path) -> Path:
    """Write the page of runs that were tested on rows of their own: their outcomes, and no comparison.

    Raises RecipeError: as `refuse_other_file`. RunDirError: a file is damaged.
    """
    refuse_other_file(path)
    with results.damage_named(*run_dirs):
        labels, folder = compare_runs.labels(run_dirs), path.absolute().parent
        found = {
            "runs": [
                (label, _link(run_dir, folder), _outcome(facts.of(run_dir)))
                for label, run_dir in zip(labels, run_dirs, strict=True)
            ],
            "names": facts.METRIC_NAMES,
        }
        html = page.whole("Runs", page.sections(found, {"runs": ""}), title=f"{len(run_dirs)} fine-tuning runs")
    files.write_text(path, html)
    return path


def _outcome(shown: Mapping[str, Any]) -> dict[str, Any]:
    """What the table of runs shows of facts.of: there may be a thousand, each with its answers and curves."""
    kept = ("shown_headline", "metrics", "verdict_sentence", "cautions", "proof_card", "hub", "run")
    return {name: shown[name] for name in kept}


def of(
    run_dirs: Sequence[Path],
    shown: Sequence[Mapping[str, Any]],
    folder: Path,
    lines: Sequence[compare_runs.Line] | None = None,
) -> Mapping[str, Any]:
    """What the templates of TITLES need. `folder`: where the page is, for links to the runs' own pages."""
    labels = compare_runs.labels(run_dirs)
    primary = shown[0]["metrics"]["primary"]
    return {
        "labels": labels,
        "runs": list(zip(labels, (_link(run_dir, folder) for run_dir in run_dirs), shown, strict=True)),
        "lines": lines or compare_runs.across(run_dirs),
        "score_columns": compare_runs.COLUMNS,
        "primary": facts.METRIC_NAMES.get(primary, primary),
        "answers": side_by_side(run_dirs, labels, shown),
        "curves": curves.of_runs([(label, one["measured"]) for label, one in zip(labels, shown, strict=True)]),
        "recipes": recipes([one["recipe_values"] for one in shown]),
        "recipe_fields": len({key for one in shown for key in one["recipe_values"]}),
    }


def recipes(values: Sequence[Mapping[str, tuple[Any, str]]]) -> list[tuple[str, list[str]]]:
    """(field, its value in each run as YAML) of the fields that are not the same in all, in the order of the recipe.

    `values`: by run, field -> value and origin. A field that a run of another version does not have has no value there.
    """
    keys = dict.fromkeys(key for one in values for key in one)
    rows = [(key, [resolve.as_yaml(one[key][0]) if key in one else _NO_VALUE for one in values]) for key in keys]
    return [(key, cells) for key, cells in rows if len(set(cells)) > 1]


def side_by_side(
    run_dirs: Sequence[Path], labels: Sequence[str], shown: Sequence[Mapping[str, Any]]
) -> answers.Table | None:
    """Every test row with the answers of all runs, those that no run answers right first."""
    rows = compare_runs.side_by_side(run_dirs)
    if not rows:
        return None
    bases = _bases(rows, labels, shown)
    unit = scores.f1_unit([row[0]["wanted"] for row in rows])
    entries = []
    for row in rows:
        wanted, tuned = row[0]["wanted"], [one["tuned"] for one in row]
        right = sum(scores.is_right(wanted, answer, unit) for answer in tuned)
        each = [scores.f1(wanted, answer, unit) for answer in tuned]
        texts = [row[0]["question"], wanted, *(row[number]["base"] for _, number in bases), *tuned]
        kind = ALL if right == len(tuned) else SOME if right else NONE
        note = "" if shown[0]["metrics"].get("classes") else "F1 " + " · ".join(f"{score:.0%}" for score in each)
        order = ((NONE, SOME, ALL).index(kind), right, sum(each))
        entries.append((order, answers.Entry(row[0]["row"], texts, kind, _STYLES[kind], note=note)))
    worst_first = [entry for _, entry in sorted(entries, key=lambda pair: pair[0])]
    columns = ("question", "wanted", *(title for title, _ in bases), *(f"tuned, {_short(label)}" for label in labels))
    source = f"each run's evaluate/{results.PREDICTIONS}"
    titles = len(rows) * sum(len(title.encode("utf-8", "surrogatepass")) for title in columns)  # each cell has its own
    most = max(_MOST_BYTES - titles, _MOST_BYTES // 2)
    return answers.table("compared", "Test rows", columns, worst_first, source, most_bytes=most)


def _short(label: str) -> str:
    """A label that stands in every row."""
    return label if len(label) <= _LABEL else f"{label[: _LABEL - 1]}…"


def _bases(
    rows: Sequence[Sequence[Mapping[str, str]]], labels: Sequence[str], shown: Sequence[Mapping[str, Any]]
) -> list[tuple[str, int]]:
    """(title, number of a run with these answers of a base): one for the runs whose bases answered the same."""
    alike: dict[tuple[str, ...], list[int]] = {}
    for number in range(len(labels)):
        alike.setdefault(tuple(row[number]["base"] for row in rows), []).append(number)
    if len(alike) == 1:
        return [(base_asked.title(shown[0]["metrics"]), 0)]
    return [(f"base of {', '.join(_short(labels[number]) for number in same)}", same[0]) for same in alike.values()]


def _link(run_dir: Path, folder: Path) -> str:
    """The run's own page, relative to the folder of this one. Quoted, so that no name becomes a scheme or a host."""
    return quote(os.fsencode(os.path.relpath(run_dir.absolute() / "report.html", folder)))
