"""Where base models come from: a folder, the demo, or one pinned commit on the Hub; and single files of datasets.

The client's cache and the transfer into it: see `download` and `snapshot`.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatch
from functools import cached_property
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from appliance import bases, console, download, machine
from appliance.errors import EnvironmentUnavailable, HubError, RecipeError
from appliance.refusals import Source
from appliance.snapshot import Snapshot

DEMO_ID = "demo"
DATASET_SCHEME = "hf://datasets/"
# Weights other than safetensors can run code when loaded; they are never fetched.
_WANTED_FILES = ["*.json", "*.safetensors", "*.jinja", "*.model", "*.txt", "LICENSE*", "README.md"]
_UNWANTED_FILES = ["consolidated*", "original/*"]  # the same weights in their maker's own format
_JUDGED_FILES = ["config.json", "README.md", "model.safetensors.index.json"]  # small ones


@dataclass(frozen=True)
class Base:
    """A base model in `dir`, wholly but for what is `coming` from the Hub.

    `public_id` never is a local path; `revision` is a commit on the Hub, or None.
    """

    dir: Path
    public_id: str
    revision: str | None
    license: str | None
    snapshot: Snapshot | None = field(default=None, compare=False, repr=False)  # of that commit

    @property
    def coming(self) -> dict[str, int]:
        """The files that are to be fetched and are not here yet, with their bytes."""
        files = self.snapshot.files if self.snapshot else {}
        return {
            name: told.size or 0 for name, told in files.items() if _is_wanted(name) and not (self.dir / name).exists()
        }

    @property
    def weights_bytes(self) -> int:
        return machine.weights_bytes(self.dir, self.coming)

    @property
    def parameters(self) -> int:
        return machine.parameters_of(self.dir, self.coming)

    @property
    def tokenizer_bytes(self) -> int:
        here = {path.name: path.stat().st_size for path in self.dir.glob("token*.*")}
        return sum((here | {name: size for name, size in self.coming.items() if fnmatch(name, "token*.*")}).values())

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
        named = self.config.get("max_position_embeddings") or self.config.get("n_positions")  # GPT-2's name for it
        return int(named or 1 << 20)

    @property
    def stored_dtype(self) -> str:
        """The 16-bit type that the merged model is stored in: the base's own, bfloat16 for a float32 base."""
        own = self.config.get("dtype") or self.config.get("torch_dtype")
        return "float16" if own == "float16" else "bfloat16"


def resolve(model_id: str, revision: str | None, cache_dir: Path) -> Base:
    """The base model `model_id`, all of it on this disk. Raises what `find` and `fetch` raise."""
    return fetch(find(model_id, revision, cache_dir))


def find(model_id: str, revision: str | None, cache_dir: Path) -> Base:
    """The base model `model_id` with all that it is judged by: of one on the Hub, config and card are fetched.

    Raises RecipeError: no such folder or name. HubError: the Hub refuses or cannot be reached.
    EnvironmentUnavailable: it cannot be tuned (see `bases`), or it has no safetensors.
    """
    if model_id == DEMO_ID:
        from appliance import demo

        folder = demo.ensure_base_apart(cache_dir, on_progress=console.say)
        base = Base(folder, "finetune-appliance/demo-base", None, "apache-2.0")
    elif Path(model_id).is_dir():
        folder = Path(model_id).resolve()
        base = Base(folder, folder.name, None, _license(folder))
    elif model_id.count("/") == 1 and not model_id.startswith((".", "/", "~")):
        base = _find_on_hub(model_id, revision, cache_dir)
    else:
        raise RecipeError(
            f"model.id: {model_id!r} is neither a folder, nor USER/NAME on the Hub, nor `{DEMO_ID}`",
            hint="check the path; inside the container only mounted folders exist",
        )
    names, where = (base.snapshot.files, model_id) if base.snapshot else (_names(base.dir), str(base.dir))
    _refuse_untunable(base, where, names)
    if not any(fnmatch(name, "*.safetensors") and "/" not in name for name in names):
        raise EnvironmentUnavailable(
            f"{where} has no safetensors weights",
            hint="load it once with transformers and save it with save_pretrained",
        )
    return base


def fetch(base: Base) -> Base:
    """The same base with nothing still to come; what of it was cached is compared with the Hub's hashes.

    Raises HubError: the Hub refuses or cannot be reached. EnvironmentUnavailable: no room, or an unwritable cache.
    """
    if base.snapshot:
        wanted = [name for name in base.snapshot.files if _is_wanted(name)]
        download.obtain(_source(base.public_id, base.revision), base.snapshot, wanted)
    return base


@dataclass(frozen=True)
class DatasetFile:
    """One file of a dataset on the Hub. `revision`: a commit, tag or branch; None is the newest commit."""

    repo: str  # USER/NAME
    revision: str | None
    file: str  # its path in the repository

    @classmethod
    def parse(cls, text: str) -> DatasetFile:
        """From hf://datasets/USER/NAME[@REVISION]/FILE. Raises RecipeError: it is no such address."""
        # As in huggingface_hub's own file system: a slash in a revision is written %2F, but for these two kinds.
        revision = r"@(refs/(?:convert|pr)/[^/]+|[^/]+)"
        found = re.fullmatch(rf"hf://datasets/([^/@]+/[^/@]+)(?:{revision})?/([^/].*)", text.strip())
        if found is None:
            raise RecipeError(
                f"{text!r} is no file of a dataset on the Hub; expected hf://datasets/USER/NAME@REVISION/FILE",
                hint="open the file on the Hub: its address holds user, name and file; without @REVISION the newest "
                "commit is taken, and kept for the run",
            )
        return cls(found[1], unquote(found[2]) if found[2] else None, found[3])

    def __str__(self) -> str:
        return f"{DATASET_SCHEME}{self.repo}{f'@{self.revision}' if self.revision else ''}/{self.file}"

    def fetch(self, cache_dir: Path | None = None) -> tuple[Path, str]:
        """Where the file is on this machine, downloaded if need be, and the commit it is of.

        A commit that was fetched before needs no network. What was checked is remembered in `cache_dir`. Raises
        HubError: no such dataset, revision or file, no right to it, no network, or the file arrives damaged.
        EnvironmentUnavailable: the cache cannot be written, or is full.
        """
        hint = "check the name and the network; a private or gated dataset needs HF_TOKEN of somebody who may read it"
        source = Source(self.repo, "dataset", self.revision, token(), hint)
        snapshot = download.find(source, cache_dir or _usual_cache_dir())
        if self.file not in snapshot.files:
            raise HubError(
                f"the dataset {self.repo} has no file {self.file} at commit {snapshot.commit}",
                hint=_there_is(snapshot.files),
            )
        console.say(f"{self.file} of the dataset {self.repo} at commit {snapshot.commit}{_without_asking(snapshot)}")
        return download.obtain(source, snapshot, [self.file]) / self.file, snapshot.commit


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


def _source(model_id: str, revision: str | None) -> Source:
    hint = "check the name, the network, and HF_TOKEN for a gated model; or give a local folder as model.id"
    return Source(model_id, "model", revision, token(), hint)


def _find_on_hub(model_id: str, revision: str | None, cache_dir: Path) -> Base:
    source = _source(model_id, revision)
    snapshot = download.find(source, cache_dir)
    console.say(f"base model {model_id} at commit {snapshot.commit}{_without_asking(snapshot)}")
    folder = download.obtain(source, snapshot, [name for name in _JUDGED_FILES if name in snapshot.files])
    return Base(folder, model_id, snapshot.commit, _license(folder), snapshot)


def _is_wanted(name: str) -> bool:
    return any(fnmatch(name, pattern) for pattern in _WANTED_FILES) and not any(
        fnmatch(name, pattern) for pattern in _UNWANTED_FILES
    )


def _without_asking(snapshot: Snapshot) -> str:
    return ", which was fetched before: the Hub is not asked" if snapshot.is_recorded else ""


def _usual_cache_dir() -> Path:
    """Where the command line keeps the cache unless told otherwise."""
    return Path(os.environ.get("APPLIANCE_CACHE_DIR") or Path.home() / ".cache" / "finetune-appliance")


def _there_is(files: Collection[str]) -> str:
    """The files of a dataset, those that can hold rows first."""
    ranked = sorted(files, key=lambda name: (not name.endswith((".csv", ".tsv", ".json", ".jsonl", ".parquet")), name))
    rest = f" and {len(ranked) - 20} more" if len(ranked) > 20 else ""
    return f"it has {', '.join(ranked[:20])}{rest}" if ranked else "it has no files"


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
