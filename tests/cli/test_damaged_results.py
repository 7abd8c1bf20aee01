"""Every file that `report`, `status` and `replay` read, damaged in every way: exit code 8 by name, never a traceback.

The run is tests/fixtures/run-0.1, which has what every stage leaves. It is restored after each case.
"""

from __future__ import annotations

import os
import shutil
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from appliance.rundir import ledger, run_json
from appliance.rundir.directory import STAGES, RunDir
from tests.cli.conftest import Appliance
from tests.fixtures import make

JSON = (
    "run.json", "prepare/leaks.json", "prepare/near_duplicates.json", "prepare/summary.json", "train/fit.json",
    "evaluate/metrics.json", "merge/proof.json", "publish/hub.json", *(f"{stage}/stage.json" for stage in STAGES),
)  # fmt: skip
TABLES = ("evaluate/predictions.csv", "evaluate/extra_answers.csv", "prepare/test_groups.csv")


def _pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def _folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


def _endless(path: Path) -> None:
    path.unlink()
    path.symlink_to("/dev/zero")


def _text(text: str | bytes) -> Callable[[Path], object]:
    return lambda path: path.write_bytes(text if isinstance(text, bytes) else text.encode())


ANY: dict[str, Callable[[Path], object]] = {
    "cut off": lambda path: path.write_bytes(path.read_bytes()[: path.stat().st_size // 2]),
    "empty": _text(""),
    "other bytes": _text(b"\xff\xfe{"),
    "a pipe": _pipe,
    "a folder": _folder,
    "/dev/zero": _endless,
}
OF_ALL_COMMANDS = ("cut off", "a list", "a row too short", "a pipe")  # `report` alone is quick
OF_JSON = ANY | {
    "a list": _text("[]"),
    "a list of numbers": _text("[1, NaN]"),
    "a number": _text("5"),
    "an empty object": _text("{}"),
    "other types": lambda path: path.write_text(
        path.read_text(encoding="utf-8").replace("{", "[").replace("}", "]").replace('":', '",'), encoding="utf-8"
    ),
    "numbers as texts": lambda path: path.write_text(
        "".join(f'"{c}"' if c.isdigit() else c for c in path.read_text(encoding="utf-8")), encoding="utf-8"
    ),
    "nested too deeply": _text("[" * 100_000),
}
OF_TABLES = ANY | {
    "other columns": _text("a,b\n1,2\n"),
    "a row too short": lambda path: path.write_bytes(path.read_bytes() + b"7\n"),
    "a quote that never ends": lambda path: path.write_bytes(path.read_bytes() + b'7,"a'),
    "no numbers": lambda path: path.write_text(path.read_text(encoding="utf-8").replace("\n", "\nx"), encoding="utf-8"),
}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The finished run, with the copies that today's version keeps of its records."""
    folder = tmp_path_factory.mktemp("runs") / "finished"
    shutil.copytree(make.TARGET / "finished", folder)
    for stage in STAGES:
        record = RunDir(folder).record(stage)
        assert record
        ledger.write(folder, stage, record)
    run_json.write(folder, run_json.read(folder))
    return folder


@pytest.fixture
def in_time() -> Iterator[None]:
    """A command that waits for a pipe, or reads a device to its end, is a failure and no hang."""
    before = signal.signal(signal.SIGALRM, lambda *_: pytest.fail("it waits"))
    signal.alarm(120)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


@pytest.mark.usefixtures("in_time")
@pytest.mark.parametrize("name", [*JSON, *TABLES, "train/metrics.jsonl"])
def test_a_damaged_file_is_named(name: str, appliance: Appliance, made: Path) -> None:
    path = made / name
    whole = path.read_bytes()
    assert appliance("report", made)[0] == 0
    for damage, spoil in (OF_TABLES if name in TABLES else OF_JSON).items():
        try:
            spoil(path)
            others = (("replay", made), ("status", "--runs-dir", made.parent)) if damage in OF_ALL_COMMANDS else ()
            for command in (("report", made), *others):
                _judge(command[0], f"{name}, {damage}", str(path.relative_to(made)), appliance(*command))
        finally:
            if path.is_dir() and not path.is_symlink():
                path.rmdir()
            path.unlink(missing_ok=True)
            path.write_bytes(whole)


def _judge(command: str, case: str, name: str, answer: tuple[int, str, str]) -> None:
    code, out, err = answer
    case = f"{command}, {case}: {err}"
    assert "Traceback" not in err, case
    assert "this is a bug" not in err, case
    if command == "status":
        assert (code, "finished" in out) == (0, True), case
        return
    assert (code, err.splitlines()[-1][:5]) == (8, "Fix: "), case
    if command == "report":
        assert name in " ".join(err.split()), case


@pytest.mark.usefixtures("in_time")
@pytest.mark.parametrize("name", [".lock", "appliance.log", "ended.json"])
def test_a_pipe_in_the_place_of_a_file_holds_nothing_up(
    name: str, appliance: Appliance, made: Path, tmp_path: Path
) -> None:
    run = shutil.copytree(made, tmp_path / "runs" / "finished")
    (run / name).unlink(missing_ok=True)
    os.mkfifo(run / name)
    assert appliance("status")[0] == 0
    code, _, err = appliance("check", run)
    assert (code in (0, 2, 4, 8), "Traceback" in err) == (True, False), err
    if name != "ended.json":  # it is removed before each command
        assert f"{run / name} is no file but a pipe or device" in err


@pytest.mark.usefixtures("in_time")
@pytest.mark.parametrize("damage", OF_JSON)
def test_damage_is_named_in_a_stage_that_no_record_describes(
    damage: str, appliance: Appliance, made: Path, tmp_path: Path
) -> None:
    """Of a run that was stopped, or made by hand: then what it holds is all there is to go by."""
    run = shutil.copytree(made, tmp_path / "runs" / "finished")
    (run / "evaluate" / "stage.json").unlink()
    OF_JSON[damage](run / "evaluate" / "metrics.json")
    code, _, err = appliance("report", run)
    assert (code, "Traceback" in err, "this is a bug" in err) == (8, False, False), err
    assert "evaluate/metrics.json" in " ".join(err.split())
    assert err.splitlines()[-1].startswith("Fix: ")
