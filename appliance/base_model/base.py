"""A base model as the pipeline sees it: its folder, its name, its pinned commit, its size."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from fnmatch import fnmatch
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from appliance.engines import memory, positions
from appliance.hub.cache import Snapshot
from appliance.process.files import read_object, sha256_of
from appliance.weights import model_files

# Which files of a folder its identity covers; run.json records the rule, so that older runs go on.
# 1: *.json, *.safetensors, *.jinja and *.model. 2: every file that a result may depend on, merges.txt among them.
IdentityRule = Literal[1, 2]
IDENTITY_RULE: IdentityRule = 2
DEMO_NAME = "finetune-appliance/demo-base"  # made on the spot, on no Hub


@dataclass(frozen=True)
class Base:
    """A base model in `dir`, complete except for what is still `coming` from the Hub.

    `public_id` is never a local path: USER/NAME on the Hub, or the name of a folder that nobody said is there.
    `revision` is a commit on the Hub, or None. `is_folder`: given as a folder, so that its files identify it, whatever
    it is on the Hub. `recorded_identity`: how a run that began with these files identifies them, if that is not how
    they are identified today.
    """

    dir: Path
    public_id: str
    revision: str | None
    license: str | None
    snapshot: Snapshot | None = field(default=None, compare=False, repr=False)  # of that commit
    recorded_identity: str | None = field(default=None, compare=False, repr=False)
    is_folder: bool = False

    @property
    def is_on_hub(self) -> bool:
        """Whether `public_id` names a repository, which a card may link to and a user can load."""
        return "/" in self.public_id and self.public_id != DEMO_NAME

    @property
    def trained_as(self) -> tuple[str, str | None]:
        """The name and commit that a trained adapter gives its base: a folder's own, whatever it is said to be."""
        return (self.dir.name, None) if self.is_folder else (self.public_id, self.revision)

    @property
    def coming(self) -> dict[str, int]:
        """The files that still have to be downloaded, with their sizes in bytes."""
        files = self.snapshot.files if self.snapshot else {}
        return {
            name: told.size or 0
            for name, told in files.items()
            if model_files.is_downloaded(name) and not (self.dir / name).exists()
        }

    @property
    def weights_bytes(self) -> int:
        return memory.weights_bytes(self.dir, self.coming)

    @property
    def parameters(self) -> int:
        return memory.parameters_of(self.dir, self.coming)

    @property
    def tokenizer_bytes(self) -> int:
        here = {path.name: path.stat().st_size for path in self.dir.glob("token*.*")}
        return sum((here | {name: size for name, size in self.coming.items() if fnmatch(name, "token*.*")}).values())

    @cached_property
    def identity(self) -> str:
        """What a result depends on: the pinned commit, or the sha256 over the folder's files."""
        return self.recorded_identity or self.identity_by(IDENTITY_RULE)

    def identity_by(self, rule: IdentityRule) -> str:
        """`identity` by the rule that an earlier version went by."""
        if self.revision and not self.is_folder:
            return f"{self.public_id}@{self.revision}"
        digest = hashlib.sha256()
        for path in sorted(self.dir.glob("*")):
            if _is_covered(path, rule):
                digest.update(f"{path.name}\0{sha256_of(path)}\n".encode())
        return digest.hexdigest()

    @cached_property
    def config(self) -> dict[str, Any]:
        """Raises ValueError: config.json is damaged; find.py refuses such a base."""
        return read_object(self.dir / "config.json")

    @property
    def max_positions(self) -> int:
        """The longest sequence in tokens that the base was made for; 2**20 if its config names none."""
        return positions.most(self.config)

    @property
    def stored_dtype(self) -> str:
        """The 16-bit type that the merged model is stored in: the base's own, bfloat16 for a float32 base."""
        own = self.config.get("dtype") or self.config.get("torch_dtype")
        return "float16" if own == "float16" else "bfloat16"


def _is_covered(path: Path, rule: IdentityRule) -> bool:
    if rule == 1:
        return path.suffix in model_files.LOADED_SUFFIXES_BEFORE
    return path.is_file() and model_files.is_loaded(path.name)
