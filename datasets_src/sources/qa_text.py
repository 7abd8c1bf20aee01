"""Text with markers -> pairs: `<|question|>` begins a question, `<|answer|>` its answer, wherever they stand in a line.

<|question|>
배송은 얼마나 걸리나요?
<|answer|>
보통 이틀 걸립니다.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from datasets_src.pairs import Dropped, Pair, SourceError, usable
from datasets_src.sources.texts import text_lines

QUESTION_MARKER = "<|question|>"
ANSWER_MARKER = "<|answer|>"
STRAY_TEXT = "text before the first marker"
NO_ANSWER = "question without an answer marker"
NO_QUESTION = "answer without a question marker"


def pairs(
    path: Path, *, question_marker: str = QUESTION_MARKER, answer_marker: str = ANSWER_MARKER
) -> Iterator[Pair | Dropped]:
    """One item for each question, and for each text that belongs to none. Streams; texts are stripped of whitespace.

    Raises SourceError: no such file, other content, a line that is not text, no marker at all, unusable markers.
    """
    _require_markers(question_marker, answer_marker)
    question: tuple[int, str] | None = None
    for line, kind, text in _blocks(path, question_marker, answer_marker):
        if not kind:
            if text:
                yield Dropped(f"line {line}", STRAY_TEXT)
        elif kind == question_marker:
            if question is not None:
                yield Dropped(f"line {question[0]}", NO_ANSWER)
            question = (line, text)
        elif question is None:
            yield Dropped(f"line {line}", NO_QUESTION)
        else:
            yield usable(f"line {question[0]}", Pair(question[1], text))
            question = None
    if question is not None:
        yield Dropped(f"line {question[0]}", NO_ANSWER)


def _blocks(path: Path, question_marker: str, answer_marker: str) -> Iterator[tuple[int, str, str]]:
    """Line, marker ("" for what precedes the first one) and the text up to the next marker."""
    longest_first = sorted((question_marker, answer_marker), key=len, reverse=True)  # one may begin with the other
    marker = re.compile("(" + "|".join(map(re.escape, longest_first)) + ")")
    begun, kind = 1, ""
    parts: list[str] = []
    for number, line in text_lines(path, f"text with the markers {question_marker} and {answer_marker}"):
        if not (kind or parts or line.strip()):
            begun = number + 1
            continue
        first, *others = marker.split(line)
        parts.append(first)
        for found, text in zip(others[::2], others[1::2], strict=True):
            yield begun, kind, "\n".join(parts).strip()
            begun, kind, parts = number, found, [text]
    if not kind:
        raise SourceError(
            f"{path}: the marker {question_marker} does not occur in the file",
            hint="name the file's own markers with --question-marker and --answer-marker",
        )
    yield begun, kind, "\n".join(parts).strip()


def _require_markers(question_marker: str, answer_marker: str) -> None:
    for name, marker in (("--question-marker", question_marker), ("--answer-marker", answer_marker)):
        if not marker.strip() or len(marker.splitlines()) != 1:
            raise SourceError(f"{name} {marker!r}: expected text on a single line")
    if question_marker == answer_marker:
        raise SourceError(f"both markers are {question_marker!r}; expected two different ones")
