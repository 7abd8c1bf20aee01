"""A sweep from its plan to the winner's release. Read this file first of those about sweeps.

begin (check and prepare, once) -> the trials, each as far as `train` -> the choice, by val loss -> the winner's run,
which alone looks at the test rows. The same call continues: everything is in the run directories, one for each trial in
RUNS/NAME-sweep.
"""

from __future__ import annotations

import socket
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

from appliance.errors import ApplianceError, EnvironmentUnavailable, Interrupted, RunDirError
from appliance.process import console, files, signals
from appliance.recipe import notify_addresses, resolve
from appliance.recipe.resolve import Resolved
from appliance.rundir import chosen, find, results
from appliance.rundir.chosen import Chosen, Tried
from appliance.rundir.directory import RunDir
from appliance.sweeps import cluster as sweeps_cluster
from appliance.sweeps import evaluations as sweeps_evaluations
from appliance.sweeps import search, trial_runs, trials
from appliance.sweeps.cluster import Cluster
from appliance.sweeps.evaluations import Evaluations
from appliance.sweeps.run_child import RunJob
from appliance.sweeps.trials import Plan, Trial
from appliance.wording import counted

FILE = "sweep.json"  # in the sweep's folder: the recipe, and what is tried
SUFFIX = "-sweep"  # of that folder, behind the recipe's name
WINNER_RULE = "the winner has the lowest val loss of the trials that ASHA did not stop; of equals it is the first"


@dataclass(frozen=True)
class Sweep:
    """`source`, `overrides`: as `plan` was made from them. `module`: what `python -m` runs as a trial."""

    plan: Plan
    source: str
    overrides: tuple[str, ...]
    runs_dir: Path
    cache_dir: Path
    metric: str = "val_loss"
    module: str = "appliance"

    @cached_property
    def folder(self) -> Path:
        return self.runs_dir.absolute() / f"{self.plan.recipe.recipe.name}{SUFFIX}"

    def path(self, trial: Trial) -> Path:
        return self.folder / trial.name

    @property
    def first(self) -> Trial:
        """The one whose rows the others take over."""
        return self.plan.trials[0]

    def recipe(self, trial: Trial, settings: Sequence[str] = ()) -> Resolved:
        wanted = [*self.overrides, *trial.settings, *settings, *trials.IN_EVERY_TRIAL]
        return resolve.load(self.source, overrides=wanted)

    def tried(self) -> list[Tried]:
        """What has become of each trial so far, in the order of the plan."""
        return [trial_runs.tried(trial, self.path(trial)) for trial in self.plan.trials]


def run(sweep: Sweep) -> None:
    """Shows the table of the trials, whatever comes of it, and the winner's files.

    Raises ApplianceError or Interrupted, as the winner's own run would; the same call continues.
    """
    signals.check()
    run_dir = RunDir(sweep.folder)
    run_dir.create()
    with (
        run_dir.lock(),
        console.log_file(sweep.folder / "appliance.log"),
        signals.acknowledged(partial(console.say, style="warning")),
    ):
        _refuse_other_plan(sweep)
        console.say(sweep.plan.describe(), style="bold")
        winner = _winner_so_far(sweep)
        try:
            with sweeps_cluster.connected() as found:
                runs = _Runs(sweep, found)
                if winner is None:
                    _try_all(sweep, runs, _begin(sweep, runs))
                    winner = _choose(sweep)
                runs.end(winner)
        finally:
            console.table("", chosen.COLUMNS, chosen.table(sweep.tried()), to_stdout=True)
        for name, path in find.whereabouts(RunDir(sweep.path(winner))):
            console.result(f"{name:<14} {find.shown_path(path, sweep.runs_dir)}")


def _refuse_other_plan(sweep: Sweep) -> None:
    """Writes what this sweep is, or compares it with what it was. Raises RunDirError: it is another one."""
    flat = resolve.flatten(sweep.plan.recipe.recipe.model_dump())
    recipe = {key: value for key, value in flat if not notify_addresses.is_secret(key)}
    now = {
        "recipe": recipe,
        "metric": sweep.metric,
        "tried": {key: list(texts) for key, texts in sweep.plan.tried.items()},
        "trials": {trial.name: dict(trial.texts) for trial in sweep.plan.trials},
    }
    path = sweep.folder / FILE
    if not files.is_there(path):
        files.write_json(path, now)
        return
    try:
        before = files.read_object(path)
        changed = [
            f"{key}: was {before['recipe'].get(key)!r}, is {value!r}"
            for key, value in recipe.items()
            if before["recipe"].get(key) != value
        ]
        if before["tried"] != now["tried"] or before["trials"] != now["trials"]:
            changed.append(f"--try: was {_as_typed(before)}, is {_as_typed(now)}")
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise RunDirError(f"{path} is damaged: {error!s:.200}", hint="remove it, and repeat the command") from error
    if changed:
        told = "\n  ".join(changed)
        hint = "start another sweep with --set name=NEW, or repeat the command as it was"
        raise RunDirError(f"{sweep.folder}: this sweep began with other settings:\n  {told}", hint=hint)


def _as_typed(plan: Mapping[str, Any]) -> str:
    keys = (f"{key}={','.join(texts)}" for key, texts in plan["tried"].items())
    return f"{' '.join(keys)} ({counted(len(plan['trials']), 'trial')})"


def _winner_so_far(sweep: Sweep) -> Trial | None:
    """The winner, once its run has gone on: from then on test rows have been looked at, and the choice is made."""
    for trial in sweep.plan.trials:
        path = sweep.path(trial)
        if trial_runs.has_looked_at_test_rows(path) and chosen.read(path):
            console.say(f"chosen before: {trial.name}")
            return trial
    return None


@dataclass(frozen=True)
class _Runs:
    """Starts `appliance` commands on the cluster, one GPU each."""

    sweep: Sweep
    cluster: Cluster

    @property
    def resources(self) -> dict[str, float]:
        return {"CPU": 1, "GPU": 1} if self.cluster.has_gpus else {"CPU": 1}

    def job(self, command: str, trial: Trial, settings: Sequence[str] = (), variables: Sequence[str] = ()) -> RunJob:
        path = self.sweep.path(trial)
        set_ = [word for setting in settings for word in ("--set", setting)]
        gpus = self.resources.get("GPU", 0)
        return RunJob(
            name=trial.name,
            words=(command, str(path), *set_, "--cache-dir", str(self.sweep.cache_dir.absolute())),
            run_path=path,
            folder=Path.cwd(),
            variables=tuple(variables),
            gpus=gpus,
            threads=None if gpus else 1,
            module=self.sweep.module,
        )

    def wait_for(self, job: RunJob) -> Any:
        """The outcome of one command, on any node. Raises Interrupted, when it has stopped and is saved."""
        ray, need = self.cluster.ray, self.resources
        task = ray.remote(_on_its_node).options(num_cpus=need["CPU"], num_gpus=need.get("GPU", 0), max_retries=3)
        ref = task.remote(job)
        try:
            while not ray.wait([ref], timeout=0.5)[0]:
                signals.check()
            return ray.get(ref)
        except Interrupted:
            ray.cancel(ref, force=False)
            ray.wait([ref], timeout=None)
            raise
        except ray.exceptions.RayError as error:
            told = str(error).strip().partition("\n")[0]
            raise EnvironmentUnavailable(f"{job.name}: {told}", hint="the same command continues") from error

    def end(self, winner: Trial) -> None:
        """The winner's run to its end. Raises the error that ends it."""
        path = self.sweep.path(winner)
        variables = ["APPLIANCE_NOTIFY"] if self.sweep.plan.recipe.recipe.notify else []
        console.say(f"{winner.name}: evaluate, merge, proof, release …", style="bold")
        outcome = self.wait_for(self.job("run", winner, _as_trained(winner, path), variables))
        if outcome.exit_code:
            hint = f"its log: {path / 'appliance.log'}; the same command continues"
            raise _error(outcome.exit_code, f"{winner.name}: {outcome.message}", hint)


def _as_trained(winner: Trial, run_path: Path) -> list[str]:
    """What the trial's recipe.yaml has of its own, as KEY=VALUE: a variable of the environment must not change it."""
    written = resolve.written(run_path / "recipe.yaml")
    own = [*winner.texts, *sweeps_evaluations.SETTLED, "rehearse"]
    return [f"{key}={resolve.as_yaml(written[key][0])}" for key in own]


def _on_its_node(job: RunJob) -> Any:
    """In a worker."""
    from appliance.sweeps import run_child

    return run_child.run(job, socket.gethostname())


def _error(exit_code: int, message: str, hint: str) -> BaseException:
    """The error that ends a command with this exit code, as the child's was."""
    if exit_code >= 128:
        return Interrupted(exit_code - 128, message, hint=hint)
    kinds = {kind.exit_code: kind for kind in ApplianceError.__subclasses__()}
    return kinds.get(exit_code, EnvironmentUnavailable)(message, hint=hint)


def _begin(sweep: Sweep, runs: _Runs) -> Evaluations:
    """Check and prepare, in the run directory of the first trial; the others take its rows over."""
    first = sweep.path(sweep.first)
    trial_runs.begin(first, sweep.recipe(sweep.first))
    if not RunDir(first).record("prepare"):
        for command in ("check", "prepare"):
            console.say(f"{command}, for all trials …", style="bold")
            outcome = runs.wait_for(runs.job(command, sweep.first))
            if outcome.exit_code:
                shown = f"all of it is in {first / 'output.log'}"
                raise _error(outcome.exit_code, f"{command}: {outcome.message}", f"{shown}; the same command continues")
    prepared = results.read(first, "prepare", "summary.json")
    sections = {trial.name: sweep.recipe(trial).recipe.train for trial in sweep.plan.trials}
    common = sweep.plan.recipe.recipe.train
    return sweeps_evaluations.settle(sections, common, prepared, RunDir(first).stage_dir("prepare"))


def _try_all(sweep: Sweep, runs: _Runs, settled: Evaluations) -> None:
    """Every trial that has not ended yet. Raises Interrupted: a signal came, and every trial is saved."""
    past: dict[str, list[float]] = {}
    jobs: dict[str, RunJob] = {}
    for trial in sweep.plan.trials:
        path, extra = sweep.path(trial), settled.settings[trial.name]
        note, past[trial.name] = trial_runs.read_note(path), trial_runs.best_so_far(path)
        if trial_runs.is_trained(path) or (note and note.evaluation):
            continue
        trial_runs.begin(path, sweep.recipe(trial, extra), sweep.path(sweep.first))
        jobs[trial.name] = runs.job("train", trial, [*trial.settings, *extra, *trials.IN_EVERY_TRIAL])
    console.say(_how(settled))
    if not jobs:
        return
    begun = {name: job for name, job in jobs.items() if RunDir(job.run_path).has_begun("train")}
    number = search.search(runs.cluster, begun | jobs, runs.resources, settled, past)
    if number is not None:
        left = sum(not trial_runs.is_trained(job.run_path) for job in jobs.values())
        message = f"stopped; {len(sweep.plan.trials) - left} of {counted(len(sweep.plan.trials), 'trial')} ended"
        raise Interrupted(number, message, hint="the others are saved; the same command continues")


def _how(settled: Evaluations) -> str:
    if settled.why_not:
        return f"no trial is stopped for its val loss: {settled.why_not}; {WINNER_RULE}"
    at = " and ".join(map(str, settled.rungs))
    return (
        f"ASHA compares the trials at {'evaluations' if len(settled.rungs) > 1 else 'evaluation'} {at} of "
        f"{settled.count}: one in {sweeps_evaluations.REDUCTION} goes on; {WINNER_RULE}"
    )


def _choose(sweep: Sweep) -> Trial:
    """Names the winner in its run directory. Raises the error of a trial, if none ended by itself."""
    ended = sweep.tried()
    best = trial_runs.best(ended)
    if best is None:
        notes = [note for trial in sweep.plan.trials if (note := trial_runs.read_note(sweep.path(trial)))]
        code = max((note.exit_code for note in notes), default=4)
        hint = f"the logs are in {sweep.folder}; the same command tries them again"
        raise _error(code, f"none of {counted(len(ended), 'trial')} was trained to its end", hint)
    winner = next(trial for trial in sweep.plan.trials if trial.name == best.name)
    looked = tuple(t.name for t in sweep.plan.trials if trial_runs.has_looked_at_test_rows(sweep.path(t)))
    if looked:
        console.say(f"the test rows were looked at before, by {', '.join(looked)}: the card says so", style="warning")
    for trial in sweep.plan.trials:
        chosen.remove(sweep.path(trial))  # of a choice among fewer, before a failed one was tried again
    chosen.write(sweep.path(winner), Chosen(winner.name, tuple(ended), looked))
    console.say(f"winner: {winner.name}, val loss {best.val_loss:.4f}", style="bold")
    return winner
