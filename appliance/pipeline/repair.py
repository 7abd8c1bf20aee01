"""Before anything runs: damaged records of a run directory are restored from what is recorded elsewhere.

A record is replaced only by one that is proven: its copy's own hash is right, and every file of the stage has the
sha256 that it names. A training without such a copy continues from its checkpoints, which are verified by their own
manifests: its adapter is made again from the best of them, without a step of training. Everything else is refused as
before, by whoever reads it.
"""

from __future__ import annotations

from appliance.errors import RunDirError
from appliance.process import console, files
from appliance.rundir import ledger, run_json, token_choice
from appliance.rundir.directory import STAGES, RunDir


def restore_records(run_dir: RunDir) -> None:
    """Restores what is damaged and can be proven, and says so. The caller holds the run's lock."""
    if run_json.restore(run_dir.path):
        console.say(f"{run_json.FILE} was damaged or missing: restored from {ledger.COPIES}/", style="warning")
    for stage in STAGES:
        _restore(run_dir, stage)
    _restore_token_choice(run_dir)


def _restore_token_choice(run_dir: RunDir) -> None:
    train_dir = run_dir.stage_dir("train")
    try:
        record = ledger.read(run_dir.path, "train")
    except RunDirError:  # whoever needs it says so
        return
    if record is None and not any(train_dir.glob("checkpoints/checkpoint-*")):
        return  # one that is yet to begin looks at the base
    sha256 = record.outputs.get(token_choice.FILE, {}).get("sha256") if record else None
    if (record is None or sha256) and token_choice.restore(train_dir, sha256):
        path = train_dir / token_choice.FILE
        console.say(f"{path} was damaged or missing: restored from {ledger.COPIES}/", style="warning")


def _restore(run_dir: RunDir, stage: str) -> None:
    path = run_dir.stage_dir(stage) / ledger.FILE
    copy = ledger.copied(run_dir.path, stage)
    try:
        found = ledger.read(run_dir.path, stage)
        if found is None or copy is None or found == copy or not run_dir.faults(stage, found):
            return
        what = "does not describe the stage's files, its copy does"
    except RunDirError as error:
        found, what = None, str(error).removeprefix(f"{path} ")
    if copy and not run_dir.faults(stage, copy):
        ledger.write(run_dir.path, stage, copy)
        console.say(f"{path} {what}: restored from {ledger.COPIES}/, every file has its sha256", style="warning")
    elif found is None and stage == "train" and any(path.parent.glob("checkpoints/checkpoint-*")):
        files.remove(path)
        console.say(f"{path} {what}: training continues from its checkpoints", style="warning")
