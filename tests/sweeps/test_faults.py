"""Faults while a fleet works, on a cluster of several nodes: a worker killed, a node lost, the driver killed, a full
disk, a wrong CSV. Every other run ends with the bytes of a run that nobody disturbed, and nothing is trained twice.
"""

from __future__ import annotations

import pickle
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil
import pytest

from appliance.sweeps import attempts
from appliance.sweeps.storage import Storage
from appliance.sweeps.stored_run import StoredRuns
from tests.sweeps import fleet_driver
from tests.sweeps import shops as sweeps_shops
from tests.sweeps.local_nodes import LocalNodes, may_mount
from tests.sweeps.shops import EVAL_EVERY, WRONG, Hit, Shops, continued_from, when_trained

NAMES = ("one", "two", "three")


@pytest.fixture(scope="module")
def shops(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shops]:
    from tests.helpers.models import tiny_base

    folder = tmp_path_factory.mktemp("shops")
    base_dir = tiny_base(folder / "base", short_prompts=True)
    with Shops(folder, base_dir, NAMES) as found:
        yield found


@pytest.fixture(scope="module")
def nodes(shops: Shops) -> Iterator[LocalNodes]:
    assert shops
    with LocalNodes() as found, pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_ADDRESS", found.address)
        yield found


def test_a_killed_worker_a_lost_node_and_a_wrong_csv_disturb_nobody_else(
    shops: Shops, nodes: LocalNodes, tmp_path: Path
) -> None:
    runs_dir = tmp_path / "runs"
    added = [nodes.add() for _ in range(3)]

    def lose(worker: psutil.Process) -> None:
        raylet = worker.parent()
        assert raylet is not None
        (node,) = [one for one in added if one.all_processes["raylet"][0].process.pid == raylet.pid]
        nodes.lose(node)

    with ThreadPoolExecutor() as pool:
        struck = [
            pool.submit(when_trained, runs_dir / "one", EVAL_EVERY + 1, psutil.Process.kill),
            pool.submit(when_trained, runs_dir / "two", EVAL_EVERY + 1, lose),
        ]
        outcomes = fleet_driver.run([shops.job(name, runs_dir) for name in (*NAMES, WRONG)])
        hits = [one.result() for one in struck]
    assert {name: outcome.exit_code for name, outcome in outcomes.items()} == {**dict.fromkeys(NAMES, 0), WRONG: 3}
    assert "row" in outcomes[WRONG].message
    refuse_other_results(shops, runs_dir, hits)
    assert {name: len(attempts.read(runs_dir / name)) for name in NAMES} == {"one": 2, "two": 2, "three": 1}
    assert sweeps_shops.at_work() == []


def test_a_killed_driver_takes_its_runs_with_it_and_the_next_one_continues_them(
    shops: Shops, nodes: LocalNodes, tmp_path: Path
) -> None:
    runs_dir, jobs = tmp_path / "runs", tmp_path / "jobs"
    runs = [shops.job(name, runs_dir) for name in NAMES]
    jobs.write_bytes(pickle.dumps(runs))
    nodes.leave(2)
    command = [sys.executable, "-m", "tests.sweeps.fleet_driver", str(jobs)]
    with subprocess.Popen(command, cwd=Path(__file__).parents[2], stderr=subprocess.DEVNULL) as driver:
        # both are held while the driver dies: they would go on meanwhile
        hits = sweeps_shops.held_when_trained([runs_dir / name for name in NAMES], 2)
        driver.kill()
    end = time.monotonic() + 30
    while left := sweeps_shops.at_work():
        assert time.monotonic() < end, left
        time.sleep(0.1)
    hits = [Hit(hit.name, max(hit.step, sweeps_shops.trained(runs_dir / hit.name))) for hit in hits]
    (third,) = set(NAMES) - {hit.name for hit in hits}
    assert not (runs_dir / third).exists()
    outcomes = fleet_driver.run(runs)
    assert {name: outcome.exit_code for name, outcome in outcomes.items()} == dict.fromkeys(NAMES, 0)
    refuse_other_results(shops, runs_dir, hits)
    tried = {name: len(attempts.read(runs_dir / name)) for name in NAMES}
    assert tried == {hit.name: 2 for hit in hits} | {third: 1}


def test_a_node_with_a_full_disk_fails_no_run_and_gets_no_more(
    shops: Shops, nodes: LocalNodes, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """With a storage: each node has run directories of its own."""
    runs_dir, names = tmp_path / "runs", NAMES[:2]
    runs_dir.mkdir()
    storage = Storage(f"file://{tmp_path}/storage")
    nodes.leave(1)
    full = nodes.add(small=runs_dir)
    jobs = [shops.stored_job(name, runs_dir, storage) for name in names]
    outcomes = fleet_driver.run(jobs, StoredRuns(storage, runs_dir))
    nodes.cut(full)
    assert {name: outcome.exit_code for name, outcome in outcomes.items()} == dict.fromkeys(names, 0)
    assert not list(runs_dir.rglob("*.safetensors"))  # done, and gone from its node; the results were fetched
    assert all((runs_dir / name / "evaluate" / "metrics.json").is_file() for name in names)
    for name in names:
        storage.fetch(name, tmp_path / "fetched" / name)
        assert shops.differences(tmp_path / "fetched" / name) == []
        assert continued_from(tmp_path / "fetched" / name) == 0
    told = capfd.readouterr().err
    assert re.search(r"tried once more elsewhere", told)
    assert re.search(f"gets no more runs: .*{'disk' if may_mount() else 'File too large'}", told)


def refuse_other_results(shops: Shops, runs_dir: Path, hits: list[Hit]) -> None:
    assert {name: shops.differences(runs_dir / name) for name in NAMES} == {name: [] for name in NAMES}
    steps = {hit.name: hit.step for hit in hits}
    for name in NAMES:
        repeated = steps.get(name, 0) - continued_from(runs_dir / name)
        assert 0 <= repeated <= EVAL_EVERY, f"{name}: {repeated} steps were trained twice"
