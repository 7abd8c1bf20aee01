"""Replay: a finished run is what it was, or what differs is named: files 8, gates 6, versions a warning."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from appliance.errors import GateRefused, RunDirError
from appliance.findings import Finding
from appliance.hub import token as hub_token
from appliance.process import files
from appliance.release import passport, reload, replay
from appliance.rundir import directory as rundir_directory
from tests.base_model.test_bounds import LAUGHS
from tests.helpers.finished import FinishedRun, edit_json, finished_run


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, base_dir: Path) -> FinishedRun:
    """A released run with a base of its own, which tests may spoil in their copies."""
    folder = tmp_path_factory.mktemp("whole")
    shutil.copytree(base_dir, folder / "tiny-llama")
    run = finished_run(folder / "run", folder / "tiny-llama")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(reload, "examine", lambda wanted, _: {f: reload.Seen() for f in wanted.folders})
        run.publish()
    return run


@pytest.fixture
def run(whole: FinishedRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the run beside its CSV, its base where run.json says."""
    monkeypatch.setattr(hub_token, "saved_token", lambda _: None)
    shutil.copytree(whole.path.parent, tmp_path / "all")
    path = tmp_path / "all" / "run"
    record = files.read_json(path / "run.json")
    record["csv"]["path"] = str(tmp_path / "all" / "rows.csv")
    record["passport"]["base"]["dir"] = str(tmp_path / "all" / "tiny-llama")
    files.write_json(path / "run.json", record)
    return path


def outcome(run: Path) -> tuple[list[Finding], int]:
    """Everything that is not ok, and the exit code."""
    findings = replay.replay_findings(run, run.parent / "cache")
    wrong = [finding for finding in findings if finding.verdict != "ok"]
    if all(finding.verdict != "fails" for finding in wrong):
        replay.refuse(findings)
        return wrong, 0
    with pytest.raises((RunDirError, GateRefused)) as caught:
        replay.refuse(findings)
    assert caught.value.hint
    return wrong, caught.value.exit_code


def test_a_run_that_is_what_it_was(run: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in run.rglob("*")}
    findings = replay.replay_findings(run, run.parent)
    assert outcome(run) == ([], 0)
    whats = [finding.what for finding in findings]
    assert whats[:10] == [
        *(f"stage {stage}" for stage in rundir_directory.MADE_FROM), "recipe.yaml", "split", "CSV", "base model",
    ]  # fmt: skip
    asked = [what.removeprefix("gate ") for what in whats if what.startswith("gate ")]
    assert asked == [gate["name"] for gate in files.read_json(run / "publish" / "hub.json")["gates"]]
    assert {path: path.stat().st_mtime_ns for path in run.rglob("*")} == before


def _append(name: str, text: str = " ") -> Callable[[Path], None]:
    def change(run: Path) -> None:
        with (run / name).open("a", encoding="utf-8") as handle:
            handle.write(text)

    return change


def _replace(name: str, old: str, new: str) -> Callable[[Path], None]:
    def change(run: Path) -> None:
        text = (run / name).read_text(encoding="utf-8")
        assert old in text
        (run / name).write_text(text.replace(old, new), encoding="utf-8")

    return change


def _flip(name: str) -> Callable[[Path], None]:
    def change(run: Path) -> None:
        content = bytearray((run / name).read_bytes())
        content[-1] ^= 1
        (run / name).unlink()  # the release is linked to what it was made from
        (run / name).write_bytes(content)

    return change


def _remove(name: str) -> Callable[[Path], None]:
    return lambda run: (run / name).unlink()


@pytest.mark.parametrize(
    ("change", "what", "found"),
    [
        (
            _flip("train/adapter/adapter_model.safetensors"),
            "stage train",
            "adapter/adapter_model.safetensors has a different hash",
        ),
        (_remove("merge/model/config.json"), "stage merge", "model/config.json is gone"),
        (_append("evaluate/metrics.json"), "stage evaluate", "metrics.json has a different size"),
        (_flip("publish/release/model/model.safetensors"), "stage publish", "has a different hash"),
        (_remove("publish/stage.json"), "stage publish", "not done"),
        (
            lambda run: edit_json(run / "train" / "stage.json", fingerprint="f" * 64),
            "stage train",
            "a different result",
        ),
        (_replace("recipe.yaml", "max_rows: 200", "max_rows: 100"), "recipe.yaml", "edited since the release"),
        (_append("../rows.csv", "새,,행\n"), "CSV", "was edited"),
        (_flip("../tiny-llama/model.safetensors"), "base model", "model.safetensors has a different hash"),
        (_remove("../tiny-llama/config.json"), "base model", "config.json is gone"),
    ],
)
def test_a_file_that_is_not_what_it_was_is_named(
    change: Callable[[Path], None], what: str, found: str, run: Path
) -> None:
    change(run)
    wrong, code = outcome(run)
    assert code == 8
    assert [finding.what for finding in wrong] == [what]
    assert found in wrong[0].found
    assert wrong[0].fix


@pytest.mark.parametrize(
    ("text", "seen"), [(LAUGHS, "it holds more than 100,000 values"), ("a: [", "expected|did not find")]
)
def test_a_recipe_that_cannot_be_read_is_refused_at_once(text: str, seen: str, run: Path) -> None:
    (run / "recipe.yaml").write_text(text, encoding="utf-8")
    with pytest.raises(RunDirError, match=f"recipe.yaml is damaged: .*{seen}"):
        outcome(run)


def test_a_split_that_was_made_anew_is_seen_twice(run: Path) -> None:
    """As its file, and as the split of the passport: stage.json may have been made anew with it."""
    _append("prepare/test.csv", "99,q,,a\n")(run)
    wrong, code = outcome(run)
    assert code == 8
    assert [finding.what for finding in wrong] == ["stage prepare", "split"]


def _recorded_again(run: Path, stage: str) -> None:
    """stage.json as if the stage itself had left these files."""
    record = files.read_json(run / stage / "stage.json")
    for name in record["outputs"]:
        path = run / stage / name
        record["outputs"][name] = {"size": path.stat().st_size, "sha256": files.sha256_of(path)}
    files.write_json(run / stage / "stage.json", record)


def _another_adapter(run: Path) -> None:
    for name in ("train/adapter", "publish/release/adapter"):
        _flip(f"{name}/adapter_model.safetensors")(run)
    _recorded_again(run, "train")
    _recorded_again(run, "publish")


def _local_path(run: Path) -> None:
    edit_json(run / "publish/release/adapter/adapter_config.json", base_model_name_or_path="/models/base")
    _recorded_again(run, "publish")


def _edited(name: str, **changes: Any) -> Callable[[Path], None]:
    def change(run: Path) -> None:
        edit_json(run / name, **changes)
        _recorded_again(run, name.partition("/")[0])

    return change


def _leaked(run: Path) -> None:
    with (run / "appliance.log").open("a", encoding="utf-8") as log:
        log.write("token hf_" + "x" * 34 + "\n")


def _a_gate_of_the_reload(run: Path) -> None:
    record = files.read_json(run / "publish" / "hub.json")
    gates = [{**g, "passed": g["name"] != "one_prompt_everywhere"} for g in record["gates"]]
    _edited("publish/hub.json", gates=gates)(run)


@pytest.mark.parametrize(
    ("change", "names"),
    [
        (_another_adapter, {"best_is_what_was_kept", "best_is_released"}),
        (_local_path, {"adapter_names_its_base"}),
        (_edited("evaluate/metrics.json", verdict="worse"), {"not_worse"}),
        (_edited("merge/proof.json", passed=False), {"merged_equals_trained"}),
        (_leaked, {"logs_are_clean"}),
        (_a_gate_of_the_reload, {"one_prompt_everywhere"}),
    ],
)
def test_a_gate_that_does_not_hold_any_more_is_named(
    change: Callable[[Path], None], names: set[str], run: Path
) -> None:
    change(run)
    wrong, code = outcome(run)
    assert {finding.what.removeprefix("gate ") for finding in wrong} == names
    assert code == 6


def test_train_rows_are_collated_once_more(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from appliance.prompt import batch as prompt_batch

    collate = prompt_batch.collate

    def masks_last(rows: Any, **options: Any) -> Any:
        made = collate(rows, **options)
        made["labels"][:, -1] = -100
        return made

    monkeypatch.setattr(prompt_batch, "collate", masks_last)
    wrong, code = outcome(run)
    assert code == 6
    assert "gate eos_is_the_last_label" in {finding.what for finding in wrong}


def test_an_overridden_verdict_is_said_and_does_not_refuse(
    run: Path, whole: FinishedRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reload, "examine", lambda wanted, _: {f: reload.Seen() for f in wanted.folders})
    edit_json(run / "evaluate" / "metrics.json", verdict="worse")
    _recorded_again(run, "evaluate")
    FinishedRun(run, whole.base).publish(even_if_worse=True)
    wrong, code = outcome(run)
    assert [(finding.what, finding.verdict) for finding in wrong] == [("gate not_worse", "warning")]
    assert "decision of its author" in wrong[0].fix
    assert code == 0


def test_what_is_gone_around_the_run_is_a_warning(run: Path) -> None:
    (run.parent / "rows.csv").unlink()
    shutil.rmtree(run.parent / "tiny-llama")
    wrong, code = outcome(run)
    assert [(finding.what, finding.verdict) for finding in wrong] == [("CSV", "warning"), ("base model", "warning")]
    assert code == 0


def test_the_base_is_found_in_the_cache_when_it_moved(run: Path) -> None:
    shutil.move(run.parent / "tiny-llama", run.parent / "cache" / "tiny-llama")
    assert outcome(run) == ([], 0)


def test_other_packages_are_a_warning(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    here = passport.packages()
    assert {"torch", "transformers", "python"} <= here.keys()
    monkeypatch.setattr(passport, "packages", lambda: here | {"torch": "9.9"})
    (finding,), code = outcome(run)
    assert (finding.what, finding.verdict, code) == ("packages", "warning", 0)
    assert f"torch 9.9 (was {here['torch']})" in finding.found


def test_a_csv_of_the_hub_is_pinned(run: Path) -> None:
    record = files.read_json(run / "run.json")
    record["csv"] |= {"path": None, "commit": "0123abc"}
    files.write_json(run / "run.json", record)
    assert outcome(run) == ([], 0)


def test_a_run_that_was_never_released(run: Path) -> None:
    record = files.read_json(run / "run.json")
    del record["passport"]
    files.write_json(run / "run.json", record)
    with pytest.raises(RunDirError, match="has no passport") as caught:
        replay.replay_findings(run, run.parent)
    assert "appliance publish" in caught.value.hint
    (run / "run.json").write_text("{")
    with pytest.raises(RunDirError, match="is damaged"):
        replay.replay_findings(run, run.parent)


def test_the_passport_says_what_a_run_was_made_from(
    run: Path, whole: FinishedRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    record = files.read_json(run / "run.json")
    assert record["name"] == "shop"  # what was there before stays
    shown = record["passport"]
    assert set(shown) == {
        "written", "appliance", "image", "platform", "packages", "recipe_sha256", "split", "base", "stages", "gates",
    }  # fmt: skip
    _append("recipe.yaml", "# a comment\n")(run)
    assert shown["recipe_sha256"] == passport.recipe_sha256(run)
    _replace("recipe.yaml", "max_rows: 200", "max_rows: 100")(run)
    assert shown["recipe_sha256"] != passport.recipe_sha256(run)
    assert shown["split"]["test"] == files.sha256_of(run / "prepare" / "test.csv")
    weights = shown["base"]["files"]["model.safetensors"]
    assert weights == {
        "size": (whole.base.dir / "model.safetensors").stat().st_size,
        "sha256": files.sha256_of(whole.base.dir / "model.safetensors"),
        "from": "read",
    }
    assert set(shown["stages"]) == set(rundir_directory.MADE_FROM) - {"publish"}
    assert all(gate["passed"] for gate in shown["gates"])
    assert json.dumps(shown["packages"]) == json.dumps(passport.packages())
    monkeypatch.setenv("APPLIANCE_IMAGE", "sha256:0123")
    passport.write(run, whole.base, [])
    assert files.read_json(run / "run.json")["passport"]["image"] == "sha256:0123"


def test_large_files_of_the_hub_are_not_read_for_the_passport(tmp_path: Path) -> None:
    """As the client's cache lays them out: large ones named after their sha256, small ones after their git hash."""
    blobs, snapshot = tmp_path / "blobs", tmp_path / "snapshots" / "c0ffee"
    blobs.mkdir()
    snapshot.mkdir(parents=True)
    (blobs / ("ab" * 32)).write_bytes(b"weights that the Hub calls so")
    (blobs / ("cd" * 20)).write_text("{}")
    (snapshot / "model.safetensors").symlink_to(blobs / ("ab" * 32))
    (snapshot / "config.json").symlink_to(blobs / ("cd" * 20))
    names = passport.base_file_names(snapshot)
    quick, slow = passport.base_files(snapshot, names), passport.base_files(snapshot, names, read=True)
    assert (quick["model.safetensors"]["sha256"], quick["model.safetensors"]["from"]) == ("ab" * 32, "hub")
    assert quick["config.json"] == slow["config.json"]
    assert slow["model.safetensors"]["sha256"] == files.sha256_of(blobs / ("ab" * 32)) != "ab" * 32
    assert slow["model.safetensors"]["from"] == "read"


def test_findings_are_for_people_and_machines(run: Path) -> None:
    for finding in replay.replay_findings(run, run.parent):
        assert all(isinstance(cell, str) for cell in finding.cells())
        json.dumps(asdict(finding))
