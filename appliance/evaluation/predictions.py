"""predictions.csv: every evaluated test row with the answers that were given to it, and what tuning did to it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType

from appliance.evaluation import extra_questions
from appliance.evaluation.generate import Answer
from appliance.evaluation.scores import Unit
from appliance.evaluation.verdict import row_verdicts
from appliance.process import files
from appliance.rows import csv_file
from appliance.rundir import results


def write(
    path: Path,
    rows: Sequence[csv_file.Row],
    answers: Mapping[str, Sequence[Answer]],
    row_scores: Mapping[str, Sequence[float]],
    unit: Unit,
    others: Sequence[str] | None = None,
    bases: Mapping[str, Sequence[Answer]] = MappingProxyType({}),
) -> None:
    """Writes one line per row.

    Args:
        path: where.
        rows: the evaluated test rows.
        answers: of "base" and "tuned".
        row_scores: the primary metric of "base" and "tuned".
        unit: what F1 counts.
        others: another model's answers, for the column `other`.
        bases: the base's answers when it was asked in other ways, by the way's name.
    """
    given = {who: [one.text for one in answers[who]] for who in ("base", "tuned")}
    verdicts = row_verdicts([row.output for row in rows], given["tuned"], row_scores, unit)
    beside = {} if others is None else {results.OTHER_COLUMN: others}
    beside |= {results.BASE_COLUMN.format(way): [one.text for one in given_so] for way, given_so in bases.items()}
    beside[results.STOPPED_COLUMN] = [results.YES if one.stopped else results.NO for one in answers["tuned"]]
    columns = (*results.PREDICTION_COLUMNS, *beside)
    with files.atomic_file(path) as temporary, csv_file.csv_writer(temporary, columns) as add:
        for i, row in enumerate(rows):
            question = extra_questions.shown(row.instruction, row.input)
            more = (column[i] for column in beside.values())
            add((row.line, question, row.output, given["base"][i], given["tuned"][i], verdicts[i], *more))
