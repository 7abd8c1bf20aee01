"""A fleet in a process of its own, to be killed: `python -m tests.sweeps.fleet_driver FILE`, a pickled list of jobs."""

from __future__ import annotations

import pickle
import sys
from pathlib import Path

from appliance.sweeps import cluster
from appliance.sweeps.fleet import Fleet, Share
from appliance.sweeps.fleet_shown import Progress
from appliance.sweeps.run_child import RunJob, RunOutcome
from appliance.sweeps.stored_run import StoredRuns


def run(jobs: list[RunJob], stored: StoredRuns | None = None) -> dict[str, RunOutcome]:
    """On the cluster of RAY_ADDRESS, one run for each core that it has."""
    with cluster.connected() as connected, Progress(len(jobs), 0) as progress:
        return Fleet(connected, jobs, Share(0, 1, 1), progress, waits=False, stored=stored).run()


if __name__ == "__main__":
    run(pickle.loads(Path(sys.argv[1]).read_bytes()))
