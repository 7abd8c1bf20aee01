"""Where base models come from: a folder, the demo, or one pinned commit on the Hub. Sole user of huggingface_hub."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from appliance import console
from appliance.errors import EnvironmentUnavailable, HubError, RecipeError

DEMO_ID = "demo"
# Weights other than safetensors can run code when loaded; they are never fetched.
_WANTED_FILES = ["*.json", "*.safetensors", "*.jinja", "*.model", "*.txt", "LICENSE*", "README.md"]


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
    EnvironmentUnavailable: it is already quantised, or has no safetensors.
    """
    if model_id == DEMO_ID:
        from appliance import demo

        folder = demo.ensure_base(cache_dir, on_progress=console.say)
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
    _refuse_unusable(base)
    return base


def _download(model_id: str, revision: str | None) -> Base:
    import httpx
    from huggingface_hub import HfApi, snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    try:
        # Asked first and pinned: with a dead Hub or a bad token, snapshot_download silently returns what is cached.
        commit = HfApi().model_info(model_id, revision=revision).sha
        console.say(f"base model {model_id} at commit {commit}")
        folder = Path(snapshot_download(model_id, revision=commit, allow_patterns=_WANTED_FILES))
    except (HfHubHTTPError, HFValidationError, httpx.HTTPError, OSError) as error:
        raise HubError(
            f"the base model {model_id} cannot be fetched: {(str(error) or repr(error)).splitlines()[0]}",
            hint="check the name, the network, and HF_TOKEN for a gated model; or give a local folder as model.id",
        ) from error
    return Base(folder, model_id, commit, _license(folder))


def _license(folder: Path) -> str | None:
    """The licence that the model card's front matter names."""
    card = folder / "README.md"
    if not card.is_file():
        return None
    import yaml

    parts = card.read_text(encoding="utf-8", errors="replace").split("---\n", 2)
    if len(parts) < 3 or parts[0].strip():
        return None
    try:
        front: Any = yaml.safe_load(parts[1])
    except yaml.YAMLError:
        return None
    return str(front["license"]) if isinstance(front, dict) and front.get("license") else None


def _refuse_unusable(base: Base) -> None:
    config_path = base.dir / "config.json"
    if not config_path.is_file():
        raise EnvironmentUnavailable(
            f"{base.dir} has no config.json: it is not a transformers model",
            hint="give the folder that holds config.json, tokenizer.json and *.safetensors",
        )
    try:
        config = base.config
    except (ValueError, TypeError) as error:
        raise EnvironmentUnavailable(f"{config_path} is damaged: {error}", hint="fetch the model again") from error
    if "quantization_config" in config:
        raise EnvironmentUnavailable(
            f"the base model {base.public_id} is already quantised",
            hint="name its 16-bit original as model.id; model.load_in_4bit quantises while loading",
        )
    if "auto_map" in config:
        raise EnvironmentUnavailable(
            f"the base model {base.public_id} wants to run code of its own (auto_map in config.json)",
            hint="choose a model whose architecture transformers knows",
        )
    if not list(base.dir.glob("*.safetensors")):
        raise EnvironmentUnavailable(
            f"{base.dir} has no safetensors weights",
            hint="load it once with transformers and save it with save_pretrained",
        )
