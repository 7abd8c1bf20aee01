"""A base model as the pipeline sees it: its folder, its name, its pinned commit, its size."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, field
from fnmatch import fnmatch
from functools import cached_property
from pathlib import Path
from typing import Any

from appliance.engines import memory
from appliance.hub.cache import Snapshot

# Weights other than safetensors can run code when loaded; they are never fetched.
_WANTED_FILES = ["*.json", "*.safetensors", "*.jinja", "*.model", "*.txt", "LICENSE*", "README.md"]
_UNWANTED_FILES = ["consolidated*", "original/*"]  # the same weights in their maker's own format


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
            name: told.size or 0 for name, told in files.items() if is_wanted(name) and not (self.dir / name).exists()
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


def is_wanted(name: str) -> bool:
    return any(fnmatch(name, pattern) for pattern in _WANTED_FILES) and not any(
        fnmatch(name, pattern) for pattern in _UNWANTED_FILES
    )
