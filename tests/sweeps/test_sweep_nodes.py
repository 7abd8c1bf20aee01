"""A sweep on a cluster of several machines: one GPU for each trial; a machine is lost, or does not see the runs."""

from __future__ import annotations

import threading
import time
from pathlib import Path

import psutil
import pytest

from appliance.rundir import chosen
from appliance.sweeps import sweep as sweeps_sweep
from appliance.sweeps import trial_runs
from tests.sweeps.local_nodes import LocalNodes
from tests.sweeps.test_sweep import TIED, TIED_FIRST, Shop, is_at_work, until

pytestmark = pytest.mark.slow
BEST, WORST = "3-learning_rate-1e-3", "4-learning_rate-1e-5"


def test_a_trial_has_one_gpu_and_goes_on_elsewhere_if_its_machine_is_lost(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shop = Shop.made(tmp_path)
    waits = [shop.how(f"waits-{name}", "30") for name in TIED]
    lost: list[str] = []

    def lose_a_machine() -> None:
        try:
            until(lambda: all(shop.steps(name)[-1:] == [30] for name in TIED))
            time.sleep(5)  # what they have left is reported: a trial is judged once at each rung
            call = next(call for call in shop.calls() if call["run"] == TIED[0] and call["command"] == "train")
            raylets = {process.pid for process in psutil.Process(call["pid"]).parents()}
            (node,) = [node for node in machines if node.all_processes["raylet"][0].process.pid in raylets]
            nodes.lose(node)
            until(lambda: not is_at_work(call))
            lost.append(TIED[0])
        finally:
            for path in waits:
                path.unlink()

    with LocalNodes() as nodes:
        machines = [nodes.add(gpus=1, cpus=1) for _ in range(2)]
        monkeypatch.setenv("RAY_ADDRESS", nodes.address)
        loser = threading.Thread(target=lose_a_machine)
        loser.start()
        sweeps_sweep.run(shop.sweep([TIED_FIRST]))
        loser.join()

    assert lost
    assert {call["gpu"] for call in shop.calls()} == {"0"}
    assert shop.commands()[-1] == ("run", BEST)
    trained = [run for command, run in shop.commands() if command == "train"]
    assert sorted(trained) == sorted([*TIED, TIED[0], BEST, WORST])
    for name in TIED:
        assert shop.steps(name) == [*range(0, 91, 10)]  # no step twice
    winner = chosen.read(shop.path(BEST))
    assert winner
    assert [one.ended for one in winner.trials[:3]] == [trial_runs.RAN] * 3
