"""How the rows of a step are split into micro batches, and into smaller ones when memory runs out.

The rows of a step and the weight of each token in it stay the same; only the number computed at once changes.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Literal

from appliance.engines import memory
from appliance.errors import EnvironmentUnavailable
from appliance.machine.device import Device
from appliance.process import console, files
from appliance.training import checkpoints

FILE = "batch_size.json"


@dataclass(frozen=True)
class AtWork:
    """What a trainer was doing when memory ran out."""

    phase: Literal["training", "evaluation"]
    rows: int
    tokens: int  # of the longest row


class OutOfMemory(Exception):
    """Memory ran out in the step after `step`."""

    def __init__(self, at_work: AtWork, step: int, message: str) -> None:
        super().__init__(message)
        self.at_work, self.step = at_work, step


@dataclass(frozen=True)
class BatchSize:
    """`asked`: the recipe's micro batch. `notes`, `evaluation_notes`: each time memory ran out, in words."""

    asked: int
    micro_batch_size: int
    gradient_accumulation_steps: int
    evaluation_rows: int
    notes: list[str] = field(default_factory=list)
    evaluation_notes: list[str] = field(default_factory=list)

    @property
    def effective(self) -> int:
        return self.micro_batch_size * self.gradient_accumulation_steps

    def after(self, error: OutOfMemory, device: Device, stage_dir: Path) -> BatchSize:
        """Halves the micro batch, prints and records that.

        Raises EnvironmentUnavailable: even one row is too much, or the disk is full.
        """
        work = error.at_work
        rows = f"{work.rows} row{'s' if work.rows > 1 else ''} of up to {work.tokens} tokens"
        where = f"step {error.step + 1}: {work.phase} of {rows}"
        if self.micro_batch_size == 1 or work.phase == "evaluation":
            raise EnvironmentUnavailable(
                f"{where}: {device.name} is out of memory: {error}",
                hint=f"set model.max_seq_length below {work.tokens} (with data.on_too_long=drop or cut) and redo with "
                f"--redo prepare; {memory.what_fits(device.memory_bytes)}",
            )
        smaller = self.halved(f"{where}: {error}")
        factors = ("micro_batch_size", "gradient_accumulation_steps")
        now = {name: getattr(smaller, name) for name in factors}
        console.say(f"{where}: out of memory; continuing with {console.pairs(now)}", style="yellow")
        smaller.remember(stage_dir / "checkpoints")
        line = {"step": error.step, "out_of_memory": smaller.notes[-1], **now}
        checkpoints.append_line(stage_dir / "metrics.jsonl", line)
        return smaller

    def halved(self, note: str) -> BatchSize:
        """With the largest micro batch that has at most half the rows and divides a step evenly."""
        sizes = range(self.micro_batch_size // 2, 0, -1)
        smaller = next(size for size in sizes if self.effective % size == 0)
        return replace(
            self,
            micro_batch_size=smaller,
            gradient_accumulation_steps=self.effective // smaller,
            notes=[*self.notes, note],
        )

    def evaluating(self, rows: int, note: str) -> BatchSize:
        """With `rows` evaluated at once, because more did not fit; the micro batch of training stays the same."""
        return replace(self, evaluation_rows=rows, evaluation_notes=[*self.evaluation_notes, note])

    def remembered(self, folder: Path) -> BatchSize:
        """What fitted when this run last ran out of memory, unless the recipe's batch has changed since."""
        path = folder / FILE
        if not path.is_file():
            return self
        before = BatchSize(**files.read_json(path))
        return before if (before.asked, before.effective) == (self.asked, self.effective) else self

    def remember(self, folder: Path) -> None:
        """Raises EnvironmentUnavailable: the disk is full."""
        with checkpoints.room_for(folder / FILE, len(str(self))):
            files.write_json(folder / FILE, asdict(self))
