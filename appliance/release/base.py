"""What a release says about its base model."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Protocol

from appliance.findings import Finding


class Base(Protocol):
    """A base model: base_model/base.py has the one that runs use."""

    @property
    def dir(self) -> Path: ...
    @property
    def public_id(self) -> str: ...
    @property
    def is_on_hub(self) -> bool: ...
    @property
    def revision(self) -> str | None: ...
    @property
    def trained_as(self) -> tuple[str, str | None]: ...
    @property
    def license(self) -> str | None: ...
    @property
    def config(self) -> dict[str, Any]: ...


def unnamed(base: Base) -> Finding:
    """Said before training if a release is to be published and its base is not known on the Hub."""
    found = f"{base.public_id}: a folder, and nothing says what it is on the Hub"
    fix = (
        "set model.hub_id=USER/NAME, and model.revision to its commit; without it the model card names no base, and "
        "the adapter loads only where that folder is"
    )
    return Finding("base on the Hub", found, "its name there", "warning", fix)
