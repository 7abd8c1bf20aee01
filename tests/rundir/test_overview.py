"""The overview of all runs: what each is doing, how far it is, what came out of it."""

from __future__ import annotations

import json
import shutil
import time
from pathlib import Path

import pytest

from appliance.errors import DataError, GateRefused, HubError, Interrupted, TrainingFailed
from appliance.process.files import write_json
from appliance.rundir import outcome
from appliance.rundir.directory import STAGES, RunDir
from appliance.rundir.overview import COLUMNS, notes, overview, row

REST = dict.fromkeys(STAGES, "")


def begun(runs_dir: Path, name: str, *done: str, at: str = "") -> RunDir:
    """A run that has finished the stages `done` and begun `at`."""
    run_dir = RunDir(runs_dir / name)
    run_dir.create()
    (run_dir.path / "recipe.yaml").write_text("", encoding="utf-8")
    for stage in done:
        run_dir.begin(stage, {})
        run_dir.finish(stage, {}, "")
    if at:
        run_dir.begin(at, {})
    return run_dir


def test_no_runs(tmp_path: Path) -> None:
    assert overview(tmp_path / "nothing") == []
    (tmp_path / "no run").mkdir()
    assert overview(tmp_path) == []


def test_damaged_files_hide_neither_this_run_nor_others(tmp_path: Path) -> None:
    begun(tmp_path, "a", "check", at="prepare")
    damaged = begun(tmp_path, "b", "check", at="prepare")
    (damaged.path / "check" / "stage.json").write_text("{", encoding="utf-8")
    for name in ("evaluate/metrics.json", "publish/hub.json", "ended.json"):
        (damaged.path / name).parent.mkdir(exist_ok=True)
        (damaged.path / name).write_text("{", encoding="utf-8")
    first, second = overview(tmp_path)
    assert {key: first[key] for key in STAGES} == REST | {"check": "done", "prepare": "stopped"}
    assert {key: second[key] for key in STAGES} == REST | {"check": "damaged", "prepare": "stopped"}
    assert (first["state"], second["state"], second["verdict"], second["published"]) == ("stopped", "damaged", "", [])


@pytest.mark.parametrize(
    ("error", "state"),
    [
        (DataError("line 3 is wrong\nmore"), "refused"),
        (GateRefused("line 3 is wrong"), "refused"),
        (TrainingFailed("line 3 is wrong"), "failed"),
        (HubError("line 3 is wrong"), "failed"),
        (ValueError("line 3 is wrong"), "failed"),
        (Interrupted(15, "line 3 is wrong"), "stopped"),
    ],
)
def test_how_a_run_ended(error: BaseException, state: str, tmp_path: Path) -> None:
    run_dir = begun(tmp_path, "shop", "check", "prepare", at="train")
    with pytest.raises(type(error)), outcome.recorded(run_dir):
        raise error
    (told,) = overview(tmp_path)
    assert (told["state"], told["stage"], told["message"]) == (state, "train", "line 3 is wrong")
    with outcome.recorded(run_dir):
        pass
    assert overview(tmp_path)[0]["message"] == ""


def test_what_a_later_command_met_is_not_why_a_finished_run_ended(tmp_path: Path) -> None:
    run_dir = begun(tmp_path, "shop", *STAGES, at="")
    with pytest.raises(DataError), outcome.recorded(run_dir):
        raise DataError("`prepare` ran with other inputs")
    (told,) = overview(tmp_path)
    assert (told["state"], told["message"], notes(told)) == ("done", "", [])


def test_why_a_run_ended_is_told_in_one_line(tmp_path: Path) -> None:
    """It was the line that announces a list, without the list; and of a refused file the prompts, a screen of them."""
    run_dir = begun(tmp_path, "shop")
    for said, told in (("ran with other inputs:\n  base: was a,\n  is b", "ran with other inputs: base: was a, is b"),
                       ("x" * 301, "x" * 299 + "…")):  # fmt: skip
        with pytest.raises(DataError), outcome.recorded(run_dir):
            raise DataError(said)
        assert overview(tmp_path)[0]["message"] == told


def test_a_damaged_stage_is_named_and_not_the_last_one(tmp_path: Path) -> None:
    run_dir = begun(tmp_path, "shop", *STAGES)
    (run_dir.path / "train" / "stage.json").write_text("{", encoding="utf-8")
    run_dir.begin("publish", {})
    with pytest.raises(GateRefused), outcome.recorded(run_dir):
        raise GateRefused("no")
    (told,) = overview(tmp_path)
    assert row(told, "")[1] == "damaged: train"


def test_a_published_run_that_lost_a_stage_is_not_done(tmp_path: Path) -> None:
    run_dir = begun(tmp_path, "shop", *STAGES)
    shutil.rmtree(run_dir.path / "rehearse")
    assert overview(tmp_path)[0]["state"] == "done"  # no release results from it
    shutil.rmtree(run_dir.path / "evaluate")
    (told,) = overview(tmp_path)
    assert row(told, "")[1] == "unfinished: evaluate"


@pytest.mark.parametrize("moved", [-86400, 365 * 86400])
def test_the_time_of_a_running_stage_survives_a_clock_that_jumps(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, moved: int
) -> None:
    run_dir = begun(tmp_path, "shop", at="train")
    with run_dir.lock():
        now = time.time()
        monkeypatch.setattr(time, "time", lambda: now + moved)
        (told,) = overview(tmp_path)
    assert told["state"] == "running"
    assert 0 <= told["seconds"] < 86400  # at most as long as this process has run


def test_a_full_disk_does_not_hide_the_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("appliance.process.files.write_json", full)
    with pytest.raises(DataError), outcome.recorded(begun(tmp_path, "shop")):
        raise DataError("wrong")


def test_a_running_run_with_its_step(tmp_path: Path) -> None:
    run_dir = begun(tmp_path, "shop", "check", "prepare", at="train")
    lines = [{"step": 1, "loss": 2.0}, {"step": 7, "loss": 1.0}]
    text = "".join(json.dumps(line) + "\n" for line in lines) + '{"step": 8, "lo'
    (run_dir.path / "train" / "metrics.jsonl").write_text(text, encoding="utf-8")
    before = overview(tmp_path)[0]
    assert (before["state"], before["step"], before["steps"]) == ("stopped", 7, None)
    write_json(run_dir.path / "train" / "steps.json", {"steps": 40})
    with run_dir.lock():
        (told,) = overview(tmp_path)
    assert (told["state"], told["stage"], told["step"], told["steps"]) == ("running", "train", 7, 40)
    assert row(told, "3 s")[:3] == ("shop", "running: train 7/40", "3 s")
    assert overview(tmp_path)[0]["state"] == "stopped"


def test_a_run_may_start_while_somebody_looks(tmp_path: Path) -> None:
    """Looking takes the lock for a moment; the run tries again."""
    import fcntl
    import threading

    run_dir = begun(tmp_path, "shop")
    (run_dir.path / ".lock").touch()
    with (run_dir.path / ".lock").open() as handle:
        fcntl.flock(handle, fcntl.LOCK_SH)
        threading.Timer(0.01, lambda: fcntl.flock(handle, fcntl.LOCK_UN)).start()
        with run_dir.lock():
            pass


def test_a_finished_run_with_scores_and_its_place_on_the_hub(tmp_path: Path) -> None:
    run_dir = begun(tmp_path, "shop", *STAGES)
    scores = {"primary": "f1", "base": {"f1": 0.25}, "tuned": {"f1": 0.5}, "verdict": "better"}
    write_json(run_dir.path / "evaluate" / "metrics.json", scores)
    pushed = {"commit_url": "https://huggingface.co/me/shop/commit/0123", "visibility": "private"}
    write_json(run_dir.path / "publish" / "hub.json", {"uploaded": True, "repositories": {"model": pushed}})
    (told,) = overview(tmp_path)
    cells = dict(zip(COLUMNS, row(told, "3 s"), strict=True))
    assert cells == {
        "run": "shop",
        "state": "done",
        "time": "3 s",
        "base → tuned": "f1 25.0% → 50.0%",
        "verdict": "better",
    }
    assert notes(told) == ["published: https://huggingface.co/me/shop (private)"]


def test_a_verdict_stands_with_its_cautions(tmp_path: Path) -> None:
    run_dir = begun(tmp_path, "shop", *STAGES)
    caution = {"name": "does_not_stop", "sentence": "none of 30 answers ended by themselves", "rows": []}
    scores = {"primary": "f1", "base": {"f1": 0.25}, "tuned": {"f1": 0.5}, "verdict": "better", "cautions": [caution]}
    write_json(run_dir.path / "evaluate" / "metrics.json", scores)
    for stage_cautions, shown in (([], "better, with 1 caution"), ([caution], "better, with 2 cautions")):
        write_json(run_dir.path / "merge" / "proof.json", {"cautions": stage_cautions})  # a later stage has its own
        (told,) = overview(tmp_path)
        assert (told["verdict"], set(told["cautions"])) == ("better", {"does_not_stop"})
        assert row(told, "3 s")[4] == shown


def test_a_run_that_did_what_it_was_asked_for_is_unfinished(tmp_path: Path) -> None:
    begun(tmp_path, "shop", "check", "prepare")
    (told,) = overview(tmp_path)
    assert (told["state"], told["stage"]) == ("unfinished", "prepare")
