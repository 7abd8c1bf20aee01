"""Whether a run is finished for what it would be started with now, read from its ledger: no process, no library.

Says yes only if the run's own command would do nothing. Whatever is unclear is left to that command: a damaged record,
a file of an earlier version, other inputs, which it refuses and names.
"""

from __future__ import annotations

from pathlib import Path

from appliance.errors import RunDirError
from appliance.process import files
from appliance.recipe import stage_fields
from appliance.recipe.fields import Recipe
from appliance.rundir.directory import MADE_FROM, RunDir
from appliance.rundir.ledger import StageRecord

_STAGES = tuple(stage for stage in MADE_FROM if stage != "check")


def is_done(recipe: Recipe, run_path: Path, *, elsewhere: tuple[str, ...] = ()) -> bool:
    """Whether every stage is done with this recipe and this CSV, and its files have the sizes that it left.

    elsewhere: how the names of files end that need not be on this disk, because a storage has them.
    """
    run_dir = RunDir(run_path)
    try:
        records = {stage: run_dir.record(stage) for stage in _STAGES}
        before: StageRecord | None = None
        for stage, record in records.items():
            if (
                record is None
                or not _is_of(recipe, stage, record, before)
                or not _is_whole(run_path / stage, record, elsewhere)
            ):
                return False
            before = record
    except (RunDirError, OSError):
        return False
    return not recipe.publish.gguf  # what became of them since, the command itself looks up


def _is_of(recipe: Recipe, stage: str, record: StageRecord, before: StageRecord | None) -> bool:
    wanted = stage_fields.of_stage(recipe, stage)
    if stage == "prepare":
        del wanted["data.csv"]
        wanted["CSV (sha256)"] = files.sha256_of(Path(recipe.data.csv))
    if before is not None:
        previous = _STAGES[_STAGES.index(stage) - 1]
        wanted[f"result of {previous}"] = before.fingerprint
    if stage == "evaluate":
        for key in ("extra_prompts", "other_answers"):
            value = getattr(recipe.evaluate, key)
            if isinstance(value, str):
                wanted[f"evaluate.{key} (sha256)"] = files.sha256_of(Path(value))
    return all(key in record.inputs and record.inputs[key] == value for key, value in wanted.items())


def _is_whole(folder: Path, record: StageRecord, elsewhere: tuple[str, ...]) -> bool:
    here = {name: output for name, output in record.outputs.items() if not name.endswith(elsewhere)}
    return all((folder / name).stat().st_size == output["size"] for name, output in here.items())
