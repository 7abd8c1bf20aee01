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
from appliance.rundir import earlier_compared, results


def columns(
    others: Sequence[str] | None = None,
    bases: Mapping[str, Sequence[Answer]] = MappingProxyType({}),
    earlier: Sequence[Answer] = (),
    is_old: Sequence[bool] = (),
) -> dict[str, Sequence[str]]:
    """Name -> cells of the columns that only some runs have.

    `others`: another model's answers; `bases`: the base's, when it was asked in other ways, by the way's name;
    `earlier`: those of the run that this one continues, and `is_old`: which rows tested it already.
    """
    found: dict[str, Sequence[str]] = {} if others is None else {results.OTHER_COLUMN: others}
    found |= {results.BASE_COLUMN.format(way): [one.text for one in given_so] for way, given_so in bases.items()}
    if earlier:
        found[results.EARLIER_COLUMN] = [one.text for one in earlier]
        found[results.TEST_COLUMN] = [earlier_compared.OLD if old else earlier_compared.NEW for old in is_old]
    return found


def write(
    path: Path,
    rows: Sequence[csv_file.Row],
    answers: Mapping[str, Sequence[Answer]],
    row_scores: Mapping[str, Sequence[float]],
    unit: Unit,
    more: Mapping[str, Sequence[str]] = MappingProxyType({}),
) -> None:
    """Writes one line per row.

    Args:
        path: where.
        rows: the evaluated test rows.
        answers: of "base" and "tuned".
        row_scores: the primary metric of "base" and "tuned".
        unit: what F1 counts.
        more: columns that only some runs have, as `columns` makes them.
    """
    given = {who: [one.text for one in answers[who]] for who in ("base", "tuned")}
    verdicts = row_verdicts([row.output for row in rows], given["tuned"], row_scores, unit)
    stopped = [results.YES if one.stopped else results.NO for one in answers["tuned"]]
    beside = {**more, results.STOPPED_COLUMN: stopped}
    header = (*results.PREDICTION_COLUMNS, *beside)
    with files.atomic_file(path) as temporary, csv_file.csv_writer(temporary, header) as add:
        for i, row in enumerate(rows):
            question = extra_questions.shown(row.instruction, row.input)
            cells = (column[i] for column in beside.values())
            add((row.line, question, row.output, given["base"][i], given["tuned"][i], verdicts[i], *cells))
