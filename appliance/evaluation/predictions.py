"""predictions.csv: every evaluated test row with the answers that were given to it, and which of the two was better."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType

from appliance.evaluation import extra_questions
from appliance.evaluation.generate import Answer
from appliance.process import files
from appliance.rows import csv_file
from appliance.rundir import results


def write(
    path: Path,
    rows: Sequence[csv_file.Row],
    answers: Mapping[str, Sequence[Answer]],
    row_scores: Mapping[str, Sequence[float]],
    others: Sequence[str] | None = None,
    bases: Mapping[str, Sequence[Answer]] = MappingProxyType({}),
) -> None:
    """Writes one line per row. `answers` and `row_scores` (the primary metric): of "base" and "tuned", in that order.

    `others`: another model's answers, for the column `other`. `bases`: the base's answers when it was asked in other
    ways, by the way's name.
    """
    beside = {} if others is None else {results.OTHER_COLUMN: others}
    beside |= {results.BASE_COLUMN.format(way): [one.text for one in given] for way, given in bases.items()}
    columns = (*results.PREDICTION_COLUMNS, *beside)
    with files.atomic_file(path) as temporary, csv_file.csv_writer(temporary, columns) as add:
        for i, row in enumerate(rows):
            before, after = row_scores["base"][i], row_scores["tuned"][i]
            verdict = "win" if after > before else "loss" if after < before else "tie"
            question = extra_questions.shown(row.instruction, row.input)
            more = (column[i] for column in beside.values())
            add((row.line, question, row.output, answers["base"][i].text, answers["tuned"][i].text, verdict, *more))
