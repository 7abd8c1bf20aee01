"""The simulation of many cards, in small: every run ends, those of a lost node elsewhere, and the cards stay busy."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks import fleet
from tests.sweeps.local_nodes import LocalNodes


def test_cards_stay_busy_and_a_lost_node_costs_no_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fleet, "CARDS", 4)
    with LocalNodes() as nodes:
        for _ in range(2):
            nodes.add(cpus=0, gpus=4)
        monkeypatch.setenv("RAY_ADDRESS", nodes.address)
        found = fleet.simulate(nodes, fleet.sleeping(24, tmp_path, (1.5, 3.0)), lose_after=1 / 3)
    assert found.runs == 24
    assert 0 < found.on_lost_node < 12
    assert 0.5 < found.once_all_work <= 1  # of seconds, on a busy machine; benchmarks/RESULTS.md has the figures
    assert 0 < found.utilisation <= 1
