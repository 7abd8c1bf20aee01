"""Checkpoints: complete or absent, verified by hashes, tied to what they were trained from.

A checkpoint is written to `.saving`, where nothing looks for one, and renamed once all of it is on disk. Its last file,
complete.json, lists every other file with its hash, and what the training depends on. Knows no stage.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from transformers import TrainerState

from appliance.engines import master_weights
from appliance.errors import RunDirError, TrainingFailed
from appliance.machine import disk, packages, write_errors
from appliance.process import console
from appliance.process import files as process_files
from appliance.recipe import stage_fields
from appliance.recipe.fields import ModelSection, TrainSection, TuningSection
from appliance.rundir import directory as rundir_directory
from appliance.rundir import results
from appliance.training import validation

MANIFEST = "complete.json"
START_OVER = "train from the beginning with --redo train"
_RESOLVED = ("model.id", "model.revision", "model.max_seq_length")  # a checkpoint depends on what they came to
_SAVING, _REMOVING = ".saving", ".removing"


@dataclass(frozen=True)
class Manifest:
    """The last file of a checkpoint. `files`: path below its folder -> sha256."""

    files: dict[str, str]
    inputs: dict[str, Any]
    evaluation_due: bool  # a signal interrupted this step's evaluation


def newest(checkpoints_dir: Path, inputs: Mapping[str, Any]) -> Path | None:
    """Where training continues: the newest valid checkpoint, or None if none was ever written.

    Invalid ones are named and skipped; they stay until training has written another. Raises RunDirError: there are
    checkpoints but none is valid, or the newest has other inputs. TrainingFailed: the best one is damaged.
    """
    _end_replacing(checkpoints_dir)
    for leftover in (checkpoints_dir / _SAVING, checkpoints_dir / _REMOVING):
        shutil.rmtree(leftover, ignore_errors=True)  # of a killed process
    found = _by_step(checkpoints_dir)
    for path in found:
        fault = fault_of(path)
        if fault is not None:
            console.say(f"skipping {path.name}: {fault}", style="warning")
            continue
        _refuse_other_inputs(path, inputs)
        _refuse_damaged_best(path)
        return path
    if found:
        raise RunDirError(f"{checkpoints_dir}: none of the {len(found)} checkpoints is valid", hint=START_OVER)
    return None


def fault_of(checkpoint: Path) -> str | None:
    """What is wrong with a checkpoint, by the hashes in its manifest; None if it is as it was saved."""
    try:
        expected = manifest_of(checkpoint).files
        present = {str(path.relative_to(checkpoint)) for path in checkpoint.rglob("*") if not path.is_dir()}
        foreign = sorted(present - expected.keys() - {MANIFEST})
        if foreign:
            return f"{foreign[0]} was not saved with it"
        for name, sha256 in expected.items():
            if name not in present or process_files.sha256_of(checkpoint / name) != sha256:
                return f"{name} is missing or damaged"
    except FileNotFoundError:
        return f"{MANIFEST} is missing"
    except OSError as error:
        return f"{Path(error.filename or checkpoint).name} cannot be read: {error.strerror}"
    except (ValueError, TypeError, AttributeError):
        return f"{MANIFEST} is damaged"
    return None


def manifest_of(checkpoint: Path) -> Manifest:
    """Raises OSError, ValueError or TypeError if it is missing or not a manifest."""
    return Manifest(**process_files.read_json(checkpoint / MANIFEST))


def state_of(checkpoint: Path) -> TrainerState:
    """The Trainer's state as saved in a checkpoint."""
    return TrainerState.load_from_json(str(checkpoint / "trainer_state.json"))


def is_finished(checkpoint: Path, patience: int) -> bool:
    """Whether training ended with this checkpoint: a Trainer that resumed there would take one step too many."""
    state = state_of(checkpoint)
    stopping = state.stateful_callbacks.get("EarlyStoppingCallback", {}).get("attributes", {})
    waited = stopping.get("early_stopping_patience_counter", 0)
    ended = bool(state.global_step >= state.max_steps or waited >= patience)
    return ended and not manifest_of(checkpoint).evaluation_due


def decays_all(checkpoint: Path) -> bool:
    """Whether weight decay applied to every trained tensor, as in earlier versions: its optimizer has one group."""
    import torch

    saved = torch.load(checkpoint / "optimizer.pt", map_location="cpu", weights_only=True, mmap=True)
    return not any(group["params"] for group in saved["param_groups"] if not group["weight_decay"])


def inputs_of(
    engine_name: str,
    dtype: str,
    base_identity: str,
    model: ModelSection,
    tuning: TuningSection,
    train: TrainSection,
    prompt_name: str,
    max_seq_length: int,
    cut_long_rows: bool,
    prepare_dir: Path,
) -> dict[str, Any]:
    """What a checkpoint depends on: training continues from it only with the same.

    Args:
        engine_name: unsloth or transformers; with it the versions of the libraries that compute.
        dtype: type of computation, such as bfloat16.
        base_identity: what the base is, in place of `model.id` and `model.revision`.
        model, tuning, train: sections of the recipe, see recipe/stage_fields.py.
        prompt_name: the recipe's `prompt`.
        max_seq_length: tokens, in place of `model.max_seq_length`, which may be auto.
        cut_long_rows: whether longer rows were cut.
        prepare_dir: the prepared rows, and the earlier run's adapter if one is continued, known by their hashes.
    """
    files = ["train.csv", "val.csv"]
    if (prepare_dir / validation.GROUPS_FILE).is_file():
        files.append(validation.GROUPS_FILE)
    start = results.earlier_adapter(prepare_dir)
    weights = {"adapter it began with (sha256)": start / results.ADAPTER_WEIGHTS} if start else {}
    began_with = {key: process_files.sha256_of(path) for key, path in weights.items()}
    libraries = ["torch", "transformers", "trl", "peft", "accelerate", "bitsandbytes"]
    libraries += ["unsloth", "unsloth-zoo"] if engine_name == "unsloth" else []
    found = packages.versions()
    masters = master_weights.has_masters(tuning.method, dtype)
    fields = stage_fields.of_training(model, tuning, train)
    return {
        **{key: value for key, value in fields.items() if key not in _RESOLVED},
        "base model": base_identity,
        "engine": engine_name,
        "type of computation": dtype,
        **({"type of the weights": master_weights.MASTER_DTYPE} if masters else {}),
        "prompt": prompt_name,
        "max_seq_length": max_seq_length,
        "long rows are cut": cut_long_rows,
        **{f"{name} (sha256)": process_files.sha256_of(prepare_dir / name) for name in files},
        **began_with,
        **{f"version of {name}": found.get(name) for name in libraries},
    }


@contextmanager
def written(
    checkpoint: Path, *, at_least_bytes: int, inputs: Mapping[str, Any], evaluation_due: bool = False
) -> Iterator[Path]:
    """Yields a folder; the block writes a folder of the checkpoint's name into it, which then becomes `checkpoint`.

    An existing one (damaged, or saved without its evaluation) is replaced: at any moment the old or the new one exists.
    Raises EnvironmentUnavailable: the disk is too full. Earlier checkpoints are untouched.
    """
    _end_replacing(checkpoint.parent)
    saving = checkpoint.parent / _SAVING
    shutil.rmtree(saving, ignore_errors=True)
    before = next(iter(_by_step(checkpoint.parent)), None)
    needed = max(at_least_bytes, disk.size_of(before) if before else 0)
    try:
        with room_for(checkpoint, needed):
            saving.mkdir()
            yield saving
            folder = saving / checkpoint.name
            (folder / "training_args.bin").unlink(missing_ok=True)  # a pickle that nothing here ever reads
            files = {
                str(p.relative_to(folder)): process_files.sha256_of(p) for p in sorted(folder.rglob("*")) if p.is_file()
            }
            process_files.fsync_all(folder)
            process_files.write_json(folder / MANIFEST, asdict(Manifest(files, dict(inputs), evaluation_due)))
        if checkpoint.exists():
            checkpoint.rename(_aside(checkpoint))
        folder.rename(checkpoint)
        process_files.fsync(checkpoint.parent)
    finally:
        _end_replacing(checkpoint.parent)
        shutil.rmtree(saving, ignore_errors=True)


def rotate(newest: Path, best_step: int | None) -> None:
    """Keeps the newest, the one to fall back on, and the best of each; `directory.CHECKPOINTS_KEPT` in all.

    These are three at most: the newest is itself the best, or shares its best with the one before it. If they are
    fewer, the latest others fill the number. Those later than the newest were skipped on resume: none is kept.
    """
    found = _by_step(newest.parent)
    earlier = [path for path in found if step_of(path) < step_of(newest)]
    steps = [step_of(path) for path in earlier]
    pairs = ((step_of(path), _best_step_of(path)) for path in earlier)
    fallback = next(([step, best] for step, best in pairs if best in steps), [])
    wanted = dict.fromkeys([step_of(newest), *fallback, best_step])
    kept = [path for step in wanted for path in found if step_of(path) == step]
    kept = [*kept, *(path for path in earlier if path not in kept)][: rundir_directory.CHECKPOINTS_KEPT]
    for path in found:
        if path not in kept:
            _remove(path)


@contextmanager
def room_for(path: Path, needed: int) -> Iterator[None]:
    """Raises EnvironmentUnavailable if `needed` bytes are not free for `path`, or if the disk fills up in the block."""
    disk.require(path.parent, needed, path.name)
    with write_errors.explaining(path.parent, needed=needed, purpose=path.name):
        yield


def append_line(path: Path, line: Mapping[str, Any]) -> None:
    """Appends a line of JSON to a file. Raises EnvironmentUnavailable: the disk is full."""
    text = json.dumps(line) + "\n"
    with room_for(path, len(text)), process_files.naming(path), process_files.open_own(path, "a") as handle:
        handle.write(text)


def step_of(checkpoint: Path) -> int:
    return int(checkpoint.name.rpartition("-")[2])


def _by_step(checkpoints_dir: Path) -> list[Path]:
    """Newest first; valid or not."""
    found = [p for p in checkpoints_dir.iterdir() if re.fullmatch(r"checkpoint-\d+", p.name) and p.is_dir()]
    return sorted(found, key=step_of, reverse=True)


def _best_step_of(checkpoint: Path) -> int | None:
    """The step of the best checkpoint, which continuing from this one needs; None if its state cannot be read."""
    try:
        return state_of(checkpoint).best_global_step or step_of(checkpoint)  # nothing was evaluated before it
    except (OSError, ValueError, TypeError, AttributeError):
        return None


def _refuse_other_inputs(checkpoint: Path, inputs: Mapping[str, Any]) -> None:
    before = manifest_of(checkpoint).inputs
    now = dict(inputs)
    keys = [key for key in {**before, **now} if before.get(key) != now.get(key)]
    if keys:
        lines = [f"{key}: was {before.get(key)}, is {now.get(key)}" for key in keys]
        raise RunDirError(
            f"{checkpoint} cannot be continued: it was trained with other inputs:\n  " + "\n  ".join(lines),
            hint=f"restore them, or {START_OVER}, or start a new run with --set name=NEW",
        )


def _refuse_damaged_best(checkpoint: Path) -> None:
    """Before hours are spent on a training whose best weights could not be kept."""
    best_step = state_of(checkpoint).best_global_step
    best = checkpoint.with_name(f"checkpoint-{best_step}")
    fault = fault_of(best) if best_step and best != checkpoint else None
    if fault is not None:
        raise TrainingFailed(f"{best}, the best so far, is damaged: {fault}", hint=START_OVER)


def _aside(checkpoint: Path) -> Path:
    """Where a checkpoint is kept while another replaces it."""
    return checkpoint.with_name(f".{checkpoint.name}")


def _end_replacing(checkpoints_dir: Path) -> None:
    """Restores a checkpoint that was set aside if nothing replaced it; otherwise removes it."""
    for aside in checkpoints_dir.glob(".checkpoint-*"):
        checkpoint = aside.with_name(aside.name[1:])
        if checkpoint.exists():
            shutil.rmtree(aside)
        else:
            aside.rename(checkpoint)


def _remove(checkpoint: Path) -> None:
    """Renames it first: a kill in the middle must not leave half of it under its name."""
    if checkpoint.exists():
        removing = checkpoint.parent / _REMOVING
        shutil.rmtree(removing, ignore_errors=True)
        checkpoint.rename(removing)
        shutil.rmtree(removing)
