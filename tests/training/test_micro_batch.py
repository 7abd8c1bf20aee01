"""`train.micro_batch_size: auto`: what is chosen, tried, printed and kept; and that the training is the same."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest

from appliance.engines import memory, rows_by_memory
from appliance.machine import gpu_memory
from appliance.machine.device import Device
from appliance.process import files
from appliance.recipe.fields import TrainSection
from appliance.rundir import results
from appliance.training import micro_batch, trainer
from appliance.training.micro_batch import BatchSize
from tests.whole_runs.test_resume import Killed, Shop, adapter, die_at, losses
from tests.whole_runs.test_resume import shop as _shop

shop = _shop
GIB = 1 << 30
CARD = Device("cuda", "a card", 80 * GIB, "bfloat16", (9, 0))
CPU = Device("cpu", "a CPU", 16 * GIB, "float32")
AUTO = {"batch_size": 8, "micro_batch_size": "auto", "gradient_accumulation_steps": None}


# --- by estimate


@pytest.mark.parametrize(
    ("each", "room", "rows"), [(GIB, 80, 24), (4 * GIB, 80, 12), (4 * GIB, 33, 6), (4 * GIB, 10, 1), (90 * GIB, 80, 1)]
)
def test_the_largest_divisor_that_leaves_a_tenth_free(each: int, room: int, rows: int) -> None:
    """12 rows of 4 GiB: 48 of 72 GiB that may be taken; 24 would need 96."""
    size = micro_batch.chosen(TrainSection(batch_size=24), lambda rows: rows * each, room * GIB, CARD, 500.0)
    assert (size.micro_batch_size, size.effective, size.evaluation_rows) == (rows, 24, rows)
    assert size.is_to_be_tried


def test_an_unknown_shape_is_tried_with_all_rows_and_a_number_is_taken_as_it_is() -> None:
    assert micro_batch.chosen(TrainSection(batch_size=24), None, 80 * GIB, CARD, 500.0).micro_batch_size == 24
    two = micro_batch.chosen(TrainSection(micro_batch_size=2), lambda _: 99 * GIB, GIB, CARD, 500.0)
    assert (two.micro_batch_size, two.gradient_accumulation_steps, two.is_to_be_tried) == (2, 4, False)


@pytest.mark.parametrize(("mean", "each", "rows"), [(30.0, 0, 16), (300.0, 0, 4), (2000.0, 0, 1), (30.0, 2 * GIB, 4)])
def test_a_cpu_takes_no_more_than_makes_it_faster_and_needs_no_try(
    mean: float, each: int, rows: int, capsys: pytest.CaptureFixture[str]
) -> None:
    size = micro_batch.chosen(TrainSection(batch_size=16), lambda rows: rows * each, 12 * GIB, CPU, mean)
    assert (size.micro_batch_size, size.is_to_be_tried) == (rows, False)
    assert f"micro batches of {rows} of 16 rows a step: estimated at" in capsys.readouterr().err


def test_answers_and_losses_leave_a_tenth_free_too() -> None:
    shape = memory.Shape(36, 2560, 9728, 151_936, 4096, 1024, is_gated=True)
    widest = 2 * 9728 + 4 * 2560 + 4096
    a_row = 36 * 2 * 1024 * 456 * 2 + 200 * widest * 2 + 16 * 151_936

    def answers(limit: int, prompt_tokens: int = 200) -> int:
        return rows_by_memory.of_answers(
            shape, prompt_tokens=prompt_tokens, answer_tokens=256, number_bytes=2, limit=limit
        )

    assert rows_by_memory.usable(50 * GIB, 80 * GIB) == 42 * GIB
    assert (answers(10 * a_row), answers(80 * GIB), answers(0)) == (10, rows_by_memory.MOST_ANSWERS, 1)
    assert answers(80 * GIB, prompt_tokens=30_000) < 20
    head, row = 256 * 151_936 * 10, 500 * widest * 2
    losses_of = [
        rows_by_memory.of_a_loss(shape, tokens=500, number_bytes=2, limit=limit) for limit in (0, head + 7 * row)
    ]
    assert losses_of == [1, 7]


# --- tried before the first step


@pytest.fixture
def card(monkeypatch: pytest.MonkeyPatch) -> dict[int, int]:
    """Rows tried -> free bytes of 80 GiB at their peak, as a card would report; the training is the CPU's."""
    left, tried = {8: 30 * GIB, 4: 30 * GIB}, [0]
    step = trainer.OrderedTrainer._try_micro_batch

    def noted(self: Any) -> None:
        tried[0] = self._size.micro_batch_size
        step(self)

    def asked(section: TrainSection) -> int:
        return section.micro_batch_size if isinstance(section.micro_batch_size, int) else 8

    monkeypatch.setattr(trainer.OrderedTrainer, "_try_micro_batch", noted)
    monkeypatch.setattr(gpu_memory, "forget_peak", lambda: None)
    monkeypatch.setattr(gpu_memory, "left_at_peak", lambda: (left[tried[0]], 80 * GIB))
    monkeypatch.setattr(micro_batch, "chosen", lambda section, *_: BatchSize.of_rows(section, asked(section)))
    return left


@pytest.mark.slow
def test_the_try_leaves_no_trace_and_is_kept(
    shop: Shop, card: dict[int, int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """With dropout, whose random numbers the passes draw as well; killed and resumed, the numbers are used again."""
    shop.fit(tmp_path / "plain", batch_size=8, micro_batch_size=8, gradient_accumulation_steps=None)
    capsys.readouterr()
    with pytest.MonkeyPatch.context() as patch:
        die_at(patch, 5)
        with pytest.raises(Killed):
            shop.fit(tmp_path / "auto", **AUTO)
    said = "micro batches of 8 of 8 rows a step: the longest of them leave 30.0 GiB of 80.0 GiB free"
    assert capsys.readouterr().err.count(said) == 1
    card[8] = 0  # another program came: the training goes on with the same numbers all the same
    shop.fit(tmp_path / "auto", **AUTO)
    assert "micro batches of" not in capsys.readouterr().err
    assert adapter(tmp_path / "auto") == adapter(tmp_path / "plain")
    assert losses(tmp_path / "auto", "loss") == losses(tmp_path / "plain", "loss")
    batch = files.read_json(tmp_path / "auto" / "fit.json")["batch"]
    assert (batch["asked"], batch["micro_batch_size"], batch["notes"]) == ("auto", 8, [])
    assert batch["chosen"] == said.partition(": ")[2]


@pytest.mark.slow
def test_rows_that_leave_too_little_free_are_halved(
    shop: Shop, card: dict[int, int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    card[8] = 7 * GIB
    summary = shop.fit(tmp_path / "auto", dropout=0.0, max_steps=3, **AUTO)
    assert "training of 8 rows of up to" in (seen := capsys.readouterr().err)
    assert "too little memory stays free; continuing with micro_batch_size 4, gradient_accumulation_steps 2" in seen
    assert summary.endswith("micro batches of 4 rows fitted")
    shop.fit(tmp_path / "plain", dropout=0.0, max_steps=3)  # 4 x 2
    assert adapter(tmp_path / "auto") == adapter(tmp_path / "plain")
    (note,) = [
        line["out_of_memory"]
        for line in results.read_metrics(tmp_path / "auto" / "metrics.jsonl")
        if "out_of_memory" in line
    ]
    assert note.endswith("it leaves 7.0 GiB of 80.0 GiB free")


def test_the_moments_that_are_still_to_come_count(shop: Shop, card: dict[int, int], tmp_path: Path) -> None:
    """Just a tenth is free after the passes; the optimizer's moments take a part of it in the first step."""
    card[8] = 8 * GIB
    assert shop.fit(tmp_path / "auto", max_steps=1, **AUTO).endswith("micro batches of 4 rows fitted")


def test_what_was_kept_counts_only_for_the_same_recipe(tmp_path: Path) -> None:
    train = TrainSection()
    size = dataclasses.replace(BatchSize.of_rows(train, 4), chosen="so")
    size.remember(tmp_path)
    assert micro_batch.kept(train, tmp_path) == size
    assert micro_batch.kept(TrainSection(batch_size=16), tmp_path) is None
    assert micro_batch.kept(TrainSection(micro_batch_size=4), tmp_path) is None
    files.write_json(  # of an earlier version
        tmp_path / micro_batch.FILE,
        {"asked": 4, "micro_batch_size": 2, "gradient_accumulation_steps": 4, "evaluation_rows": 8},
    )
    earlier = micro_batch.kept(TrainSection(micro_batch_size=4), tmp_path)
    assert earlier == BatchSize(4, 2, 4, 8)
