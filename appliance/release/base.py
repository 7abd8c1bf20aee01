"""What a release says about its base model."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Protocol


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
