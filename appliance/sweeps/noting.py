"""What the user reads while the trials of a sweep run, and what is noted of those that Tune ended.

Imported only once a cluster is there: it needs the extra `ray`.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ray import tune

from appliance.process import console
from appliance.sweeps import trial_runs
from appliance.sweeps.evaluations import Evaluations
from appliance.sweeps.run_child import RunJob
from appliance.sweeps.trainable import EVALUATION, EXIT_CODE, MESSAGE, VAL_LOSS
from appliance.sweeps.trial_runs import Note

RESTARTS = 3  # of a trial whose worker or node was lost
_PAUSE = 10.0  # seconds, at least, between two lines about evaluations
_LOST = 4  # exit code: the machine lacks something


class Noting(tune.Callback):  # type: ignore[misc]
    """Tune calls it in this process, with each trial as it starts, reports or ends."""

    def __init__(self, jobs: Mapping[str, RunJob], evaluations: Evaluations) -> None:
        self._jobs, self._evaluations = jobs, evaluations
        self._ended, self._spoke = 0, time.monotonic()

    def on_trial_start(self, *, trial: Any, **info: Any) -> None:  # noqa: ARG002
        trial_runs.remove_note(self._path(trial))
        console.say(f"{_name(trial)} …", style="bold")

    def on_trial_result(self, *, trial: Any, result: Mapping[str, Any], **info: Any) -> None:  # noqa: ARG002
        """Now and then, a sign that something happens."""
        now = time.monotonic()
        if EVALUATION in result and now - self._spoke >= _PAUSE:
            self._spoke = now
            at = f"evaluation {result[EVALUATION]} of {self._evaluations.count}"
            console.say(f"{_name(trial)}: {at}, lowest val loss {result[VAL_LOSS]:.4f}", style="dim")

    def on_trial_complete(self, *, trial: Any, **info: Any) -> None:  # noqa: ARG002
        """Its child has ended, or ASHA has decided; after a signal Tune calls nothing."""
        last, losses = trial.last_result, trial_runs.best_so_far(self._path(trial))
        loss = f"best val loss {losses[-1]:.4f}" if losses else "no val loss"
        if EXIT_CODE not in last and not trial_runs.is_trained(self._path(trial)):
            number = int(last[EVALUATION])
            trial_runs.write_note(self._path(trial), Note(number))
            self._say(trial, f"{trial_runs.STOPPED} after evaluation {number} of {self._evaluations.count}; {loss}")
        elif code := int(last.get(EXIT_CODE, 0)):
            trial_runs.write_note(self._path(trial), Note(0, code, str(last[MESSAGE])))
            self._say(trial, f"failed (exit code {code}): {last[MESSAGE]}; its log: {self._jobs[_name(trial)].output}")
        else:
            self._say(trial, f"trained; {loss}")

    def on_trial_recover(self, *, trial: Any, **info: Any) -> None:  # noqa: ARG002
        console.say(f"{_name(trial)}: its worker or node was lost; it continues elsewhere", style="warning")

    def on_trial_error(self, *, trial: Any, **info: Any) -> None:  # noqa: ARG002
        message = f"its worker or node was lost {RESTARTS + 1} times"
        trial_runs.write_note(self._path(trial), Note(0, _LOST, message))
        self._say(trial, f"failed: {message}")

    def _path(self, trial: Any) -> Path:
        return self._jobs[_name(trial)].run_path

    def _say(self, trial: Any, what: str) -> None:
        self._ended += 1
        console.say(f"{_name(trial)}: {what} ({self._ended}/{len(self._jobs)})")


def _name(trial: Any) -> str:
    return str(trial.config["trial"])
