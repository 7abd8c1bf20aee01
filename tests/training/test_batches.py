"""The order of the rows: each once, the same on a resume, of like length in a step; and the padded tensors."""

from __future__ import annotations

import itertools
import random
from collections.abc import Sequence

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from appliance.prompt.batch import IGNORED, collate
from appliance.training.row_order import EpochSampler, order

LENGTHS = st.lists(st.integers(1, 2000), min_size=0, max_size=300)


def _skewed(count: int = 2000) -> list[int]:
    """Token counts as question-answer CSVs have them: many short rows and a long tail."""
    generator = random.Random(0)
    return [min(2048, 20 + round(generator.lognormvariate(4, 0.8))) for _ in range(count)]


def _pad_share(lengths: Sequence[int], indexes: Sequence[int], rows: int) -> float:
    """Share of the tokens that are padding when each run of `rows` rows is padded to its longest."""
    parts = [[lengths[i] for i in indexes[start : start + rows]] for start in range(0, len(indexes), rows)]
    padded = sum(max(part) * len(part) for part in parts)
    return 1 - sum(lengths) / padded


@settings(max_examples=150, deadline=None)
@given(lengths=LENGTHS, rows=st.integers(1, 40), seed=st.integers(0, 2**63), epoch=st.integers(0, 50))
def test_every_row_exactly_once(lengths: list[int], rows: int, seed: int, epoch: int) -> None:
    indexes = order(lengths, rows_per_step=rows, seed=seed, epoch=epoch)
    assert sorted(indexes) == list(range(len(lengths)))
    assert all(type(i) is int for i in indexes)


def test_order_follows_from_seed_and_epoch_alone() -> None:
    lengths = _skewed(500)
    first = order(lengths, rows_per_step=8, seed=1, epoch=0)
    random.seed(5)
    torch.manual_seed(5)
    assert order(lengths, rows_per_step=8, seed=1, epoch=0) == first
    assert order(lengths, rows_per_step=8, seed=1, epoch=1) != first
    assert order(lengths, rows_per_step=8, seed=2, epoch=0) != first
    assert order(lengths, rows_per_step=8, seed=0, epoch=1) != first  # not their sum


def test_drawing_an_order_leaves_the_generators_of_dropout_alone() -> None:
    torch.manual_seed(3)
    wanted = torch.rand(1)
    torch.manual_seed(3)
    order(_skewed(100), rows_per_step=8, seed=1, epoch=0)
    assert torch.equal(torch.rand(1), wanted)


def test_an_epoch_brings_other_rows_together() -> None:
    """Sorting by length must not freeze which rows share a step."""
    lengths = _skewed(800)
    epochs = [order(lengths, rows_per_step=8, seed=1, epoch=epoch) for epoch in range(2)]
    steps = [{frozenset(indexes[i : i + 8]) for i in range(0, 800, 8)} for indexes in epochs]
    assert len(steps[0] & steps[1]) <= 2


def test_long_steps_do_not_come_in_a_row() -> None:
    """The steps of a pool are shuffled again: otherwise every pool would run from long to short."""
    lengths = _skewed(400)
    indexes = order(lengths, rows_per_step=8, seed=1, epoch=0)
    longest = [lengths[indexes[i]] for i in range(0, 400, 8)]
    assert longest != sorted(longest, reverse=True)
    falling = sum(a > b for a, b in itertools.pairwise(longest))
    assert 0.3 < falling / (len(longest) - 1) < 0.7


def test_rows_of_a_step_have_like_lengths() -> None:
    lengths = _skewed()
    shuffled = random.Random(1).sample(range(len(lengths)), len(lengths))
    assert _pad_share(lengths, shuffled, 8) > 0.20
    assert _pad_share(lengths, order(lengths, rows_per_step=8, seed=1, epoch=0), 8) < 0.05


def test_a_step_is_the_same_however_it_is_cut_and_micro_batches_fit_even_better() -> None:
    lengths = _skewed()
    indexes = order(lengths, rows_per_step=8, seed=1, epoch=0)
    for start in range(0, len(indexes), 8):
        step = [lengths[i] for i in indexes[start : start + 8]]
        assert step == sorted(step, reverse=True)
    assert _pad_share(lengths, indexes, 2) <= _pad_share(lengths, indexes, 8)


@pytest.mark.parametrize("count", [1, 7, 8, 9, 405])
def test_rows_that_fill_no_step_come_last_and_are_drawn_at_random(count: int) -> None:
    """The rest is drawn at random: were it the shortest rows, they would always share the small last step."""
    lengths = _skewed(count)
    rest = count % 8
    drawn = {tuple(sorted(order(lengths, rows_per_step=8, seed=1, epoch=e)[count - rest :])) for e in range(12)}
    assert all(len(indexes) == rest for indexes in drawn)
    assert len(drawn) > 1 or rest == 0 or count < 8


def test_sampler_gives_the_order_of_its_epoch() -> None:
    lengths = _skewed(50)
    sampler = EpochSampler(lengths, rows_per_step=8, seed=1)
    assert len(sampler) == 50
    assert list(sampler) == list(sampler) == order(lengths, rows_per_step=8, seed=1, epoch=0)
    sampler.set_epoch(3)
    assert list(sampler) == order(lengths, rows_per_step=8, seed=1, epoch=3)


def test_collate_pads_on_the_right() -> None:
    rows = [
        {"input_ids": [5, 6, 7], "labels": [IGNORED, 6, 7]},
        {"input_ids": [8], "labels": [8]},
    ]
    batch = collate(rows, pad_token_id=9)
    assert batch["input_ids"].tolist() == [[5, 6, 7], [8, 9, 9]]
    assert batch["labels"].tolist() == [[-100, 6, 7], [8, -100, -100]]
    assert batch["attention_mask"].tolist() == [[1, 1, 1], [1, 0, 0]]
    assert {tensor.dtype for tensor in batch.values()} == {torch.int64}


def test_a_pad_token_in_the_text_is_seen_and_trained() -> None:
    """The mask follows from the lengths: a row whose own token equals the pad token must not lose it."""
    batch = collate([{"input_ids": [2, 9, 3], "labels": [2, 9, 3]}, {"input_ids": [1], "labels": [1]}], pad_token_id=9)
    assert batch["attention_mask"][0].tolist() == [1, 1, 1]
    assert batch["labels"][0].tolist() == [2, 9, 3]
