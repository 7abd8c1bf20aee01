"""What Ray Tune runs and asks about a trial: a child process that trains, and the val losses that it leaves behind.

Imported only once a cluster is there: it needs the extra `ray`. Nothing is kept by Tune: a trial that is started again,
here or on another node, continues from its run directory and reports its evaluations from the first one on.
"""

from __future__ import annotations

import signal
import socket
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ray import tune
from ray.tune.schedulers import ASHAScheduler

from appliance.errors import ApplianceError
from appliance.process import console
from appliance.sweeps import trial_runs
from appliance.sweeps.evaluations import REDUCTION, Evaluations
from appliance.sweeps.run_child import Child, RunJob

EVALUATION, VAL_LOSS = "evaluation", "val_loss"  # the resource that ASHA gives out, and what it compares
EXIT_CODE, MESSAGE = "exit_code", "message"  # of a trial that ended by itself
_LOOKS = 0.5  # seconds between two looks at the child
_ANSWERS = 5.0  # seconds after which Tune gets an answer without news: it can stop a trial only between two
_NEVER = 10**9  # seconds
_SIGNALLED = 128  # exit codes from here on: the child was stopped or killed, and the same command continues


class TrialRun(tune.Trainable):  # type: ignore[misc]
    """A trial: `config["trial"]` is its name in `jobs`."""

    _child: Child | None

    def setup(self, config: Mapping[str, Any], jobs: Mapping[str, RunJob]) -> None:
        self._job, self._child, self._reported = jobs[config["trial"]], None, 0

    def step(self) -> dict[str, Any]:
        """Waits for the next evaluation; after a while without one, answers nothing new.

        Raises RuntimeError: the child was killed or stopped by somebody else. Tune starts the trial again.
        """
        try:
            if self._child is None:
                self._child = Child(self._job, socket.gethostname()).__enter__()
            end = time.monotonic() + _ANSWERS
            while time.monotonic() < end:
                has_ended = self._child.has_ended()  # before the look at what it left
                losses = trial_runs.best_so_far(self._job.run_path)
                if len(losses) > self._reported:
                    self._reported += 1
                    return {EVALUATION: self._reported, VAL_LOSS: losses[self._reported - 1]}
                if has_ended:
                    return self._ended()
                time.sleep(_LOOKS)
        except ApplianceError as error:
            return {"done": True, EXIT_CODE: error.exit_code, MESSAGE: str(error)}
        return {}

    def _ended(self) -> dict[str, Any]:
        assert self._child
        self._leave()
        outcome = self._child.outcome()
        if outcome.exit_code >= _SIGNALLED:
            raise RuntimeError(f"{self._job.name}: {outcome.message or f'exit code {outcome.exit_code}'}")
        return {"done": True, EXIT_CODE: outcome.exit_code, MESSAGE: outcome.message}

    def _leave(self) -> None:
        """Stops the child if it runs, so that it saves what it has, and notes what it has cost."""
        assert self._child
        self._child.__exit__(None, None, None)

    def cleanup(self) -> None:
        if self._child is not None:
            self._leave()


@dataclass(frozen=True)
class Past:
    """A trial of an earlier call, as far as a scheduler asks about one."""

    trial_id: str


class PatientAsha(ASHAScheduler):  # type: ignore[misc]
    """ASHA, for trials that take their time to stop: a step is finished and a checkpoint written.

    `past`: trial -> the lowest val loss so far after each evaluation, as far as it got in an earlier call. It counts on
    every rung that it reached, and is not judged there again. `ended`: those that Tune is not given any more. The last
    evaluation of a trial is no rung: behind it, there is nothing left to save.
    """

    def __init__(self, evaluations: Evaluations, past: Mapping[str, Sequence[float]], ended: Iterable[str]) -> None:
        super().__init__(
            time_attr=EVALUATION,
            metric=VAL_LOSS,
            mode="min",
            grace_period=evaluations.first_rung,
            max_t=evaluations.rungs[-1],
            reduction_factor=REDUCTION,
            stop_last_trials=False,
        )
        self._past = past
        for name in ended:
            self._add(name, Past(name))

    def on_trial_add(self, tune_controller: Any, trial: Any) -> None:
        be_patient(tune_controller)
        self._add(trial.config["trial"], trial)

    def _add(self, name: str, trial: Any) -> None:
        super().on_trial_add(None, trial)
        for number, loss in enumerate(self._past.get(name, ()), 1):
            self.on_trial_result(None, trial, {EVALUATION: number, VAL_LOSS: loss})


class PatientQueue(tune.schedulers.FIFOScheduler):  # type: ignore[misc]
    """One trial after the other, each to its end."""

    def on_trial_add(self, tune_controller: Any, trial: Any) -> None:
        be_patient(tune_controller)
        super().on_trial_add(tune_controller, trial)


def be_patient(tune_controller: Any) -> None:
    """When an experiment ends, Tune 2.60 kills what has not stopped within ten seconds, whatever its variables say
    (tune/execution/tune_controller.py, _actor_force_cleanup_timeout): a child would lose the steps since its last
    checkpoint. `Child.stop` has a bound of its own."""
    controller = tune_controller._tune_controller  # what a scheduler gets is a wrapper
    assert controller._actor_force_cleanup_timeout  # else this is another version than the extra pins
    controller._actor_force_cleanup_timeout = _NEVER


class StopAll(tune.Stopper):  # type: ignore[misc]
    """Ends the experiment once a signal's number is in `wanted`; every trial is stopped by its normal signal."""

    def __init__(self) -> None:
        self.wanted: int | None = None
        self._is_said = False

    def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:  # noqa: ARG002
        return False

    def stop_all(self) -> bool:
        if self.wanted is not None and not self._is_said:  # not by the signal's handler, which may come in the middle
            self._is_said = True
            name = signal.Signals(self.wanted).name
            console.say(f"{name}: every trial saves what it has (send it again to stop at once)", style="warning")
        return self.wanted is not None
