"""The file by which a run says which sweep chose its settings."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from appliance.errors import RunDirError
from appliance.rundir import chosen
from appliance.rundir.chosen import Chosen, Tried

TRIALS = (
    Tried("1-r-8", {"tuning.r": 8, "train.learning_rate": 0.0002}, 1.52, 90, "stopped early", 3.25),
    Tried("2-r-16", {"tuning.r": 16, "train.learning_rate": 0.0002}, 1.25, 100, "ran to its end", 4.5),
    Tried("3-r-32", {"tuning.r": 32, "tuning.target_modules": ["q", "v"]}, None, None, "failed | 메모리", 0.5),
)
CHOSEN = Chosen("2-r-16", TRIALS)


def test_what_was_written_is_read(tmp_path: Path) -> None:
    assert chosen.read(tmp_path) is None
    chosen.write(tmp_path, CHOSEN)
    assert chosen.read(tmp_path) == CHOSEN
    chosen.remove(tmp_path)
    chosen.remove(tmp_path)
    assert chosen.read(tmp_path) is None


@pytest.mark.parametrize(
    "spoil",
    [
        {"trials": "none"},
        {"trials": []},
        {"winner": "9"},
        {"looked_before": 1},
        {"trials": [{"name": "2-r-16"}]},
        {"trials": [{"name": "2-r-16", "values": {}, "val_loss": "1", "steps": 1, "ended": "", "minutes": 1}]},
        {"trials": [{"name": "2-r-16", "values": [], "val_loss": 1, "steps": 1, "ended": "", "minutes": 1}]},
    ],
)
def test_a_damaged_file_is_named(spoil: dict[str, object], tmp_path: Path) -> None:
    chosen.write(tmp_path, CHOSEN)
    path = tmp_path / chosen.FILE
    path.write_text(json.dumps(json.loads(path.read_text(encoding="utf-8")) | spoil), encoding="utf-8")
    with pytest.raises(RunDirError, match=r"chosen\.json is damaged"):
        chosen.read(tmp_path)


def test_the_table_has_the_best_first() -> None:
    assert chosen.table(TRIALS) == [
        ("2-r-16", "r 16, learning_rate 0.0002", "1.2500", "100", "ran to its end", "4.5"),
        ("1-r-8", "r 8, learning_rate 0.0002", "1.5200", "90", "stopped early", "3.2"),
        ("3-r-32", "r 32, target_modules q v", "–", "–", "failed | 메모리", "0.5"),
    ]


def test_a_look_at_the_test_rows_before_the_choice_is_told() -> None:
    told = Chosen("2-r-16", TRIALS, looked_before=("1-r-8",)).sentence()
    assert told == (
        "Chosen among 3 settings by the lowest val loss; the test rows had been looked at before, with the settings of "
        "1-r-8"
    )
