"""What a check found (Finding), what a release gate measured (Gate), and what stands beside a verdict (Caution)."""

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
    """`measured` and `bound` are numbers, or words such as a verdict. `caution`: what to know although it passed."""

    name: str
    passed: bool
    measured: float | str
    bound: float | str
    meaning: str
    caution: str = ""

    def sentence(self) -> str:
        seen, bound = (v if isinstance(v, str) else f"{v:.4g}" for v in (self.measured, self.bound))
        return f"{self.name}: {seen}, bound {bound} ({self.meaning})"

    def as_json(self) -> dict[str, Any]:
        """Non-finite numbers become null."""
        return finite(asdict(self))


@dataclass(frozen=True)
class CautionRow:
    """A row that a caution is about: its line number in the CSV, the wanted answer and the model's, both shortened."""

    row: int
    wanted: str
    got: str


@dataclass(frozen=True)
class Caution:
    """A reason not to take a verdict or a proof at its word. It refuses nothing and is shown wherever that is shown.

    `name` stays the same from version to version; `rows`: up to three, the most telling first; none if the caution is
    about no rows.
    """

    name: str
    sentence: str
    rows: tuple[CautionRow, ...] = ()

    def as_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, record: dict[str, Any]) -> Caution:
        rows = tuple(CautionRow(**row) for row in record.get("rows", ()))
        return cls(str(record["name"]), str(record["sentence"]), rows)


def qualified(verdict: str, cautions: int) -> str:
    """A verdict with the number of cautions beside it.

    >>> qualified("better", 2)
    'better, with 2 cautions'
    """
    return f"{verdict}, with {cautions} caution{'' if cautions == 1 else 's'}" if cautions else verdict


def finite(record: dict[str, Any]) -> dict[str, Any]:
    return {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in record.items()}
