"""What each stage reads of the stages before it. It is compared with their records first: edited since, it is refused.

Hashed are the files that the stage about to run opens, no others. What a release's gates hash themselves, the weights
(release/gates.py, `of_files`), is hashed once.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping

from appliance.rundir import results
from appliance.rundir.directory import RunDir
from appliance.training import kept_ids, validation

ROWS = "dataset upload"  # not a stage, but it publishes what `prepare` left
_WEIGHTS = "*.safetensors"
_TRAINED = ("adapter/*", "model/*")  # one of them is there
_SIDES = ("train.csv", "val.csv", "test.csv")
_LEAKS = ("leaks.json", "near_duplicates.json")
_TRAIN_IDS, _VAL_IDS, _TEST_IDS = map(kept_ids.PATTERN.format, ("train", "val", "test"))
_EARLIER = (f"{results.EARLIER}/*",)  # the adapter that training begins with
_TO_TRAIN = ("summary.json", "train.csv", "val.csv", validation.GROUPS_FILE)
# Stage -> earlier stage -> patterns of paths below its folder. Not all of them are there in every run.
READS: Mapping[str, Mapping[str, tuple[str, ...]]] = {
    "rehearse": {"prepare": (*_TO_TRAIN, "test.csv", results.TEST_GROUPS, results.TAKEN, *_EARLIER, *_LEAKS)},
    "train": {"prepare": (*_TO_TRAIN, *_EARLIER, _TRAIN_IDS, _VAL_IDS)},
    "evaluate": {
        "prepare": (*_SIDES, *_EARLIER, _VAL_IDS, _TEST_IDS, results.TEST_GROUPS, results.TAKEN),
        "train": (*_TRAINED, "fit.json", "metrics.jsonl"),
    },
    "merge": {"train": _TRAINED, "evaluate": ("proof_rows.json",)},
    "publish": {
        "prepare": (*_SIDES, "summary.json", *_LEAKS),
        "train": (*_TRAINED, "fit.json", "gates.json", "tokens.json"),
        "evaluate": (
            results.COMPARISON,
            results.PREDICTIONS,
            results.EXTRA_ANSWERS,
            "measures.json",
            "proof_rows.json",
        ),
        "merge": ("model/*", results.PROOF),
    },
    ROWS: {"prepare": (*_SIDES, "summary.json")},
}


def refuse_changed(run_dir: RunDir, stage: str) -> None:
    """Before `stage` begins. Raises RunDirError (exit 8): see `RunDir.refuse_changed`."""
    for earlier, patterns in READS.get(stage, {}).items():
        run_dir.refuse_changed(earlier, patterns, unhashed=_WEIGHTS if stage == "publish" else "")


def refuse_changed_early(run_dir: RunDir, todo: Iterable[str], done: Collection[str]) -> None:
    """All but the weights, before anything is run or set aside: what the last stage reads may cost hours of training.

    Raises RunDirError as `refuse_changed`.
    """
    for stage in todo:
        for earlier, patterns in READS.get(stage, {}).items():
            if earlier in done:
                run_dir.refuse_changed(earlier, patterns, unhashed=_WEIGHTS)
