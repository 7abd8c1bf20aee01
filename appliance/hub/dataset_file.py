"""One file of a dataset on the Hub, at one commit."""

from __future__ import annotations

import os
import re
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote

from appliance.errors import HubError, RecipeError
from appliance.hub import download
from appliance.hub.cache import Snapshot, Source
from appliance.hub.token import token
from appliance.process import console
from appliance.recipe import hub_names

DATASET_SCHEME = "hf://datasets/"


@dataclass(frozen=True)
class DatasetFile:
    """One file of a dataset on the Hub. `revision`: a commit, tag or branch; None is the newest commit."""

    repo: str  # USER/NAME
    revision: str | None
    file: str  # its path in the repository

    @classmethod
    def parse(cls, text: str) -> DatasetFile:
        """From hf://datasets/USER/NAME[@REVISION]/FILE. Raises RecipeError: it is not such an address."""
        # As in huggingface_hub's own file system: a slash in a revision is written %2F, except in these two kinds.
        revision = r"@(refs/(?:convert|pr)/[^/]+|[^/]+)"
        found = re.fullmatch(rf"hf://datasets/([^/@]+/[^/@]+)(?:{revision})?/([^/].*)", text.strip())
        if found is None:
            raise RecipeError(
                f"{text!r} is not a file of a dataset on the Hub; expected hf://datasets/USER/NAME@REVISION/FILE",
                hint="open the file on the Hub: its address shows user, name and file; without @REVISION the newest "
                "commit is used, and kept for the run",
            )
        try:
            hub_names.refuse_name(found[1])
        except ValueError as error:
            raise RecipeError(
                f"{text!r} is not a file of a dataset on the Hub: {error}",
                hint="copy USER/NAME from its page",
            ) from error
        return cls(found[1], unquote(found[2]) if found[2] else None, found[3])

    def __str__(self) -> str:
        return f"{DATASET_SCHEME}{self.repo}{f'@{self.revision}' if self.revision else ''}/{self.file}"

    def fetch(self, cache_dir: Path | None = None) -> tuple[Path, str]:
        """Where the file is on this machine, downloaded if necessary, and its commit.

        A commit that was fetched before needs no network. What was checked is recorded in `cache_dir`. Raises
        HubError: no such dataset, revision or file, no access to it, no network, or the file arrives damaged.
        EnvironmentUnavailable: the cache cannot be written, or its disk is full.
        """
        hint = "check the name and the network; a private or gated dataset needs the HF_TOKEN of someone with access"
        source = Source(self.repo, "dataset", self.revision, token(), hint)
        snapshot = download.snapshot_of(source, cache_dir or _usual_cache_dir())
        if self.file not in snapshot.files:
            raise HubError(
                f"the dataset {self.repo} has no file {self.file} at commit {snapshot.commit}",
                hint=_there_is(snapshot.files),
            )
        console.say(f"{self.file} of the dataset {self.repo} at commit {snapshot.commit}{without_asking(snapshot)}")
        return download.obtain(source, snapshot, [self.file]) / self.file, snapshot.commit


def without_asking(snapshot: Snapshot) -> str:
    return ", fetched before: the Hub is not asked" if snapshot.is_recorded else ""


def _usual_cache_dir() -> Path:
    """Where the command line keeps the cache by default."""
    return Path(os.environ.get("APPLIANCE_CACHE_DIR") or Path.home() / ".cache" / "finetune-appliance")


def _there_is(files: Collection[str]) -> str:
    """The files of a dataset, those that may hold rows first."""
    ranked = sorted(files, key=lambda name: (not name.endswith((".csv", ".tsv", ".json", ".jsonl", ".parquet")), name))
    rest = f" and {len(ranked) - 20} more" if len(ranked) > 20 else ""
    return f"it has {', '.join(ranked[:20])}{rest}" if ranked else "it has no files"
