"""One run for each CSV, as many at once as there are cards or cores; Ray decides where each takes place.

What is finished is not started again. A run that fails does not stop the others; one whose worker or machine is lost
is continued elsewhere, by Ray's own retries. The whole is stopped by a signal: every run saves what it has.
"""

from __future__ import annotations

import os
import socket
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from appliance.errors import EnvironmentUnavailable, Interrupted
from appliance.process import console, known_secrets, signals
from appliance.rundir.directory import RunDir
from appliance.sweeps import attempts, done, places, run_child, stored_run
from appliance.sweeps import cluster as sweeps_cluster
from appliance.sweeps.cluster import Cluster
from appliance.sweeps.fleet_shown import Progress
from appliance.sweeps.places import OF_THE_MACHINE, Places
from appliance.sweeps.plan import Planned
from appliance.sweeps.run_child import RunJob, RunOutcome
from appliance.sweeps.storage import LARGE
from appliance.sweeps.stored_run import StoredRuns
from appliance.wording import counted

_RETRIES = 3  # by Ray, of a run whose worker was killed or whose machine was lost
_LOOKS = 0.5  # seconds between two looks at what has ended, which a signal waits for


@dataclass(frozen=True)
class Share:
    """What each run gets. gpus: of a card, 1 unless runs are to share it; 0: none. cores: of a run without a GPU.

    threads: OMP_NUM_THREADS of a run: its cores, so that its result does not depend on the machine; of one with a GPU,
    as in the environment of the command.
    """

    gpus: float
    cores: int
    threads: int | None


def share(*, has_gpus: bool, runs_per_gpu: int, cores: int | None, environ: Mapping[str, str]) -> Share:
    """`cores`: as asked for; None: OMP_NUM_THREADS, or one."""
    text = environ.get(run_child.THREADS_VARIABLE, "")
    named = int(text) if text.isdigit() and int(text) else None
    if has_gpus:
        return Share(1 / runs_per_gpu, 0, named)
    return Share(0, cores or named or 1, cores or named or 1)


def words_of(planned: Planned, source: str, runs_dir: Path, cache_dir: Path, flags: Sequence[str]) -> tuple[str, ...]:
    """The command of one run, behind `appliance`: what a user would type for this CSV alone."""
    overrides = [word for item in planned.overrides for word in ("--set", item)]
    return ("run", source, *overrides, "--runs-dir", str(runs_dir), "--cache-dir", str(cache_dir), *flags)


def variables(environ: Mapping[str, str]) -> tuple[str, ...]:
    """The names of those that the runs need where they take place, because they are set here."""
    return tuple(name for name in (known_secrets.NOTIFY_VARIABLE,) if environ.get(name))


def unfinished(planned: Sequence[Planned], runs_dir: Path, stored: StoredRuns | None = None) -> list[Planned]:
    elsewhere = LARGE if stored else ()
    return [one for one in planned if not done.is_done(one.recipe, runs_dir / one.name, elsewhere=elsewhere)]


def attempt(job: RunJob) -> tuple[str, RunOutcome]:
    """By a worker: the run, from where it is to its end. Returns the node's id as well."""
    import ray

    run = stored_run.run if job.stored else run_child.run
    return str(ray.get_runtime_context().get_node_id()), run(job, socket.gethostname())


@dataclass
class _Flight:
    """An attempt that Ray has been given. `allowed`: the nodes; `checked`: of a node's first run, when its check was
    last done before."""

    job: RunJob
    allowed: frozenset[str]
    pilot: str = ""
    checked: float | None = None


class Fleet:
    """The runs of `jobs` on a cluster. `waits`: see Places. `stored`: where their results are fetched from, if so."""

    def __init__(
        self,
        cluster: Cluster,
        jobs: Sequence[RunJob],
        share: Share,
        progress: Progress,
        *,
        waits: bool,
        stored: StoredRuns | None = None,
    ):
        self._stored = stored
        self._cluster, self._ray, self._share = cluster, cluster.ray, share
        self._waiting = deque((job, frozenset[str]()) for job in jobs)  # with where it is to be tried; empty: anywhere
        self._flying: dict[Any, _Flight] = {}
        self._places, self._progress = Places(waits), progress
        self._task = self._ray.remote(attempt)
        self.outcomes: dict[str, RunOutcome] = {}  # name -> how it ended, of the runs that have

    def run(self) -> dict[str, RunOutcome]:
        """Name of each run -> how it ended. Raises Interrupted, once every run has saved what it has."""
        with signals.deferred() as check:
            self._work(check)
        return self.outcomes

    def _work(self, check: Callable[[], None]) -> None:
        room: Mapping[str, int] = {}
        try:
            while self._waiting or self._flying:
                check()
                self._cluster.refuse_ended()
                room = self._room()
                self._recall(room)
                self._submit(room)
                self._settle(room)
                self._progress.show([flight.job for flight in self._flying.values()], len(self._waiting), room)
        except Interrupted as error:
            runs = counted(min(len(self._flying), sum(room.values())), "run")
            console.say(
                f"{error}: {runs} will save what they have (send it again to end them at once)", style="warning"
            )
            self._stop()
            raise

    def _room(self) -> dict[str, int]:
        """Node id -> runs at once. Raises EnvironmentUnavailable: there is none."""
        room = sweeps_cluster.slots(self._cluster.nodes, gpus=self._share.gpus, cpus=self._share.cores)
        if not room and not self._flying:
            raise self._no_room()
        return room

    def _no_room(self) -> EnvironmentUnavailable:
        where = "this machine does not have" if self._cluster.embedded else "no machine of the cluster has"
        hint = "`ray status` shows the machines and what they have; the same command continues"
        if self._share.gpus:
            return EnvironmentUnavailable(f"{where} a GPU for a run", hint=hint)
        most = int(max((node.cpus for node in self._cluster.nodes if node.alive), default=0))
        hint = f"--cores {most}, or less" if most else hint
        wanted = counted(self._share.cores, "free core")
        return EnvironmentUnavailable(f"{where} {wanted} for a run; the most is {most}", hint=hint)

    def _submit(self, room: Mapping[str, int]) -> None:
        """Hands out no more than has room, and a few that begin as soon as another ends."""
        opened = self._places.opened(room)
        pilots = {flight.pilot for flight in self._flying.values() if flight.pilot}
        for place in self._places.usable(room):
            if self._waiting and place not in opened and place not in pilots:
                job, _ = self._waiting.popleft()
                self._fly(job, frozenset([place]), pilot=place)
        most = sum(opened.values()) + max(2, sum(opened.values()) // 4) + len(pilots)
        while self._waiting and opened and len(self._flying) < most:
            job, wanted = self._waiting.popleft()
            self._fly(job, (wanted & opened.keys()) or frozenset(opened))

    def _fly(self, job: RunJob, allowed: frozenset[str], pilot: str = "") -> None:
        options = {
            "num_gpus": self._share.gpus,
            "num_cpus": 0 if self._share.gpus else self._share.cores,
            "max_retries": _RETRIES,
            "label_selector": places.selector(allowed),
            "name": "run",
        }
        flight = _Flight(job, allowed, pilot, _checked(job.run_path))
        self._flying[self._task.options(**options).remote(job)] = flight

    def _settle(self, room: Mapping[str, int]) -> None:
        """Waits a moment, and takes what has ended."""
        refs = list(self._flying)
        if refs and self._ray.wait(refs, num_returns=1, timeout=_LOOKS)[0]:
            for ref in self._ray.wait(refs, num_returns=len(refs), timeout=0)[0]:
                self._take(ref, room)
        for flight in self._flying.values():
            if flight.pilot and _checked(flight.job.run_path) not in (None, flight.checked):
                self._places.open(flight.pilot)
                flight.pilot = ""

    def _take(self, ref: Any, room: Mapping[str, int]) -> None:
        flight = self._flying.pop(ref)
        place, outcome = self._result(ref, flight)
        if excluded := self._places.ended(place, flight.job.name, outcome.exit_code, outcome.message):
            console.say(f"{outcome.node}: gets no more runs: {self._places.excluded[excluded]}", style="warning")
        is_first = outcome.exit_code in OF_THE_MACHINE and flight.job.name not in self.outcomes
        self.outcomes[flight.job.name] = outcome
        if is_first and (others := self._places.elsewhere(room, flight.job.name)):
            console.say(f"{flight.job.name}: {outcome.message}; tried once more elsewhere", style="warning")
            self._waiting.appendleft((flight.job, others))
        else:
            if self._stored:
                self._stored.bring(flight.job.name)
            self._progress.ended(flight.job, outcome)

    def _result(self, ref: Any, flight: _Flight) -> tuple[str, RunOutcome]:
        try:
            found: tuple[str, RunOutcome] = self._ray.get(ref)
        except self._ray.exceptions.RayError as error:
            why, code = str(error).strip().partition("\n")[0], 4  # the worker or its machine is gone, each time
            if isinstance(error, self._ray.exceptions.RayTaskError):  # an exception in `attempt`
                why, code = f"this is a bug: {type(error.cause).__name__}: {error.cause}", 1
            elif isinstance(error, self._ray.exceptions.WorkerCrashedError):  # whose own words are a page
                why = f"its worker was killed {counted(_RETRIES + 1, 'time')}"
            tried = len(attempts.read(flight.job.run_path))
            return min(flight.allowed), RunOutcome(flight.job.name, code, 0.0, "", tried, why)
        return found

    def _recall(self, room: Mapping[str, int]) -> None:
        """Takes back what no machine that is left may run."""
        for ref, flight in list(self._flying.items()):
            if not flight.allowed & room.keys():
                self._ray.cancel(ref, force=True)
                del self._flying[ref]
                self._waiting.appendleft((flight.job, frozenset()))

    def _stop(self) -> None:
        """Has every run save what it has, and waits for that."""
        for ref in self._flying:
            self._ray.cancel(ref, force=False)
        sweeps_cluster.wait_for_all(self._ray, list(self._flying))
        if self._stored:
            for flight in self._flying.values():
                self._stored.bring(flight.job.name)


def _checked(run_path: Path) -> float | None:
    """When the run's check was done, with which the base is on the machine; None if it is not."""
    try:
        return (RunDir(run_path).stage_dir("check") / "stage.json").stat().st_mtime
    except OSError:
        return None


def start(
    planned: Sequence[Planned],
    source: str,
    runs_dir: Path,
    cache_dir: Path,
    *,
    cluster: Cluster,
    share: Share,
    flags: Sequence[str],
    progress: Progress,
    stored: StoredRuns | None = None,
) -> tuple[dict[str, RunOutcome], Interrupted | None]:
    """Runs everything of `planned`. Returns name -> how it ended; and the signal that stopped it, if one did, once
    every run that was under way has saved what it has.

    Args:
        planned: what is to be run.
        source: the recipe of all.
        runs_dir, cache_dir: as for one run; absolute with a storage.
        cluster: where.
        share: what each run gets.
        flags: for every run's command, as typed.
        progress: shows how far it is.
        stored: the storage of the runs; None: all nodes share the runs directory.
    """
    jobs = []
    for one in planned:
        there, kept = stored.put(one, drops=not cluster.embedded) if stored else (one, None)
        job = RunJob(
            one.name,
            words_of(there, source, runs_dir, cache_dir, flags),
            runs_dir.absolute() / one.name,
            Path.cwd(),
            variables=variables(os.environ),
            gpus=share.gpus,
            threads=share.threads,
            module=run_child.MODULE,
            stored=kept,
        )
        jobs.append(job)
    waits = not planned[0].has_local_base
    with progress:
        started = Fleet(cluster, jobs, share, progress, waits=waits, stored=stored)
        try:
            return started.run(), None
        except Interrupted as error:
            return started.outcomes, error
