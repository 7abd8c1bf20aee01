"""Where base models come from: a folder, the demo, or one pinned commit on the Hub. Sole user of huggingface_hub."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from appliance import bases, console
from appliance.errors import EnvironmentUnavailable, HubError, RecipeError

DEMO_ID = "demo"
# Weights other than safetensors can run code when loaded; they are never fetched.
_WANTED_FILES = ["*.json", "*.safetensors", "*.jinja", "*.model", "*.txt", "LICENSE*", "README.md"]
_UNWANTED_FILES = ["consolidated*", "original/*"]  # the same weights in their maker's own format
_JUDGED_FILES = ["config.json", "README.md"]


@dataclass(frozen=True)
class Base:
    """A base model on disk. `public_id` never is a local path; `revision` is a commit on the Hub, or None."""

    dir: Path
    public_id: str
    revision: str | None
    license: str | None

    @cached_property
    def identity(self) -> str:
        """What a result depends on: the pinned commit, or the sha256 over the folder's files."""
        if self.revision:
            return f"{self.public_id}@{self.revision}"
        digest = hashlib.sha256()
        for path in sorted(self.dir.glob("*")):
            if path.suffix in (".json", ".safetensors", ".jinja", ".model"):
                with path.open("rb") as handle:
                    digest.update(f"{path.name}\0{hashlib.file_digest(handle, 'sha256').hexdigest()}\n".encode())
        return digest.hexdigest()

    @cached_property
    def config(self) -> dict[str, Any]:
        return dict(json.loads((self.dir / "config.json").read_text(encoding="utf-8")))

    @property
    def max_positions(self) -> int:
        """The longest sequence in tokens that the base was made for; 2**20 where its config names none."""
        return int(self.config.get("max_position_embeddings") or 1 << 20)

    @property
    def stored_dtype(self) -> str:
        """The 16-bit type that the merged model is stored in: the base's own, bfloat16 for a float32 base."""
        own = self.config.get("dtype") or self.config.get("torch_dtype")
        return "float16" if own == "float16" else "bfloat16"


def resolve(model_id: str, revision: str | None, cache_dir: Path) -> Base:
    """The base model `model_id`, downloaded or made where it is not on disk yet.

    Raises RecipeError: no such folder or name. HubError: the Hub refuses or cannot be reached.
    EnvironmentUnavailable: it cannot be tuned (see `bases`), which is told before its weights are fetched, or it
    has no safetensors.
    """
    if model_id == DEMO_ID:
        from appliance import demo

        folder = demo.ensure_base_apart(cache_dir, on_progress=console.say)
        base = Base(folder, "finetune-appliance/demo-base", None, "apache-2.0")
    elif Path(model_id).is_dir():
        folder = Path(model_id).resolve()
        base = Base(folder, folder.name, None, _license(folder))
    elif model_id.count("/") == 1 and not model_id.startswith((".", "/", "~")):
        base = _download(model_id, revision)
    else:
        raise RecipeError(
            f"model.id: {model_id!r} is neither a folder, nor USER/NAME on the Hub, nor `{DEMO_ID}`",
            hint="check the path; inside the container only mounted folders exist",
        )
    if not base.revision:  # what comes from the Hub was judged before its weights were fetched
        _refuse_untunable(base, str(base.dir), _names(base.dir))
    if not list(base.dir.glob("*.safetensors")):
        raise EnvironmentUnavailable(
            f"{base.public_id if base.revision else base.dir} has no safetensors weights",
            hint="load it once with transformers and save it with save_pretrained",
        )
    return base


def token(environ: Mapping[str, str] = os.environ) -> str | None:
    """The Hub token: HF_TOKEN, else what stands in HF_TOKEN_FILE (a mounted secret); None leaves it to the library.

    Raises EnvironmentUnavailable: the file cannot be read. Never log or store the result.
    """
    if environ.get("HF_TOKEN"):
        return environ["HF_TOKEN"].strip()
    path = environ.get("HF_TOKEN_FILE")
    if not path:
        return None
    try:
        return Path(path).read_text(encoding="utf-8").strip() or None
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is no text"
        raise EnvironmentUnavailable(
            f"HF_TOKEN_FILE cannot be read: {reason}",
            hint="name a file that holds the token and that this user may read, or unset it",
        ) from error


def _download(model_id: str, revision: str | None) -> Base:
    import httpx
    from huggingface_hub import HfApi, snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    try:
        # Asked first and pinned: with a dead Hub or a bad token, snapshot_download silently returns what is cached.
        access = token()
        info = HfApi(token=access).model_info(model_id, revision=revision)
        console.say(f"base model {model_id} at commit {info.sha}")
        # Judged before the rest is fetched: the weights may be tens of GB.
        folder = Path(snapshot_download(model_id, revision=info.sha, allow_patterns=_JUDGED_FILES, token=access))
        base = Base(folder, model_id, info.sha, _license(folder))
        _refuse_untunable(base, model_id, [file.rfilename for file in info.siblings or []])
        snapshot_download(
            model_id,
            revision=info.sha,
            allow_patterns=_WANTED_FILES,
            ignore_patterns=_UNWANTED_FILES,
            token=access,
        )
    except PermissionError as error:
        raise _unwritable_cache(error) from error
    except (HfHubHTTPError, HFValidationError, httpx.HTTPError, OSError) as error:
        raise HubError(
            f"the base model {model_id} cannot be fetched: {(str(error) or repr(error)).splitlines()[0]}",
            hint="check the name, the network, and HF_TOKEN for a gated model; or give a local folder as model.id",
        ) from error
    return base


def _unwritable_cache(error: PermissionError) -> EnvironmentUnavailable:
    """In a volume that another uid has begun, its folders are that uid's."""
    hint = "give that folder to this user, or let HF_HOME name another"
    if console.is_in_compose():
        hint = "docker volume rm finetune-appliance_cache (it is made anew), or the APP_UID of before in .env"
    return EnvironmentUnavailable(f"the model cache cannot be written: {error.filename}: {error.strerror}", hint=hint)


def _license(folder: Path) -> str | None:
    """The licence that the model card's front matter names."""
    return str(license_) if (license_ := _front_matter(folder).get("license")) else None


def _front_matter(folder: Path) -> dict[str, Any]:
    """The YAML at the top of the model card; empty where there is none, or none that can be read."""
    card = folder / "README.md"
    if not card.is_file():
        return {}
    import yaml

    parts = card.read_text(encoding="utf-8", errors="replace").split("---\n", 2)
    if len(parts) < 3 or parts[0].strip():
        return {}
    try:
        front: Any = yaml.safe_load(parts[1])
    except yaml.YAMLError:
        return {}
    return front if isinstance(front, dict) else {}


def _names(folder: Path) -> list[str]:
    """The names of the folder's files, and of any config.json one level down."""
    return [path.relative_to(folder).as_posix() for pattern in ("*", "*/config.json") for path in folder.glob(pattern)]


def _refuse_untunable(base: Base, where: str, files: Collection[str]) -> None:
    """Needs only config.json and the card on disk. `files`: the names of all files of the model, on the Hub or here."""
    card = _front_matter(base.dir)
    if not (base.dir / "config.json").is_file():
        raise bases.without_config(files, where, card)
    try:
        config = base.config
    except (ValueError, TypeError) as error:
        raise EnvironmentUnavailable(
            f"{where}/config.json is damaged: {error}", hint="fetch the model again"
        ) from error
    bases.refuse_config(config, where, card)
