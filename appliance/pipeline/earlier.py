"""The earlier run that a run continues (`start_from`): what it must hold, what is taken from it, and what proves it.

`prepare` takes all that is needed into its own folder, so that later stages, and whoever checks the run, do without the
earlier one. What was taken is identified by hashes that the earlier run recorded when its stages ended; they are
compared with its files first.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, get_args

from appliance.errors import RecipeError, RunDirError
from appliance.process import files
from appliance.recipe import resolve
from appliance.recipe.fields import Recipe
from appliance.rows import csv_file, split
from appliance.rows.kept_sides import RANK, KeptSides
from appliance.rows.split import Side
from appliance.rundir import directory as rundir_directory
from appliance.rundir import find, results, run_json, token_choice
from appliance.rundir.directory import RunDir

SECTION = "earlier"  # of run.json
SIDES = "sides.csv"  # in prepare/earlier/
_CONFIG = "adapter_config.json"
_NEEDED = ("prepare", "train", "evaluate", "merge")  # merge proves the adapter
_ROWS = ("train.csv", "val.csv", "test.csv", results.TEST_GROUPS, results.VAL_GROUPS, results.TRAIN_GROUPS)
_SIDES = f"{results.EARLIER}/{SIDES}"
# What an adapter is made of: trained on with another value, it would be another adapter, or mean something else.
_KEPT = (
    "task",
    "tuning.method",
    "tuning.r",
    "tuning.alpha",
    "tuning.target_modules",
    "tuning.rslora",
    "tuning.dora",
    "prompt",
)


@dataclass(frozen=True)
class Earlier:
    """`typed`: as the recipe names it; `path`: its run directory, which may be gone once its rows have been taken.

    `base`: of its run.json. `adapter_sha256`: of the weights; `rows_sha256`: over the hashes of its prepared rows.
    """

    typed: str
    path: str
    name: str
    base: Mapping[str, Any]
    adapter_sha256: str
    rows_sha256: str

    @property
    def inputs(self) -> dict[str, str]:
        """What `prepare` depends on."""
        return {"earlier adapter (sha256)": self.adapter_sha256, "earlier rows (sha256)": self.rows_sha256}

    @property
    def prepare_dir(self) -> Path:
        return Path(self.path) / "prepare"

    @property
    def train_dir(self) -> Path:
        return Path(self.path) / "train"

    def as_json(self) -> dict[str, Any]:
        """The section `earlier` of run.json."""
        return asdict(self)


def recorded(found: Mapping[str, Any], typed: str) -> Earlier | None:
    """What run.json says was taken; None if the recipe now names another run. Raises RunDirError: it is damaged."""
    section = found.get(SECTION)
    if not section or section.get("typed") != typed:
        return None
    try:
        return Earlier(**section)
    except TypeError as error:
        hint = "start a new run with --set name=NEW"
        raise RunDirError(f"{run_json.FILE}: its section {SECTION} is damaged: {error}", hint=hint) from error


def look(typed: str, recipe: Recipe, found: Mapping[str, Any], run_path: Path) -> Earlier:
    """The run `typed`, as it is now. `run_path`: of the run that continues it; `found`: its run.json, empty before it
    has begun.

    Raises RunDirError: there is no such run, it is at work, not finished, damaged, or holds too little. RecipeError:
    `recipe` would make another kind of adapter of it.
    """
    path, before_now = Path(typed).expanduser().absolute(), recorded(found, typed)
    if not path.exists() and before_now:  # typed relative to another folder
        path = Path(before_now.path)
    find.require_run(path)
    if path.resolve() == run_path.resolve():
        raise RecipeError(f"start_from: {path} is this run itself", hint="give the new run a name: --set name=NEW")
    run_dir = RunDir(path)
    if run_dir.is_locked:
        raise RunDirError(f"{path} is in use by another process", hint="wait until that run ends")
    outputs = {stage: _outputs(run_dir, stage) for stage in _NEEDED}
    before = resolve.load(str(path), environ={}).recipe
    refuse_without_adapter(before, path)
    _refuse_other_kind(before, recipe, path)
    weights = outputs["train"].get(f"adapter/{results.ADAPTER_WEIGHTS}")
    if weights is None:
        raise RunDirError(f"{path} has no adapter to continue from", hint="choose a run with tuning.method: lora")
    if before.data.group_by and results.TRAIN_GROUPS not in outputs["prepare"]:
        raise RunDirError(
            f"{path} does not say to which group of `{before.data.group_by}` its train rows belong: an earlier version "
            "made it, and a new row of such a group might be used for testing",
            hint=f"`appliance run {path} --redo prepare` makes it again; or start from a run without data.group_by",
        )
    base = run_json.read(path, "base.id", "base.public_id", "base.identity")["base"]
    rows = {name: outputs["prepare"][name]["sha256"] for name in (*_ROWS, _SIDES) if name in outputs["prepare"]}
    return Earlier(typed, str(path), path.name, base, str(weights["sha256"]), rundir_directory.fingerprint(rows))


def take(earlier: Earlier, stage_dir: Path) -> None:
    """Copies the adapter, its choice of tokens and the sides of all its questions into prepare/earlier/.

    Raises RunDirError: a file of the earlier run is not as its stage left it.
    """
    run_dir, folder = RunDir(Path(earlier.path)), stage_dir / results.EARLIER
    run_dir.refuse_changed("train", ("adapter/adapter_*", token_choice.FILE))
    adapter, tokens = earlier.train_dir / "adapter", earlier.train_dir / token_choice.FILE
    folder.mkdir(exist_ok=True)
    for path in (adapter / results.ADAPTER_WEIGHTS, adapter / _CONFIG, tokens):
        if path.is_file():  # runs of earlier versions chose no tokens
            files.remove(folder / path.name)
            files.link_or_copy(path, folder / path.name)
    with csv_file.csv_writer(folder / SIDES, ("key", "side")) as write:
        for key, side in _known(earlier.prepare_dir).items():
            write((key.hex(), side))


def kept_sides(earlier: Earlier, *, taken_to: Path | None = None) -> KeptSides:
    """The sides that questions have. `taken_to`: the folder of `prepare`, if it is done: then the earlier run may be
    gone.

    Raises RunDirError: a file of the earlier run is not as its stage left it.
    """
    if taken_to is not None:
        return KeptSides(earlier.name, dict(_of_file(taken_to / _SIDES)))
    RunDir(Path(earlier.path)).refuse_changed("prepare", (*_ROWS, _SIDES))
    return KeptSides(earlier.name, _known(earlier.prepare_dir))


def refuse_other_base(earlier: Earlier, identity_by: Callable[[Any], str], model_id: str) -> None:
    """Raises RecipeError: the base is not the one that the earlier run trained. `identity_by`: of the base, by a rule
    (base_model/base.py)."""
    if identity_by(earlier.base.get("identity_rule", 1)) != earlier.base["identity"]:
        raise RecipeError(
            f"start_from: {earlier.path} trained {earlier.base['public_id']}; the base model {model_id} is another, or "
            "its files have changed since",
            hint="leave model.id and model.revision as that run has them, and restore the files",
        )


def refuse_without_adapter(before: Recipe, path: Path) -> None:
    """`before`: the recipe of the run `path`. Raises RecipeError: it made no adapter."""
    if before.tuning.method == "full":
        raise RecipeError(
            f"start_from: {path} trained every weight, so that it has no adapter to continue from",
            hint="choose a run with tuning.method: lora; or start a new run on all rows, the old and the new",
        )


def _outputs(run_dir: RunDir, stage: str) -> dict[str, Any]:
    record = run_dir.record(stage)
    if record is None:
        hint = f"finish it first: `appliance run {run_dir.path}`"
        raise RunDirError(f"{run_dir.path} cannot be continued by another run: its {stage} is not done", hint=hint)
    return record.outputs


def _refuse_other_kind(before: Recipe, now: Recipe, path: Path) -> None:
    """Raises RecipeError: see `look`."""
    was, wanted = (dict(resolve.flatten(recipe.model_dump())) for recipe in (before, now))
    other = [f"{key}: {wanted[key]} (the run has {was[key]})" for key in _KEPT if was[key] != wanted[key]]
    if other:
        raise RecipeError(
            f"start_from: the adapter of {path} can only be trained on as it is:\n  " + "\n  ".join(other),
            hint="leave these fields as that run has them, or start without --from",
        )


def _known(prepare_dir: Path) -> dict[bytes, Side]:
    """Key of every question and group that a run and those before it were prepared with -> its side: the strictest."""
    found = dict(_of_file(prepare_dir / _SIDES)) if (prepare_dir / _SIDES).is_file() else {}
    for side, name in (("val", results.VAL_GROUPS), ("train", results.TRAIN_GROUPS), ("test", results.TEST_GROUPS)):
        keys = [split.question_key(row) for row in csv_file.iter_canonical(prepare_dir / f"{side}.csv")]
        if (prepare_dir / name).is_file():
            keys += map(bytes.fromhex, results.read_groups(prepare_dir / name).values())
        for key in keys:
            found[key] = max(_BY_NAME[side], found.get(key, _BY_NAME[side]), key=RANK.__getitem__)
    return found


_BY_NAME: dict[str, Side] = {side: side for side in get_args(Side)}


def _of_file(path: Path) -> Iterator[tuple[bytes, Side]]:
    for row in results.read_sides(path):
        yield bytes.fromhex(row["key"]), _BY_NAME[row["side"]]
