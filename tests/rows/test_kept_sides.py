"""A question that an earlier run knows stays on its side; the others are split as ever."""

from __future__ import annotations

import pytest

from appliance.errors import DataError
from appliance.recipe.fields import DataSection
from appliance.rows import kept_sides
from appliance.rows.csv_file import Row
from appliance.rows.kept_sides import KeptSides
from appliance.rows.split import Keys, Side, question_key

DATA = DataSection(csv="more.csv", test_fraction=0.2, val_fraction=0.2)


def key(question: str, group: str | None = None) -> bytes:
    return question_key(Row(2, question, "", "a", group))


def keys(*found: bytes) -> Keys:
    made = Keys()
    for one in found:
        made.append(one)
    return made


KNOWN: dict[bytes, Side] = {key("t"): "test", key("v"): "val", key("r"): "train"}
EARLIER = KeptSides("shop", KNOWN)


def test_a_question_stays_on_its_side_and_one_that_tests_is_left_out() -> None:
    placed = kept_sides.place(keys(*map(key, "nrvtT")), (), (), 5, EARLIER)
    assert placed.sides == [None, "train", "val", None, None]
    assert placed.left_out == dict.fromkeys((3, 4), "asks what a test row of the run shop asks, which stays a test row")


def test_a_group_that_tests_keeps_testing_with_other_questions() -> None:
    known = KeptSides("shop", {**KNOWN, key("", "kim"): "test", key("", "lee"): "train"})
    groups = ["kim", "kim", "lee", "park", "park"]
    questions = ["n", "r", "m", "o", "r"]
    of_groups = [key(question, group) for question, group in zip(questions, groups, strict=True)]
    placed = kept_sides.place(keys(*of_groups), keys(*map(key, questions)), (), 5, known)
    assert placed.sides == ["test", None, "train", "train", "train"]  # park asks what was trained on
    assert placed.left_out == {1: "its group tests the run shop, which was trained on its question"}


def test_a_named_side_that_contradicts_the_earlier_one_is_left_out() -> None:
    named: list[Side] = ["test", "val", "train", "test", "train"]
    placed = kept_sides.place(keys(*map(key, "rrrvv")), (), named, 5, EARLIER)
    assert placed.sides == [None, None, "train", None, "val"]
    assert placed.left_out == {
        0: "is to be test, but its question or group is a train row of the run shop",
        1: "is to be val, but its question or group is a train row of the run shop",
        3: "is to be test, but its question or group is a val row of the run shop",
    }


def test_what_is_free_is_split_by_the_fractions() -> None:
    questions = [str(i) for i in range(20)]
    sides: list[Side | None] = ["train"] * 5 + [None] * 15
    order = kept_sides.order(keys(*map(key, questions)), sides, DATA, seed=1)
    assert {side: len(rows) for side, rows in order.items()} == {"train": 14, "val": 3, "test": 3}
    assert order["train"][:5] == [0, 1, 2, 3, 4]


def test_too_few_free_questions_are_trained_on_if_the_earlier_run_supplies_the_rest() -> None:
    few = keys(key("a"), key("b"))
    with pytest.raises(DataError, match="no usable row is val or test: too few rows ask what") as caught:
        kept_sides.order(few, [None, None], DATA, seed=1)
    assert "data.replay_fraction=0.1" in str(caught.value.hint)
    with_taken = keys(key("a"), key("b"), key("t"), key("v"))
    sides = kept_sides.place(with_taken, (), (), 2, EARLIER).sides
    assert sides == [None, None, "test", "val"]
    assert kept_sides.order(with_taken, sides, DATA, seed=1) == {"train": [0, 1], "val": [3], "test": [2]}
