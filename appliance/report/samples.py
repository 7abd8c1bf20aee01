"""Answers while training: what a few val questions were answered before it, and what they are answered now.

>>> of([{"step": 0, "rows": [row | {"answer": "모름"}]}, {"step": 50, "rows": [row | {"answer": "2층"}]}])[0].now.step
50
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from appliance.report import differences

BETWEEN = 20  # answers of a question that are shown beside its first and its last
MOST = 1000  # characters of a text


@dataclass(frozen=True)
class Answer:
    step: int
    text: differences.Text


@dataclass(frozen=True)
class Sample:
    """A question. `row`: its line in the CSV; `now`: None as long as it was asked once; `skipped`: how many answers
    between the first and the last are not in `between`."""

    row: int
    question: differences.Text
    wanted: differences.Text
    before: Answer
    now: Answer | None
    between: tuple[Answer, ...]
    skipped: int


def of(lines: Iterable[Mapping[str, Any]]) -> list[Sample]:
    """`lines`: results.read_samples. One sample a question, in the order in which they were asked."""
    asked: dict[int, list[tuple[int, Mapping[str, Any]]]] = {}
    for line in lines:
        for row in line["rows"]:
            asked.setdefault(row["row"], []).append((line["step"], row))
    return [_sample(row, answers) for row, answers in asked.items()]


def _sample(row: int, answers: Sequence[tuple[int, Mapping[str, Any]]]) -> Sample:
    shown = [Answer(step, differences.marked(one["wanted"], one["answer"], most=MOST)) for step, one in _some(answers)]
    _, last = answers[-1]
    question, wanted = (differences.plain(last[key], most=MOST) for key in ("question", "wanted"))
    now = shown[-1] if len(shown) > 1 else None
    return Sample(row, question, wanted, shown[0], now, tuple(shown[1:-1]), len(answers) - len(shown))


def _some(answers: Sequence[tuple[int, Mapping[str, Any]]]) -> list[tuple[int, Mapping[str, Any]]]:
    """The first, the last, and at most BETWEEN of those between them, at equal distances."""
    inner = answers[1:-1]
    if len(inner) > BETWEEN:
        inner = [inner[round(i * (len(inner) - 1) / (BETWEEN - 1))] for i in range(BETWEEN)]
    return [*answers[:1], *inner, *answers[1:][-1:]]
