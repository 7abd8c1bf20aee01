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

from appliance.process import files
from appliance.rundir.directory import STAGES
from tests.conftest import write_qa

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
EVAL_EVERY, GRACE_SECONDS = 3, 30.0


@dataclass(frozen=True)
class Kill:
    """`at`: when the stage is done (1.0), or at this share of the time that it takes."""

    stage: str
    fault: str
    at: float


@dataclass
class Matrix:
    folder: Path
    base_dir: Path
    rehearses: bool = False  # which takes as long as all else together
    survived: Counter[tuple[str, str]] = field(default_factory=Counter)
    tried: Counter[tuple[str, str]] = field(default_factory=Counter)
    lost: Counter[str] = field(default_factory=Counter)  # fault -> most steps lost
    failures: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        names = ["사과", "배", "감", "귤", "밤"]
        write_qa(self.folder / "train.csv", [(f"{names[i % 5]} {i}?", f"{names[i % 5]}!") for i in range(40)])
        self._recipe = self.folder / "shop.yaml"
        self._recipe.write_text(
            f"""name: shop
engine: transformers
model: {{id: {self.base_dir}, load_in_4bit: false}}
data: {{csv: {self.folder / "train.csv"}, test_fraction: 0.2}}
rehearse: {"always" if self.rehearses else "never"}
tuning: {{r: 4, alpha: 8, dropout: 0.1}}
train: {{max_steps: 15, micro_batch_size: 4, gradient_accumulation_steps: 2, learning_rate: 1e-2,
         eval_every: {EVAL_EVERY}, patience: 9}}
evaluate: {{max_new_tokens: 8}}
""",
            encoding="utf-8",
        )
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "APPLIANCE_CACHE_DIR": str(self.folder / "cache")}
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
        code = self._run(self.folder / "whole", None)[0]
        assert code == 0, self._log.read_text(encoding="utf-8")
        run = self.folder / "whole" / "shop"
        self._seconds = {stage: files.read_json(run / stage / "stage.json")["seconds"] for stage in STAGES}
        self._wanted = self._hashes(run)

    def chain(self, kills: list[Kill], seed: int) -> None:
        """One run through all the kills, then to its end."""
        runs = self.folder / f"seed-{seed}"
        run, made, trained = runs / "shop", [], 0.0
        for planned in kills:
            if planned.stage != "check" and (run / planned.stage / "stage.json").is_file():
                continue  # an earlier kill came later than it was meant to
            code, hit = self._run(runs, planned, trained if planned.stage == "train" else 0.0)
            trained = planned.at if planned.stage == "train" else 0.0  # it goes on from there
            if not hit:
                self._fail(f"seed {seed}, before {planned}: exit {code}")
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
                self._fail(f"seed {seed}, {kill}: exit {code}, wanted one of {expected}; {lost} steps lost")
                continue
            self.survived[kill.stage, kill.fault] += 1
        code, _ = self._run(runs, None)
        if code or self._hashes(run) != self._wanted:
            self._fail(f"seed {seed}: exit {code}, or other results, after {made}")
            for kill in made:
                self.survived[kill.stage, kill.fault] -= 1
        leftovers = [p.name for p in run.rglob(".*") if p.name != ".lock"] + [p.name for p in run.glob("*.old")]
        if leftovers:
            self._fail(f"seed {seed}: {leftovers} were left behind")

    def table(self) -> str:
        """survived/tried, a line a stage."""
        lines = [f"{'':10}" + "".join(f"{fault:>15}" for fault in FAULTS)]
        for stage in self._stages:
            cells = [f"{self.survived[stage, fault]}/{self.tried[stage, fault]}" for fault in FAULTS]
            lines.append(f"{stage:10}" + "".join(f"{cell:>15}" for cell in cells))
        lines.append(f"{'steps lost':10}" + "".join(f"{self.lost[fault]:>15}" for fault in FAULTS))
        lines.append(f"survived {self.survived.total()} of {self.tried.total()}")
        return "\n".join([*lines, *self.failures])

    def _run(self, runs: Path, kill: Kill | None, begins_at: float = 0.0) -> tuple[int, str]:
        """(exit code, the stage in which the kill came) of the same command, always.

        `begins_at`: the share of the stage that was done before.
        """
        runs.mkdir(exist_ok=True)
        self._log = runs / "output.log"
        began = time.time_ns()
        request = {"arguments": ["run", str(self._recipe), "--runs-dir", str(runs)], "log": str(self._log)}
        _pipe(self._zygote.stdin).write(json.dumps(request) + "\n")
        _pipe(self._zygote.stdin).flush()
        pid = int(_pipe(self._zygote.stdout).readline())
        hit = self._strike(pid, runs / "shop", kill, began, begins_at) if kill else ""
        return os.waitstatus_to_exitcode(int(_pipe(self._zygote.stdout).readline())), hit

    def _strike(self, pid: int, run: Path, kill: Kill, began: int, begins_at: float) -> str:
        name = "stage.json" if kill.at == 1.0 else "started.json"
        mark = run / kill.stage / name
        while not _is_newer(mark, began):
            if not _is_alive(pid):
                return ""
            time.sleep(0.002)
        if kill.at < 1.0:
            time.sleep((kill.at - begins_at) * self._seconds[kill.stage])
        done = [_is_newer(run / "check" / "stage.json", began)]
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
        path = run / "train" / "metrics.jsonl"
        if not path.is_file() or (run / "train" / "stage.json").is_file():
            return 0
        whole = path.read_text(encoding="utf-8").split("\n")[:-1]
        steps = [json.loads(line)["step"] for line in whole]
        saved = [int(p.name.rpartition("-")[2]) for p in (run / "train" / "checkpoints").glob("checkpoint-*")]
        return max(steps, default=0) - max(saved, default=0)

    def _hashes(self, run: Path) -> dict[str, str]:
        return {name: files.sha256_of(run / name) for name in RESULTS if (run / name).is_file()}

    def _fail(self, what: str) -> None:
        self.failures.append(f"{what}\n{self._log.read_text(encoding='utf-8')[-1500:]}")


def _pipe(stream: IO[str] | None) -> IO[str]:
    assert stream is not None
    return stream


def _is_alive(pid: int) -> bool:
    """Not a zombie either: its parent reaps it only when it is asked."""
    try:
        return Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def _is_newer(path: Path, nanoseconds: int) -> bool:
    try:
        return path.stat().st_mtime_ns >= nanoseconds
    except FileNotFoundError:
        return False
