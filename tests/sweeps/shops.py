"""CSVs, a recipe for a tiny model, and what each run ends with if nobody disturbs it; runs are forks (forked.py).

>>> with Shops(folder, base_dir, names) as shops:
...     jobs = [shops.job(name, runs_dir) for name in names]
...     assert shops.differences(runs_dir / "one") == []
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType

import psutil

from appliance.process import files
from appliance.rundir import results
from appliance.sweeps.run_child import RunJob, Stored
from appliance.sweeps.storage import Storage
from tests.conftest import write_qa
from tests.sweeps import forked
from tests.whole_runs.faults.matrix import RESULTS

EVAL_EVERY, STEPS = 3, 18
WRONG = "wrong"  # a CSV without answers
_ROOT = Path(__file__).parents[2]  # where `python -m` finds it
_NAMES = ("사과", "배", "감", "귤", "밤")


class Shops:
    """A context manager: the process that forks the runs lives as long as it, and has to be older than Ray."""

    def __init__(self, folder: Path, base_dir: Path, names: Sequence[str]) -> None:
        self._folder, self._names = folder, names
        self._recipe = folder / "shop.yaml"
        self._recipe.write_text(
            f"""name: shop
engine: transformers
model: {{id: {json.dumps(str(base_dir))}, load_in_4bit: false}}
data: {{csv: none.csv, test_fraction: 0.2}}
rehearse: never
tuning: {{r: 4, alpha: 8, dropout: 0.1}}
train: {{max_steps: {STEPS}, micro_batch_size: 4, gradient_accumulation_steps: 2, learning_rate: 1e-2,
         eval_every: {EVAL_EVERY}, patience: 9}}
evaluate: {{max_new_tokens: 8, max_rows: 4}}
""",
            encoding="utf-8",
        )
        for number, name in enumerate(names):
            rows = [(f"{_NAMES[i % 5]} {number}-{i}?", f"{_NAMES[i % 5]}!") for i in range(40)]
            write_qa(self.csv(name), rows)
        self.csv(WRONG).write_text("instruction,output\n", encoding="utf-8")

    def __enter__(self) -> Shops:
        with ExitStack() as stack:
            stack.enter_context(forked.server(self._folder))
            self._wanted = self._undisturbed()
            self._stack = stack.pop_all()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._stack.close()

    def csv(self, name: str) -> Path:
        return self._folder / f"{name}.csv"

    def job(self, name: str, runs_dir: Path) -> RunJob:
        words = self._words(name, runs_dir)
        return RunJob(name, words, runs_dir / name, _ROOT, gpus=0, threads=1, module=forked.MODULE)

    def stored_job(self, name: str, runs_dir: Path, storage: Storage) -> RunJob:
        """With its directory and its CSV in the storage; it leaves the node when it is done."""
        sha256 = storage.put_csv(self.csv(name))
        there = Storage.csv_path(sha256, f"{name}.csv", runs_dir / ".csv")
        words = (*self._words(name, runs_dir), "--set", f"data.csv={there}")
        stored = Stored(storage.url, sha256, f"{name}.csv", drops=True)
        return replace(self.job(name, runs_dir), words=words, stored=stored)

    def differences(self, run_path: Path) -> list[str]:
        """The results of the run that have other bytes than those of the run that nobody disturbed."""
        wanted = self._wanted[run_path.name]
        return [name for name in RESULTS if _hash(run_path / name) != wanted[name]]

    def _words(self, name: str, runs_dir: Path) -> tuple[str, ...]:
        own = ("--set", f"data.csv={self.csv(name)}", "--set", f"name={name}")
        return ("run", str(self._recipe), *own, "--runs-dir", str(runs_dir), "--cache-dir", str(self._folder / "cache"))

    def _undisturbed(self) -> dict[str, dict[str, str | None]]:
        """By `appliance run` alone, with as many threads as a run of a fleet has."""
        runs_dir = self._folder / "alone"
        for name in self._names:
            command = [sys.executable, "-m", forked.MODULE, *self._words(name, runs_dir)]
            done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=_ROOT)
            assert done.returncode == 0, done.stderr
        found = {name: {one: _hash(runs_dir / name / one) for one in RESULTS} for name in self._names}
        assert all(len(set(hashes.values()) - {None}) > 5 for hashes in found.values()), found
        return found


@dataclass(frozen=True)
class Hit:
    """A run that was struck: how many steps it had trained."""

    name: str
    step: int


def when_trained(run_path: Path, steps: int, strike: Callable[[psutil.Process], None]) -> Hit:
    """Calls `strike` with the worker that the run is a child of, once that many steps are trained.

    The run stands still meanwhile: what it has trained is counted before another attempt goes on with it.
    """
    end = time.monotonic() + 120
    while trained(run_path) < steps:
        assert time.monotonic() < end, f"{run_path.name} did not train"
        time.sleep(0.01)
    process = process_of(run_path.name)
    process.suspend()
    worker, hit = process.parent(), Hit(run_path.name, trained(run_path))
    assert worker is not None
    strike(worker)
    if psutil.wait_procs([worker], timeout=1)[0]:
        process.wait(10)  # a run ends with its worker, or the next attempt would find it at work
    return hit


def held_when_trained(run_paths: Iterable[Path], count: int) -> list[Hit]:
    """Suspends each run once it has trained a step more than its first evaluation needs, until that many are held.

    Only SIGKILL ends them. Which ones begin first is for Ray to say.
    """
    end, hits, waiting = time.monotonic() + 120, list[Hit](), list(run_paths)
    while len(hits) < count:
        assert time.monotonic() < end, f"only {hits} did train"
        for run_path in [path for path in waiting if trained(path) > EVAL_EVERY]:
            psutil.Process(int((run_path / ".lock").read_text(encoding="ascii"))).suspend()
            hits.append(Hit(run_path.name, trained(run_path)))
            waiting.remove(run_path)
        time.sleep(0.01)
    return hits


def process_of(name: str) -> psutil.Process:
    """The stand-in at work on the run."""
    for process in forked.commands():
        with suppress(psutil.Error):
            if f"name={name}" in process.cmdline():
                return process
    raise LookupError(name)


def at_work() -> list[str]:
    """The command lines of all stand-ins, and of all forks in which runs take place."""
    found = []
    for process in [*forked.commands(), *forked.forks()]:
        with suppress(psutil.Error):
            found.append(" ".join(process.cmdline()))
    return found


def trained(run_path: Path) -> int:
    """The last step in metrics.jsonl."""
    path = run_path / "train" / "metrics.jsonl"
    whole = path.read_text(encoding="utf-8").split("\n")[:-1] if path.is_file() else []
    return max((int(json.loads(line)["step"]) for line in whole), default=0)


def continued_from(run_path: Path) -> int:
    """The step from which the last training of the run went on; 0: its first step."""
    return int(files.read_json(run_path / "train" / results.STEPS)["from"])


def _hash(path: Path) -> str | None:
    return files.sha256_of(path) if path.is_file() else None
