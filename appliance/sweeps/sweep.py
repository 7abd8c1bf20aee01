"""A sweep from its plan to the winner's release. Read this file first of those about sweeps.

begin (check and prepare, once) -> the trials, each as far as `train` -> the choice, by val loss -> the winner's run,
which alone looks at the test rows. The same call continues: everything is in the run directories, one for each trial in
RUNS/NAME-sweep.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from appliance.errors import DataError, Interrupted
from appliance.process import console, known_secrets, signals
from appliance.recipe import resolve
from appliance.rundir import chosen, find, results
from appliance.rundir.chosen import Chosen
from appliance.rundir.directory import RunDir
from appliance.sweeps import cluster as sweeps_cluster
from appliance.sweeps import done, fleet, on_cluster, one_sweep, search, trial_runs, trials
from appliance.sweeps import evaluations as sweeps_evaluations
from appliance.sweeps.cluster import Cluster
from appliance.sweeps.evaluations import Evaluations
from appliance.sweeps.fleet import Share
from appliance.sweeps.one_sweep import Sweep
from appliance.sweeps.run_child import RunJob
from appliance.sweeps.trials import Trial
from appliance.wording import counted

WINNER_RULE = "the winner has the lowest val loss of the trials that ASHA did not stop; of equals it is the first"


@dataclass(frozen=True)
class _Place:
    """Where the trials run, and what each gets there."""

    cluster: Cluster
    share: Share


def run(sweep: Sweep) -> None:
    """Shows the table of the trials, whatever comes of it, and the winner's files.

    Raises ApplianceError or Interrupted, as the winner's own run would; the same call continues.
    """
    signals.check()
    notify = sweep.plan.recipe.recipe.notify
    known_secrets.learn(*notify)
    if notify:  # the winner's run finds them where its node has them; in this process's own cluster, here
        os.environ[known_secrets.NOTIFY_VARIABLE] = " ".join(notify)
    _refuse_without_csv(sweep)
    run_dir = RunDir(sweep.folder)
    run_dir.create()
    with (
        run_dir.lock(),
        console.log_file(sweep.folder / "appliance.log"),
        signals.acknowledged(partial(console.say, style="warning")),
    ):
        one_sweep.refuse_other_plan(sweep)
        console.say(sweep.plan.describe(), style="bold")
        try:
            winner = _run(sweep)
        finally:
            console.table("", chosen.COLUMNS, chosen.table(sweep.tried()), to_stdout=True)
        for name, path in find.whereabouts(RunDir(sweep.runs_dir / sweep.folder.name / winner.name)):
            console.result(f"{name:<14} {find.shown_path(path, sweep.runs_dir)}")


def _refuse_without_csv(sweep: Sweep) -> None:
    """Before anything is written or started. Raises DataError. Once the rows are prepared, nothing reads the CSV."""
    csv = sweep.plan.recipe.recipe.data.csv
    is_a_path = csv != "demo" and "://" not in csv
    if is_a_path and not Path(csv).is_file() and not RunDir(sweep.path(sweep.first)).record("prepare"):
        what = "is a folder" if Path(csv).is_dir() else "no such file"
        hint = "set its path: --set data.csv=PATH (in the container, the folder data/ is /data)"
        raise DataError(f"{csv}: {what}", hint=hint)


def _run(sweep: Sweep) -> Trial:
    """Returns the winner, at the end of its run."""
    winner = _winner_so_far(sweep)
    if winner and done.is_done(resolve.load(str(sweep.path(winner))).recipe, sweep.path(winner)):
        return winner
    with sweeps_cluster.connected() as cluster:
        wanted = partial(fleet.share, runs_per_gpu=sweep.runs_per_gpu, cores=sweep.cores, environ=os.environ)
        place = _Place(cluster, wanted(has_gpus=cluster.has_gpus))
        if not cluster.embedded:
            on_cluster.refuse_blind(cluster, sweep.plan.recipe.recipe, sweep.folder)
        if winner is None:
            _try_all(sweep, place, _begin(sweep, place))
            winner = _choose(sweep)
        _end(sweep, place, winner)
    return winner


def _winner_so_far(sweep: Sweep) -> Trial | None:
    """The winner, once its run has gone on: from then on test rows have been looked at, and the choice is made."""
    for trial in sweep.plan.trials:
        path = sweep.path(trial)
        if trial_runs.has_looked_at_test_rows(path) and chosen.read(path):
            console.say(f"chosen before: {trial.name}")
            return trial
    return None


def _begin(sweep: Sweep, place: _Place) -> Evaluations:
    """Check and prepare, in the run directory of the first trial; the others take its rows over."""
    first = sweep.path(sweep.first)
    trial_runs.begin(first, sweep.recipe(sweep.first))
    if not RunDir(first).record("prepare"):
        for command in ("check", "prepare"):
            console.say(f"{command}, for all trials …", style="bold")
            job = sweep.job(command, sweep.first, [], place.share)
            on_cluster.wait_for(place.cluster, job, place.share, what=command)
    prepared = results.read(first, "prepare", "summary.json")
    sections = {trial.name: sweep.recipe(trial).recipe.train for trial in sweep.plan.trials}
    common = sweep.plan.recipe.recipe.train
    return sweeps_evaluations.settle(sections, common, prepared, RunDir(first).stage_dir("prepare"))


def _try_all(sweep: Sweep, place: _Place, settled: Evaluations) -> None:
    """Every trial that has not ended yet. Raises Interrupted: a signal came, and every trial is saved."""
    past: dict[str, list[float]] = {}
    jobs: dict[str, RunJob] = {}
    for trial in sweep.plan.trials:
        path, extra = sweep.path(trial), settled.settings[trial.name]
        note, past[trial.name] = trial_runs.read_note(path), trial_runs.best_so_far(path)
        if trial_runs.is_trained(path) or (note and note.evaluation):
            continue
        trial_runs.begin(path, sweep.recipe(trial, extra), sweep.path(sweep.first))
        jobs[trial.name] = sweep.job("train", trial, [*trial.settings, *extra, *trials.IN_EVERY_TRIAL], place.share)
    console.say(_how(settled))
    if not jobs:
        return
    begun = {name: job for name, job in jobs.items() if RunDir(job.run_path).has_begun("train")}
    scratch = place.cluster.session_dir if place.cluster.embedded else None  # gone with it, whatever ends this process
    number = search.search(begun | jobs, on_cluster.resources(place.share), settled, past, scratch)
    if number is not None:
        ended = sum(map(trial_runs.has_ended, map(sweep.path, sweep.plan.trials)))
        name, of = signal.Signals(number).name, counted(len(sweep.plan.trials), "trial")
        hint = "the others are saved; the same command continues"
        raise Interrupted(number, f"stopped by {name}; {ended} of {of} ended", hint=hint)


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
        raise on_cluster.error(code, f"none of {counted(len(ended), 'trial')} was trained to its end", hint)
    winner = next(trial for trial in sweep.plan.trials if trial.name == best.name)
    looked = tuple(t.name for t in sweep.plan.trials if trial_runs.has_looked_at_test_rows(sweep.path(t)))
    if looked:
        console.say(f"the test rows were looked at before, by {', '.join(looked)}: the card says so", style="warning")
    for trial in sweep.plan.trials:
        chosen.remove(sweep.path(trial))  # of a choice among fewer, before a failed one was tried again
    record = RunDir(sweep.path(winner)).record("train")
    assert record  # its training has ended
    chosen.write(sweep.path(winner), Chosen(winner.name, tuple(ended), looked, record.fingerprint))
    console.say(f"winner: {winner.name}, val loss {best.val_loss:.4f}", style="bold")
    return winner


def _end(sweep: Sweep, place: _Place, winner: Trial) -> None:
    """The winner's run to its end. Raises the error that ends it."""
    variables = [known_secrets.NOTIFY_VARIABLE] if sweep.plan.recipe.recipe.notify else []
    console.say(f"{winner.name}: evaluate, merge, proof, release …", style="bold")
    job = sweep.job("run", winner, _as_trained(sweep, winner), place.share, variables)
    on_cluster.wait_for(place.cluster, job, place.share, what=winner.name)


def _as_trained(sweep: Sweep, winner: Trial) -> list[str]:
    """What the trial's recipe.yaml has of its own, as KEY=VALUE: a variable of the environment must not change it."""
    written = resolve.written(sweep.path(winner) / "recipe.yaml")
    own: Sequence[str] = [*winner.texts, *sweeps_evaluations.SETTLED, "rehearse"]
    return [f"{key}={resolve.as_yaml(written[key][0])}" for key in own]
