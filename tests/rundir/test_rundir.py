"""The run directory: old state or new state, never half; what is done stays done, what changed is named."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from hashlib import sha256
from pathlib import Path

import pytest

from appliance.errors import EnvironmentUnavailable, RunDirError
from appliance.process import files
from appliance.process.files import atomic_dir, atomic_file
from appliance.rundir import find
from appliance.rundir.directory import RunDir, fingerprint

INPUTS = {"data.split": "group", "train.seed": 1, "CSV (sha256)": "a" * 64}


@pytest.fixture
def run_dir(tmp_path: Path) -> RunDir:
    made = RunDir(tmp_path / "runs" / "shop")
    made.create()
    return made


def _finish(run_dir: RunDir, stage: str, text: str = "done", inputs: dict[str, object] = INPUTS) -> Path:
    folder = run_dir.begin(stage, inputs)
    (folder / "out.txt").write_text(text, encoding="utf-8")
    run_dir.finish(stage, inputs, f"summary of {text}")
    return folder


@contextmanager
def _refused() -> Iterator[list[str]]:
    """Collects [message, hint] of the RunDirError that the block raises."""
    told: list[str] = []
    with pytest.raises(RunDirError) as caught:
        yield told
    told += [str(caught.value), caught.value.hint]
    assert caught.value.hint


class Stopped(Exception):
    pass


def _stop(*_: object) -> None:
    raise Stopped


# --- atomic writes


def test_a_file_is_there_whole_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    for before in (None, "old"):
        if before:
            path.write_text(before, encoding="utf-8")
        with pytest.raises(Stopped), atomic_file(path) as temporary:
            _stop(temporary.write_text("half", encoding="utf-8"))
        assert (path.read_text(encoding="utf-8") if path.exists() else None) == before
    with atomic_file(path) as temporary:
        assert temporary.parent == tmp_path  # os.replace cannot cross file systems
        temporary.write_text("new", encoding="utf-8")
        assert path.read_text(encoding="utf-8") == "old"
    assert path.read_text(encoding="utf-8") == "new"
    assert list(tmp_path.iterdir()) == [path]


def test_a_folder_is_there_whole_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "folder"
    for before in ([], ["old"]):
        if before:
            (path / "old").mkdir(parents=True)
        with pytest.raises(Stopped), atomic_dir(path) as temporary:
            _stop((temporary / "half").write_text("x", encoding="utf-8"))
        assert [p.name for p in path.glob("*")] == before
    with atomic_dir(path) as temporary:
        (temporary / "deep").mkdir()
        (temporary / "deep" / "new").write_text("x", encoding="utf-8")
        assert (path / "old").is_dir()
    assert [p.relative_to(path).as_posix() for p in sorted(path.rglob("*"))] == ["deep", "deep/new"]
    assert list(tmp_path.iterdir()) == [path]


def test_leftovers_of_a_killed_write_are_no_obstacle(tmp_path: Path) -> None:
    leftover = tmp_path / f".folder.{os.getpid()}.tmp"
    leftover.mkdir()
    (leftover / "half").write_text("x", encoding="utf-8")
    with atomic_dir(tmp_path / "folder") as temporary:
        assert list(temporary.iterdir()) == []


def test_text_is_utf8_and_json_keeps_its_letters(tmp_path: Path) -> None:
    files.write_json(tmp_path / "a.json", {"질문": ["가격은?"]})
    assert "가격은?".encode() in (tmp_path / "a.json").read_bytes()
    assert files.read_json(tmp_path / "a.json") == {"질문": ["가격은?"]}


# --- the ledger


def test_a_finished_stage_lists_its_outputs(run_dir: RunDir) -> None:
    folder = run_dir.begin("prepare", INPUTS)
    (folder / "deep").mkdir()
    (folder / "deep" / "행.csv").write_bytes(b"12345")
    (folder / "checkpoints").mkdir()
    (folder / "checkpoints" / "big").write_bytes(b"x")
    record = run_dir.finish("prepare", INPUTS, "5 rows", unlisted=("checkpoints",))
    assert record.outputs == {"deep/행.csv": {"size": 5, "sha256": sha256(b"12345").hexdigest()}}
    assert run_dir.record("prepare") == record
    assert {path.name for path in folder.iterdir()} == {"deep", "checkpoints", "stage.json"}
    assert (record.summary, record.inputs, record.fingerprint) == ("5 rows", INPUTS, fingerprint(INPUTS))


def test_stage_json_is_written_last(run_dir: RunDir, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = run_dir.begin("train", INPUTS)
    (folder / "out.txt").write_text("x", encoding="utf-8")
    (folder / "checkpoints").mkdir()
    with monkeypatch.context() as patched:
        patched.setattr(files, "sha256_of", _stop)  # killed while the outputs are hashed
        with pytest.raises(Stopped):
            run_dir.finish("train", INPUTS, "")
    assert not (folder / "stage.json").exists()
    assert run_dir.has_begun("train")
    assert not run_dir.is_done("train", INPUTS)
    with _refused():  # what the checkpoints belong to is still known
        run_dir.is_done("train", {**INPUTS, "train.seed": 2})


def test_outputs_are_on_the_disk_before_stage_json_lists_them(run_dir: RunDir, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = run_dir.begin("prepare", INPUTS)
    (folder / "out.txt").write_text("x", encoding="utf-8")
    events: list[str] = []
    fsync = files.fsync
    monkeypatch.setattr(files, "fsync", lambda path: (events.append(path.name), fsync(path)))
    run_dir.finish("prepare", INPUTS, "")
    assert events.index("out.txt") < next(i for i, name in enumerate(events) if "stage.json" in name)


def test_the_same_inputs_are_done_in_any_order(run_dir: RunDir) -> None:
    assert not run_dir.is_done("prepare", INPUTS)
    _finish(run_dir, "prepare")
    assert run_dir.is_done("prepare", INPUTS)
    assert run_dir.is_done("prepare", dict(reversed(INPUTS.items())))
    assert fingerprint(INPUTS) == fingerprint(dict(reversed(INPUTS.items())))
    assert fingerprint({"a": 1, "b": 2}) != fingerprint({"a": 2, "b": 1})


def test_other_inputs_are_named_with_both_values(run_dir: RunDir) -> None:
    _finish(run_dir, "prepare")
    with _refused() as told:
        run_dir.is_done("prepare", {**INPUTS, "train.seed": 2, "CSV (sha256)": "b" * 64, "prompt": "alpaca"})
    message, hint = told
    assert "`prepare` ran with other inputs" in message
    assert "train.seed: was 1, is 2" in message
    assert f"CSV (sha256): was {'a' * 12}…, is {'b' * 12}…" in message
    assert "prompt: was None, is alpaca" in message
    assert "data.split" not in message
    assert "--set name=NEW" in hint
    assert "--redo prepare" in hint


def test_a_field_that_is_no_longer_read_is_named_too(run_dir: RunDir) -> None:
    _finish(run_dir, "prepare")
    with _refused() as told:
        run_dir.is_done("prepare", {key: value for key, value in INPUTS.items() if key != "train.seed"})
    assert "train.seed: was 1, is None" in told[0]


@pytest.mark.parametrize(("change", "seen"), [(None, "is gone"), (b"do", "has 2 bytes"), (b"done!", "has 5 bytes")])
def test_a_damaged_output_is_named(run_dir: RunDir, change: bytes | None, seen: str) -> None:
    path = _finish(run_dir, "prepare") / "out.txt"
    if change is None:
        path.unlink()
    else:
        path.write_bytes(change)
    with _refused() as told:
        run_dir.is_done("prepare", INPUTS)
    assert f"{path} {seen}" in told[0]
    assert "left 4 bytes" in told[0]
    assert "--redo prepare" in told[1]


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"fingerprint": "x"}', b"\xff", b'{"unknown": 1}'])
def test_a_damaged_stage_json_is_named(run_dir: RunDir, content: bytes) -> None:
    folder = _finish(run_dir, "prepare")
    (folder / "stage.json").write_bytes(content)
    with _refused() as told:
        run_dir.is_done("prepare", INPUTS)
    assert f"{folder / 'stage.json'} is damaged" in told[0]
    assert f"`appliance run {run_dir.path}` restores it from ledger/" in told[1]
    (run_dir.path / "ledger" / "prepare.stage.json").unlink()  # as in a run of an earlier version
    with _refused() as told:
        run_dir.is_done("prepare", INPUTS)
    assert "--redo prepare" in told[1]


def test_begin_clears_all_but_what_it_is_told_to_keep(run_dir: RunDir) -> None:
    folder = run_dir.begin("train", INPUTS)
    for name in ("checkpoints", "adapter"):
        (folder / name).mkdir()
        (folder / name / "x").write_text("x", encoding="utf-8")
    (folder / "half.tmp").write_text("x", encoding="utf-8")
    (folder / "link").symlink_to(run_dir.path)
    run_dir.begin("train", INPUTS, keep=("checkpoints",))
    assert {p.name for p in folder.iterdir()} == {"checkpoints", "started.json"}
    assert (folder / "checkpoints" / "x").is_file()
    assert run_dir.path.is_dir()
    assert run_dir.has_begun("train")
    assert not run_dir.has_begun("merge")


def test_checkpoints_of_other_inputs_are_refused(run_dir: RunDir) -> None:
    folder = run_dir.begin("train", INPUTS)
    assert not run_dir.is_done("train", {**INPUTS, "train.seed": 2})  # nothing to lose yet
    (folder / "checkpoints").mkdir()
    assert not run_dir.is_done("train", INPUTS)
    with _refused() as told:
        run_dir.is_done("train", {**INPUTS, "train.seed": 2})
    assert "train.seed: was 1, is 2" in told[0]
    assert (folder / "checkpoints").is_dir()


# --- redo


def test_the_finished_result_is_kept_until_the_new_one_is_done(run_dir: RunDir) -> None:
    _finish(run_dir, "merge", "first")
    old = run_dir.path / "merge.old" / "out.txt"
    for _ in range(2):  # the second time on top of a redo that was killed in the middle
        run_dir.set_aside(["merge", "publish"])
        assert old.read_text(encoding="utf-8") == "first"
        assert run_dir.record("merge") is None
        folder = run_dir.begin("merge", INPUTS)
        (folder / "out.txt").write_text("half", encoding="utf-8")
    assert old.read_text(encoding="utf-8") == "first"
    run_dir.finish("merge", INPUTS, "")
    assert not old.parent.exists()
    assert run_dir.is_done("merge", INPUTS)


def test_a_redo_right_after_a_finished_redo_keeps_the_newer_result(run_dir: RunDir) -> None:
    """Killed between writing stage.json and removing the folder set aside: both are finished."""
    _finish(run_dir, "merge", "first")
    (run_dir.path / "merge").rename(run_dir.path / "merge.old")
    folder = run_dir.begin("merge", INPUTS)
    (folder / "out.txt").write_text("second", encoding="utf-8")
    run_dir.finish("merge", INPUTS, "")
    (run_dir.path / "merge.old").mkdir()
    run_dir.set_aside(["merge"])
    assert (run_dir.path / "merge.old" / "out.txt").read_text(encoding="utf-8") == "second"


# --- lock and permissions

_HOLDER = """
import sys, time
from pathlib import Path
from appliance.rundir.directory import RunDir
with RunDir(Path(sys.argv[1])).lock():
    print("held", flush=True)
    time.sleep(60)
"""


def test_a_second_process_is_refused_until_the_first_is_gone(run_dir: RunDir) -> None:
    with subprocess.Popen([sys.executable, "-c", _HOLDER, str(run_dir.path)], stdout=subprocess.PIPE) as holder:
        try:
            assert holder.stdout is not None
            assert holder.stdout.readline() == b"held\n"
            with _refused() as told, run_dir.lock():
                pass
            assert f"in use by process {holder.pid}" in told[0]
        finally:
            holder.send_signal(signal.SIGKILL)
    assert holder.returncode == -signal.SIGKILL
    with run_dir.lock():
        assert (run_dir.path / ".lock").read_text(encoding="utf-8") == str(os.getpid())


def test_a_run_directory_is_readable_by_its_owner_only(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        RunDir(tmp_path / "a" / "b").create()
        (tmp_path / "c").mkdir(mode=0o777)
        RunDir(tmp_path / "c").create()
    finally:
        os.umask(before)
    assert (tmp_path / "a" / "b").stat().st_mode & 0o777 == 0o700
    assert (tmp_path / "c").stat().st_mode & 0o777 == 0o700


@pytest.mark.parametrize("name", ["file", "file/run"])
def test_a_place_that_is_a_file_is_named(tmp_path: Path, name: str) -> None:
    (tmp_path / "file").write_text("x", encoding="utf-8")
    with pytest.raises(EnvironmentUnavailable, match="cannot write the run directory") as caught:
        RunDir(tmp_path / name).create()
    assert str(tmp_path / name) in str(caught.value)
    assert "move it away" in caught.value.hint
    assert "--runs-dir" in caught.value.hint


def test_a_place_that_belongs_to_another_user_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def denied(*_: object, **__: object) -> None:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(tmp_path))

    monkeypatch.setattr(Path, "mkdir", denied)
    with pytest.raises(EnvironmentUnavailable, match="Permission denied") as caught:
        RunDir(tmp_path / "run").create()
    give = f"sudo chown -R {os.getuid()}:{os.getgid()}"
    assert f"{give} {tmp_path}, or choose another with --runs-dir" in caught.value.hint
    monkeypatch.setenv("APPLIANCE_HOST_RUNS_DIR", "./runs")
    with pytest.raises(EnvironmentUnavailable) as caught:
        RunDir(tmp_path / "run").create()
    assert f"{give} ./runs, or set APP_UID" in caught.value.hint
    assert str(tmp_path) not in caught.value.hint


def test_a_lock_that_the_disk_has_no_room_for_is_named(run_dir: RunDir, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "write", full)
    with pytest.raises(OSError, match=r"\.lock'$"), run_dir.lock():
        pass


# --- records


def test_the_record_is_readable_by_machines(run_dir: RunDir) -> None:
    folder = _finish(run_dir, "prepare")
    told = json.loads((folder / "stage.json").read_text(encoding="utf-8"))
    assert set(told) == {"fingerprint", "inputs", "outputs", "seconds", "finished_at", "summary", "peak_memory"}
    assert told["seconds"] >= 0
    assert told["finished_at"].endswith("Z")


def test_what_is_no_run_is_answered_with_the_run_that_was_meant(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = tmp_path / "runs" / "shop"
    (run / "merge" / "model").mkdir(parents=True)
    for name in ("recipe.yaml", "run.json"):
        (run / name).write_text("", encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("APPLIANCE_RUNS_DIR", raising=False)
    for typed in ("shop", "shop.csv", "runs/shpo", "runs/shop/merge/model", "./runs/shop2"):
        with pytest.raises(RunDirError, match=f"{typed.removeprefix('./')} is not a run directory") as caught:
            find.require_run(Path(typed))
        assert "did you mean runs/shop?" in caught.value.hint
    with pytest.raises(RunDirError) as caught:
        find.require_run(Path("something else"))
    assert "did you mean" not in caught.value.hint
    find.require_run(run)
