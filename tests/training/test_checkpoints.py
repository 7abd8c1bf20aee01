"""Which checkpoints are kept, and what stands while one takes another's place; without any training."""

from __future__ import annotations

import os
import shutil
import signal
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from transformers import TrainerControl, TrainerState

from appliance.errors import EnvironmentUnavailable
from appliance.machine import device
from appliance.process import console
from appliance.rundir import directory as rundir_directory
from appliance.rundir import results
from appliance.training import callbacks, checkpoints
from appliance.training.micro_batch import FILE, AtWork, BatchSize, OutOfMemory

pytestmark = pytest.mark.slow


def save(folder: Path, step: int, best_step: int | None, *, evaluation_due: bool = False) -> Path:
    folder.mkdir(exist_ok=True)
    checkpoint = folder / f"checkpoint-{step}"
    with checkpoints.written(checkpoint, at_least_bytes=1, inputs={}, evaluation_due=evaluation_due) as saving:
        (saving / checkpoint.name).mkdir()
        state = TrainerState(global_step=step, best_global_step=best_step)
        state.save_to_json(str(saving / checkpoint.name / "trainer_state.json"))
    checkpoints.rotate(checkpoint, best_step)
    return checkpoint


def steps(folder: Path) -> list[int]:
    return sorted(checkpoints.step_of(path) for path in folder.iterdir())


def test_from_the_newest_or_without_it_training_can_go_on(tmp_path: Path) -> None:
    """Whichever evaluations found a better one: what `newest` returns has its best, also when the newest is damaged."""
    better_ones = "0000100110101111000"  # every sequence of four is in it
    best_step = 1
    for step, better in enumerate(better_ones, start=1):
        best_step = step if better == "1" else best_step
        checkpoint = save(tmp_path, step, best_step)
        assert len(steps(tmp_path)) <= rundir_directory.CHECKPOINTS_KEPT
        assert checkpoints.newest(tmp_path, {}) == checkpoint
        assert best_step in steps(tmp_path)
        if step == 1:
            continue
        damaged = (checkpoint / checkpoints.MANIFEST).rename(checkpoint / "taken")
        fallback = checkpoints.newest(tmp_path, {})
        assert fallback == tmp_path / f"checkpoint-{step - 1}"
        assert checkpoints.state_of(fallback).best_global_step in steps_of_valid(tmp_path)
        damaged.rename(checkpoint / checkpoints.MANIFEST)


def steps_of_valid(folder: Path) -> list[int]:
    found = folder.glob("checkpoint-*")
    return [checkpoints.step_of(path) for path in found if checkpoints.fault_of(path) is None]


def test_one_that_was_passed_over_takes_no_valid_ones_place(tmp_path: Path) -> None:
    """A damaged one of a later step, and one that cannot be read before the newest."""
    for step in (1, 2, 3, 9):
        save(tmp_path, step, 1)
    (tmp_path / "checkpoint-9" / checkpoints.MANIFEST).unlink()
    assert checkpoints.newest(tmp_path, {}) == tmp_path / "checkpoint-3"
    (tmp_path / "checkpoint-3" / "trainer_state.json").write_bytes(b"\xff")
    save(tmp_path, 2, 1)
    assert steps(tmp_path) == [1, 2]
    save(tmp_path, 3, 1)
    (tmp_path / "checkpoint-3" / "trainer_state.json").write_text("[1]", encoding="utf-8")
    save(tmp_path, 4, 4)
    assert steps(tmp_path) == [1, 2, 4]
    save(tmp_path, 5, 5)
    assert steps(tmp_path) == [2, 4, 5]  # each is the best of its time: the latest fill what is left


def test_before_the_first_evaluation_none_is_the_best(tmp_path: Path) -> None:
    for step in range(1, 6):
        save(tmp_path, step, None)
    assert steps(tmp_path) == [3, 4, 5]


def test_a_kill_at_any_moment_of_replacing_leaves_the_old_or_the_new(tmp_path: Path) -> None:
    """The only checkpoint, whose evaluation was due, is written again: a real process, killed at one event after the
    other, until it comes through."""
    folder = tmp_path / "checkpoints"
    seen: list[str] = []
    save(tmp_path / "old", 8, None, evaluation_due=True)
    code = -signal.SIGKILL
    while code:
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(tmp_path / "old", folder)
        code = exit_code_of_replacing(folder, killed_at=len(seen) + 1)
        newest = checkpoints.newest(folder, {})
        assert newest == folder / "checkpoint-8"
        assert [path.name for path in folder.iterdir()] == ["checkpoint-8"]
        assert checkpoints.fault_of(newest) is None
        seen.append("old" if checkpoints.manifest_of(newest).evaluation_due else "new")
    assert "".join(word[0] for word in seen) == "o" * seen.count("old") + "n" * seen.count("new")
    assert seen.count("old") > 10
    assert seen.count("new") > 4  # also while the old one is removed


def exit_code_of_replacing(folder: Path, *, killed_at: int) -> int:
    """`killed_at`: the number of the event, of those that Python tells before it opens, makes, renames or removes."""
    child = os.fork()
    if child:
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    count = 0

    def watch(event: str, arguments: tuple[object, ...]) -> None:  # noqa: ARG001
        nonlocal count
        count += event in ("open", "os.mkdir", "os.rename", "os.remove", "os.rmdir", "shutil.rmtree")
        if count == killed_at:
            os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(watch)
    code = 1
    try:
        save(folder, 8, 8)
        code = 0
    finally:
        os._exit(code)


def test_a_replacing_that_fails_leaves_the_old_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save(tmp_path, 8, None, evaluation_due=True)
    rename = Path.rename

    def refused(self: Path, target: Path) -> Path:
        if self.parent.name == ".saving" and target.name == "checkpoint-8":
            raise PermissionError(13, "Permission denied")
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", refused)
    with pytest.raises(PermissionError):
        save(tmp_path, 8, 8)
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint-8"]
    assert checkpoints.manifest_of(tmp_path / "checkpoint-8").evaluation_due


@pytest.mark.parametrize("full_for", ["metrics.jsonl", FILE])
def test_a_disk_that_is_full_when_memory_ran_out_is_named(
    full_for: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The smaller micro batch is noted beside the checkpoints, then in metrics.jsonl."""
    (tmp_path / "checkpoints").mkdir()
    usage = shutil.disk_usage(tmp_path)
    full = tmp_path / "checkpoints" if full_for == FILE else tmp_path
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=7 if path == full else usage.free))
    error = OutOfMemory(AtWork("training", 4, 99), 3, "CUDA out of memory")
    size = BatchSize(4, 4, 2, 8)
    with pytest.raises(EnvironmentUnavailable, match=rf"disk space for {full_for}: \d{{2,}} bytes .* 7 \(7 B\) free"):
        size.after(error, device.device(), tmp_path)
    monkeypatch.undo()
    smaller = size.after(error, device.device(), tmp_path)
    assert size.remembered(tmp_path / "checkpoints") == smaller == size.halved("step 4: training of 4 rows of up to 99 "
        "tokens: CUDA out of memory")  # fmt: skip
    assert results.read_metrics(tmp_path / "metrics.jsonl") == [
        {"step": 3, "out_of_memory": smaller.notes[0], "micro_batch_size": 2, "gradient_accumulation_steps": 4}
    ]


@pytest.mark.parametrize("failure", [OSError(5, "Input/output error"), BrokenPipeError(), SystemExit(1)])
def test_a_signal_is_recorded_at_once_and_said_once_at_the_end_of_the_step(
    failure: BaseException, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever saying it raises: it must not come out of the handler, nor in the way of the checkpoint."""
    said: list[str] = []

    def say(text: str, *, style: str = "") -> None:  # noqa: ARG001
        said.append(text)
        raise failure

    monkeypatch.setattr(console, "say", say)
    stop, control = callbacks.StopOnSignal(), TrainerControl()
    with stop:
        assert not stop.came()
        os.kill(os.getpid(), signal.SIGTERM)
        assert (stop.signal_number, said) == (signal.SIGTERM, [])
        stop.on_substep_end(SimpleNamespace(), TrainerState(), control)
        stop.on_step_end(SimpleNamespace(), TrainerState(), control)
        stop.on_save(SimpleNamespace(), TrainerState(), control)
    assert said == ["SIGTERM: stopping after this step (send it again to stop at once)"]
    assert control.should_save
    assert control.should_training_stop
