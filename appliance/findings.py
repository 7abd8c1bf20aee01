"""What a check found (Finding) and what a release gate measured (Gate)."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any, Literal

NAMED_ROWS = 5  # in a message


COLUMNS = ("what", "found", "needed", "verdict", "fix")


@dataclass(frozen=True)
class Finding:
    """One row of a table of checks."""

    what: str
    found: str
    needed: str
    verdict: Literal["ok", "warning", "fails"]
    fix: str = ""

    def cells(self) -> tuple[str, ...]:
        return self.what, self.found, self.needed, self.verdict, self.fix


@dataclass(frozen=True)
class Gate:
    """`measured` and `bound` are numbers, or words such as a verdict."""

    name: str
    passed: bool
    measured: float | str
    bound: float | str
    meaning: str

    def sentence(self) -> str:
        seen, bound = (v if isinstance(v, str) else f"{v:.4g}" for v in (self.measured, self.bound))
        return f"{self.name}: {seen}, bound {bound} ({self.meaning})"

    def as_json(self) -> dict[str, Any]:
        """Non-finite numbers become null."""
        return finite(asdict(self))


def finite(record: dict[str, Any]) -> dict[str, Any]:
    return {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in record.items()}
