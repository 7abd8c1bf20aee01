"""A run whose node shares no disk: what it fetches before and stores after, and what becomes of it if either fails."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from appliance.errors import RecipeError
from appliance.process import files
from appliance.recipe import resolve
from appliance.rundir.directory import RunDir
from appliance.sweeps import attempts, fleet_command, plan, stored_run
from appliance.sweeps.run_child import RunJob, Stored
from appliance.sweeps.storage import Storage
from appliance.sweeps.stored_run import StoredRuns

ROOT = Path(__file__).parents[2]


@pytest.fixture
def storage(tmp_path: Path) -> Storage:
    return Storage(f"file://{tmp_path}/storage")


@pytest.fixture
def job(tmp_path: Path, storage: Storage) -> RunJob:
    """Prints, and leaves a file in its run directory."""
    csv_path = tmp_path / "가게.csv"
    csv_path.write_text("instruction,output\n", encoding="utf-8")
    run_path = tmp_path / "node" / "shop"
    stored = Stored(storage.url, storage.put_csv(csv_path), csv_path.name, drops=False)
    words = ("say", "begun", "environ", str(run_path / "seen.json"), "end", "0")
    return RunJob("shop", words, run_path, ROOT, gpus=0, threads=1, module="tests.sweeps.stand_in", stored=stored)


def test_a_run_goes_on_from_what_another_node_stored(job: RunJob, storage: Storage, tmp_path: Path) -> None:
    failing = replace(job, words=("say", "begun", "environ", *job.words[3:4], "refuse", "no GPU", "4"))
    outcome = stored_run.run(failing, "node-a")
    assert (outcome.exit_code, outcome.message, outcome.node) == (4, "no GPU", "node-a")
    files.remove(job.run_path.parent)  # the next node is another
    outcome = stored_run.run(job, "node-b")
    assert (outcome.exit_code, outcome.attempts) == (0, 2)
    assert [one.node for one in attempts.read(job.run_path)] == ["node-a", "node-b"]
    assert next(job.run_path.parent.glob(".csv/*/가게.csv")).read_text(encoding="utf-8") == "instruction,output\n"
    storage.fetch("shop", tmp_path / "elsewhere")
    assert {path.name for path in (tmp_path / "elsewhere").iterdir()} >= {"seen.json", "output.log", attempts.FILE}


def test_a_finished_run_leaves_its_node_and_a_failed_one_stays(job: RunJob, storage: Storage, tmp_path: Path) -> None:
    assert job.stored
    dropping = replace(job, stored=replace(job.stored, drops=True))
    stored_run.run(replace(dropping, words=("end", "7")), "node")
    assert job.run_path.is_dir()
    assert stored_run.run(dropping, "node").exit_code == 0
    assert not job.run_path.exists()
    storage.fetch("shop", tmp_path / "elsewhere")
    assert (tmp_path / "elsewhere" / "seen.json").is_file()


def test_what_the_storage_refuses_is_the_outcome(job: RunJob, tmp_path: Path) -> None:
    assert job.stored
    (tmp_path / "file").touch()
    gone = replace(job, stored=replace(job.stored, csv_sha256="0" * 64))
    assert stored_run.run(gone, "node").exit_code == 4
    assert "is gone or not as it was stored" in stored_run.run(gone, "node").message
    assert not job.run_path.exists()  # nothing was started
    other = tmp_path / "node" / "shop" / "recipe.yaml"
    other.parent.mkdir(parents=True)
    other.write_text("name: other", encoding="utf-8")
    Storage(job.stored.url).store("shop", RunDir(_made(tmp_path / "made")).path)
    assert stored_run.run(job, "node").exit_code == 8
    assert other.read_text(encoding="utf-8") == "name: other"


def _made(path: Path) -> Path:
    RunDir(path).create()
    (path / "recipe.yaml").write_text("name: shop", encoding="utf-8")
    return path


def test_a_run_that_cannot_be_stored_is_not_called_done(job: RunJob, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("appliance.sweeps.remote_folder.RemoteFolder._make_parent", full)
    outcome = stored_run.run(job, "node")
    assert outcome.exit_code == 4
    assert outcome.message.startswith("done, but not stored: storage file://")
    assert "No space left" in outcome.message
    assert (job.run_path / "seen.json").is_file()  # the same command stores it


def test_the_command_stores_each_csv_and_names_the_fetched_one(storage: Storage, tmp_path: Path) -> None:
    csv_path = tmp_path / "a.csv"
    csv_path.write_text("instruction,output\n", encoding="utf-8")
    (planned,) = plan.runs([str(csv_path)], "chatbot-cpu", [], {})
    runs = StoredRuns(storage, tmp_path / "runs")
    there, stored = runs.put(planned, drops=True)
    fetched = storage.get_csv(stored.csv_sha256, stored.csv_name, tmp_path / "runs" / ".csv")
    recipe = resolve.load("chatbot-cpu", overrides=there.overrides, environ={}).recipe
    assert (recipe.data.csv, recipe.name) == (str(fetched), "a")
    assert stored.drops
    runs.bring("a")  # never stored: nothing
    runs.bring_all([planned])
    assert not (tmp_path / "runs" / "a").exists()


def test_results_that_cannot_be_fetched_are_said_and_hide_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").touch()
    StoredRuns(Storage(f"file://{tmp_path}/file"), tmp_path / "runs").bring("a")
    assert "a: its results cannot be fetched" in capsys.readouterr().err


def test_a_csv_on_the_hub_needs_no_storage(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"hf://datasets/me/shop/a\.csv is not a file here"):
        fleet_command._stored(f"file://{tmp_path}", tmp_path, ["hf://datasets/me/shop/a.csv"], [])
