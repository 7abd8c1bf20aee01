"""What a fleet costs beside a shell loop, and how well it keeps cards busy that Ray only believes in.

>>> python -m benchmarks.fleet loop [CSVS]           # tiny CSVs on this machine's cores: `appliance fleet`, and a loop
>>> python -m benchmarks.fleet cards [CSVS] [NODES]  # runs that sleep 20 to 40 s; a third of the way, a node is lost
"""

from __future__ import annotations

import ctypes
import json
import os
import random
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

from appliance.process import files
from appliance.sweeps import cluster as sweeps_cluster
from appliance.sweeps.cluster import Cluster
from appliance.sweeps.fleet import Fleet, Share
from appliance.sweeps.fleet_shown import Progress
from appliance.sweeps.run_child import RunJob, RunOutcome

CARDS = 8  # of a node
SLEEPS = (20.0, 40.0)  # seconds of a run, uniformly
_PR_SET_CHILD_SUBREAPER = 36  # linux/prctl.h
_LOG = "slept.jsonl"  # a line of each run that slept to its end


def slept(job: RunJob) -> tuple[str, RunOutcome]:
    """In place of fleet.attempt: a run whose whole process is `sleep`."""
    import ray

    began = time.time()
    subprocess.run(["sleep", job.words[0]], check=True)
    node = str(ray.get_runtime_context().get_node_id())
    with (job.run_path.parent / _LOG).open("a", encoding="utf-8") as log:
        log.write(json.dumps({"name": job.name, "node": node, "began": began, "ended": time.time()}) + "\n")
    return node, RunOutcome(job.name, 0, time.time() - began, node, 1)


class SleepingFleet(Fleet):
    """The product's own loop over runs that sleep."""

    def __init__(self, cluster: Cluster, jobs: Sequence[RunJob], progress: Progress) -> None:
        super().__init__(cluster, jobs, Share(1, 0, 1), progress, waits=False)
        self._task = self._ray.remote(slept)


class Silent(Progress):
    """There are no run directories to look into."""

    def __init__(self) -> None:
        super().__init__(0, 0)

    def ended(self, job: RunJob, outcome: RunOutcome) -> None:
        assert outcome.exit_code == 0, (job.name, outcome)

    def show(self, under_way: Sequence[RunJob], waiting: int, room: Mapping[str, int]) -> None:
        pass


@dataclass(frozen=True)
class Simulated:
    """`utilisation`: of the seconds of all cards that were there, how many were slept by runs that came to their end.

    `once_all_work`: the same, from when the last card got its first run after `ramp` seconds: until then, the workers
    of all cards start on the cores of one machine. `on_lost_node`: runs that had ended there.
    """

    runs: int
    wall: float
    ramp: float
    utilisation: float
    once_all_work: float
    on_lost_node: int


def simulate(nodes: Any, jobs: Sequence[RunJob], *, lose_after: float) -> Simulated:
    """The runs on the cards of `nodes` (tests/sweeps/local_nodes.py), of which one is lost when that share is done."""
    log = jobs[0].run_path.parent / _LOG
    cards, lost, ended = CARDS * nodes.alive, list[float](), threading.Event()

    def lose() -> None:
        while len(_lines(log)) < lose_after * len(jobs):
            if ended.wait(0.1):
                return
        nodes.lose(nodes.newest)
        lost.append(time.time())

    with sweeps_cluster.connected() as cluster:
        thread = threading.Thread(target=lose)
        thread.start()
        began = time.time()
        outcomes = SleepingFleet(cluster, jobs, Silent()).run()
        ended.set()
        thread.join()
        gone = {node.id for node in cluster.nodes if not node.alive}
    lines = list({line["name"]: line for line in _lines(log)}.values())  # one that nobody heard of anymore is repeated
    assert outcomes.keys() == {line["name"] for line in lines} == {job.name for job in jobs}
    end = max(line["ended"] for line in lines)
    all_work = sorted(line["began"] for line in lines)[cards - 1]

    def utilisation(since: float) -> float:
        available = cards * (end - since) - CARDS * sum(end - at for at in lost)
        return float(sum(max(0, line["ended"] - max(line["began"], since)) for line in lines) / available)

    on_lost_node = sum(line["node"] in gone for line in lines)
    return Simulated(len(jobs), end - began, all_work - began, utilisation(began), utilisation(all_work), on_lost_node)


def sleeping(count: int, folder: Path, seconds: tuple[float, float]) -> list[RunJob]:
    rng = random.Random(0)
    return [
        RunJob(f"{number}", (f"{rng.uniform(*seconds):.2f}",), folder / f"{number}", folder) for number in range(count)
    ]


def _lines(log: Path) -> list[dict[str, Any]]:
    if not log.exists():
        return []
    return [json.loads(line) for line in log.read_text(encoding="utf-8").splitlines(keepends=True) if line[-1] == "\n"]


def cards(count: int, nodes: int) -> str:
    from tests.sweeps.local_nodes import LocalNodes

    with tempfile.TemporaryDirectory() as scratch, LocalNodes() as local:
        for _ in range(nodes):
            local.add(cpus=0, gpus=CARDS)
        os.environ["RAY_ADDRESS"] = local.address
        with _measured(25.0) as tree:
            found = simulate(local, sleeping(count, Path(scratch), SLEEPS), lose_after=1 / 3)
    return (
        f"{count:,} runs of {SLEEPS[0]:.0f} to {SLEEPS[1]:.0f} s on {nodes * CARDS} cards of {nodes} nodes, one lost "
        f"after a third: {found.wall:.0f} s, utilisation {found.utilisation:.1%}; {found.once_all_work:.1%} once all "
        f"worked, after {found.ramp:.0f} s; {found.on_lost_node} had ended on the lost node; peak memory of all "
        f"processes {tree.peak:.0f} MiB; load {os.getloadavg()[0]:.0f}"
    )


@dataclass
class Tree:
    """What all processes below this one have taken, by looks at them: a process of a moment is missed.

    `peak`: the most memory at once in MiB, shared pages counted once. `cpu`: seconds. Ray reaps its processes without
    waiting for them, so that the kernel adds up nothing.
    """

    peak: float = 0.0
    _cpu: dict[psutil.Process, float] = field(default_factory=dict)

    @property
    def cpu(self) -> float:
        return sum(self._cpu.values())

    def look(self, *, at_memory: bool) -> None:
        total = 0
        for process in psutil.Process().children(recursive=True):
            with suppress(psutil.Error, OSError):
                used = process.cpu_times()
                self._cpu[process] = used.user + used.system
                total += process.memory_full_info().pss if at_memory else 0
        self.peak = max(self.peak, total / 2**20)


@contextmanager
def _measured(seconds: float = 1.0) -> Iterator[Tree]:
    """`seconds` between two looks at memory, which take longer; those at time are five times as often."""
    tree, ended = Tree(), threading.Event()

    def look() -> None:
        number = 0
        while not ended.wait(seconds / 5):
            number += 1
            tree.look(at_memory=number % 5 == 0)

    thread = threading.Thread(target=look)
    thread.start()
    try:
        yield tree
    finally:
        ended.set()
        thread.join()


@dataclass(frozen=True)
class Cost:
    wall: float
    cpu: float
    peak: float


def cost_of(command: Sequence[str], folder: Path) -> Cost:
    """Of the command and every process below it, those included that outlive their parents."""
    ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1)
    began = time.perf_counter()
    environ = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    with (folder / "output.log").open("w", encoding="utf-8") as output, _measured() as tree:
        code = subprocess.run(command, cwd=folder, stdout=output, stderr=output, env=environ, check=False).returncode
        wall = time.perf_counter() - began
        with suppress(ChildProcessError):
            while True:
                os.wait()
    if code:
        raise SystemExit(f"{command} ended with {code}:\n{(folder / 'output.log').read_text(encoding='utf-8')[-3000:]}")
    return Cost(wall, tree.cpu, tree.peak)


def loop(count: int) -> str:
    """Two at a time, a thread each, by `xargs -P` and by the fleet; whether both end with the same bytes."""
    from tests.whole_runs.faults.matrix import RESULTS

    cores = len(os.sched_getaffinity(0))
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        making = "import sys; from pathlib import Path; from benchmarks import fleet; fleet.make(Path(sys.argv[1]), "
        subprocess.run([sys.executable, "-c", f"{making}{count})", scratch], check=True, capture_output=True)
        each = f"{sys.executable} -m appliance run shop.yaml --runs-dir loop --set data.csv={{}}.csv --set name={{}}"
        names = [path.stem for path in sorted(folder.glob("*.csv"))]
        shell = cost_of(["sh", "-c", f"printf '%s\\n' {' '.join(names)} | xargs -P {cores} -I{{}} {each}"], folder)
        by_fleet = [sys.executable, "-m", "appliance", "fleet", "*.csv", "--recipe", "shop.yaml", "--runs-dir", "fleet"]
        fleet = cost_of(by_fleet, folder)
        again = cost_of(by_fleet, folder)
        other = [
            f"{name}/{one}"
            for name in names
            for one in RESULTS
            if (folder / "loop" / name / one).is_file()
            and files.sha256_of(folder / "loop" / name / one) != files.sha256_of(folder / "fleet" / name / one)
        ]
    lines = ["| what | CPU time | a run | wall time | peak memory of all processes |", "|---|---|---|---|---|"]
    titles = {
        f"shell loop, {cores} at a time": shell,
        f"`appliance fleet`, {cores} at a time": fleet,
        "the same once more": again,
    }
    for title, cost in titles.items():
        lines.append(
            f"| {title} | {cost.cpu:.0f} s | {cost.cpu / count:.1f} s | {cost.wall:.0f} s | {cost.peak:.0f} MiB |"
        )
    same = f"other bytes: {', '.join(other)}" if other else "all results have the same bytes"
    return "\n".join([*lines, "", f"{count} CSVs; {same}; load {os.getloadavg()[0]:.0f}"])


def make(folder: Path, count: int) -> None:
    """The base, the recipe and the CSVs, in a process of its own."""
    from tests.helpers.models import tiny_base
    from tests.sweeps.shops import Shops

    names = [f"shop-{number:02}" for number in range(count)]
    Shops(folder, tiny_base(folder / "base", short_prompts=True), names)
    for path in folder.glob("wrong.csv"):
        path.unlink()


def main(what: str, *numbers: str) -> None:
    if what == "cards":
        count, nodes = map(int, [*numbers, *("1000", "8")[len(numbers) :]])
        said = cards(count, nodes)
    else:
        said = loop(int(numbers[0]) if numbers else 12)
    sys.stdout.write(said + "\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
