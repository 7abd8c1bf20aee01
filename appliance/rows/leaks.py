"""What a run's split lets through, as people read it: equal questions on two sides, and near-duplicates.

`rows/split.py` finds the former and `rows/near_duplicates.py` the latter; this module adds their lines and texts.
Decides nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, get_args

from appliance.process import files
from appliance.rows import csv_file, near_duplicates, split
from appliance.rows.csv_file import Row
from appliance.rows.in_messages import quoted
from appliance.rows.split import Side
from appliance.wording import counted

EXAMPLES = 5
_SHOWN = 200  # characters of a question in a result file; messages show fewer


@dataclass(frozen=True)
class Example:
    question: str  # its first 200 characters
    lines: dict[Side, int]  # of the first of the equal rows on each side

    def __str__(self) -> str:
        places = " and ".join(f"line {self.lines[side]} ({side})" for side in get_args(Side) if side in self.lines)
        return f"{places}: {quoted(self.question, 60)}"


@dataclass(frozen=True)
class Shared:
    """leaks.json: what is on more than one side."""

    what: str  # questions, or groups if a column groups the rows
    count: int
    test_rows: int  # test rows with an equal row in train
    examples: tuple[Example, ...]


def shared(
    csv_path: Path,
    fmt: csv_file.CsvFormat,
    *,
    lines: Sequence[int],
    keys: split.Keys,
    questions: split.Keys | None,
    sides: Sequence[Side],
) -> Shared:
    """`lines`, `keys`, `sides`: one per row. `questions`: the question keys, if `keys` are those of groups."""
    what, found = "questions", split.leaks(keys, sides, examples=EXAMPLES)
    if questions is not None:
        what = "groups"
        if not found.groups:
            what, found = "questions", split.leaks(questions, sides, examples=EXAMPLES)
    places = [{side: lines[i] for side, i in example.items()} for example in found.examples]
    texts = _questions(csv_path, fmt, {min(example.values()) for example in places})
    examples = tuple(Example(texts[min(example.values())], example) for example in places)
    return Shared(what, found.groups, found.test_rows, examples)


def write(stage_dir: Path, found: Shared, twins: near_duplicates.Near) -> None:
    """leaks.json and near_duplicates.json."""
    files.write_json(stage_dir / "leaks.json", asdict(found))
    files.write_json(stage_dir / "near_duplicates.json", {"summary": twins.describe(), **asdict(twins)})


@dataclass(frozen=True)
class Caveat:
    """What a user should know before believing a score, and the first places that show it."""

    text: str
    examples: tuple[str, ...]

    def __str__(self) -> str:
        return f"{self.text}:\n  " + "\n  ".join(self.examples)


def warnings(prepare_dir: Path) -> list[Caveat]:
    """From the files that `write` left; none for a run prepared by a version that had no such files."""
    if not files.is_there(prepare_dir / "near_duplicates.json"):
        return []
    found, twins = (files.read_json(prepare_dir / f"{name}.json") for name in ("leaks", "near_duplicates"))
    told = []
    if found["count"]:
        what = found["what"].removesuffix("s")
        text = (
            f"the split leaks: {counted(found['count'], f'{what} is', f'{what}s are')} on more than one side, and "
            f"{counted(found['test_rows'], 'test row is', 'test rows are')} also in train; scores will look better "
            "than they are"
        )
        told.append(Caveat(text, tuple(str(Example(**example)) for example in found["examples"])))
    if twins["pairs"]:
        text = f"{twins['summary']}; scores may look better than they are; all pairs: prepare/near_duplicates.json"
        told.append(Caveat(text, tuple(map(_pair_text, twins["pairs"][:EXAMPLES]))))
    return told


def _pair_text(pair: Mapping[str, Any]) -> str:
    answer = ", same answer" if pair["same_answer"] else ""
    lines = f"line {pair['row']} ({pair['side']}) and line {pair['train_row']} (train)"
    texts = f"{quoted(pair['question'], 60)} ~ {quoted(pair['train_question'], 60)}"
    return f"{lines}, {pair['similarity']:.0%} alike{answer}: {texts}"


def _questions(csv_path: Path, fmt: csv_file.CsvFormat, wanted: set[int]) -> dict[int, str]:
    """The beginnings of the questions in these lines; reads no further than it has to."""
    found: dict[int, str] = {}
    for row in csv_file.read(csv_path, fmt) if wanted else ():
        if row.line in wanted and isinstance(row, Row):
            found[row.line] = row.instruction[:_SHOWN]
            if len(found) == len(wanted):
                break
    return found
