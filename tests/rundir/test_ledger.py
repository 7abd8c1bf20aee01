"""The second copy of a stage's record: what it restores, and what it is not believed for."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import pytest

from appliance.errors import EnvironmentUnavailable, RunDirError
from appliance.pipeline import repair
from appliance.process import files
from appliance.rundir import ledger, run_json, token_choice
from appliance.rundir.directory import RunDir
from appliance.rundir.token_choice import TokenChoice

INPUTS = {"train.seed": 1}
RUN = {"name": "shop" * 50, "base": {"id": "a"}, "csv": {"typed": "b"}}


@pytest.fixture
def run_dir(tmp_path: Path) -> RunDir:
    """The stages prepare and train are done."""
    run_dir = RunDir(tmp_path / "run")
    run_dir.create()
    run_json.write(run_dir.path, RUN)
    for stage in ("prepare", "train"):
        folder = run_dir.begin(stage, INPUTS)
        (folder / "adapter").mkdir()
        (folder / "adapter" / "weights").write_text(f"of {stage}", encoding="utf-8")
        (folder / "checkpoints" / "checkpoint-3").mkdir(parents=True)
        run_dir.finish(stage, INPUTS, "done", unlisted=("checkpoints",))
    return run_dir


def _flip(path: Path, key: bytes) -> None:
    """One bit, where the value of a key begins: what it was is JSON still."""
    content = bytearray(path.read_bytes())
    content[content.index(key) + len(key)] ^= 1
    path.write_bytes(content)


def _endless(path: Path) -> None:
    path.unlink()
    path.symlink_to("/dev/zero")


DAMAGE: dict[str, Callable[[Path], object]] = {
    "cut off": lambda path: path.write_bytes(path.read_bytes()[:100]),
    "empty": lambda path: path.write_bytes(b""),
    "a list": lambda path: path.write_text("[]"),
    "another sha256": lambda path: _flip(path, b'"sha256": "'),
    "another size": lambda path: _flip(path, b'"size": '),
    "another fingerprint": lambda path: _flip(path, b'"fingerprint": "'),
    "a bit in a key": lambda path: _flip(path, b'"outp'),
    "/dev/zero": _endless,
    "a pipe": lambda path: (path.unlink(), os.mkfifo(path)),
}


@pytest.mark.parametrize("damage", DAMAGE)
@pytest.mark.parametrize("stage", ["prepare", "train"])
def test_a_damaged_record_is_restored_from_its_copy(
    damage: str, stage: str, run_dir: RunDir, capsys: pytest.CaptureFixture[str]
) -> None:
    path = run_dir.stage_dir(stage) / ledger.FILE
    whole = path.read_bytes()
    DAMAGE[damage](path)
    repair.restore_records(run_dir)
    told = capsys.readouterr().err
    if damage == "another fingerprint":  # a hash of the inputs, of which no file is proof: whoever reads it refuses it
        assert told == ""
        with pytest.raises(RunDirError, match="ran with other inputs"):
            run_dir.is_done(stage, INPUTS)
        return
    assert path.read_bytes() == whole
    assert f"{path} " in told.replace("\n", "")
    assert "restored from ledger/" in told
    assert run_dir.is_done(stage, INPUTS)
    repair.restore_records(run_dir)
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("spoil", ["file", "copy", "both", "no copy", "another run's"])
def test_what_is_not_proven_is_refused(
    spoil: str, run_dir: RunDir, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = run_dir.stage_dir("prepare") / ledger.FILE
    copy = run_dir.path / "ledger" / "prepare.stage.json"
    path.write_text("{", encoding="utf-8")
    if spoil in ("file", "both"):
        (path.parent / "adapter" / "weights").write_text("OF prepare", encoding="utf-8")
    if spoil in ("copy", "both"):
        _flip(copy, b'"size": ')
    if spoil == "no copy":
        copy.unlink()
    if spoil == "another run's":
        other = RunDir(tmp_path / "other")
        other.create()
        (other.begin("prepare", INPUTS) / "rows.csv").write_text("x", encoding="utf-8")
        other.finish("prepare", INPUTS, "done")
        shutil.copy(other.path / "ledger" / "prepare.stage.json", copy)
    repair.restore_records(run_dir)
    assert capsys.readouterr().err == ""
    with pytest.raises(RunDirError, match="is damaged") as caught:
        run_dir.is_done("prepare", INPUTS)
    assert caught.value.hint


def test_a_record_that_differs_but_describes_its_files_is_kept(run_dir: RunDir) -> None:
    """As a stage's folder restored from a backup: its files decide, and they are what its own record says."""
    folder = run_dir.stage_dir("prepare")
    kept = shutil.copytree(folder, folder.with_name("kept"))
    begun = run_dir.begin("prepare", INPUTS)
    (begun / "other").write_text("x", encoding="utf-8")
    run_dir.finish("prepare", INPUTS, "done later")
    shutil.rmtree(folder)
    kept.rename(folder)
    before = (folder / ledger.FILE).read_bytes()
    repair.restore_records(run_dir)
    assert (folder / ledger.FILE).read_bytes() == before


def test_without_a_copy_training_continues_from_its_checkpoints(
    run_dir: RunDir, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.rmtree(run_dir.path / "ledger")
    path = run_dir.stage_dir("train") / ledger.FILE
    path.write_text("{", encoding="utf-8")
    repair.restore_records(run_dir)
    assert "training continues from its checkpoints" in capsys.readouterr().err
    assert not run_dir.is_done("train", INPUTS)
    assert (path.parent / "checkpoints" / "checkpoint-3").is_dir()


def test_a_file_of_the_training_that_is_lost_costs_no_training(run_dir: RunDir) -> None:
    weights = run_dir.stage_dir("train") / "adapter" / "weights"
    looks = (lambda: run_dir.is_done("train", INPUTS), lambda: run_dir.refuse_changed("train", ("adapter/*",)))
    for content, look in zip(("longer than before", "OF train"), looks, strict=True):
        weights.write_text(content, encoding="utf-8")
        with pytest.raises(RunDirError) as caught:
            look()
        assert caught.value.hint.startswith(f"remove {run_dir.path}/train/stage.json and repeat the command")
    (run_dir.stage_dir("train") / ledger.FILE).unlink()
    repair.restore_records(run_dir)
    assert not run_dir.is_done("train", INPUTS)


def test_a_damaged_beginning_is_no_reason_to_refuse_the_checkpoints(run_dir: RunDir) -> None:
    """They name themselves what they were trained from: see training/checkpoints.py."""
    folder = run_dir.begin("train", INPUTS, keep=("checkpoints",))
    with pytest.raises(RunDirError, match="ran with other inputs"):
        run_dir.is_done("train", {"train.seed": 2})
    (folder / "started.json").write_text("{", encoding="utf-8")
    assert not run_dir.is_done("train", {"train.seed": 2})


@pytest.mark.parametrize("damage", ["cut off", "empty", "a list", "/dev/zero", "a pipe", "missing"])
def test_run_json_is_restored_from_its_copy(damage: str, run_dir: RunDir, capsys: pytest.CaptureFixture[str]) -> None:
    path = run_dir.path / run_json.FILE
    (DAMAGE | {"missing": Path.unlink})[damage](path)
    with pytest.raises(RunDirError, match=r"run\.json is (damaged|missing)") as caught:
        run_json.read(run_dir.path)
    assert caught.value.hint == f"`appliance run {run_dir.path}` restores it from its copy"
    repair.restore_records(run_dir)
    assert run_json.read(run_dir.path) == RUN
    assert "run.json was damaged or missing: restored from ledger/" in capsys.readouterr().err


CHOICE = TokenChoice("<|im_end|>", {"<|im_end|>": 7}, ("because",), is_compared=True)


@pytest.mark.parametrize("is_done", [True, False])
@pytest.mark.parametrize("damage", ["cut off", "empty", "a list", "/dev/zero", "a pipe", "missing", "another"])
def test_a_choice_of_tokens_is_restored_from_its_copy(
    damage: str, is_done: bool, run_dir: RunDir, capsys: pytest.CaptureFixture[str]
) -> None:
    """Without a training: that would take hours, and the rest of the training is whole."""
    folder = run_dir.begin("train", INPUTS)
    CHOICE.write(folder)
    (folder / "checkpoints" / "checkpoint-1").mkdir(parents=True)
    if is_done:
        run_dir.finish("train", INPUTS, "done")
    path = folder / token_choice.FILE
    whole = path.read_bytes()
    if damage == "another":
        path.write_text(json.dumps(asdict(TokenChoice("</s>"))), encoding="utf-8")
    else:
        (DAMAGE | {"missing": Path.unlink})[damage](path)
    repair.restore_records(run_dir)
    assert path.read_bytes() == whole
    assert token_choice.read(folder) == CHOICE
    assert "tokens.json was damaged or missing: restored from ledger/" in capsys.readouterr().err
    repair.restore_records(run_dir)
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("spoil", ["copy", "other copy", "none begun"])
def test_a_choice_of_tokens_that_is_not_proven_is_refused(
    spoil: str, run_dir: RunDir, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = run_dir.begin("train", INPUTS)
    CHOICE.write(folder)
    if spoil != "none begun":
        run_dir.finish("train", INPUTS, "done")
    if spoil == "copy":
        _flip(run_dir.path / "ledger" / token_choice.FILE, b'"eos_token": ')
    if spoil == "other copy":
        ledger.write_copy(run_dir.path, token_choice.FILE, asdict(TokenChoice("</s>")))
    (folder / token_choice.FILE).write_text("{", encoding="utf-8")
    repair.restore_records(run_dir)
    assert capsys.readouterr().err == ""
    with pytest.raises(RunDirError, match=r"tokens\.json is damaged") as caught:
        token_choice.read(folder)
    assert ("--redo train" in caught.value.hint) == (spoil == "copy")


def test_the_copy_is_written_before_the_record_and_through_no_link(
    run_dir: RunDir, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written: list[str] = []
    write = files.write_json
    monkeypatch.setattr(files, "write_json", lambda path, value: (written.append(path.name), write(path, value)))
    run_dir.begin("merge", INPUTS)
    run_dir.finish("merge", INPUTS, "done")
    assert written == ["merge.stage.json", "stage.json"]
    assert (run_dir.path / "ledger").stat().st_mode & 0o777 == 0o700
    shutil.rmtree(run_dir.path / "ledger")
    (tmp_path / "elsewhere").mkdir()
    (run_dir.path / "ledger").symlink_to(tmp_path / "elsewhere")
    run_dir.begin("merge", INPUTS)
    with pytest.raises(EnvironmentUnavailable, match="is a symbolic link"):
        run_dir.finish("merge", INPUTS, "done")
    assert json.loads((run_dir.path / "run.json").read_text()) == RUN
