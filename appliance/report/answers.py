"""The answers of a run as its page shows them: every row, worst first, and what differs from the wanted answer.

assets/answers.js adds filters, search and keys to it; without scripts everything is there to be read. A page of several
runs makes a table of its own with `table`.
"""

from __future__ import annotations

import math
import sys
from bisect import bisect_left
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from appliance.report import differences
from appliance.rundir import base_asked, results

if TYPE_CHECKING:
    from appliance.evaluation import scores

# Worst first. `wrong`: as near to the wanted answer as the base's, and not right.
KINDS = ("lost", "wrong", "not judged", "closer", "right")
STYLES = {"lost": "bad", "wrong": "bad", "right": "good"}
ENDLESS = "did not stop"
FOLD = 400  # characters of a cell that are shown at once; the others unfold
ROW_BYTES, CUT_BYTES = 250, 40  # what a row, and a shortened cell, take beside their text
LEAST, LONGEST = 60, 20_000  # characters of a cell, if it has to be shortened


@dataclass(frozen=True)
class Entry:
    """A row to be shown. `texts`: question, wanted answer, then answers to compare with it; "" if none is wanted.

    `number`: the row in the CSV, or what stands for it; `kind`: what it can be filtered by; `style`: good, bad or
    doubtful; `remark`: what stands behind the kind; `note`: its scores.
    """

    number: str
    texts: Sequence[str]
    kind: str = ""
    style: str = "doubtful"
    remark: str = ""
    note: str = ""
    stopped: bool = True


@dataclass(frozen=True)
class Row:
    entry: Entry
    cells: tuple[differences.Text, ...]


@dataclass(frozen=True)
class Table:
    """`id`: of the element; `title`: for whoever cannot see it; `columns`: the titles of the texts.

    `filters`: what rows can be filtered by, and how many there are of each. `most`: characters of a cell that are
    shown; None if none had to be shortened. `source`: the file that holds the whole cells.
    """

    id: str
    title: str
    columns: tuple[str, ...]
    rows: tuple[Row, ...]
    filters: tuple[tuple[str, int], ...]
    most: int | None
    source: str


def of_test(
    predictions: Sequence[Mapping[str, str]], metrics: Mapping[str, Any] | None, names: Mapping[str, str]
) -> Table | None:
    """The test rows. `predictions`: results.read_predictions; `metrics`: metrics.json; `names`: of the metrics."""
    if not (predictions and metrics):
        return None
    columns = {"base": "base", "tuned": "tuned"}
    if metrics.get("other"):
        columns[results.OTHER_COLUMN] = str(metrics["other"]["name"])
    if metrics.get("earlier"):
        columns[results.EARLIER_COLUMN] = str(metrics["earlier"]["name"])
    if metrics.get("classes") or metrics.get("spans"):
        columns["base"] = base_asked.title(metrics)
    for way in (*base_asked.WAYS, *base_asked.BASELINES):
        columns[results.BASE_COLUMN.format(way)] = base_asked.title(metrics, way)
    columns = {name: title for name, title in columns.items() if name in predictions[0]}
    by_row = _scores(predictions, metrics)
    entries = []
    for row, (before, after) in zip(predictions, by_row.pairs, strict=True):
        kind, remark = _kind(row, by_row)
        texts = [row["question"], row["wanted"], *(row[name] for name in columns)]
        stopped = row.get(results.STOPPED_COLUMN) != results.NO
        note = _note(names.get(by_row.metric, by_row.metric), before, after, is_fraction=by_row.is_fraction)
        if probability := row.get(results.PROBABILITY_COLUMN):
            note = f"{note}, probability {probability}" if metrics.get("spans") else f"probability {probability}"
        entry = Entry(row["row"], texts, kind, STYLES.get(kind, "doubtful"), remark, note, stopped)
        entries.append((_order(kind, before, after), entry))
    worst_first = [entry for _, entry in sorted(entries, key=lambda pair: pair[0])]
    titles = ("question", "wanted", *columns.values())
    return table("test", "Test rows", titles, worst_first, f"evaluate/{results.PREDICTIONS}")


def of_extra(extra: Sequence[Mapping[str, str]]) -> Table | None:
    """The questions that were not scored. `extra`: results.read_extra_answers."""
    if not extra:
        return None
    names = {"extra": "yours"}
    entries = [
        Entry(row["row"], [row[name] for name in results.TEXT_COLUMNS], names.get(row["from"], row["from"]), style="")
        for row in extra
    ]
    source = f"evaluate/{results.EXTRA_ANSWERS}"
    return table("asked", "Extra questions", results.TEXT_COLUMNS, entries, source, most_bytes=150_000)


def table(
    name: str,
    title: str,
    columns: Sequence[str],
    entries: Sequence[Entry],
    source: str,
    most_bytes: int = 1_200_000,
) -> Table:
    """Entries in the order in which they are to be shown, marked, and shortened to what a page has room for.

    The table should have no more than `most_bytes`. A row costs some beside its text; what is left is for the text. If
    it holds more, long cells are shortened to one number of characters, the largest that fits, but not below LEAST.
    """
    most = _most(entries, most_bytes)
    rows = tuple(Row(entry, tuple(_cells(entry.texts, most or sys.maxsize))) for entry in entries)
    counts = Counter(entry.kind for entry in entries)
    kinds = sorted(filter(None, counts), key=lambda kind: KINDS.index(kind) if kind in KINDS else len(KINDS))
    filters = [(kind, counts[kind]) for kind in kinds]
    if endless := sum(not entry.stopped for entry in entries):
        filters.append((ENDLESS, endless))
    return Table(name, title, tuple(columns), rows, tuple(filters), most, source)


def _cells(texts: Sequence[str], most: int) -> Iterable[differences.Text]:
    question, wanted, *answers = texts
    yield differences.plain(question, fold=FOLD, most=most)
    yield differences.plain(wanted, fold=FOLD, most=most)
    for answer in answers:
        if wanted:
            yield differences.marked(wanted, answer, fold=FOLD, most=most)
        else:
            yield differences.plain(answer, fold=FOLD, most=most)


def _most(entries: Sequence[Entry], most_bytes: int) -> int | None:
    """The number of characters to which cells have to be shortened; None if they don't have to."""
    sizes = [(len(text), len(text.encode("utf-8", "surrogatepass"))) for entry in entries for text in entry.texts]
    room = most_bytes - ROW_BYTES * len(entries)
    if sum(size for _, size in sizes) <= room:
        return None

    def is_too_much(most: int) -> bool:
        shown = (size if length <= most else size * most / length + CUT_BYTES for length, size in sizes)
        return sum(shown) > room

    numbers = range(LEAST, LONGEST, 10)
    return numbers[max(0, bisect_left(numbers, True, key=is_too_much) - 1)]


@dataclass(frozen=True)
class _Scores:
    """`pairs`: of the base's and the tuned answer to each row, NaN if the metric does not judge it."""

    metric: scores.Metric
    unit: scores.Unit
    pairs: list[tuple[float, float]]

    @property
    def is_fraction(self) -> bool:
        return self.metric not in ("exact_match", "facts_right")


def _scores(predictions: Sequence[Mapping[str, str]], metrics: Mapping[str, Any]) -> _Scores:
    """The primary metric of each row; F1 in place of one whose library is not installed beside the light core."""
    from appliance.evaluation import scores

    wanted, base, tuned = ([row[name] for row in predictions] for name in ("wanted", "base", "tuned"))
    unit = scores.f1_unit(wanted)

    def of(metric: scores.Metric) -> _Scores:
        by_row = (scores.per_row(metric, wanted, given, unit) for given in (base, tuned))
        return _Scores(metric, unit, list(zip(*by_row, strict=True)))

    try:
        return of(metrics["primary"])
    except ImportError:
        return of("f1")


def _kind(row: Mapping[str, str], by_row: _Scores) -> tuple[str, str]:
    """One of KINDS, and what else is to be said. Earlier versions called every nearer answer a win."""
    from appliance.evaluation import scores

    if by_row.metric == "accuracy":  # C and C++ are two classes, and the same answer
        is_right = row["wanted"] == row["tuned"]
    else:
        is_right = scores.is_right(row["wanted"], row["tuned"], by_row.unit)
    verdict = row["verdict"]
    if verdict == "loss":
        return "lost", "still right" if is_right else ""
    if is_right:
        return "right", "as before" if verdict == "tie" else ""
    return {"tie": ("wrong", "as before"), "not judged": ("not judged", "")}.get(verdict, ("closer", ""))


def _order(kind: str, before: float, after: float) -> tuple[float, ...]:
    """By kind, then by what was lost or gained, then by how good the answer is."""
    gained = after - before
    return (KINDS.index(kind), 0.0 if math.isnan(gained) else gained, 0.0 if math.isnan(after) else after)


def _note(metric: str, before: float, after: float, *, is_fraction: bool) -> str:
    def one(score: float) -> str:
        if math.isnan(score):
            return "–"
        return f"{score:.0%}" if is_fraction else "yes" if score else "no"

    return "" if math.isnan(before) and math.isnan(after) else f"{metric} {one(before)} → {one(after)}"
