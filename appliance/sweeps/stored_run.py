"""A run on a node that shares no disk with the others: its CSV and its run directory come from a storage, and go back.

What a lost node had not stored yet is done again, from the last state that was.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from appliance.errors import ApplianceError
from appliance.machine import write_errors
from appliance.process import console, files
from appliance.rundir.directory import RunDir
from appliance.sweeps import run_child
from appliance.sweeps.plan import Planned
from appliance.sweeps.run_child import RunJob, RunOutcome
from appliance.sweeps.storage import Storage

_CSVS = ".csv"  # in the runs directory of a node: where it has the CSVs


def run(job: RunJob, node: str) -> RunOutcome:
    """As run_child.run, between a fetch and a store. A run that went well but cannot be stored has not ended well."""
    assert job.stored
    storage = Storage(job.stored.url)
    try:
        with write_errors.explaining(job.run_path):
            run_child.await_lock(RunDir(job.run_path))
            storage.get_csv(job.stored.csv_sha256, job.stored.csv_name, _csvs(job.run_path))
            storage.fetch(job.name, job.run_path)
    except ApplianceError as error:
        return RunOutcome(job.name, error.exit_code, 0.0, node, 0, str(error))
    outcome = run_child.run(job, node)
    try:
        with write_errors.explaining(job.run_path):
            storage.store(job.name, job.run_path)
    except ApplianceError as error:
        if outcome.exit_code:
            return outcome
        return replace(outcome, exit_code=error.exit_code, message=f"done, but not stored: {error}")
    if job.stored.drops and not outcome.exit_code:
        files.remove(job.run_path)
    return outcome


@dataclass(frozen=True)
class StoredRuns:
    """The storage as the command sees it that starts the runs. `runs_dir`: absolute, the same path on every node."""

    storage: Storage
    runs_dir: Path

    def bring(self, name: str) -> None:
        """What tables and reports read of the run; a failure hides nothing but that."""
        try:
            self.storage.fetch_results(name, self.runs_dir / name)
        except ApplianceError as error:
            console.say(f"{name}: its results cannot be fetched: {error}", style="warning")

    def bring_all(self, planned: Sequence[Planned]) -> None:
        """Before work begins. Raises RunDirError: there is another run of this name on this disk."""
        for one in planned:
            self.storage.fetch_results(one.name, self.runs_dir / one.name)

    def put(self, planned: Planned, *, drops: bool) -> tuple[Planned, run_child.Stored]:
        """Stores the CSV. Returns the run as a node has it, whose CSV is the fetched one, and what to fetch."""
        path = Path(planned.csv)
        stored = run_child.Stored(self.storage.url, self.storage.put_csv(path), path.name, drops)
        there = Storage.csv_path(stored.csv_sha256, stored.csv_name, _csvs(self.runs_dir / planned.name))
        others = [item for item in planned.overrides if not item.startswith("data.csv=")]
        return replace(planned, overrides=(*others, f"data.csv={there}")), stored


def _csvs(run_path: Path) -> Path:
    return run_path.parent / _CSVS
