"""Secrets in a fleet: the runs have them, and nothing of Ray does, whatever becomes of the runs and their workers."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from appliance.recipe import resolve
from appliance.sweeps import attempts, fleet, plan
from appliance.sweeps import cluster as sweeps_cluster
from appliance.sweeps.cluster import Cluster
from appliance.sweeps.fleet import Fleet, Share
from appliance.sweeps.fleet_shown import Progress
from appliance.sweeps.run_child import RunJob
from tests.conftest import write_qa
from tests.helpers import canary

ROOT = Path(__file__).parents[2]
SECRETS = {
    "HF_TOKEN": "hf_QmZ7canary4Jx9Lw2Vb8Rt5Ny3Kd6Pc",
    "APPLIANCE_NOTIFY": "json://hook.example/Zt8canary1Wq6Xe4Fs7Gu9",
    "SHOP_API_KEY": "Hk5canary0Mn3Bv8Cz1Yp6Lr2",
}


class Watched(Progress):
    """Kills the worker of the run `killed` once that is noted as begun, and keeps the command lines that it sees."""

    def __init__(self, runs: int, killed: Path) -> None:
        super().__init__(runs, 0)
        self._killed = killed
        self.lines = set[str]()
        self._is_killed = False

    def show(self, *args: Any) -> None:
        super().show(*args)
        for process in psutil.Process().children(recursive=True):
            try:
                words = process.cmdline()
                self.lines.add(" ".join(words))
                is_due = "killed" in words and attempts.read(self._killed) and not self._is_killed
                if is_due and (worker := process.parent()):
                    self._is_killed = True
                    worker.kill()
            except psutil.Error:
                continue


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> Iterator[Cluster]:
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    for name, value in SECRETS.items():
        monkeypatch.setenv(name, value)
    with sweeps_cluster.connected(cpus=2, gpus=0) as found:
        yield found


def test_a_run_has_the_secrets_and_ray_has_none(cluster: Cluster, tmp_path: Path) -> None:
    seen = tmp_path / "seen.json"
    ways = {
        "done": ("environ", str(seen), "end", "0"),
        "refused": ("refuse", "no room", "3"),
        "killed": ("say", "killed", "sleep", "2"),
        "lacking": ("end", "0"),
    }
    jobs = [
        _job(name, words, tmp_path, *(["NOT_SET_KEY"] if name == "lacking" else [])) for name, words in ways.items()
    ]
    with Watched(len(jobs), tmp_path / "killed") as watched:
        outcomes = Fleet(cluster, jobs, Share(0, 1, 1), watched, waits=False).run()
    codes = {name: outcome.exit_code for name, outcome in outcomes.items()}
    assert codes == {"done": 0, "refused": 3, "killed": 0, "lacking": 4}
    assert outcomes["killed"].attempts == 2
    assert "NOT_SET_KEY is not set" in outcomes["lacking"].message
    given = json.loads(seen.read_text(encoding="utf-8"))
    assert {name: given.get(name) for name in SECRETS} == SECRETS
    seen.unlink()
    folder = cluster.session_dir.parent.parent
    files, state = [*canary.files_in(folder), *canary.files_in(tmp_path)], list(_state())
    texts = [*files, *state, *((line, line.encode()) for line in watched.lines)]
    assert min(len(files), len(state), len(watched.lines)) > 8
    for secret in (*SECRETS.values(), "Zt8canary1Wq6Xe4Fs7Gu9"):
        assert canary.found(texts, secret) == []


def _job(name: str, words: tuple[str, ...], folder: Path, *variables: str) -> RunJob:
    return RunJob(
        name, words, folder / name, ROOT, (*SECRETS, *variables), gpus=0, threads=1, module="tests.sweeps.stand_in"
    )


def _state() -> Iterator[tuple[str, bytes]]:
    """What Ray's servers keep: its table of keys, the jobs, the nodes, the workers."""
    from ray._private import state
    from ray.experimental import internal_kv

    spaces = [None, *(space.encode() for space in ("job", "fun", "cluster", "session", "dashboard", "runtime_env"))]
    for space in spaces:
        for key in internal_kv._internal_kv_list(b"", namespace=space):
            value = internal_kv._internal_kv_get(key, namespace=space) or b""
            yield f"{space!r} {key!r}", key + value
    for name in ("jobs", "node_ids", "workers", "actors"):
        yield name, repr(getattr(state, name)()).encode()


def test_a_secret_in_a_setting_is_refused_before_any_work(tmp_path: Path) -> None:
    csv_path = write_qa(tmp_path / "a.csv", [("a?", "b!")])
    with pytest.raises(Exception, match="a secret is not passed on") as caught:
        plan.runs([str(csv_path)], "chatbot-cpu", [f"notify={SECRETS['APPLIANCE_NOTIFY']}"], {})
    assert "canary" not in str(caught.value)


def test_a_command_of_a_fleet_holds_no_value_of_the_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in SECRETS.items():
        monkeypatch.setenv(name, value)
    csv_path = write_qa(tmp_path / "a.csv", [("a?", "b!")])
    (planned,) = plan.runs([str(csv_path)], "chatbot-cpu", [], dict(SECRETS))
    words = fleet.words_of(planned, "chatbot-cpu", tmp_path / "runs", tmp_path / "cache", [])
    assert not [word for word in words if "canary" in word]
    assert fleet.variables(SECRETS) == ("APPLIANCE_NOTIFY",)
    assert resolve.load("chatbot-cpu", overrides=planned.overrides, environ={}).recipe.name == "a"
