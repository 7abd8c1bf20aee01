"""Judged answers -> rows with the answers that were right, and pairs of a better and a worse answer to one question.

Whoever reads the file of judgements makes `Judged` of it, the oldest first. Of several judgements the last counts.

    rows(judged)         # Pair(question, "만원입니다."), Dropped("record 3", BAD), …
    preferences(judged)  # {"prompt": [...], "chosen": [...], "rejected": [...]}, …
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from datasets_src.pairs import Dropped, Pair, SourceError, usable

BAD = "judged bad, and no right answer given"
OTHER = "another judgement of the same question counts"
TEST_ROW = "asks what a test row of the run asks"
_HINT = "an answer judged bad needs a right or a good one to the same question: in the chat, /right TEXT gives it"
_TAKING = "to have the test rows' questions taken too, --with-test-rows: no score on them counts then"
Messages = list[dict[str, str]]


@dataclass(frozen=True)
class Judged:
    """One judged answer. `right`: the answer as it should have been, if the verdict is `right`.

    `held_out`: whether the question is one of the run's test rows.
    """

    where: str  # "record 3"
    question: str
    input: str
    answer: str
    verdict: Literal["good", "bad", "right"]
    right: str = ""
    held_out: bool = False

    @property
    def asked(self) -> tuple[str, str]:
        return self.question.strip(), self.input.strip()

    @property
    def wanted(self) -> str | None:
        """The answer that a model should give; None if nobody said."""
        return {"good": self.answer, "bad": None, "right": self.right}[self.verdict]


def rows(judged: Sequence[Judged], *, with_test_rows: bool = False) -> Iterator[Pair | Dropped]:
    """A row for each question with an answer that was right, and why each other record becomes none.

    A question of a test row is left out, unless `with_test_rows`: a model that learned it could not be tested on it.
    Raises SourceError: there is no other question.
    """
    counted = _last_words(judged)
    chosen = {one.asked: one for one in counted if one.wanted is not None}
    if judged and not with_test_rows and all(one.held_out for one in judged):
        what = f"all {len(judged)} judgements are of" if len(judged) > 1 else "the only judgement is of"
        raise SourceError(
            f"no row: {what} answers to questions of test rows, on which a model is scored",
            hint=f"in the chat, judge answers to other questions; or, {_TAKING}",
        )
    for one in judged:
        if one.held_out and not with_test_rows:
            yield Dropped(one.where, TEST_ROW)
        elif one in counted and one.wanted is None and one.asked not in chosen:
            yield Dropped(one.where, BAD)
        elif chosen.get(one.asked) is not one:
            yield Dropped(one.where, OTHER)
        else:
            yield usable(one.where, Pair(one.question, str(one.wanted), one.input))


def _last_words(judged: Sequence[Judged]) -> list[Judged]:
    """The last judgement of each answer. A correction outlasts a `bad`, which says nothing against it."""
    found: dict[tuple[tuple[str, str], str], Judged] = {}
    for one in judged:
        key = one.asked, one.answer.strip()
        if not (one.verdict == "bad" and key in found and found[key].verdict == "right"):
            found[key] = one
    return sorted(found.values(), key=judged.index)


def preferences(
    judged: Sequence[Judged], message: Callable[[str, str], Messages], *, with_test_rows: bool = False
) -> list[dict[str, Any]]:
    """Each worse answer beside the right one to the same question, once: prompt, chosen and rejected as messages.

    That is the conversational format of preference data with an explicit prompt, which trl's DPOTrainer and others
    take (trl, "Dataset formats and types"): the tokenizer's chat template then writes the prompt as it was trained.
    `message`: question and input as the messages of a prompt. Raises SourceError: there is no such pair.
    """
    kept = {
        (pair.instruction.strip(), pair.input.strip()): pair.output
        for pair in rows(judged, with_test_rows=with_test_rows)
        if isinstance(pair, Pair)
    }
    found: dict[tuple[tuple[str, str], str], dict[str, Any]] = {}
    for one in _last_words(judged):
        chosen, worse = kept.get(one.asked), one.answer.strip()
        if chosen is not None and one.verdict != "good" and worse != chosen.strip():
            found[one.asked, worse] = {
                "prompt": message(one.question, one.input),
                "chosen": [{"role": "assistant", "content": chosen}],
                "rejected": [{"role": "assistant", "content": one.answer}],
            }
    if not found:
        others = any(one.held_out for one in judged) and not with_test_rows
        of = " that no test row asks" if others else ""
        hint = f"{_HINT}; or, {_TAKING}" if others else _HINT
        raise SourceError(f"no preference pair: no question{of} has both a right and a worse answer", hint=hint)
    return list(found.values())


def write_lines(path: Path, records: Sequence[Mapping[str, Any]]) -> None:
    """JSON Lines, complete or not at all."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("w", encoding="utf-8") as stream:
            stream.writelines(json.dumps(record, ensure_ascii=False) + "\n" for record in records)
            stream.flush()
            os.fsync(stream.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
