"""The split: equal questions never part, totals are exact, the order of the rows plays no part."""

from __future__ import annotations

import doctest
import random
from collections import Counter, defaultdict

import pytest
from hypothesis import given
from hypothesis import strategies as st

from appliance import split
from appliance.errors import DataError
from appliance.split import Keys, Side, notebook_split, question_key, question_split, shared_questions
from appliance.table import Row

# --- which rows belong together


@pytest.mark.parametrize(
    ("left", "right", "same"),
    [
        (Row(2, "가격은?", "", "a"), Row(3, " 가격은?\n", "", "b"), True),
        (Row(2, "Ｈello  World", "", "a"), Row(3, "hello world", " ", "a"), True),
        (Row(2, "Straße", "", "a"), Row(3, "STRASSE", "", "a"), True),
        (Row(2, "각", "", "a"), Row(3, "각", "", "a"), True),
        (Row(2, "ab", "c", "a"), Row(3, "a", "bc", "a"), False),
        (Row(2, "a b", "", "a"), Row(3, "a", "b", "a"), False),
        (Row(2, "a", "", "a"), Row(3, "b", "", "a"), False),
        (Row(2, "a", "", "a", "kim"), Row(3, "b", "", "a", "Kim "), True),
        (Row(2, "a", "", "a", "kim"), Row(3, "a", "", "a", "lee"), False),
        (Row(2, "kim", "", "a"), Row(3, "a", "", "a", "kim"), False),
    ],
)
def test_question_key(left: Row, right: Row, same: bool) -> None:
    assert len(question_key(left)) == 16
    assert (question_key(left) == question_key(right)) is same


def test_keys_is_a_list_of_16_bytes_each() -> None:
    plain = [bytes([i]) * 16 for i in range(5)]
    keys = Keys()
    for key in plain:
        keys.append(key)
    assert (len(keys), list(keys), keys[-1], keys[2]) == (5, plain, plain[-1], plain[2])
    assert question_split(keys, test_fraction=0.2, val_fraction=0.2, seed=1) == question_split(
        plain, test_fraction=0.2, val_fraction=0.2, seed=1
    )
    with pytest.raises(IndexError):
        keys[5]


# --- split

numbers = st.lists(st.integers(0, 40), min_size=3, max_size=120)
fractions = st.sampled_from([0.05, 0.1, 0.2, 0.33])


def _keys(groups: list[int]) -> list[bytes]:
    return [number.to_bytes(16, "big") for number in groups]


@given(numbers.filter(lambda groups: len(set(groups)) >= 3), fractions, fractions, st.integers(0, 9))
def test_no_group_is_on_two_sides_and_no_side_is_empty(groups: list[int], test: float, val: float, seed: int) -> None:
    sides = question_split(_keys(groups), test_fraction=test, val_fraction=val, seed=seed)
    assert len(sides) == len(groups)
    assert set(sides) == {"train", "val", "test"}
    where = defaultdict(set)
    for group, side in zip(groups, sides, strict=True):
        where[group].add(side)
    assert all(len(seen) == 1 for seen in where.values())
    assert shared_questions(_keys(groups), sides) == 0


@given(numbers.filter(lambda groups: len(set(groups)) >= 3), st.randoms(use_true_random=False))
def test_the_order_of_rows_plays_no_part(groups: list[int], generator: random.Random) -> None:
    options = {"test_fraction": 0.2, "val_fraction": 0.1, "seed": 7}
    side_of = dict(zip(groups, question_split(_keys(groups), **options), strict=True))  # type: ignore[arg-type]
    shuffled = generator.sample(groups, len(groups))
    assert question_split(_keys(shuffled), **options) == [side_of[group] for group in shuffled]  # type: ignore[arg-type]


@given(st.integers(10, 300), fractions, fractions, st.integers(0, 99))
def test_fractions_of_all_rows_are_hit_when_questions_differ(rows: int, test: float, val: float, seed: int) -> None:
    counts = Counter(question_split(_keys(list(range(rows))), test_fraction=test, val_fraction=val, seed=seed))
    wanted_test, wanted_val = max(1, round(rows * test)), max(1, round(rows * val))
    assert counts == {"test": wanted_test, "val": wanted_val, "train": rows - wanted_test - wanted_val}


@given(st.integers(10, 200), st.integers(0, 99))
def test_added_rows_move_only_rows_at_the_cuts(rows: int, seed: int) -> None:
    before = question_split(_keys(list(range(rows))), test_fraction=0.1, val_fraction=0.1, seed=seed)
    after = question_split(_keys(list(range(rows + 1))), test_fraction=0.1, val_fraction=0.1, seed=seed)
    assert sum(old != new for old, new in zip(before, after, strict=False)) <= 3


@given(numbers.filter(lambda groups: len(set(groups)) >= 10))
def test_a_side_exceeds_its_share_only_where_one_group_does(groups: list[int]) -> None:
    counts = Counter(question_split(_keys(groups), test_fraction=0.2, val_fraction=0.2, seed=0))
    bound = max(round(len(groups) * 0.2), *Counter(groups).values())
    assert counts["test"] <= bound
    assert counts["val"] <= bound


def test_seeds_give_other_splits_and_one_seed_the_same() -> None:
    keys = _keys(list(range(100)))
    first = question_split(keys, test_fraction=0.1, val_fraction=0.1, seed=1)
    assert first == question_split(keys, test_fraction=0.1, val_fraction=0.1, seed=1)
    assert first != question_split(keys, test_fraction=0.1, val_fraction=0.1, seed=2)


def test_the_split_of_today_is_the_split_of_tomorrow() -> None:
    """Fails when the order of groups changes: then every finished run would be split anew."""
    sides = question_split(_keys(list(range(12))), test_fraction=0.25, val_fraction=0.25, seed=123)
    assert "".join(side[1] for side in sides) == "rreaerrarrae"


@pytest.mark.parametrize("sizes", [(50, 1, 1), (10, 10, 10), (1, 1, 1), (1, 2, 97), (30, 30, 30, 30)])
def test_three_groups_are_enough_however_large(sizes: tuple[int, ...]) -> None:
    keys = _keys([group for group, size in enumerate(sizes) for _ in range(size)])
    for seed in range(20):
        sides = question_split(keys, test_fraction=0.1, val_fraction=0.1, seed=seed)
        assert set(sides) == {"train", "val", "test"}
        if 50 in sizes or 97 in sizes:
            assert Counter(sides)["train"] >= 50


@pytest.mark.parametrize("groups", [[], [1], [1, 1, 1, 1], [1, 2, 2]])
def test_fewer_than_three_groups_are_refused(groups: list[int]) -> None:
    with pytest.raises(DataError, match=rf"{len(groups)} rows with {len(set(groups))} different.*3 in all") as caught:
        question_split(_keys(groups), test_fraction=0.1, val_fraction=0.1, seed=0)
    assert "add rows" in caught.value.hint


# --- the notebook's split


@pytest.mark.parametrize("count", [10, 33, 257])
def test_notebook_split_is_that_of_a_data_frame(count: int) -> None:
    import pandas as pd
    from sklearn.model_selection import train_test_split

    frame = pd.DataFrame({"Q": [f"q{i}" for i in range(count)]})
    rest, test = train_test_split(frame, test_size=0.1, random_state=42)
    train, val = train_test_split(rest, test_size=0.2, random_state=123)
    sides = notebook_split(count, test_fraction=0.1, val_fraction=0.2, seed=123)
    for side, part in (("train", train), ("val", val), ("test", test)):
        assert [f"q{i}" for i in sides[side]] == part["Q"].tolist()


def test_notebook_split_of_too_few_rows() -> None:
    for count in (0, 1, 2):
        with pytest.raises(DataError, match=f"{count} rows are too few"):
            notebook_split(count, test_fraction=0.1, val_fraction=0.1, seed=0)


def test_shared_questions_counts_groups_not_rows() -> None:
    keys = _keys([1, 1, 1, 2, 2, 3, 4])
    sides: list[Side] = ["train", "test", "val", "train", "train", "val", "test"]
    assert shared_questions(keys, sides) == 1
    assert shared_questions(keys, ["train", "test", "val", "train", "test", "val", "test"]) == 2
    assert shared_questions([], []) == 0


def test_doctest_of_the_module() -> None:
    assert doctest.testmod(split) == doctest.TestResults(failed=0, attempted=1)
