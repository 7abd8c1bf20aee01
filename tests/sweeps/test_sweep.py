"""A sweep from the plan to the winner's run, on a cluster of this machine; its trials are stand-ins."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import psutil
import pytest

from appliance.errors import ApplianceError, DataError, EnvironmentUnavailable, Interrupted, RunDirError, TrainingFailed
from appliance.process import signals
from appliance.rundir import chosen
from appliance.rundir.directory import RunDir
from appliance.sweeps import cluster as sweeps_cluster
from appliance.sweeps import on_cluster, trial_runs, trials
from appliance.sweeps import sweep as sweeps_sweep
from appliance.sweeps.cluster import Cluster
from appliance.sweeps.fleet import Share
from appliance.sweeps.one_sweep import Sweep

pytestmark = pytest.mark.slow
RATES = "train.learning_rate=1e-5,1e-3,1e-2,1e-4"
NAMES = ("1-learning_rate-1e-5", "2-learning_rate-1e-3", "3-learning_rate-1e-2", "4-learning_rate-1e-4")
# Of the first two, neither falls behind the other, whichever is quicker.
TIED_FIRST, TIED = "train.learning_rate=1e-4,1e-2,1e-3,1e-5", ("1-learning_rate-1e-4", "2-learning_rate-1e-2")
DEADLINE = 400.0  # seconds; Ray takes a while to start on a machine at work
DRIVER = "from pathlib import Path; from tests.sweeps import test_sweep; test_sweep.drive(Path({!r}))"


@dataclass(frozen=True)
class Shop:
    """A folder with a recipe, and `how`, which tells the stand-ins what is to go wrong."""

    folder: Path

    @classmethod
    def made(cls, folder: Path) -> Shop:
        (folder / "runs" / "how").mkdir(parents=True)
        (folder / "rows.csv").write_text("instruction,output\na,b\n", encoding="utf-8")
        (folder / "shop.yaml").write_text(
            f"""name: shop
model: {{id: demo, load_in_4bit: false}}
data: {{csv: {folder / "rows.csv"}}}
train: {{max_steps: 90, eval_every: 10, batch_size: 8}}
""",
            encoding="utf-8",
        )
        return cls(folder)

    def sweep(self, tried: Sequence[str] = (RATES,)) -> Sweep:
        source = str(self.folder / "shop.yaml")
        plan = trials.plan(source, tried)
        return Sweep(
            plan, source, (), self.folder / "runs", self.folder / "cache", module="tests.sweeps.stand_in_trial"
        )

    def path(self, name: str) -> Path:
        return self.folder / "runs" / "shop-sweep" / name

    def how(self, name: str, text: str = "") -> Path:
        path = self.folder / "runs" / "how" / name
        path.write_text(text, encoding="utf-8")
        return path

    def calls(self) -> list[dict[str, Any]]:
        path = self.folder / "runs" / "calls.txt"
        lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
        return [json.loads(line) for line in lines]

    def commands(self) -> list[tuple[str, str]]:
        return [(call["command"], call["run"]) for call in self.calls()]

    def steps(self, name: str) -> list[int]:
        path = self.path(name) / "train" / "metrics.jsonl"
        lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
        return [json.loads(line)["step"] for line in lines]


def drive(folder: Path) -> None:
    """The driver as a process of its own."""
    signals.install()
    try:
        sweeps_sweep.run(Shop(folder).sweep([TIED_FIRST]))
    except (ApplianceError, Interrupted) as error:
        sys.stderr.write(f"{error}\n")
        sys.exit(error.exit_code)


def driver(shop: Shop) -> subprocess.Popen[bytes]:
    log = (shop.folder / "driver.log").open("ab")
    with log:
        command = [sys.executable, "-c", DRIVER.format(str(shop.folder))]
        return subprocess.Popen(command, stderr=log, stdout=log, start_new_session=True)


def until(holds: Callable[[], Any], of: subprocess.Popen[bytes] | None = None) -> None:
    end = time.monotonic() + DEADLINE
    while not holds():
        assert time.monotonic() < end
        assert of is None or of.poll() is None
        time.sleep(0.1)


def is_at_work(call: dict[str, Any]) -> bool:
    try:
        return psutil.Process(call["pid"]).status() != psutil.STATUS_ZOMBIE and "stand_in_trial" in " ".join(
            psutil.Process(call["pid"]).cmdline()
        )
    except psutil.Error:
        return False


def test_the_best_goes_on_and_the_others_stop_where_they_fall_behind_or_fail(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """One fails, one loses its worker half way, one falls behind: none of that changes what the others do."""
    shop = Shop.made(tmp_path)
    shop.how(f"fails-{NAMES[0]}", "4")
    waits = shop.how(f"waits-{NAMES[1]}", "50")
    shop.how("slow", "0.3")
    killed: list[int] = []

    def kill_its_worker() -> None:
        """Once it waits behind step 50: the worker is the parent of the trial's process."""
        try:
            until(lambda: 50 in shop.steps(NAMES[1]))
            call = next(call for call in shop.calls() if call["run"] == NAMES[1])
            worker = psutil.Process(call["pid"]).parent()
            assert worker
            worker.kill()
            until(lambda: not is_at_work(call))
            killed.append(worker.pid)
        finally:
            waits.unlink()

    killer = threading.Thread(target=kill_its_worker)
    killer.start()
    sweeps_sweep.run(shop.sweep())
    killer.join()

    assert killed
    commands = shop.commands()
    assert commands[:2] == [("check", NAMES[0]), ("prepare", NAMES[0])]
    assert commands[-1] == ("run", NAMES[1])
    assert sorted(commands[2:-1]) == [("train", name) for name in sorted([*NAMES, NAMES[1]])]
    assert {call["gpu"] for call in shop.calls()} == {""}
    assert {call["threads"] for call in shop.calls()} == {"1"}
    assert {tuple(call["found"]) for call in shop.calls() if call["command"] == "train"} == {("prepare",)}
    assert shop.steps(NAMES[1]) == [*range(0, 91, 10)]  # no step twice
    winner = chosen.read(shop.path(NAMES[1]))
    assert winner
    ended = {one.name: one.ended for one in winner.trials}
    assert winner.winner == NAMES[1]
    assert ended[NAMES[0]] == "failed (exit code 4): out of memory"
    assert ended[NAMES[1]] == trial_runs.RAN
    assert ended[NAMES[2]].startswith(trial_runs.STOPPED)
    assert (shop.path(NAMES[2]) / "train" / "saved").exists()  # by its signal, so that it could go on
    assert shop.steps(NAMES[2])[-1] < 90
    assert not [name for name in NAMES if name != NAMES[1] and (shop.path(name) / "evaluate").exists()]
    out, err = capsys.readouterr()
    assert out.splitlines()[0].split() == ["trial", "settings", "val", "loss", "steps", "ended", "minutes"]
    assert f"{NAMES[1]}: its worker or node was lost" in err
    assert "winner: 2-learning_rate-1e-3, val loss 0.69" in err

    sweeps_sweep.run(shop.sweep())  # the choice is made: test rows were looked at
    assert shop.commands()[len(commands) :] == [("run", NAMES[1])]
    assert "chosen before" in capsys.readouterr().err
    with pytest.raises(RunDirError, match=r"--try: was .*=1e-5.*\(4 trials\), is tuning.r=4 \(1 trial"):
        sweeps_sweep.run(shop.sweep(["tuning.r=4"]))
    with (shop.folder / "shop.yaml").open("a", encoding="utf-8") as handle:
        handle.write("prompt: chat\n")
    with pytest.raises(RunDirError, match="prompt: was 'alpaca', is 'chat'"):
        sweeps_sweep.run(shop.sweep())


def test_a_driver_that_is_stopped_or_killed_continues_where_the_trials_are(tmp_path: Path) -> None:
    shop = Shop.made(tmp_path)
    for name in TIED:
        shop.how(f"waits-{name}", "30")

    def both_wait_behind(step: int) -> bool:
        return all(shop.steps(name)[-1:] == [step] for name in TIED)

    first = driver(shop)
    until(lambda: both_wait_behind(30), first)
    first.terminate()
    assert first.wait(DEADLINE) == 128 + signal.SIGTERM
    assert "0 of 4 trials ended" in (shop.folder / "driver.log").read_text(encoding="utf-8")
    for name in TIED:
        assert (shop.path(name) / "train" / "saved").read_text(encoding="utf-8") == "30"
        assert trial_runs.read_note(shop.path(name)) is None
    assert not any(map(is_at_work, shop.calls()))

    for name in TIED:
        shop.how(f"waits-{name}", "60")
    before = len(shop.calls())
    second = driver(shop)
    until(lambda: both_wait_behind(60), second)
    second.kill()
    second.wait()
    until(lambda: not any(map(is_at_work, shop.calls())))
    assert {command for command, _ in shop.commands()[before:]} == {"train"}  # prepared once

    for name in TIED:
        (shop.folder / "runs" / "how" / f"waits-{name}").unlink()
    third = driver(shop)
    assert third.wait(DEADLINE) == 0
    for name in TIED:
        assert shop.steps(name) == [*range(0, 91, 10)]  # no step twice, and no rung that it had passed
    best = "3-learning_rate-1e-3"
    assert shop.commands()[-1] == ("run", best)
    winner = chosen.read(shop.path(best))
    assert winner
    assert [one.ended for one in winner.trials[:3]] == [trial_runs.RAN] * 3


def test_a_trial_may_take_its_time_to_stop_even_if_it_is_the_last(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Tune's own end of an experiment kills what has not stopped in ten seconds."""
    shop = Shop.made(tmp_path)
    waits = shop.how(f"waits-{NAMES[0]}", "0")
    shop.how(f"stops-slowly-{NAMES[0]}", "17")

    def go_on_when_the_other_has_ended() -> None:
        try:
            until(lambda: (shop.path(NAMES[1]) / "train" / "stage.json").exists())
            time.sleep(2)
        finally:
            waits.write_text("10", encoding="utf-8")

    thread = threading.Thread(target=go_on_when_the_other_has_ended)
    thread.start()
    sweeps_sweep.run(shop.sweep(["train.learning_rate=1e-5,1e-3"]))
    thread.join()
    assert f"{NAMES[0]}: stopped by ASHA after evaluation 1 of 9" in capsys.readouterr().err
    assert (shop.path(NAMES[0]) / "train" / "saved").read_text(encoding="utf-8") == "10"


def test_if_no_trial_ends_that_is_the_error_and_the_same_call_tries_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shop = Shop.made(tmp_path)
    tried = ["train.learning_rate=1e-5,1e-3"]
    shop.how(f"fails-{NAMES[0]}", "4")
    shop.how(f"fails-{NAMES[1]}", "7")
    with pytest.raises(TrainingFailed, match="none of 2 trials was trained to its end"):
        sweeps_sweep.run(shop.sweep(tried))
    shop.how(f"fails-{NAMES[1]}").unlink()
    address = "json://canary-of-notify/path"
    monkeypatch.setenv("APPLIANCE_NOTIFY", address)
    before = len(shop.calls())
    sweeps_sweep.run(shop.sweep(tried))
    calls = shop.calls()[before:]
    assert sorted((call["command"], call["run"]) for call in calls) == [
        ("run", NAMES[1]), ("train", NAMES[0]), ("train", NAMES[1])
    ]  # fmt: skip
    # one message, by the winner's run: what a trial is given takes precedence over the variable
    assert ["notify" in call["settings"] for call in calls if call["command"] == "run"] == [False]
    assert [call["settings"]["notify"] for call in calls if call["command"] == "train"] == ["[]", "[]"]
    written = [path for path in (shop.folder / "runs").rglob("*") if path.is_file()]
    assert not [path for path in written if b"canary-of-notify" in path.read_bytes()]


def test_a_csv_that_is_not_there_is_refused_before_anything_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sweeps_cluster, "connected", None)
    shop = Shop.made(tmp_path)
    (tmp_path / "rows.csv").unlink()
    with pytest.raises(DataError, match=r"rows\.csv: no such file"):
        sweeps_sweep.run(shop.sweep())
    (tmp_path / "rows.csv").mkdir()
    with pytest.raises(DataError, match=r"rows\.csv: is a folder"):
        sweeps_sweep.run(shop.sweep())
    assert not (tmp_path / "runs" / "shop-sweep").exists()
    first = RunDir(shop.path(NAMES[0]))
    first.create()
    first.begin("prepare", {})
    first.finish("prepare", {}, "prepared")
    with pytest.raises(TypeError, match="not callable"):  # nothing reads the CSV any more: it goes on
        sweeps_sweep.run(shop.sweep())
    demo = trials.plan("demo", ["tuning.r=8,16"], environ={})
    with pytest.raises(TypeError, match="not callable"):  # its CSV is the package's own
        sweeps_sweep.run(Sweep(demo, "demo", (), tmp_path / "runs", tmp_path / "cache"))


def test_a_command_is_not_waited_for_on_a_cluster_that_has_ended(tmp_path: Path) -> None:
    def ended() -> None:
        raise EnvironmentUnavailable("raylet was killed", hint="")

    task = SimpleNamespace(options=lambda **_: task, remote=lambda *_: "ref")
    errors = SimpleNamespace(RayError=OSError)
    answers = iter([([], ["ref"])] * 2)
    ray = SimpleNamespace(remote=lambda _: task, wait=lambda *_, **__: next(answers), exceptions=errors)
    cluster = SimpleNamespace(ray=ray, refuse_ended=ended)
    sweep = Shop.made(tmp_path).sweep()
    share = Share(0, 1, 1)
    job = sweep.job("check", sweep.first, [], share)
    with pytest.raises(EnvironmentUnavailable, match="raylet was killed"):
        on_cluster.wait_for(cast("Cluster", cluster), job, share, what="check")


def test_without_the_extra_the_command_says_how_to_install_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(EnvironmentUnavailable) as caught:
        sweeps_sweep.run(Shop.made(tmp_path).sweep())
    assert ".[ray]" in caught.value.hint
    assert os.environ.get("RAY_ADDRESS") is None
