"""The columns `system` and `history`: they become part of the question, as `dataset records` writes them."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest

from appliance.recipe.fields import Columns, DataSection
from appliance.rows import survey
from appliance.rows.csv_file import NO_TURNS, TOOLS, Rejected, Row, read

TURNS = "User: 안녕\n\nAssistant: 네\n\nUser: 가격은?"


def _read(
    folder: Path, *rows: tuple[str, ...], header: str = "system,history,instruction,output", **columns: str | None
) -> list[Row | Rejected]:
    path = folder / "rows.csv"
    with path.open("w", encoding="utf-8", newline="") as stream:
        csv.writer(stream).writerows([header.split(","), *rows])
    fmt = survey.csv_format(path, DataSection(csv=str(path), columns=Columns(**columns)))
    return list(read(path, fmt))


def _questions(*arguments: tuple[str, ...] | Path, **columns: str | None) -> list[str]:
    return [row.instruction if isinstance(row, Row) else row.reason for row in _read(*arguments, **columns)]  # type: ignore[arg-type]


HISTORIES = [
    json.dumps([["안녕", "네"]]),
    json.dumps([["안녕", "네"]], ensure_ascii=False),
    "[('안녕', '네')]",
    json.dumps([{"role": "user", "content": "안녕"}, {"role": "assistant", "content": "네"}]),
    json.dumps([{"from": "human", "value": "안녕"}, {"from": "gpt", "value": "네"}]),
]


@pytest.mark.parametrize("history", HISTORIES)
def test_they_stand_before_the_question(tmp_path: Path, history: str) -> None:
    assert _questions(tmp_path, ("짧게.", history, "가격은?", "만원")) == [f"짧게.\n\n{TURNS}"]
    assert _questions(tmp_path, ("", history, "가격은?", "만원"), (" ", "[]", "가격은?", "만원")) == [TURNS, "가격은?"]


@pytest.mark.parametrize(
    "history", ["founded in 1950", "{}", "[1]", '[["a"]]', '[["a", 1]]', '[{"role": "tool"}]', "[" * 9999]
)
def test_a_history_that_cannot_be_used_is_a_bad_row(tmp_path: Path, history: str) -> None:
    rows = _read(tmp_path, ("", history, "가격은?", "만원"))
    assert rows == [Rejected(2, f"column 'history': {NO_TURNS}")]
    assert _questions(tmp_path, ("", history, "가격은?", "만원"), history=None) == ["가격은?"]


def test_which_column_it_is(tmp_path: Path) -> None:
    row = ("짧게.", "길게.", "가격은?", "만원")
    header = "System,시스템,instruction,output"
    assert _questions(tmp_path, row, header=header) == ["짧게.\n\n가격은?"]
    assert _questions(tmp_path, row, header=header, system="시스템") == ["길게.\n\n가격은?"]
    assert _questions(tmp_path, row, header=header, system=None) == ["가격은?"]
    assert _questions(tmp_path, ("질문", "답"), header="system,output", instruction="system") == ["질문"]
    assert _questions(tmp_path, ("", "", "", "답")) == ["column 'instruction': the instruction is empty"]


@pytest.mark.parametrize("name", ["tools", "functions"])
def test_a_row_that_calls_tools_is_a_bad_row(tmp_path: Path, name: str) -> None:
    rows = [("가격은?", "만원", cell) for cell in ("", "[]", "null", '[{"name": "search"}]')]
    read_as = _questions(tmp_path, *rows, header=f"instruction,output,{name}")
    assert read_as == [*["가격은?"] * 3, f"column '{name}': {TOOLS}"]
    assert _questions(tmp_path, *rows, header=f"instruction,output,{name}", tools=None) == ["가격은?"] * 4
