"""The trials of a sweep, through Ray Tune: as many at once as there are GPUs, and ASHA among them.

Tune decides which trial starts, and which is stopped for its val loss. What it decided is noted in the run directories
as it happens; nothing that Tune writes is kept, and a killed driver starts it again with what is left to do.
"""

from __future__ import annotations

import logging
import os
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from appliance.process import signals
from appliance.sweeps.evaluations import Evaluations
from appliance.sweeps.run_child import RunJob

_SETTINGS = {
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",  # files of results in Tune's own formats
    "TUNE_DISABLE_SIGINT_HANDLER": "1",
    "TUNE_DISABLE_STRICT_METRIC_CHECKING": "1",  # an answer without news has no metric
    "TUNE_FORCE_TRIAL_CLEANUP_S": str(10**9),  # a trial is never killed while it saves; Child.stop has a bound
    "TUNE_PRINT_ALL_TRIAL_ERRORS": "0",
    "TUNE_WARN_EXCESSIVE_EXPERIMENT_CHECKPOINT_SYNC_THRESHOLD_S": "0",
    "RAY_AIR_NEW_OUTPUT": "0",
}


def search(
    jobs: Mapping[str, RunJob],
    resources: Mapping[str, float],
    evaluations: Evaluations,
    past: Mapping[str, Sequence[float]],
    scratch: Path | None = None,
) -> int | None:
    """Runs the trials in `jobs`, in their order; those that do not end by themselves are noted there.

    `resources`: of one trial. `past`: what every trial reported before, as trainable.PatientAsha has it. `scratch`:
    where Tune may write; None: the folder for temporary files. Returns the number of the signal that ended it early,
    when every trial has stopped and is saved; None: all have ended.
    """
    os.environ.update(_SETTINGS)  # read when Tune begins
    from ray import tune

    _to_the_log("ray", "ray.tune")

    from appliance.sweeps import noting, trainable

    stop = trainable.StopAll()
    scheduler = (
        trainable.PatientAsha(evaluations, past, past.keys() - jobs.keys())
        if evaluations.rungs
        else trainable.PatientQueue()
    )
    with tempfile.TemporaryDirectory(prefix="tune-", dir=scratch) as folder, _stopping(stop):
        tune.Tuner(
            tune.with_resources(tune.with_parameters(trainable.TrialRun, jobs=dict(jobs)), dict(resources)),
            param_space={"trial": tune.grid_search(list(jobs))},
            tune_config=tune.TuneConfig(
                scheduler=scheduler,
                trial_name_creator=lambda trial: trial.config["trial"],
                trial_dirname_creator=lambda trial: trial.config["trial"],
            ),
            run_config=tune.RunConfig(
                name="sweep",
                storage_path=folder,
                verbose=0,
                stop=stop,
                callbacks=[noting.Noting(jobs, evaluations)],
                failure_config=tune.FailureConfig(max_failures=noting.RESTARTS),
                checkpoint_config=tune.CheckpointConfig(checkpoint_at_end=False),
            ),
        ).fit()
    return stop.wanted


def _to_the_log(*names: str) -> None:
    """What these loggers say goes to the log file alone: Ray gave them handlers that write to stderr."""
    for name in names:
        logger = logging.getLogger(name)
        logger.handlers.clear()
        logger.propagate = True


@contextmanager
def _stopping(stop: Any) -> Iterator[None]:
    """The first signal stops every trial and waits until it is saved; a second one ends the process at once."""

    def take(number: int) -> None:
        stop.wanted = number

    with signals.first_one_calling(take):
        yield
