"""A sweep as it was asked for: its trials, where they are, and the commands that its trials are.

>>> sweep.job("train", sweep.first, ["tuning.r=8"]).words
('train', '/home/me/runs/shop-sweep/1-r-8', '--set', 'tuning.r=8', '--cache-dir', '/home/me/.cache/finetune-appliance')
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from appliance.errors import RunDirError
from appliance.process import files
from appliance.recipe import notify_addresses, resolve
from appliance.recipe.resolve import Resolved
from appliance.rundir.chosen import Tried
from appliance.sweeps import trial_runs, trials
from appliance.sweeps.fleet import Share
from appliance.sweeps.run_child import RunJob
from appliance.sweeps.trials import Plan, Trial
from appliance.wording import counted

FILE = "sweep.json"  # in the sweep's folder: the recipe, and what is tried
SUFFIX = "-sweep"  # of that folder, behind the recipe's name


@dataclass(frozen=True)
class Sweep:
    """What was asked for.

    Attributes:
        plan: the trials.
        source, overrides: what it was made from.
        runs_dir: where the sweep's folder is.
        cache_dir: as for one run.
        metric: what the trials are compared by.
        runs_per_gpu: trials that share a card.
        cores: of a trial without a GPU; None: see fleet.share.
        module: what `python -m` runs as a trial; tests have a stand-in.
    """

    plan: Plan
    source: str
    overrides: tuple[str, ...]
    runs_dir: Path
    cache_dir: Path
    metric: str = "val_loss"
    runs_per_gpu: int = 1
    cores: int | None = None
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

    def job(
        self, command: str, trial: Trial, settings: Sequence[str], share: Share, variables: Sequence[str] = ()
    ) -> RunJob:
        """`appliance COMMAND` in the run directory of a trial. `settings`: KEY=VALUE, as --set takes it."""
        path = self.path(trial)
        set_ = [word for setting in settings for word in ("--set", setting)]
        return RunJob(
            name=trial.name,
            words=(command, str(path), *set_, "--cache-dir", str(self.cache_dir.absolute())),
            run_path=path,
            folder=Path.cwd(),
            variables=tuple(variables),
            gpus=share.gpus,
            threads=share.threads,
            module=self.module,
        )


def refuse_other_plan(sweep: Sweep) -> None:
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
