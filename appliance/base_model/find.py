"""Where base models come from: a folder, the demo, or one pinned commit on the Hub."""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

from appliance import bounds
from appliance.base_model import config_values, tokenizer_trial, tunable
from appliance.base_model.base import DEMO_NAME, Base
from appliance.errors import EnvironmentUnavailable, RecipeError
from appliance.hub.cache import Source
from appliance.hub.token import token
from appliance.process import console
from appliance.process.files import read_object
from appliance.recipe import hub_names
from appliance.rows.csv_file import Row
from appliance.tasks import causal
from appliance.tasks.task import Task
from appliance.weights import model_files

DEMO_ID = "demo"
# A folder of the Hub client's cache (huggingface_hub, "Understand caching").
_SNAPSHOT = re.compile(r"models--(?P<user>[^/]+?)--(?P<name>[^/]+)/snapshots/(?P<commit>[0-9a-f]{40})")


def resolve(model_id: str, revision: str | None, cache_dir: Path) -> Base:
    """The base model `model_id`, complete on this disk. Raises what `base_of` and `fetch` raise."""
    return fetch(base_of(model_id, revision, cache_dir))


def base_of(
    model_id: str, revision: str | None, cache_dir: Path, hub_id: str | None = None, task: Task = causal.TASK
) -> Base:
    """The base model `model_id` with everything it is judged by: for one on the Hub, the config and card.

    `hub_id`: what a local folder is on the Hub, at `revision`. A snapshot in the Hub client's cache tells by its path.

    Raises RecipeError: no such folder or name. HubError: the Hub refuses or cannot be reached.
    EnvironmentUnavailable: it cannot be tuned for `task` (see `tunable`), or it has no safetensors.
    """
    if model_id == DEMO_ID:
        from appliance.base_model import demo

        folder = demo.ensure_base_apart(cache_dir, on_progress=console.say)
        base = Base(folder, DEMO_NAME, None, "apache-2.0")
    elif Path(model_id).is_dir():
        folder = Path(model_id).resolve()
        public_id, commit = (hub_id, revision) if hub_id else _snapshot_of(folder) or (folder.name, None)
        base = Base(folder, public_id, commit, _license(folder), is_folder=True)
    elif model_id.count("/") == 1 and not model_id.startswith((".", "/", "~")):
        base = _find_on_hub(model_id, revision, cache_dir)
    else:
        raise RecipeError(
            f"model.id: {model_id!r} is neither a folder, nor USER/NAME on the Hub, nor `{DEMO_ID}`",
            hint="check the path; inside the container only mounted folders exist",
        )
    names, where = (base.snapshot.files, model_id) if base.snapshot else (_names(base.dir), str(base.dir))
    _refuse_large(base, where)
    _refuse_untunable(base, where, names, task)
    if not any(map(model_files.is_weights, names)):
        raise EnvironmentUnavailable(
            f"{where} has no safetensors weights",
            hint="load it once with transformers and save it with save_pretrained",
        )
    return base


def fetch(base: Base, rows: Sequence[Row] = ()) -> Base:
    """The same base, complete, its tokenizer tried, with these rows; cached files are compared with the Hub's hashes.

    Raises HubError: the Hub refuses or cannot be reached. EnvironmentUnavailable: no room, an unwritable cache, or as
    `tokenizer_trial.refuse_unusable`.
    """
    if base.snapshot:
        from appliance.hub import download  # and with it httpx

        wanted = [name for name in base.snapshot.files if model_files.is_downloaded(name)]
        download.obtain(_source(base.public_id, base.revision), base.snapshot, wanted)
        _refuse_odd_generation(base.dir)
    tokenizer_trial.refuse_unusable(base.dir, rows)
    return base


def _source(model_id: str, revision: str | None) -> Source:
    hint = "check the name, the network, and HF_TOKEN for a gated model; or give a local folder as model.id"
    return Source(model_id, "model", revision, token(), hint)


def _find_on_hub(model_id: str, revision: str | None, cache_dir: Path) -> Base:
    from appliance.hub import download
    from appliance.hub.dataset_file import without_asking

    try:
        hub_names.refuse_name(model_id)
    except ValueError as error:
        raise RecipeError(f"model.id: {error}", hint="check the name, or give the path of a local folder") from error
    source = _source(model_id, revision)
    snapshot = download.snapshot_of(source, cache_dir)
    console.say(f"base model {model_id} at commit {snapshot.commit}{without_asking(snapshot)}")
    folder = download.obtain(source, snapshot, [name for name in model_files.JUDGED_FILES if name in snapshot.files])
    return Base(folder, model_id, snapshot.commit, _license(folder), snapshot)


def _snapshot_of(folder: Path) -> tuple[str, str] | None:
    """The repository and commit whose files the Hub client keeps in this folder; None if it is another folder."""
    found = _SNAPSHOT.fullmatch("/".join(folder.parts[-3:]))
    return (f"{found['user']}/{found['name']}", found["commit"]) if found else None


def _license(folder: Path) -> str | None:
    """The licence that the model card's front matter names; it may be a list."""
    return f"{license_!s:.200}" if (license_ := _front_matter(folder).get("license")) else None


def _front_matter(folder: Path) -> dict[str, Any]:
    """The YAML at the top of the model card; empty if there is none or it cannot be read."""
    card = folder / model_files.CARD
    if not card.is_file():
        return {}
    with card.open(encoding="utf-8", errors="replace") as handle:
        parts = handle.read(bounds.LARGEST_FRONT_MATTER).split("---\n", 2)
    if len(parts) < 3 or parts[0].strip():
        return {}
    try:
        front: Any = bounds.yaml_of(parts[1], bounds.LARGEST_FRONT_MATTER)
    except ValueError:
        return {}
    return front if isinstance(front, dict) else {}


def _names(folder: Path) -> list[str]:
    """The names of the folder's files, and of any config.json one level down."""
    return [path.relative_to(folder).as_posix() for pattern in ("*", "*/config.json") for path in folder.glob(pattern)]


def _refuse_large(base: Base, where: str) -> None:
    """Raises EnvironmentUnavailable: a file, on this disk or still to come, is far larger than any of its name is."""
    here = {path.name: path.stat().st_size for path in base.dir.iterdir() if path.is_file()}
    for name, size in {**base.coming, **here}.items():
        try:
            bounds.refuse_large(name, size)
        except ValueError as error:
            raise EnvironmentUnavailable(f"{where}/{name}: {error}", hint="choose another base model") from error


def _refuse_untunable(base: Base, where: str, files: Collection[str], task: Task) -> None:
    """Needs only config.json and the card on disk. `files`: the names of all the model's files, on Hub or disk."""
    card = _front_matter(base.dir)
    if not (base.dir / "config.json").is_file():
        raise tunable.without_config(files, where, card)
    try:
        config = base.config
    except ValueError as error:
        raise EnvironmentUnavailable(
            f"{where}/config.json is damaged: {error}", hint="download the model again"
        ) from error
    config_values.refuse_odd(config, f"{where}/config.json")
    _refuse_odd_generation(base.dir)
    tunable.refuse_config(config, where, card, task)


def _refuse_odd_generation(folder: Path) -> None:
    """generation_config.json, if it is here: the merge reads it hours later."""
    path = folder / "generation_config.json"
    if path.is_file():
        try:
            config_values.refuse_odd(read_object(path), str(path))
        except ValueError as error:
            raise EnvironmentUnavailable(f"{path} is damaged: {error}", hint="download the model again") from error
