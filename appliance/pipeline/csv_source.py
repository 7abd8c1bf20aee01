"""The CSV that a run was asked to train on: a file here, the demo's, or one on the Hub, found again by a later call."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from importlib.resources import files
from pathlib import Path
from typing import Any

from appliance.errors import DataError
from appliance.process import files as process_files


def sample_csv() -> Path:
    """The demo's CSV: what customers ask a Korean shop, each fact in eleven or more phrasings."""
    return Path(str(files("datasets_src") / "samples" / "shop_faq.csv"))


@dataclass(frozen=True)
class CsvSource:
    """What the recipe names, and what the run directory remembers of it.

    Attributes:
        typed: `data.csv` of the recipe.
        recorded: `csv` of run.json; empty before the run has begun.
        is_prepared: whether the rows are in the run directory.
        is_read_again: whether they are to be replaced, from the newest commit of a CSV on the Hub.
    """

    typed: str
    recorded: Mapping[str, Any]
    cache_dir: Path
    is_prepared: bool
    is_read_again: bool

    @cached_property
    def path(self) -> Path:
        """The CSV on this machine; one on the Hub is fetched. Raises HubError: that failed."""
        if self._is_on_hub:
            return self._fetched[0]
        path = sample_csv() if self.typed == "demo" else Path(self.typed)
        began_with = self._began_with.get("path")
        if not path.exists() and began_with and Path(began_with).exists():
            return Path(began_with)  # typed relative to another folder, when the run began
        return path

    @property
    def to_check(self) -> Path | None:
        """None if the rows are in the run directory and the CSV is gone, or is pinned on the Hub."""
        if not self.is_prepared or self.is_read_again:
            return self.path
        return None if self._is_on_hub or not self.path.exists() else self.path

    @cached_property
    def sha256(self) -> str:
        """Hash of the CSV; if it is gone and its rows are in the run directory, of the one that was read."""
        if self._is_on_hub and self._commit and self.is_prepared:
            return str(self.recorded["sha256"])  # a commit never changes: needs no network
        if self.path.is_file():
            return process_files.sha256_of(self.path)
        if self._began_with and self.is_prepared:
            return str(self.recorded["sha256"])
        raise DataError(
            f"{self.path}: no such file",
            hint="set its path: --set data.csv=PATH (in the container, the folder data/ is /data)",
        )

    def to_json(self) -> dict[str, Any]:
        """As run.json keeps it."""
        return {
            "typed": self.typed,
            "path": None if self._is_on_hub else str(self.path.resolve()),
            "sha256": self.sha256,
            "commit": (self._commit or self._fetched[1]) if self._is_on_hub else None,
        }

    @property
    def _is_on_hub(self) -> bool:
        return self.typed.startswith("hf://")

    @cached_property
    def _fetched(self) -> tuple[Path, str]:
        """Path and commit of a CSV on the Hub. A run keeps the commit that it began with."""
        from appliance.hub import dataset_file

        file = dataset_file.DatasetFile.parse(self.typed)
        return replace(file, revision=self._commit or file.revision).fetch(self.cache_dir)

    @property
    def _commit(self) -> str | None:
        return None if self.is_read_again else self._began_with.get("commit")

    @property
    def _began_with(self) -> Mapping[str, Any]:
        """What is recorded, if it is of the CSV that is named now."""
        return self.recorded if self.recorded.get("typed") == self.typed else {}
