"""The GGUF files of a run as the side stage `export` left them: what they were made from, their names and hashes.

Read by whoever releases them, shows them, or has to know whether they are still due. Opens none of them.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from appliance.errors import RunDirError
from appliance.process import files
from appliance.rundir import directory, results
from appliance.rundir.directory import RunDir
from appliance.rundir.ledger import StageRecord

STAGE = "export"
HASHES = "GGUF files (sha256)"  # among the inputs of the stage publish, if it releases such files
SUFFIXES = (".gguf", ".Modelfile")  # of what is made for one type; both are released


def names(run_name: str, kind: str) -> list[str]:
    """The files of one type, in the stage's folder and in a release."""
    return [f"{run_name}-{kind}{suffix}" for suffix in SUFFIXES]


def made_from(merged: StageRecord) -> dict[str, Any]:
    """What the files depend on, as the stage records it. `merged`: of the stage merge; it depends on all before it."""
    model = {name: output["sha256"] for name, output in merged.outputs.items() if name.startswith("model/")}
    return {"merged model": directory.fingerprint(model), "merge": merged.fingerprint}


def hashes(run_dir: RunDir, run_name: str, kinds: Iterable[str]) -> dict[str, str]:
    """File -> sha256 of those files of `kinds` that the finished stage lists. Raises RunDirError: its record is
    damaged.
    """
    record = run_dir.record(STAGE)
    listed = record.outputs if record else {}
    wanted = (name for kind in kinds for name in names(run_name, kind))
    return {name: str(listed[name]["sha256"]) for name in wanted if name in listed}


def to_release(run_dir: RunDir, run_name: str, kinds: Iterable[str]) -> dict[str, str]:
    """`hashes`; of a file that is gone, as it was released, if it was."""
    record = run_dir.record("publish")
    released = (record.inputs.get(HASHES) if record else None) or {}
    return {**released, **hashes(run_dir, run_name, kinds)}


def recorded_hashes(one: Mapping[str, Any]) -> dict[str, str]:
    """File -> sha256 of the two files of a type, as its entry in export.json has them."""
    gguf = str(one["file"])
    return {
        gguf: str(one["sha256"]),
        f"{gguf.removesuffix(SUFFIXES[0])}{SUFFIXES[1]}": str(one.get("modelfile_sha256")),
    }


def is_due(run_dir: RunDir, run_name: str, kinds: Sequence[str]) -> bool:
    """Whether a file of `kinds` is missing, or of another merged model than the run's. Compares sizes, reads no file.

    Raises RunDirError: a record is damaged.
    """
    merged, record = run_dir.record("merge"), run_dir.record(STAGE)
    if merged is None or record is None:
        return bool(kinds)
    source = made_from(merged)
    if {key: record.inputs.get(key) for key in source} != source:
        return bool(kinds)
    folder = run_dir.stage_dir(STAGE)
    for name in (name for kind in kinds for name in names(run_name, kind)):
        output, path = record.outputs.get(name), folder / name
        if output is None or not path.is_file() or path.stat().st_size != output["size"]:
            return True
    return False


def read(run_dir: RunDir, kinds: Iterable[str]) -> dict[str, Mapping[str, Any]]:
    """Type -> what export.json says of its file: `file`, `size`, `sha256`, `gates`, with llama.cpp also `scores`.

    Raises RunDirError: it is missing or damaged, lacks one of `kinds`, or is of another merged model.
    """
    path, kinds = run_dir.stage_dir(STAGE) / results.EXPORT, list(kinds)
    merged = run_dir.record("merge")
    try:
        listed = files.read_object(path)
        if merged is None or listed["made_from"] != made_from(merged):
            raise ValueError("its files are of another merged model")
        return {kind: listed["files"][kind] | {} for kind in kinds}
    except (OSError, ValueError, LookupError, TypeError) as error:
        hint = f"remove {path.parent}, and repeat the command: it is made again"
        raise RunDirError(f"{path} does not describe {', '.join(kinds)}: {error!s:.200}", hint=hint) from error
