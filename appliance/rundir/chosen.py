"""How the settings of a run were chosen: `chosen.json`, which a sweep leaves in the winner's run directory.

Report and model card show it: who reads the scores has to know among how many settings they were the best, and that the
test rows had no part in it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from appliance.errors import RunDirError
from appliance.process import files
from appliance.rundir.directory import RunDir
from appliance.wording import counted

FILE = "chosen.json"
COLUMNS = ("trial", "settings", "val loss", "steps", "ended", "minutes")
NUMBERS = ("val loss", "steps", "minutes")


@dataclass(frozen=True)
class Tried:
    """A trial. `values`: dotted key -> value. `val_loss`: the best, nats per trained token; None: there is none.

    `steps`: of training, until it ended. `ended`: how, for people. `minutes`: of a GPU, or of a run on a CPU.
    """

    name: str
    values: Mapping[str, Any]
    val_loss: float | None
    steps: int | None
    ended: str
    minutes: float

    def settings(self) -> str:
        """The values in one line: 'learning_rate 0.0002, r 16'."""
        return ", ".join(f"{key.rpartition('.')[2]} {_shown(value)}" for key, value in self.values.items())


@dataclass(frozen=True)
class Chosen:
    """`winner`: the trial that the run is. `trained`: fingerprint of its training, as its record has it.

    `looked_before`: trials that had been scored on the test rows before.
    """

    winner: str
    trials: tuple[Tried, ...]
    looked_before: tuple[str, ...] = ()
    trained: str = ""

    @property
    def columns(self) -> tuple[str, ...]:
        return COLUMNS

    @property
    def numbers(self) -> tuple[str, ...]:
        """Those of `columns` that hold numbers."""
        return NUMBERS

    def table(self) -> list[tuple[str, ...]]:
        """`columns` of each trial, as the function `table`."""
        return table(self.trials)

    def sentence(self) -> str:
        """How it was chosen, and what part the test rows had in it; without a full stop."""
        among = f"Chosen among {counted(len(self.trials), 'setting')} by the lowest val loss"
        if self.looked_before:
            names = ", ".join(self.looked_before)
            return f"{among}; the test rows had been looked at before, with the settings of {names}"
        return f"{among}; the test rows were looked at once, afterwards, with these settings alone"


def write(run_path: Path, chosen: Chosen) -> None:
    files.write_json(run_path / FILE, asdict(chosen))


def remove(run_path: Path) -> None:
    (run_path / FILE).unlink(missing_ok=True)


def read(run_path: Path) -> Chosen | None:
    """None if the run is no sweep's winner. Raises RunDirError: the file is damaged."""
    path = run_path / FILE
    if not files.is_there(path):
        return None
    try:
        found = files.read_object(path)
        trials = tuple(map(_tried, found["trials"]))
        looked = tuple(str(name) for name in found["looked_before"])
        if found["winner"] not in {trial.name for trial in trials}:
            raise ValueError("its winner is none of its trials")
        return Chosen(str(found["winner"]), trials, looked, str(found["trained"]))
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        hint = "repeat the `appliance sweep` command, which writes it"
        raise RunDirError(f"{path} is damaged: {error!s:.200}", hint=hint) from error


def of_run(run_path: Path) -> Chosen | None:
    """As `read`; None also if the run has been trained again since, with other settings."""
    found, record = read(run_path), RunDir(run_path).record("train")
    return found if found and record and record.fingerprint == found.trained else None


def _tried(found: Mapping[str, Any]) -> Tried:
    loss, steps, minutes = found["val_loss"], found["steps"], found["minutes"]
    for number in (loss, minutes):
        if number is not None and not (isinstance(number, int | float) and math.isfinite(number)):
            raise ValueError(f"expected a number, found {number!r:.60}")
    if not (steps is None or isinstance(steps, int)) or not isinstance(found["values"], dict):
        raise ValueError(f"a trial holds {found!r:.100}")
    return Tried(str(found["name"]), found["values"], loss, steps, str(found["ended"]), minutes)


def table(trials: Sequence[Tried]) -> list[tuple[str, ...]]:
    """COLUMNS of each trial, the best first, those without a val loss last."""
    ranked = sorted(trials, key=lambda one: math.inf if one.val_loss is None else one.val_loss)
    return [
        (
            one.name,
            one.settings(),
            "–" if one.val_loss is None else f"{one.val_loss:.4f}",
            "–" if one.steps is None else str(one.steps),
            one.ended,
            f"{one.minutes:.1f}",
        )
        for one in ranked
    ]


def _shown(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else " ".join(value) if isinstance(value, list) else str(value)
