"""Another model's answers to the test rows, from a CSV, scored in the same table as base and tuned.

Knows rows, texts and metrics. Must not know where the answers came from: a hosted model, a person, an older run.
"""

from __future__ import annotations

import csv
from collections.abc import Hashable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

from appliance import encoding, metrics
from appliance.errors import DataError
from appliance.extra_answers import shown
from appliance.table import Row

_HINT = (
    "expected the columns row (or question) and answer, and a line for each evaluated row of the run's prepare/test.csv"
)


@dataclass(frozen=True)
class Other:
    """Its scores as fractions. `interval`: tuned - other in the primary metric, 95 %; `wins`: rows won by tuned."""

    name: str
    exact_match: float
    f1: float
    rouge_l: float
    chrf: float
    wins: int
    losses: int
    interval: tuple[float, float]
    verdict: str

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


def read(path: Path, rows: Sequence[Row]) -> list[str]:
    """The answers to `rows`, in their order, found by row number or, without such a column, by question.

    Raises DataError: no such file or columns, two answers to one row, or a row without an answer.
    """
    detected = encoding.detect(path)
    with encoding.open_lines(path, detected.codec) as lines:
        reader = csv.DictReader(lines, strict=True)
        try:
            header = [name.strip().lower() for name in reader.fieldnames or ()]
            key = next((name for name in ("row", "question") if name in header), None)
            if key is None or "answer" not in header:
                raise DataError(f"{path} has the columns {', '.join(header)}", hint=_HINT)
            reader.fieldnames = header
            given: dict[str, str] = {}
            for record in reader:
                name, answer = _plain(record[key] or ""), record["answer"] or ""
                if given.setdefault(name, answer) != answer:
                    raise DataError(f"{path}: two answers to {key} {name!r}", hint="leave one of them")
        except csv.Error as error:
            raise DataError(f"{path}, line {reader.line_num}: {error}", hint=_HINT) from error
    wanted = [str(row.line) if key == "row" else _plain(shown(row.instruction, row.input)) for row in rows]
    missing = [name for name in wanted if name not in given]
    if missing:
        named = ", ".join(repr(name) for name in missing[:5]) + (", …" if len(missing) > 5 else "")
        raise DataError(
            f"{path} answers {len(rows) - len(missing)} of {len(rows)} rows; missing: {key} {named}", hint=_HINT
        )
    return [given[name] for name in wanted]


def score(
    name: str,
    wanted: Sequence[str],
    answers: Sequence[str],
    tuned: Sequence[float],
    groups: Sequence[Hashable],
    *,
    unit: metrics.Unit,
    primary: metrics.Metric,
) -> Other:
    """Scores by the same rules and on the same rows; `tuned` is the tuned model's primary metric for each row."""
    names: tuple[metrics.Metric, ...] = ("exact_match", "f1", "rouge_l", "chrf")
    by_row = {metric: metrics.per_row(metric, wanted, answers, unit) for metric in names}
    means = {metric: fmean(values) for metric, values in by_row.items()}
    interval = metrics.paired_bootstrap(by_row[primary], tuned, groups)
    wins, losses = metrics.wins_losses(by_row[primary], tuned)
    return Other(
        name,
        means["exact_match"],
        means["f1"],
        means["rouge_l"],
        means["chrf"],
        wins,
        losses,
        interval,
        metrics.verdict(interval),
    )


def _plain(text: str) -> str:
    return " ".join(text.split())
