"""When and on which val rows training is evaluated: arithmetic, whole groups, the same choice each time."""

from __future__ import annotations

import csv
from collections import Counter
from math import ceil
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from appliance.errors import RecipeError
from appliance.recipe import resolve
from appliance.recipe.fields import TrainSection
from appliance.training import validation

DEFAULT = resolve.load("default", environ={}).recipe.train


def share_by_hand(planned: validation.Schedule) -> float:
    """Each evaluation counted where the Trainer makes it: before step 1, at the multiples, at the end."""
    at = {0, planned.steps, *range(0, planned.steps, planned.eval_every)}
    evaluated = len(at) * planned.val_rows / 3
    return evaluated / (planned.trained_rows + evaluated)


@pytest.mark.parametrize(
    ("rows", "steps", "every", "val_rows"),
    [(500, 150, 20, 50), (2_000, 600, 55, 200), (20_000, 6_000, 300, 512), (500_000, 150_000, 7_500, 512)],
)
def test_evaluation_takes_at_most_15_percent_of_the_default_recipe(
    rows: int, steps: int, every: int, val_rows: int
) -> None:
    """The fault: at 20,000 rows, an evaluation every 20 steps on all val rows took 4 times what the training did."""
    assert (DEFAULT.epochs, DEFAULT.effective_batch_size, DEFAULT.eval_every) == (3, 8, "auto")
    planned = validation.schedule(DEFAULT, rows * 8 // 10, rows // 10)
    assert planned == validation.Schedule(steps, rows * 24 // 10, every, val_rows, rows // 10)
    assert planned.share == pytest.approx(share_by_hand(planned))
    assert planned.share <= 0.15
    assert 8 <= planned.evaluations <= 21
    assert validation.finding(planned, DEFAULT).verdict == "ok"

    as_it_was = DEFAULT.model_copy(update={"eval_every": 20, "val_rows": 1_000_000})
    before = validation.schedule(as_it_was, rows * 8 // 10, rows // 10)
    assert before.eval_every == 20
    assert before.share > planned.share or rows == 500


@given(
    st.integers(10, 100_000),
    st.floats(0.05, 0.5),
    st.sampled_from([{}, {"epochs": 1}, {"epochs": 0.3}, {"max_steps": 1}, {"max_steps": 100}, {"val_rows": 10_000}]),
    st.integers(1, 64),
)
def test_the_bound_holds_whatever_the_run(rows: int, fraction: float, changes: dict[str, Any], batch: int) -> None:
    train = TrainSection(micro_batch_size=batch, gradient_accumulation_steps=1, **changes)
    val_rows = max(1, int(rows * fraction))
    planned = validation.schedule(train, rows - val_rows, val_rows)
    # one row before and after a training of three rows is more, and no evaluation has less than a row
    assert planned.share <= 0.15 or (planned.trained_rows <= 3 and planned.val_rows == 1)
    assert planned.eval_every >= 20
    assert planned.evaluations <= 21
    assert 1 <= planned.val_rows <= min(val_rows, train.val_rows or val_rows)
    assert planned.eval_every < planned.steps or planned.steps < 40  # a long run is evaluated on its way


def test_a_short_run_evaluates_fewer_rows_rather_than_seldom() -> None:
    planned = validation.schedule(TrainSection(max_steps=100), 16_000, 2_000)
    assert (planned.eval_every, planned.evaluations, planned.val_rows) == (20, 6, 70)
    shorter_than_the_interval = validation.schedule(TrainSection(max_steps=4), 16_000, 2_000)
    assert (shorter_than_the_interval.evaluations, shorter_than_the_interval.val_rows) == (2, 8)
    assert "before the first step and after the last" in validation.finding(shorter_than_the_interval, DEFAULT).found


def test_named_figures_are_taken_as_they_are() -> None:
    train = TrainSection(eval_every=20, val_rows=1_500)
    planned = validation.schedule(train, 16_000, 2_000)
    assert (planned.eval_every, planned.val_rows, planned.evaluations) == (20, 1_500, 301)
    finding = validation.finding(planned, train)
    assert (finding.verdict, finding.needed) == ("warning", "at most 50%")
    assert finding.found == "75.8% of the training time: 301 times 1500 of 2000 val rows, every 20 steps"
    assert finding.fix == "set train.eval_every=auto, or a smaller train.val_rows"


def test_a_group_that_is_too_large_is_kept_whole_and_told() -> None:
    planned = validation.schedule(TrainSection(), 800, 3_000, used_val_rows=3_000)
    finding = validation.finding(planned, TrainSection())
    assert finding.verdict == "warning"
    assert "data.group_by" in finding.fix


def test_the_last_step_of_an_epoch_has_the_rows_that_are_left() -> None:
    train = TrainSection(epochs=2.5, micro_batch_size=4, gradient_accumulation_steps=1)
    planned = validation.schedule(train, 9, 1)
    assert (planned.steps, planned.trained_rows) == (ceil(2.5 * 3), 9 + 9 + 8)


@given(st.lists(st.integers(0, 30), min_size=1, max_size=200), st.integers(1, 120), st.integers(0, 3))
def test_groups_stay_whole(groups: list[int], most: int, seed: int) -> None:
    by_row = {row: f"{group}" for row, group in enumerate(groups, start=2)}
    taken = validation.whole_groups(by_row, most, seed)
    sizes = Counter(by_row.values())
    names = {by_row[row] for row in taken}
    assert taken == [row for row in by_row if by_row[row] in names]
    assert len(taken) <= max(most, min(sizes.values()))
    left = [size for name, size in sizes.items() if name not in names]
    assert all(len(taken) + size > most for size in left)  # as many as there is room for
    assert validation.whole_groups(dict(reversed(by_row.items())), most, seed) == taken  # whatever the order


def test_another_seed_draws_other_rows() -> None:
    groups = {row: f"{row:x}" for row in range(2, 2_000)}
    drawn = [set(validation.whole_groups(groups, 100, seed)) for seed in (1, 2)]
    assert len(drawn[0] & drawn[1]) < 30


def test_what_is_chosen_of_prepared_rows(tmp_path: Path) -> None:
    train = TrainSection(eval_every=20, val_rows=6)
    assert validation.chosen(train, 100, tmp_path) is None  # prepared before groups were written: all rows
    with (tmp_path / validation.GROUPS_FILE).open("w", encoding="utf-8", newline="") as handle:
        writer = csv.writer(handle, lineterminator="\n")
        writer.writerow(("row", "group"))
        writer.writerows((row, f"{row // 4:032x}") for row in range(8, 24))
    lines = validation.chosen(train, 100, tmp_path)
    assert lines is not None
    assert len(lines) == 4
    assert lines == list(range(lines[0], lines[0] + 4))
    for all_of_them in (16, None):
        assert validation.chosen(train.model_copy(update={"val_rows": all_of_them}), 100, tmp_path) is None
    prepared = {"train": 100, "val": 16}
    assert validation.schedule_of(train, prepared, tmp_path) == validation.schedule(train, 100, 16, used_val_rows=4)


@pytest.mark.parametrize("text", ["auto", "7"])
def test_both_kinds_of_interval_are_read(text: str) -> None:
    recipe = resolve.load("demo", overrides=[f"train.eval_every={text}"], environ={}).recipe
    assert str(recipe.train.eval_every) == text


@pytest.mark.parametrize("text", ["0", "often", "1.5"])
def test_any_other_interval_is_refused(text: str) -> None:
    with pytest.raises(RecipeError, match=r"train\.eval_every"):
        resolve.load("demo", overrides=[f"train.eval_every={text}"], environ={})
