"""KorQuAD 1.0 and SQuAD 1.1 / 2.0 JSON -> pairs. The format: https://rajpurkar.github.io/SQuAD-explorer/

Closed-book: the question alone is asked, and the model has to know the answer. With the paragraph as `input` it has to
find it there; then all questions of a paragraph share a group, so that no split trains and tests on the same text.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

from datasets_src.pairs import Dropped, Pair, SourceError, usable
from datasets_src.sources.texts import json_kind, parse_json, read_text

UNANSWERABLE = "no answer (unanswerable)"
_COUNTED = ("articles", "paragraphs", "questions_with_several_answers", "questions_with_different_answers")
_ABSTAINED = "questions_without_an_answer"
_EXPECTED = "KorQuAD 1.0 or SQuAD JSON"


def pairs(
    path: Path,
    *,
    with_paragraph: bool = False,
    answer: Literal["first", "common"] = "first",
    counts: Counter[str] | None = None,
) -> Iterator[Pair | Dropped]:
    """One item per question, in file order. Reads the whole file (the KorQuAD train set: 38 MB).

    `answer`: of several, take the first, or the most frequent one (the first of equals). `counts` receives articles,
    paragraphs, and how many questions have several answers, and several different ones.
    Raises SourceError: no such file, other content, cut off, or not nested as SQuAD is.
    """
    counts = Counter() if counts is None else counts
    document = _Node(path, "", parse_json(path, read_text(path, _EXPECTED)))
    counts.update(dict.fromkeys(_COUNTED, 0))
    for number, article in enumerate(document.list("data"), 1):
        counts["articles"] += 1
        asked = 0
        for paragraph in article.list("paragraphs"):
            counts["paragraphs"] += 1
            context = paragraph.text("context") if with_paragraph else ""
            group = _group(context) if with_paragraph else None
            for question in paragraph.list("qas"):
                asked += 1
                where = f"article {number}, question {asked}"
                instruction = question.text("question").strip()
                given = _answers(question)
                if len(given) > 1:
                    counts["questions_with_several_answers"] += 1
                    counts["questions_with_different_answers"] += len(set(given)) > 1
                if not given:
                    yield Dropped(where, UNANSWERABLE)
                    continue
                chosen = Counter(given).most_common(1)[0][0] if answer == "common" else given[0]
                yield usable(where, Pair(instruction, chosen, context, group))


def spans(path: Path, *, counts: Counter[str] | None = None) -> Iterator[Pair | Dropped]:
    """Each question with its paragraph as `input` and the place of its answer there, for models that point at it.

    A question with several different answers is a row for each of them; one without an answer is a row with an empty
    one. `counts` as `pairs`, and questions without an answer. Raises SourceError as `pairs`.
    """
    counts = Counter() if counts is None else counts
    document = _Node(path, "", parse_json(path, read_text(path, _EXPECTED)))
    counts.update(dict.fromkeys((*_COUNTED, _ABSTAINED), 0))
    for number, article in enumerate(document.list("data"), 1):
        counts["articles"] += 1
        asked = 0
        for paragraph in article.list("paragraphs"):
            counts["paragraphs"] += 1
            context = paragraph.text("context")
            for question in paragraph.list("qas"):
                asked += 1
                instruction, where = question.text("question").strip(), f"article {number}, question {asked}"
                places = _places(question)
                several = len({text for text, _ in places}) > 1
                counts["questions_with_several_answers"] += len(places) > 1
                counts["questions_with_different_answers"] += several
                counts[_ABSTAINED] += not places
                if not places:
                    yield usable(where, Pair(instruction, "", context, is_answerable=False))
                starts: dict[str, int | None] = {}
                for text, start in places:
                    starts.setdefault(text, start)
                for text, start in starts.items():
                    yield usable(where, Pair(instruction, text, context, answer_start=start))


def _places(question: _Node) -> list[tuple[str, int | None]]:
    """The answers' texts, without spaces around them, and where each begins in the paragraph, if that is said."""
    if question.value.get("is_impossible") is True:
        return []
    found: list[tuple[str, int | None]] = []
    for answer in question.list("answers"):
        text, start = answer.text("text"), answer.value.get("answer_start")
        lead = len(text) - len(text.lstrip())
        found.append((text.strip(), start + lead if isinstance(start, int) and start >= 0 else None))
    return found


def _answers(question: _Node) -> list[str]:
    """The answers' texts; none if SQuAD 2.0 says that the paragraph has none: its `plausible_answers` are wrong."""
    if question.value.get("is_impossible") is True:
        return []
    return [answer.text("text").strip() for answer in question.list("answers")]


def _group(context: str) -> str:
    """The same for the same paragraph, wherever it is and whatever its spacing."""
    return "paragraph-" + hashlib.sha256(" ".join(context.split()).encode("utf-8", "replace")).hexdigest()[:16]


class _Node:
    """A JSON value that knows its place, so that errors in the nesting can name it."""

    def __init__(self, path: Path, place: str, value: Any) -> None:
        self._path = path
        self._place = place
        self.value = value

    def list(self, key: str) -> Iterator[_Node]:
        place, value = self._get(key)
        if not isinstance(value, list):
            raise self._refused(place, "a list", value, key)
        return (_Node(self._path, f"{place}[{i}]", item) for i, item in enumerate(value))

    def text(self, key: str) -> str:
        place, value = self._get(key)
        if not isinstance(value, str):
            raise self._refused(place, "text", value, key)
        return value

    def _get(self, key: str) -> tuple[str, Any]:
        if not isinstance(self.value, dict):
            raise self._refused(self._place or "the top level", "an object", self.value, "")
        return f"{self._place}.{key}".lstrip("."), self.value.get(key)

    def _refused(self, place: str, expected: str, value: Any, key: str) -> SourceError:
        missing = key and key not in self.value
        seen = f"nothing; there are {', '.join(map(repr, list(self.value)[:10])) or 'no fields'}" if missing else ""
        found = seen or json_kind(value)
        return SourceError(
            f"{self._path}: {place}: expected {expected}, found {found}",
            hint="for JSON of another shape: appliance dataset records" if place in ("data", "the top level") else
            "the nesting is data[].paragraphs[].qas[].question and .answers[].text (KorQuAD 2 is nested differently)",
        )  # fmt: skip
