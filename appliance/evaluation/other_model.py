"""Another model's answers to the test rows, read from a CSV and scored in the same table as base and tuned.

Knows rows, texts and scores. Must not know where the answers come from: a hosted model, a person, an older run.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

from appliance.errors import DataError
from appliance.evaluation import scores
from appliance.evaluation.extra_questions import shown
from appliance.evaluation.interval import Verdict, paired
from appliance.rows import charset, in_messages
from appliance.rows.csv_file import Row
from appliance.rows.header import ALIASES, plain_name
from appliance.rows.records import records
from appliance.wording import counted

_SETTING = "evaluate.other_answers"
# Without `output`, the column of the wanted answers in prepare/test.csv: that file itself would score 100 %.
_NAMES = {
    "row": ("row",),
    "question": ("question", "instruction", *ALIASES["instruction"]),
    "answer": ("answer", *ALIASES["output"]),
}
_DELIMITERS = ",;\t|"
_HINT = (
    "expected the columns row (or question) and answer, with one line per evaluated row of the run's prepare/test.csv"
)


@dataclass(frozen=True)
class Other:
    """The other model's scores, as fractions; `facts_right` is None if no wanted answer holds a fact.

    `interval`: 95 % interval of tuned - other in the primary metric; `groups`, `verdict` and `reason` belong to it.
    `wins`: rows in which tuned is better.
    """

    name: str
    exact_match: float
    facts_right: float | None
    f1: float
    rouge_l: float
    chrf: float
    wins: int
    losses: int
    interval: tuple[float, float]
    groups: int
    verdict: Verdict
    reason: str

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


def refuse_unreadable(path: Path) -> None:
    """Raises DataError for the reasons of `read` that do not depend on the rows; called before training."""
    _answers(path)


def read(path: Path, rows: Sequence[Row]) -> list[str]:
    """The answers to `rows`, in their order, matched by row number or, if there is no such column, by question.

    Raises DataError: the file or a column is missing, a row has two answers, or a row has none.
    """
    key, given = _answers(path)
    wanted = [str(row.line) if key == "row" else _plain(shown(row.instruction, row.input)) for row in rows]
    missing = [name for name in wanted if name not in given]
    if missing:
        named = ", ".join(_named(key, name) for name in missing[:5]) + (", …" if len(missing) > 5 else "")
        raise DataError(
            f"{path} answers {len(rows) - len(missing)} of {counted(len(rows), 'row')}; missing: {named}",
            hint=_HINT,
        )
    return [given[name] for name in wanted]


def score(
    name: str,
    wanted: Sequence[str],
    answers: Sequence[str],
    tuned: Sequence[float],
    groups: Sequence[Hashable],
    *,
    unit: scores.Unit,
    primary: scores.Metric,
) -> Other:
    """Score by the same rules and on the same rows; `tuned`: the tuned model's primary metric for each row."""
    by_row = {metric: scores.per_row(metric, wanted, answers, unit) for metric in scores.METRICS}
    means = {metric: fmean(values) for metric, values in by_row.items()}
    judged = scores.judged(by_row[primary])
    others, ours = ([values[i] for i in judged] for values in (by_row[primary], tuned))
    difference = paired(others, ours, [groups[i] for i in judged])
    wins, losses = scores.wins_losses(by_row[primary], tuned)
    return Other(
        name,
        means["exact_match"],
        scores.mean_of_judged(by_row["facts_right"]),
        means["f1"],
        means["rouge_l"],
        means["chrf"],
        wins,
        losses,
        difference.interval,
        difference.groups,
        difference.verdict,
        difference.reason,
    )


def _answers(path: Path) -> tuple[str, dict[str, str]]:
    """The column that identifies rows (`row` or `question`), and the answer for each of its values."""
    codec = charset.detect(path, setting=_SETTING).codec
    delimiter, width, key, columns = _columns(path, codec)
    given: dict[str, str] = {}
    with charset.open_lines(path, codec) as lines:
        found = _records(path, lines, delimiter)
        next(found)
        for line, cells in found:
            if not any(cells):
                continue
            cells += [""] * (width - len(cells))
            name, answer = (cells[column] for column in columns)
            if wrong := charset.wrong_byte(name + answer, codec):
                raise DataError(f"{path}, line {line}: {wrong}", hint="fix that line, or save the file as UTF-8")
            if given.setdefault(_plain(name), answer) != answer:
                raise DataError(f"{path}: two answers to {_named(key, _plain(name))}", hint="keep only one of them")
    if not any(name and answer for name, answer in given.items()):
        raise DataError(f"{path} has a header but no answers", hint=_HINT)
    return key, given


def _records(path: Path, lines: Iterator[str], delimiter: str) -> Iterator[tuple[int, list[str]]]:
    try:
        yield from records(path, lines, delimiter)
    except DataError as error:  # its hint names a setting for data.csv
        raise DataError(str(error), hint='inside a quoted cell, write a quote as ""') from error


def _columns(path: Path, codec: str) -> tuple[str, int, str, tuple[int, int]]:
    """The first delimiter whose header has a key and an answer; the header's width, the key, both column indexes."""
    headers: list[list[str]] = []
    for delimiter in _DELIMITERS:
        with charset.open_lines(path, codec) as lines:
            try:
                _, cells = next(records(path, lines, delimiter), (1, []))
            except DataError:  # a quoted header does not parse with the wrong delimiter
                continue
        header = [plain_name(cell) for cell in cells]
        headers.append(header)
        answer = _column(header, "answer")
        key = next((name for name in ("row", "question") if _column(header, name) is not None), None)
        if key is not None and answer is not None:
            column = _column(header, key)
            assert column is not None
            return delimiter, len(header), key, (column, answer)
    seen = ", ".join(map(in_messages.shown, max(headers, key=len, default=[])[:30]))
    raise DataError(f"{path} has the columns {seen}", hint=_HINT)


def _named(key: str, name: str) -> str:
    """A row by its number, or by its question, which is the user's own."""
    return f"row {name!r}" if key == "row" else f"question {in_messages.quoted(name, 200)}"


def _column(header: Sequence[str], role: str) -> int | None:
    """The column with the role's own name, else the only column with one of its aliases; None if there is none."""
    if role in header:
        return header.index(role)
    found = [i for i, name in enumerate(header) if name in _NAMES[role]]
    return found[0] if len(found) == 1 else None


def _plain(text: str) -> str:
    return " ".join(text.split())
