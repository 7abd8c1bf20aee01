"""Several runs in one table: their scores on the same test rows, and whether one is better than the first.

Reads run directories and changes nothing. Must not know stages or models: predictions.csv holds every answer, and the
scores are recomputed from it by the same rules for all runs.

>>> across([Path("runs/plain"), Path("runs/augmented")])[1].difference
(0.012, 0.094)
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

from appliance.errors import RunDirError
from appliance.process import files
from appliance.rows.in_messages import quoted
from appliance.rundir import base_asked, results, run_json

COLUMNS = ("answers of", "exact match", "facts right", "F1", "ROUGE-L", "chrF", "difference from the first run")


@dataclass(frozen=True)
class Line:
    """Scores of one model's answers, as fractions; `facts_right` is None if no wanted answer holds a fact. Of a
    classifier only `exact_match` is there, its accuracy: how alike the names of two classes are says nothing.

    `difference`: 95 % interval of the difference from the first run's tuned model in that run's primary metric; None
    for that model itself. `reason`: why nothing is proven, if the interval alone does not say so.
    """

    name: str
    exact_match: float
    facts_right: float | None
    f1: float | None
    rouge_l: float | None
    chrf: float | None
    difference: tuple[float, float] | None
    verdict: str
    reason: str = ""

    def cells(self) -> tuple[str, ...]:
        seen = (self.exact_match, self.facts_right, self.f1, self.rouge_l, self.chrf)
        scores = tuple("–" if score is None else f"{score:.1%}" for score in seen)
        if self.difference is None:
            return (self.name, *scores, "")
        low, high = self.difference
        why = f" ({self.reason})" if self.reason else ""
        return (self.name, *scores, f"{low:+.1%} to {high:+.1%}: {self.verdict}{why}")

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


def labels(run_dirs: Sequence[Path]) -> list[str]:
    """What the runs are called: by their names, or by their paths as typed if two have the same name."""
    names = [path.name if path.name not in ("", "..") else path.resolve().name for path in run_dirs]
    times = Counter(names)
    return [name if times[name] == 1 else str(path) for name, path in zip(names, run_dirs, strict=True)]


def side_by_side(run_dirs: Sequence[Path]) -> list[tuple[dict[str, str], ...]]:
    """The same test row of each run, as in predictions.csv, in the order of the first run's. Raises as `across`."""
    with results.damage_named(*run_dirs):
        runs = _read_all(run_dirs)
        return [tuple(run.rows[key] for run in runs) for key in runs[0].rows]


_Key = tuple[str, str, int]  # question, wanted answer, how many earlier rows have the same two


@dataclass(frozen=True)
class _Run:
    name: str
    rows: dict[_Key, dict[str, str]]  # rows of predictions.csv
    base: str
    figures: dict[str, Any]
    path: Path


def across(run_dirs: Sequence[Path]) -> list[Line]:
    """A line for the first run's tuned model, the other runs' tuned models, the bases, and other models' answers.

    Rows are matched by question and wanted answer, because another CSV may have them on other lines. Raises
    RunDirError: a run has not been evaluated yet, or the runs were not tested on the same rows.
    """
    with results.damage_named(*run_dirs):
        return _across(run_dirs)


def _across(run_dirs: Sequence[Path]) -> list[Line]:
    from appliance.evaluation import interval, scores

    runs = _read_all(run_dirs)
    first = runs[0]
    keys = list(first.rows)
    wanted = [answer for _, answer, _ in keys]
    unit, primary = scores.f1_unit(wanted), first.figures["primary"]
    groups = _groups(first)
    names: tuple[scores.Metric | None, ...] = ("exact_match", "f1", "rouge_l", "chrf")  # these judge every row
    if first.figures.get("classes"):
        names = ("accuracy", None, None, None)

    def line(name: str, run: _Run, column: str) -> Line:
        answers = [run.rows[key][column] for key in keys]
        exact, f1, rouge, chrf = (
            fmean(scores.per_row(metric, wanted, answers, unit)) if metric else None for metric in names
        )
        right = scores.mean_of_judged(scores.per_row("facts_right", wanted, answers, unit)) if names[1] else None
        assert exact is not None
        if run is first and column == "tuned":
            return Line(name, exact, right, f1, rouge, chrf, None, "")
        reference = [first.rows[key]["tuned"] for key in keys]
        pair = [scores.per_row(primary, wanted, texts, unit) for texts in (reference, answers)]
        judged = scores.judged(pair[0])
        pair = [[values[i] for i in judged] for values in pair]
        found = interval.paired(pair[0], pair[1], [groups[i] for i in judged])
        return Line(name, exact, right, f1, rouge, chrf, found.interval, found.verdict, found.reason)

    lines = [line(run.name, run, "tuned") for run in runs]
    seen: set[tuple[str, ...]] = set()
    for column, title in (("base", "base model"), (results.OTHER_COLUMN, "")):
        for run in runs:
            answers = tuple(run.rows[key].get(column) or "" for key in keys)
            if column in next(iter(run.rows.values())) and (column, *answers) not in seen:
                seen.add((column, *answers))
                asked = base_asked.described(run.figures)
                base = f"{title} {run.base}" + (f" {asked}" if asked else "")
                base = asked if run.figures.get("classes") or run.figures.get("spans") else base
                name = base if column == "base" else str(run.figures["other"]["name"])
                lines.append(line(name, run, column))
    return lines


def _read_all(run_dirs: Sequence[Path]) -> list[_Run]:
    runs = [_read(path, label) for path, label in zip(run_dirs, labels(run_dirs), strict=True)]
    for run in runs[1:]:
        _refuse_other_rows(runs[0], run)
    return runs


def _read(path: Path, label: str) -> _Run:
    if not all(files.is_there(path / "evaluate" / name) for name in (results.COMPARISON, results.PREDICTIONS)):
        raise RunDirError(f"{path} has not been evaluated yet", hint=f"run `appliance evaluate {path}`")
    seen: Counter[tuple[str, str]] = Counter()
    rows: dict[_Key, dict[str, str]] = {}
    for row in results.read_predictions(path):
        pair = (row["question"], row["wanted"])
        rows[*pair, seen[pair]] = row
        seen[pair] += 1
    base = run_json.read(path, "base.public_id")["base"]["public_id"]
    return _Run(label, rows, str(base), results.read_comparison(path), path)


def _refuse_other_rows(first: _Run, run: _Run) -> None:
    if run.rows.keys() == first.rows.keys():
        return
    shared = run.rows.keys() & first.rows.keys()
    question, *_ = min(run.rows.keys() ^ first.rows.keys())
    raise RunDirError(
        f"{first.path} and {run.path} were not tested on the same rows: {len(first.rows)} and {len(run.rows)} rows, "
        f"{len(shared)} of them shared; only one has {quoted(question)}",
        hint="for the same test rows, use the same CSV, data.split, fractions, train.seed and evaluate.max_rows; "
        "`appliance dataset paraphrase` keeps the test rows if you train with --set data.split=column",
    )


def _groups(run: _Run) -> list[str]:
    """The group of each row: equal questions are not independent evidence."""
    groups = results.read_groups(run.path / "prepare" / results.TEST_GROUPS)
    return [groups[int(row["row"])] for row in run.rows.values()]
