"""`docker compose run --rm train` without a GPU: whole runs, stopped ones, other owners, no token left behind."""

from __future__ import annotations

import hashlib
import json
import os
import time
import urllib.request
from pathlib import Path
from typing import Any

import pytest

from appliance.process import files
from appliance.rundir import directory as rundir_directory
from tests.image.project import CALLER, CANARY, FEW, IMAGE, ONE_THREAD, Project, docker, give, make_project

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]


@pytest.fixture(scope="module")
def trained(project: Project) -> tuple[Project, str]:
    """The project after `docker compose run --rm train`, and what that said."""
    code, said = project.train()
    assert code == 0, said[-3000:]
    return project, said


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def test_the_whole_way_leaves_everything_to_its_owner(trained: tuple[Project, str]) -> None:
    project, said = trained
    run = project.folder / "runs" / "demo"
    for name in ("report.html", "prepare/rows.csv", "train/adapter/adapter_model.safetensors", "merge/proof.json"):
        assert (run / name).is_file(), name
    assert files.read_json(run / "merge" / "proof.json")["passed"]
    assert {path.stat().st_uid for path in run.rglob("*")} == {CALLER}
    assert "report         runs/demo/report.html" in said  # a path of the host
    assert "model.id" in said.split("check")[0]  # what was decided, and by what
    assert "APPLIANCE_MODEL__ID" in said


def test_a_second_call_skips_and_the_csv_is_as_it_was(trained: tuple[Project, str]) -> None:
    project, _ = trained
    before = sha256(project.folder / "data" / "train.csv")
    code, said = project.train()
    assert code == 0
    assert said.count("already done") == len(rundir_directory.STAGES)
    assert sha256(project.folder / "data" / "train.csv") == before
    code, said = project.run("publish")
    assert code == 0, said


def test_its_model_is_served(trained: tuple[Project, str]) -> None:
    """`docker compose up serve`: nothing but /tmp and a cache that is gone with it can be written there."""
    project, _ = trained
    try:
        code, said = project.compose("up", "--detach", "serve")
        assert code == 0, said[-3000:]
        answer = _asked("http://127.0.0.1:8322/v1/chat/completions", seconds=120)
        assert answer is not None, project.compose("logs", "serve")[1][-3000:]
    finally:
        project.compose("rm", "--stop", "--force", "serve")
    assert answer["model"] == "demo"
    assert answer["choices"][0]["finish_reason"] in ("stop", "length")


def _asked(url: str, seconds: float) -> dict[str, Any] | None:
    """What is answered, as soon as the server is there; None: it was not, in time."""
    body = {"messages": [{"role": "user", "content": "가격은?"}], "max_tokens": 4}
    request = urllib.request.Request(url, json.dumps(body).encode(), {"content-type": "application/json"})
    ends = time.monotonic() + seconds
    while time.monotonic() < ends:
        try:
            with urllib.request.urlopen(request, timeout=60) as found:
                answer: dict[str, Any] = json.load(found)
                return answer
        except OSError:
            time.sleep(0.5)
    return None


@pytest.mark.parametrize("token_in", ["environment", "file"])
def test_a_token_is_found_nowhere(trained: tuple[Project, str], token_in: str, tmp_path: Path) -> None:
    project, said = trained
    if token_in == "file":
        (tmp_path / "token").write_text(CANARY, encoding="utf-8")
        project.environ["HF_TOKEN_FILE"] = str(tmp_path / "token")
        project.environ["HF_TOKEN"] = ""
    code, doctor = project.run("doctor")
    assert code in (0, 4)
    assert f"set in HF_TOKEN{'_FILE' if token_in == 'file' else ''}" in " ".join(doctor.split())  # it arrives
    assert CANARY not in said + doctor
    for path in (project.folder / "runs").rglob("*"):
        assert not path.is_file() or CANARY.encode() not in path.read_bytes(), path


def test_another_owner(tmp_path: Path) -> None:
    other = make_project(tmp_path / "other", uid=CALLER + 234)
    try:
        code, said = other.train("name=other")
        assert code == 0, said[-3000:]
        listed = docker(
            "run", "--rm", "--user=0", f"--volume={other.folder}:/it", "--entrypoint=find", IMAGE, "/it/runs",
            "-printf", "%u:%g\n",
        )  # fmt: skip
        assert set(listed.split()) == {f"{CALLER + 234}:{CALLER + 234}"}
    finally:
        give(other.folder, os.getuid(), "700")


def test_docker_stop_leaves_a_run_that_goes_on(project: Project) -> None:
    metrics = project.folder / "runs" / "stopped" / "train" / "metrics.jsonl"

    def steps() -> int:
        return metrics.read_text(encoding="utf-8").count('"loss"') if metrics.is_file() else 0

    def stopped_after(count: int) -> str:
        """What a training says that is stopped once it has done so many steps."""
        changes = [*FEW, "name=stopped", "train.max_steps=100000", "train.epochs=100000", "train.patience=100000"]
        settings = [part for one in ["data.csv=data/train.csv", *changes] for part in ("--set", one)]
        code, said = project.compose("run", "-d", "-T", ONE_THREAD, "train", *settings)
        assert code == 0, said
        container = said.strip().splitlines()[-1]
        deadline = time.monotonic() + 120
        while steps() < count:
            assert time.monotonic() < deadline, docker("logs", container)
            time.sleep(0.2)
        docker("stop", container)
        log = docker("logs", container)
        assert docker("wait", container).strip() == "143", log
        docker("rm", container)
        return log

    assert "the same command continues from there" in stopped_after(4)
    done = steps()
    again = stopped_after(done + 4)
    assert "continuing from step" in again
    assert f"(checkpoint-{done})" in again
