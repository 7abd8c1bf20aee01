"""One thing is named in the singular, wherever a message counts."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

import appliance
from appliance.wording import counted

PACKAGE = Path(appliance.__file__).parent
# What messages count: behind a number in an f-string, these go through `counted`.
_KINDS = "test|train|val|different|usable|bad|other|more|long|trained"
PLURALS = re.compile(rf" (?:(?:{_KINDS}) )*(?:rows|files|questions|findings|steps|replies|tensors)\b(?!/)")
# No count, or one that is behind another and may be 1 ("of the 1 rows" of a test side reads as one of several).
ALLOWED = {
    ("evaluation/compare_runs.py", "len(run.rows)"),  # two numbers before the word
    ("evaluation/scores.py", "len(wanted)"),  # of a bug, not of a user
    ("release/card_scores.py", "metrics['rows']"),  # of the N rows
    ("rows/near_duplicates.py", "found['val']"),  # "1 of 40"
    ("rows/near_duplicates.py", "self._share('train')"),  # sampled: hundreds
    ("rows/near_duplicates.py", "self.given_up"),
    ("training/validation.py", "steps"),  # over 1
    ("evaluation/interval.py", "self.groups"),  # not 1
}


@pytest.mark.parametrize(
    ("number", "words", "shown"),
    [
        (1, ("row",), "1 row"),
        (0, ("row",), "0 rows"),
        (2, ("row",), "2 rows"),
        (1, ("reply is", "replies are"), "1 reply is"),
        (3, ("reply is", "replies are"), "3 replies are"),
    ],
)
def test_a_number_of_things(number: int, words: tuple[str, ...], shown: str) -> None:
    assert counted(number, *words) == shown


def numbers_before_plurals(path: Path) -> Iterator[tuple[str, str]]:
    """(file below the package, expression) of each value in an f-string that one of PLURALS follows."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.JoinedStr):
            for value, text in zip(node.values, node.values[1:], strict=False):
                if isinstance(value, ast.FormattedValue) and isinstance(text, ast.Constant):
                    shown = ast.unparse(value.value)
                    if PLURALS.match(str(text.value)) and not shown.startswith("counted("):
                        yield path.relative_to(PACKAGE).as_posix(), shown


def test_no_message_counts_one_of_them_in_the_plural() -> None:
    found = {one for path in PACKAGE.rglob("*.py") for one in numbers_before_plurals(path)}
    assert found - ALLOWED == set(), "write them by appliance.wording.counted"
    assert ALLOWED - found == set(), "no longer there"
