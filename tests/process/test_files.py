"""Files that a run writes: nothing through a symbolic link, nothing for other users."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from appliance.errors import EnvironmentUnavailable
from appliance.process import console, files
from appliance.rundir.directory import RunDir
from appliance.training import checkpoints


def _lock(folder: Path) -> None:
    with RunDir(folder).lock():
        pass


def _log(folder: Path) -> None:
    with console.log_file(folder / "appliance.log"):
        pass


WRITES: dict[str, Callable[[Path], object]] = {
    ".lock": _lock,
    "appliance.log": _log,
    "metrics.jsonl": lambda folder: checkpoints.append_line(folder / "metrics.jsonl", {"step": 1}),
}


@pytest.mark.parametrize("name", WRITES)
def test_a_link_is_named_and_its_target_stays_as_it_is(name: str, tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.write_text("mine", encoding="utf-8")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / name).symlink_to(victim)
    with pytest.raises(EnvironmentUnavailable, match=f"{name} is a symbolic link") as caught:
        WRITES[name](tmp_path / "run")
    assert "remove the link" in caught.value.hint
    assert victim.read_text(encoding="utf-8") == "mine"


def test_a_temporary_name_that_is_a_link_is_not_followed(tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.write_text("mine", encoding="utf-8")
    (tmp_path / f".a.json.{os.getpid()}.tmp").symlink_to(victim)
    files.write_json(tmp_path / "a.json", {"a": 1})
    assert files.read_json(tmp_path / "a.json") == {"a": 1}
    assert victim.read_text(encoding="utf-8") == "mine"


def test_a_stage_that_is_a_link_is_not_emptied(tmp_path: Path) -> None:
    (tmp_path / "others").mkdir()
    (tmp_path / "others" / "precious").touch()
    run_dir = RunDir(tmp_path / "run")
    run_dir.create()
    (run_dir.path / "train").symlink_to(tmp_path / "others")
    with pytest.raises(EnvironmentUnavailable, match="train is a symbolic link"):
        run_dir.begin("train", {})
    assert (tmp_path / "others" / "precious").exists()


@pytest.fixture
def careless() -> Iterator[None]:
    """A umask that lets everybody read and write."""
    before = os.umask(0)
    yield
    os.umask(before)


@pytest.mark.usefixtures("careless")
def test_a_run_is_for_its_user_only(tmp_path: Path) -> None:
    run_dir = RunDir(tmp_path / "run")
    run_dir.create()
    with run_dir.lock(), console.log_file(run_dir.path / "appliance.log"):
        files.write_text(run_dir.path / "recipe.yaml", "name: a")
        folder = run_dir.begin("prepare", {})
        (folder / "adapter").mkdir()
        (folder / "adapter" / "weights").write_text("w", encoding="utf-8")
        run_dir.finish("prepare", {}, "")
    modes = {path.relative_to(tmp_path).as_posix(): path.stat().st_mode & 0o777 for path in tmp_path.rglob("*")}
    assert {name: oct(mode) for name, mode in modes.items()} == {
        name: "0o700" if (tmp_path / name).is_dir() else "0o600" for name in modes
    }


def test_text_that_utf_8_does_not_have_is_logged_and_recorded(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    r"""As a recipe or a Hub can bring it, "\ud800", and as Python reads a file name that is not UTF-8."""
    monkeypatch.setattr(logging.getLogger(), "handlers", [])  # pytest-xdist cannot send what pytest's own would keep
    with console.log_file(tmp_path / "appliance.log"):
        logging.getLogger("x").info("column %s of caf\udce9.csv", "\ud800")
    assert capsys.readouterr().err == ""
    assert r"column \ud800 of caf\udce9.csv" in (tmp_path / "appliance.log").read_text(encoding="utf-8")
    files.write_json(tmp_path / "run.json", {"csv": "caf\udce9.csv", "input": "\ud800 가"})
    assert files.read_json(tmp_path / "run.json") == {"csv": "caf\udce9.csv", "input": "\ud800 가"}


@pytest.mark.parametrize("name", ["file.txt", "folder"])
def test_what_is_written_is_on_the_disk_before_and_after_it_gets_its_name(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The kernel is asked for the contents under the temporary name, then for the name."""
    asked: list[tuple[str, bool]] = []

    def fsync(handle: int) -> None:
        asked.append((str(Path(f"/proc/self/fd/{handle}").readlink()), (tmp_path / name).exists()))

    monkeypatch.setattr(os, "fsync", fsync)
    temporary = tmp_path / f".{name}.{os.getpid()}.tmp"
    if name == "folder":
        with files.atomic_dir(tmp_path / name) as inside:
            (inside / "a.txt").write_text("x", encoding="utf-8")
        written = [str(temporary / "a.txt"), str(temporary)]
    else:
        files.write_text(tmp_path / name, "x")
        written = [str(temporary)]
    assert asked == [*((one, False) for one in written), (str(tmp_path), True)]
