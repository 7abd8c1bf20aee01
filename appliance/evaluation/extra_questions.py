"""Questions asked of the base and the tuned model but not scored: the user's own, and some that training saw.

Owns extra_answers.csv, which shows both answers side by side. Knows rows and texts; must not know models or the recipe.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from appliance.errors import DataError
from appliance.process import files
from appliance.rows import charset, csv_file
from appliance.rundir import results

USERS, TRAIN = "extra", "train"
_SETTING, _EXPECTED = "evaluate.extra_prompts", "text with one question per line"


@dataclass(frozen=True)
class Question:
    """`row` and `wanted` are empty for the user's own questions, which are not in the CSV."""

    origin: str
    row: str
    instruction: str
    input: str
    wanted: str

    @property
    def text(self) -> str:
        return shown(self.instruction, self.input)


def shown(instruction: str, input_text: str) -> str:
    """A question with its input, as it appears in predictions.csv."""
    return instruction + (f"\n\n{input_text}" if input_text else "")


def refuse_unreadable(extra_prompts: str | Sequence[str]) -> None:
    """Raises DataError for the same reasons as `collect`, for the user's questions; called before training."""
    if isinstance(extra_prompts, str):
        _lines(Path(extra_prompts))


def collect(extra: str | Sequence[str], train_csv: Path, from_train: int, seed: int) -> list[Question]:
    """The user's questions, then `from_train` rows of the train side, sampled with `seed`, in the file's order.

    Raises DataError: the question file is missing, is not text, has a byte in another encoding, or has no question.
    """
    own = [Question(USERS, "", text, "", "") for text in (_lines(Path(extra)) if isinstance(extra, str) else extra)]
    if not from_train:
        return own
    rows = csv_file.read_canonical(train_csv)
    drawn = sorted(random.Random(seed).sample(range(len(rows)), min(from_train, len(rows))))
    chosen = [rows[i] for i in drawn]
    return own + [Question(TRAIN, str(row.line), row.instruction, row.input, row.output) for row in chosen]


def write(path: Path, questions: Sequence[Question], base: Sequence[str], tuned: Sequence[str]) -> None:
    """Write one row per question, in the order asked."""
    with files.atomic_file(path) as temporary, csv_file.csv_writer(temporary, results.EXTRA_COLUMNS) as add:
        for one, before, after in zip(questions, base, tuned, strict=True):
            add((one.origin, one.row, one.text, one.wanted, before, after))


def _lines(path: Path) -> list[str]:
    """The questions of a text file, in any encoding that a CSV may have; blank lines are skipped."""
    if not path.exists():
        raise DataError(
            f"{_SETTING}: there is no file {path}",
            hint=f"name a text file with one question per line, or give a list: {_SETTING}='[\"question\"]'",
        )
    codec = charset.detect(path, setting=_SETTING, expected=_EXPECTED).codec
    found = []
    with charset.open_lines(path, codec) as lines:
        for number, line in enumerate(lines, 1):
            if wrong := charset.wrong_byte(line, codec):
                raise DataError(f"{path}, line {number}: {wrong}", hint="fix that line, or save the file as UTF-8")
            if text := line.strip("\ufeff \t\r\n\v\f\u00a0\u3000"):
                found.append(text)
    if not found:
        raise DataError(f"{path} contains no questions", hint="write one question per line")
    return found
