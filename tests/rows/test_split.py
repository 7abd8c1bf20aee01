"""The split: equal questions never part, totals are exact, the order of the rows plays no part."""

from __future__ import annotations

import doctest
import random
import sys
import unicodedata
from collections import Counter, defaultdict

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from appliance.errors import DataError
from appliance.rows import split
from appliance.rows.csv_file import Row
from appliance.rows.split import Keys, Leaks, Side, column_split, leaks, notebook_split, question_key, question_split
from appliance.wording import counted
from datasets_src.generators import replies

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
        (Row(2, "가\u200b격은\ufeff?", "", "a"), Row(3, "\ufeff가격은?", "", "b"), True),  # zero-width space, BOM
        (Row(2, "re\u00adfund", "", "a"), Row(3, "refund", "\u2060", "b"), True),  # soft hyphen, word joiner
        (
            Row(2, "👨\u200d👩\u200d👧 ❤\ufe0f", "", "a"),
            Row(3, "👨👩👧 ❤", "", "b"),
            True,
        ),  # joiners, variation selector
        (Row(2, "می\u200cخواهم", "", "a"), Row(3, "میخواهم", "", "b"), True),  # the Persian non-joiner
        (Row(2, "葛\U000e0100", "", "a"), Row(3, "葛", "", "b"), True),  # an ideographic variant
        (Row(2, "\u3164질문", "", "a"), Row(3, "질문\u202e", "", "b"), True),  # Hangul filler, right-to-left override
        (Row(2, "a\u200bb", "", "a"), Row(3, "a b", "", "b"), False),
        (Row(2, "👨👩", "", "a"), Row(3, "👨👧", "", "b"), False),
    ],
)
def test_question_key(left: Row, right: Row, same: bool) -> None:
    assert len(question_key(left)) == 16
    assert (question_key(left) == question_key(right)) is same


def test_every_format_character_and_variation_selector_is_ignored() -> None:
    unseen = [chr(code) for code in range(sys.maxunicode + 1) if unicodedata.category(chr(code)) == "Cf"]
    unseen += [unicodedata.lookup(f"VARIATION SELECTOR-{number}") for number in range(1, 257)]
    assert [f"U+{ord(one):04X}" for one in unseen if split.folded(f"가{one}격") != "가격"] == []
    assert [f"U+{ord(one):04X}" for one in unseen if replies.folded(f"가{one}격") != "가격"] == []
    kept = [chr(code) for code in range(0xD800) if unicodedata.category(chr(code))[0] in "LN" and code not in FILLERS]
    assert [f"U+{ord(one):04X}" for one in kept if split.folded(f"x{one}x") == "xx"] == []


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
    assert list(keys.at([3, 0, 3])) == [plain[3], plain[0], plain[3]]


# --- split

FILLERS = {0x115F, 0x1160, 0x3164}  # Hangul letters without a shape

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
    assert leaks(_keys(groups), sides) == Leaks(0, 0, ())


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


@given(
    st.lists(st.integers(1, 3), min_size=120, max_size=200),
    st.lists(st.tuples(st.booleans(), st.integers(0, 119)), min_size=1, max_size=4),
    st.integers(0, 99),
)
def test_added_rows_move_few_rows_of_groups_too(sizes: list[int], added: list[tuple[bool, int]], seed: int) -> None:
    """Rows that repeat a question, or ask new ones. A split drawn anew would move a third of the 250 rows."""
    rows = [group for group, size in enumerate(sizes) for _ in range(size)]
    more = [1000 + number if is_new else number for is_new, number in added]
    before = question_split(_keys(rows), test_fraction=0.1, val_fraction=0.1, seed=seed)
    after = question_split(_keys(rows + more), test_fraction=0.1, val_fraction=0.1, seed=seed)
    largest = max(Counter(rows + more).values())
    assert sum(old != new for old, new in zip(before, after, strict=False)) <= 3 * (largest + len(more))


@given(st.lists(st.integers(0, 40), max_size=60), fractions, fractions, st.integers(0, 9))
def test_test_is_full_no_group_left_outside_would_still_fit(
    repeated: list[int], test: float, val: float, seed: int
) -> None:
    groups = [*range(41), *repeated]  # so many that none has to be taken from test for an empty side
    most = max(max(1, round(len(groups) * fraction)) for fraction in (test, val))
    assume(max(Counter(groups).values()) <= most)  # larger ones may leave test and val less: see below
    sides = question_split(_keys(groups), test_fraction=test, val_fraction=val, seed=seed)
    sizes, room = Counter(groups), max(1, round(len(groups) * test)) - Counter(sides)["test"]
    outside = {group for group, side in zip(groups, sides, strict=True) if side != "test"}
    assert min(sizes[group] for group in outside) > room >= 0


@given(numbers.filter(lambda groups: len(set(groups)) >= 10))
def test_a_side_exceeds_its_share_only_where_one_group_does(groups: list[int]) -> None:
    counts = Counter(question_split(_keys(groups), test_fraction=0.2, val_fraction=0.2, seed=0))
    bound = max(round(len(groups) * 0.2), *Counter(groups).values())
    assert counts["test"] <= bound
    assert counts["val"] <= bound


@pytest.mark.parametrize(
    ("sizes", "test", "val", "wanted"),
    [
        ([90, *[1] * 10], 0.1, 0.1, (5, 5)),
        ([45, 45, *[1] * 10], 0.1, 0.1, (5, 5)),
        ([85, *[1] * 15], 0.1, 0.1, (8, 7)),
        ([88, *[1] * 12], 0.2, 0.1, (8, 4)),
        ([95, *[1] * 5], 0.1, 0.1, (2, 3)),
        ([80, *[1] * 20], 0.1, 0.1, (10, 10)),  # just enough for both
        ([50, *[1] * 50], 0.1, 0.1, (10, 10)),
        ([97, 1, 2], 0.1, 0.1, None),
    ],
)
def test_what_a_large_group_leaves_is_shared_by_test_and_val(
    sizes: list[int], test: float, val: float, wanted: tuple[int, int] | None
) -> None:
    keys = _keys([group for group, size in enumerate(sizes) for _ in range(size)])
    for seed in range(10):
        counts = Counter(question_split(keys, test_fraction=test, val_fraction=val, seed=seed))
        assert wanted is None or (counts["test"], counts["val"]) == wanted
        assert min(counts["test"], counts["val"]) >= 1
        assert counts["train"] >= max(sizes)


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
    said = rf"{counted(len(groups), 'row')} with {len(set(groups))} different.*3 in all"
    with pytest.raises(DataError, match=said) as caught:
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


@given(st.integers(3, 3000), st.sampled_from([0.1, 0.2, 0.5]), st.integers(0, 2**32 - 1))
@settings(max_examples=40, deadline=None)
def test_the_notebook_split_is_scikit_learns_row_for_row(rows: int, val: float, seed: int) -> None:
    from sklearn.model_selection import train_test_split

    rest, test = train_test_split(list(range(rows)), test_size=0.1, random_state=42)
    assume(rest[1:])
    sides = notebook_split(rows, test_fraction=0.1, val_fraction=val, seed=seed)
    assert sides["test"] == test
    assert [sides["train"], sides["val"]] == train_test_split(rest, test_size=val, random_state=seed)
    assert sorted(sides["train"] + sides["val"] + sides["test"]) == list(range(rows))


@pytest.mark.parametrize(
    ("test", "val", "needed"), [(0.1, 0.1, 3), (0.4, 0.1, 4), (0.5, 0.5, 4), (0.5, 0.6, 6), (0.9, 0.1, 20)]
)
def test_too_few_rows_for_the_notebook_split_say_how_many_it_needs(test: float, val: float, needed: int) -> None:
    for rows in range(needed):
        said = rf"^{counted(rows, 'row is', 'rows are')} too few .* needs {needed} with .*={test}"
        with pytest.raises(DataError, match=said) as caught:
            notebook_split(rows, test_fraction=test, val_fraction=val, seed=0)
        assert caught.value.hint == f"add rows, at least {needed - rows}"
    sides = notebook_split(needed, test_fraction=test, val_fraction=val, seed=0)
    assert all(sides.values())


# --- the sides that the file names


@given(st.lists(st.sampled_from(["train", "val", "test"]), max_size=60))
def test_named_sides_are_kept_in_the_files_order(named: list[Side]) -> None:
    missing = {"train", "val", "test"} - set(named)
    if missing:
        with pytest.raises(DataError, match=rf"no usable row is .*{len(missing)} more in all") as caught:
            column_split(named)
        assert all(side in str(caught.value).partition(";")[0] for side in missing)
        return
    order = column_split(named)
    assert {i: side for side, rows in order.items() for i in rows} == dict(enumerate(named))
    assert all(rows == sorted(rows) for rows in order.values())


# --- leaks


def test_leaks_counts_groups_and_the_test_rows_that_train_gives_away() -> None:
    keys = _keys([1, 1, 1, 2, 2, 3, 4])
    sides: list[Side] = ["val", "test", "train", "train", "train", "val", "test"]
    assert leaks(keys, sides) == Leaks(1, 1, ({"train": 2, "val": 0, "test": 1},))
    sides = ["train", "test", "test", "val", "test", "val", "test"]
    assert leaks(keys, sides) == Leaks(2, 2, ({"train": 0, "test": 1}, {"val": 3, "test": 4}))
    assert leaks([], []) == Leaks(0, 0, ())


@given(st.lists(st.tuples(st.integers(0, 9), st.sampled_from(["train", "val", "test"])), max_size=60))
def test_leaks_are_what_counting_says(rows: list[tuple[int, Side]]) -> None:
    where = defaultdict(dict[Side, int])
    for i, (group, side) in enumerate(rows):
        where[group].setdefault(side, i)
    torn = sorted((found for found in where.values() if len(found) > 1), key=lambda found: min(found.values()))
    given_away = sum(side == "test" and "train" in where[group] for group, side in rows)
    found = leaks(_keys([group for group, _ in rows]), [side for _, side in rows], examples=3)
    assert found == Leaks(len(torn), given_away, tuple(torn[:3]))


def test_doctest_of_the_module() -> None:
    assert doctest.testmod(split) == doctest.TestResults(failed=0, attempted=1)
