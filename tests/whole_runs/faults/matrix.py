"""Kills a run again and again, anywhere in its pipeline, and holds what it ends with against a run that nobody killed.

>>> matrix = Matrix(folder, base_dir); matrix.reference()
>>> matrix.chain(matrix.plan(random.Random(1), points=4, faults=["kill -9"]), seed=1)
"""

from __future__ import annotations

import itertools
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

import psutil

from appliance.machine import disk
from appliance.process import files, signals
from appliance.process.known_hashes import Identity
from appliance.rundir.directory import STAGES
from tests.conftest import write_qa
from tests.whole_runs.faults import zygote

RESULTS = ("prepare/train.csv", "prepare/val.csv", "prepare/test.csv", "train/adapter/adapter_model.safetensors",
           "evaluate/metrics.json", "evaluate/predictions.csv", "merge/model/model.safetensors",
           "publish/release/model/model.safetensors")  # fmt: skip
FAULTS: dict[str, tuple[signal.Signals, ...]] = {
    "kill -9": (signal.SIGKILL,),
    "SIGTERM": (signal.SIGTERM,),
    "SIGINT": (signal.SIGINT,),
    "SIGHUP": (signal.SIGHUP,),
    "SIGTERM twice": (signal.SIGTERM, signal.SIGTERM),
}
EVAL_EVERY, GRACE_SECONDS, HANGS_SECONDS = 3, 30.0, 240
_OWNER = "FAULTS_OF"  # a variable of every process that a command starts, and of theirs


@dataclass(frozen=True)
class Kill:
    """`at`: when the stage is done (1.0), or at this share of the time that it takes. `steps`: of training, after which
    that time begins."""

    stage: str
    fault: str
    at: float
    steps: int = 0


@dataclass
class Matrix:
    folder: Path
    base_dir: Path
    rehearses: bool = False  # which takes as long as all else together
    steps: int = 15
    survived: Counter[tuple[str, str]] = field(default_factory=Counter)
    tried: Counter[tuple[str, str]] = field(default_factory=Counter)
    lost: Counter[str] = field(default_factory=Counter)  # fault -> most steps lost
    failures: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        names = ["사과", "배", "감", "귤", "밤"]
        write_qa(self.folder / "train.csv", [(f"{names[i % 5]} {i}?", f"{names[i % 5]}!") for i in range(40)])
        self.temporary = self.folder / "tmp"
        self.temporary.mkdir()
        self._recipe = self.folder / "shop.yaml"
        self._recipe.write_text(
            f"""name: shop
engine: transformers
model: {{id: {json.dumps(str(self.base_dir))}, load_in_4bit: false}}
data: {{csv: {json.dumps(str(self.folder / "train.csv"))}, test_fraction: 0.2}}
rehearse: {"always" if self.rehearses else "never"}
tuning: {{r: 4, alpha: 8, dropout: 0.1}}
train: {{max_steps: {self.steps}, micro_batch_size: 4, gradient_accumulation_steps: 2, learning_rate: 1e-2,
         eval_every: {EVAL_EVERY}, patience: 9}}
evaluate: {{max_new_tokens: 8}}
""",
            encoding="utf-8",
        )
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "APPLIANCE_CACHE_DIR": str(self.folder / "cache")}
        environment |= {_OWNER: str(self.folder), "TMPDIR": str(self.temporary), signals.ONE_PRESS_VARIABLE: "0"}
        self._zygote = subprocess.Popen(
            [sys.executable, "-W", "ignore", "-m", "tests.whole_runs.faults.zygote"],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment, text=True,
        )  # fmt: skip

    def plan(self, rng: random.Random, points: int, faults: Sequence[str]) -> list[Kill]:
        """For every stage a kill at its end and the others of `points` inside, by the faults in turn."""
        turn = itertools.cycle(faults)
        places = [
            (stage, at) for stage in self._stages for at in (*sorted(rng.random() for _ in range(points - 1)), 1.0)
        ]
        return [Kill(stage, next(turn), at) for stage, at in places]

    @property
    def _stages(self) -> tuple[str, ...]:
        return tuple(stage for stage in STAGES if self.rehearses or stage != "rehearse")

    def close(self) -> None:
        _pipe(self._zygote.stdin).close()
        self._zygote.wait(timeout=GRACE_SECONDS)
        _pipe(self._zygote.stdout).close()

    def reference(self) -> None:
        """A run that nobody kills: what every other must end with, and how long its stages take."""
        code = self.run(self.folder / "whole", None)[0]
        assert code == 0, self._log.read_text(encoding="utf-8")
        run = self.folder / "whole" / "shop"
        self._seconds = {stage: files.read_json(run / stage / "stage.json")["seconds"] for stage in STAGES}
        self._wanted = self._hashes(run)
        self.whole_bytes, self.whole_files = disk.size_of(run), len(list(run.rglob("*")))

    def chain(self, kills: list[Kill], seed: int) -> None:
        """One run through all the kills, then to its end."""
        runs = self.folder / f"seed-{seed}"
        run, made, trained = runs / "shop", [], 0.0
        for planned in kills:
            if planned.stage != "check" and (run / planned.stage / "stage.json").is_file():
                continue  # an earlier kill came later than it was meant to
            code, hit = self.run(runs, planned, trained if planned.stage == "train" else 0.0)
            trained = planned.at if planned.stage == "train" else 0.0  # it goes on from there
            if not hit:
                self.fail(f"seed {seed}, before {planned}: exit {code}")
                continue
            kill = Kill(hit, planned.fault, planned.at)
            made.append(kill)
            self.tried[kill.stage, kill.fault] += 1
            numbers = FAULTS[kill.fault]
            expected = {128 + numbers[0], -numbers[-1]} if numbers[0] != signal.SIGKILL else {-signal.SIGKILL}
            lost = self._steps_lost(run)
            self.lost[kill.fault] = max(self.lost[kill.fault], lost)
            allowed = 1 if kill.fault.startswith("SIG") and len(numbers) == 1 else EVAL_EVERY
            if code not in expected or lost > allowed:
                self.fail(f"seed {seed}, {kill}: exit {code}, wanted one of {expected}; {lost} steps lost")
                continue
            self.survived[kill.stage, kill.fault] += 1
        if not self.end(runs, f"seed {seed}, after {made}"):
            for kill in made:
                self.survived[kill.stage, kill.fault] -= 1

    def end(self, runs: Path, what: str, clock: int | None = None) -> bool:
        """The same command until it is done: whether it has the results of the reference. Nothing may be left over."""
        code, _ = self.run(runs, None, clock=clock)
        run = runs / "shop"
        is_same = not code and self._hashes(run) == self._wanted
        if not is_same:
            self.fail(f"{what}: exit {code}, or other results")
        leftovers = [p.name for p in run.rglob(".*") if p.name != ".lock"] + [p.name for p in run.glob("*.old")]
        leftovers += [p.name for p in self.temporary.iterdir()]
        if leftovers:
            self.fail(f"{what}: {leftovers} were left behind")
        return is_same

    def table(self) -> str:
        """survived/tried, a line a stage."""
        lines = [f"{'':10}" + "".join(f"{fault:>15}" for fault in FAULTS)]
        for stage in self._stages:
            cells = [f"{self.survived[stage, fault]}/{self.tried[stage, fault]}" for fault in FAULTS]
            lines.append(f"{stage:10}" + "".join(f"{cell:>15}" for cell in cells))
        lines.append(f"{'steps lost':10}" + "".join(f"{self.lost[fault]:>15}" for fault in FAULTS))
        lines.append(f"survived {self.survived.total()} of {self.tried.total()}")
        return "\n".join([*lines, *self.failures])

    def run(self, runs: Path, kill: Kill | None, begins_at: float = 0.0, clock: int | None = None) -> tuple[int, str]:
        """(exit code, the stage in which the kill came) of the same command, always.

        `begins_at`: the share of the stage that was done before. `clock`: the seed by which its clock jumps.
        """
        runs.mkdir(exist_ok=True)
        self._log = runs / "output.log"
        checked, before = runs / "shop" / "check" / "stage.json", {}
        if kill:
            before = {path: _identity(path) for path in (self._mark(runs / "shop", kill), checked)}
        arguments = ["run", str(self._recipe), "--runs-dir", str(runs)]
        _pipe(self._zygote.stdin).write(
            json.dumps({"arguments": arguments, "log": str(self._log), "clock": clock}) + "\n"
        )
        _pipe(self._zygote.stdin).flush()
        pid = int(_pipe(self._zygote.stdout).readline())
        hit = self._strike(pid, runs / "shop", kill, before, begins_at) if kill else ""
        self._refuse_hanging(pid, f"{runs.name}, {kill or 'the whole command'}")
        code = os.waitstatus_to_exitcode(int(_pipe(self._zygote.stdout).readline()))
        if left := self._processes():
            self.fail(f"{runs.name}, {kill or 'the whole command'}: processes were left behind: {left}")
        return code, hit

    def _refuse_hanging(self, pid: int, what: str) -> None:
        """Where each of its threads stands is in its log before it is killed."""
        end = time.monotonic() + HANGS_SECONDS
        while _is_alive(pid) and time.monotonic() < end:
            time.sleep(0.01)
        if _is_alive(pid):
            os.kill(pid, zygote.SHOWS_STACKS)
            time.sleep(1)
            os.kill(pid, signal.SIGKILL)
            self.fail(f"{what}: it did not end within {HANGS_SECONDS} s")

    def _processes(self) -> list[str]:
        """What the commands have started and is still there, zombies included, one second after they ended."""
        ours = psutil.Process(self._zygote.pid)
        for _ in range(100):
            found = {process.pid: process for process in ours.children(recursive=True)}
            for process in psutil.process_iter():
                with suppress(psutil.Error):
                    if process.pid != ours.pid and process.environ().get(_OWNER) == str(self.folder):
                        found[process.pid] = process
            if not found:
                return []
            time.sleep(0.01)
        return [str(process) for process in found.values()]

    @staticmethod
    def _mark(run: Path, kill: Kill) -> Path:
        """The file whose writing says that the stage has ended, or begun."""
        return run / kill.stage / ("stage.json" if kill.at == 1.0 else "started.json")

    def _strike(self, pid: int, run: Path, kill: Kill, before: dict[Path, Identity | None], begins_at: float) -> str:
        def is_new(path: Path) -> bool:
            return _identity(path) not in (None, before[path])

        mark = self._mark(run, kill)
        while not is_new(mark):
            if not _is_alive(pid):
                return ""
            time.sleep(0.002)
        goal = _saved(run) + kill.steps
        while kill.steps and _is_alive(pid) and _trained(run) < goal:
            time.sleep(0.002)
        if kill.at < 1.0:
            time.sleep((kill.at - begins_at) * self._seconds[kill.stage])
        done = [is_new(run / "check" / "stage.json")]
        done += [(run / stage / "stage.json").is_file() for stage in STAGES[1:]]
        hit = next((stage for stage, is_done in zip(STAGES, done, strict=True) if not is_done), "publish")
        if kill.at == 1.0:
            hit = kill.stage
        if not _is_alive(pid):
            return ""
        for number in FAULTS[kill.fault]:
            with suppress(ProcessLookupError):  # the first of two was enough
                os.kill(pid, number)
            time.sleep(0.02)
        return hit

    def _steps_lost(self, run: Path) -> int:
        """Steps in metrics.jsonl behind the newest checkpoint, while training is not done."""
        return 0 if (run / "train" / "stage.json").is_file() else _trained(run) - _saved(run)

    def _hashes(self, run: Path) -> dict[str, str]:
        return {name: files.sha256_of(run / name) for name in RESULTS if (run / name).is_file()}

    def fail(self, what: str) -> None:
        self.failures.append(f"{what}\n{self._log.read_text(encoding='utf-8')[-4000:]}")


def _pipe(stream: IO[str] | None) -> IO[str]:
    assert stream is not None
    return stream


def _trained(run: Path) -> int:
    """The last step in metrics.jsonl."""
    path = run / "train" / "metrics.jsonl"
    whole = path.read_text(encoding="utf-8").split("\n")[:-1] if path.is_file() else []
    return max((int(json.loads(line)["step"]) for line in whole), default=0)


def _saved(run: Path) -> int:
    """The step of the newest checkpoint."""
    found = (run / "train" / "checkpoints").glob("checkpoint-*")
    return max((int(path.name.rpartition("-")[2]) for path in found), default=0)


def _is_alive(pid: int) -> bool:
    """Not a zombie either: its parent reaps it only when it is asked."""
    try:
        return Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def _identity(path: Path) -> Identity | None:
    """By the file, not by its times: the clock may jump."""
    try:
        return Identity.of(path)
    except FileNotFoundError:
        return None
