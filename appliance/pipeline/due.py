"""Which stages are done, for what they depend on now, and which are still due."""

from __future__ import annotations

from collections.abc import Sequence

from appliance.pipeline.job import Job
from appliance.rundir.directory import STAGES


def done(job: Job, again: Sequence[str]) -> set[str]:
    """The stages to skip. Those of `again` are due, whether done or not.

    Every stage that has begun is looked at, including those after `job.until`, so that nothing finished is ever
    orphaned. Raises RunDirError: a stage was done from another recipe, CSV or base.
    """
    run_dir = job.run_dir
    judged = [stage for stage in STAGES[1:] if stage != "rehearse" and stage not in again]
    found = {stage for stage in judged if run_dir.has_begun(stage) and run_dir.is_done(stage, job.inputs(stage))}
    if "rehearse" not in again and _is_rehearsed(job, again):
        found.add("rehearse")
    up_to = STAGES[1 : STAGES.index(job.until) + 1]
    if up_to and found.issuperset(up_to) and run_dir.record("check") and "check" not in again:
        found.add("check")
    return found


def _is_rehearsed(job: Job, again: Sequence[str]) -> bool:
    """Whether no rehearsal is due: it took place for this recipe, or training has begun.

    Another recipe gets another rehearsal, which takes minutes and makes nothing.
    """
    trained = job.run_dir.stage_dir("train")
    if "train" not in again and ((trained / "stage.json").is_file() or any(trained.glob("checkpoints/checkpoint-*"))):
        return True
    record = job.run_dir.record("rehearse")
    if record is None:
        return False
    inputs = job.inputs("rehearse")
    if "table.json" in record.outputs:  # it took place: whether it has to is no longer a question
        inputs["rehearse"] = record.inputs.get("rehearse")
    return record.inputs == inputs
