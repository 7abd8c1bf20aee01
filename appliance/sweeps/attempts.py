"""What each attempt at a run has cost, kept beside the run by whoever makes it: it survives all who wait for it.

>>> attempts.json    # in the run directory
{"attempts": [{"node": "gpu-1", "gpus": 1.0, "began": "2026-11-28T19:43:15Z", "seconds": 312.5, "exit_code": 0}]}
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from appliance.process import files

FILE = "attempts.json"


@dataclass(frozen=True)
class Attempt:
    """`began`: UTC. `exit_code` None: it is under way, or its worker died."""

    node: str
    gpus: float
    began: str
    seconds: float
    exit_code: int | None = None


def read(run_path: Path) -> list[Attempt]:
    """Every attempt so far, in order; empty if there is none, or the file is damaged: it decides nothing."""
    try:
        return [Attempt(**one) for one in files.read_object(run_path / FILE)["attempts"]]
    except (OSError, ValueError, TypeError, KeyError):
        return []


def write(run_path: Path, attempts: Sequence[Attempt]) -> None:
    """Raises OSError: the disk does not take it."""
    files.write_json(run_path / FILE, {"attempts": [asdict(one) for one in attempts]})


def gpu_minutes(attempts: Sequence[Attempt]) -> float:
    """What they cost: minutes times GPUs; of runs on a CPU, minutes."""
    return sum(one.seconds * (one.gpus or 1.0) for one in attempts) / 60
