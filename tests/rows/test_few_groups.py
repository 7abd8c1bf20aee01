"""How many different questions val and test hold, and what is said and advised if they are few."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from appliance.recipe.fields import DataSection
from appliance.rows import few_groups, survey


def table(tmp_path: Path, questions: list[str], **settings: Any) -> dict[str, tuple[str, str, str, str]]:
    """The findings of `check` about val and test: what -> found, needed, verdict, fix."""
    path = tmp_path / "rows.csv"
    lines = [f"{question},답 {i},{i % 7},{'train' if i % 2 else 'test' if i % 4 else 'val'}" for i, question in
             enumerate(questions)]  # fmt: skip
    path.write_text("\n".join(["instruction,output,shop,side", *lines, ""]), encoding="utf-8")
    seen = survey.of_csv(path, DataSection(csv=str(path), **settings), seed=1)
    return {one.what: (one.found, one.needed, one.verdict, one.fix) for one in survey.findings(seen)}


def test_rows_that_repeat_a_question_count_once(tmp_path: Path) -> None:
    """400 rows, of which 40 are for test: 30 would be enough, were they not ten questions only."""
    found = table(tmp_path, [f"질문 {i % 100}" for i in range(400)])["test rows"]
    assert found == (
        "40 rows, 10 different questions",
        "30 to show a difference",
        "warning",
        "too few to prove much: add rows with other questions, or raise data.test_fraction (now 0.1)",
    )
    enough = table(tmp_path, [f"질문 {i % 100}" for i in range(400)], test_fraction=0.3)
    assert enough["test rows"] == ("120 rows, 30 different questions", "30 to show a difference", "ok", "")
    assert "val rows" not in enough


def test_below_ten_questions_no_verdict_is_promised(tmp_path: Path) -> None:
    found = table(tmp_path, [f"질문 {i}" for i in range(95)], test_fraction=0.1, val_fraction=0.04)
    assert found["test rows"][:3] == ("10 rows, 10 different questions", "30 to show a difference", "warning")
    assert found["val rows"] == (
        "4 rows, 4 different questions",
        "5 to stop training by",
        "warning",
        "the val loss will say little about when to stop: add rows with other questions, or raise "
        "data.val_fraction (now 0.04)",
    )
    fewer = table(tmp_path, [f"질문 {i}" for i in range(90)])["test rows"]
    assert fewer[:2] == ("9 rows, 9 different questions", "10 for a verdict")
    assert fewer[3].startswith("the verdict will be `not proven`: add rows")


def test_a_fraction_is_not_advised_where_one_group_holds_nearly_all_rows(tmp_path: Path) -> None:
    found = table(tmp_path, ["같은 질문"] * 90 + [f"질문 {i}" for i in range(8)])
    assert found["test rows"] == (
        "4 rows, 4 different questions",
        "10 for a verdict",
        "warning",
        "the verdict will be `not proven`: add rows with other questions",
    )
    assert found["val rows"][0] == "4 rows, 4 different questions"
    assert found["val rows"][3].endswith("when to stop: add rows with other questions")


def test_groups_of_a_column_are_counted_and_named(tmp_path: Path) -> None:
    found = table(tmp_path, [f"질문 {i}" for i in range(200)], group_by="shop")["test rows"]
    assert found[0].endswith(" rows, 1 group of `shop`")
    assert found[3].endswith("or choose another column with data.group_by")


def test_sides_that_the_file_names_need_more_rows_there(tmp_path: Path) -> None:
    found = table(tmp_path, [f"질문 {i}" for i in range(16)], split="column")
    assert found["test rows"][0] == "4 rows, 4 different questions"
    assert found["test rows"][3].endswith("write test into the column `side` of more rows with other questions")
    assert found["val rows"][0] == "4 rows, 4 different questions"
    assert "fraction" not in found["test rows"][3] + found["val rows"][3]


def test_a_notebook_split_counts_questions_too(tmp_path: Path) -> None:
    found = table(tmp_path, [f"질문 {i % 3}" for i in range(200)], split="notebook")["test rows"]
    assert found[:2] == ("20 rows, 3 different questions", "10 for a verdict")


@pytest.mark.parametrize(
    ("val", "test", "said"),
    [(5, 10, []), (4, 10, ["val rows"]), (5, 9, ["test rows"]), (1, 1, ["test rows", "val rows"])],
)
def test_what_prepare_warns_of(val: int, test: int, said: list[str]) -> None:
    rows = {"train": 100, "val": 20, "test": 20}
    warnings = few_groups.warnings(rows, {"train": 30, "val": val, "test": test}, DataSection(csv="x"))  # type: ignore[arg-type]
    assert [warning.partition(":")[0] for warning in warnings] == said


def test_train_is_counted_only_as_far_as_it_matters() -> None:
    keys = [bytes([i]) * 16 for i in range(100)]
    assert few_groups.count(keys, {"train": range(100), "test": range(40), "val": [1, 1, 2]}) == {
        "train": 30, "test": 40, "val": 2,
    }  # fmt: skip


def test_answers_in_texts_are_counted_by_text() -> None:
    """However many questions are asked about a text, they are one group."""
    data = DataSection(csv="x", answers="in_input")
    (test,) = few_groups.findings({"test": 80, "val": 80}, {"train": 100, "test": 10, "val": 10}, data)
    assert test.found == "80 rows, 10 different texts"
    assert "add rows with other texts, or raise data.test_fraction" in test.fix
