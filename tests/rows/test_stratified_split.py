"""The split by class: equal questions never part, and every class that can be is on every side."""

from __future__ import annotations

import random
from collections import Counter, defaultdict

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from appliance.errors import DataError
from appliance.rows.split import stratified_split

ROWS = st.lists(st.tuples(st.integers(0, 40), st.sampled_from("abcd")), min_size=3, max_size=150)


def split(rows: list[tuple[int, str]], test: float = 0.1, val: float = 0.1, seed: int = 1) -> list[str]:
    keys = [number.to_bytes(16, "big") for number, _ in rows]
    labels = [label for _, label in rows]
    return list(stratified_split(keys, labels, test_fraction=test, val_fraction=val, seed=seed))


def groups_by_class(rows: list[tuple[int, str]]) -> dict[str, set[int]]:
    """A group is of the class of its first row."""
    first: dict[int, str] = {}
    for number, label in rows:
        first.setdefault(number, label)
    found = defaultdict(set)
    for number, label in first.items():
        found[label].add(number)
    return found


@settings(deadline=None)
@given(ROWS, st.floats(0.05, 0.4), st.floats(0.05, 0.4), st.integers(0, 9))
def test_no_question_is_on_two_sides_and_each_class_is_where_it_can_be(
    rows: list[tuple[int, str]], test: float, val: float, seed: int
) -> None:
    by_class = groups_by_class(rows)
    if not any(len(groups) >= 3 for groups in by_class.values()):
        with pytest.raises(DataError):
            split(rows, test, val, seed)
        return
    side_of: dict[int, set[str]] = defaultdict(set)
    for (number, _), side in zip(rows, split(rows, test, val, seed), strict=True):
        side_of[number].add(side)
    assert all(len(sides) == 1 for sides in side_of.values())
    for groups in by_class.values():
        sides = set().union(*(side_of[group] for group in groups))
        expected = {1: {"train"}, 2: {"train", "test"}}.get(len(groups), {"train", "val", "test"})
        assert sides == expected


def test_each_side_holds_the_classes_in_the_files_proportions() -> None:
    rows = [(i, "rare" if i % 20 == 0 else "common") for i in range(1000)]
    sides = split(rows)
    counts = Counter((side, label) for side, (_, label) in zip(sides, rows, strict=True))
    assert counts == {
        ("train", "common"): 760,
        ("val", "common"): 95,
        ("test", "common"): 95,
        ("train", "rare"): 40,
        ("val", "rare"): 5,
        ("test", "rare"): 5,
    }


def test_the_order_of_rows_plays_no_part_if_no_question_has_two_classes() -> None:
    rows = [(i % 70, "abc"[i % 70 % 3]) for i in range(200)]
    shuffled = random.Random(3).sample(rows, len(rows))
    assert dict(zip(rows, split(rows), strict=True)) == dict(zip(shuffled, split(shuffled), strict=True))


@pytest.mark.parametrize(
    ("rows", "seen"),
    [
        ([(1, "a"), (2, "b")], "2 rows with 2 different questions"),
        ([(1, "a"), (2, "a"), (3, "b"), (4, "b")], "2 classes, the largest with 2 different questions"),
        ([(1, "a"), (2, "b"), (3, "c")], "3 classes, the largest with 1 different question"),
    ],
)
def test_too_few_of_every_class_is_refused_with_what_was_seen(rows: list[tuple[int, str]], seen: str) -> None:
    with pytest.raises(DataError, match=seen) as error:
        split(rows)
    assert error.value.hint
