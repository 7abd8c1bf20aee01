"""How the rows of a step are split into micro batches: as the recipe says or as memory allows, and into smaller ones
when memory runs out.

The rows of a step and the weight of each token in it stay the same; only the number computed at once changes. With
`train.micro_batch_size: auto` that number is estimated before the model is loaded and, on a GPU, tried on the longest
rows before the first step. It is kept beside the checkpoints: a resumed training continues with the same numbers.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Literal

from appliance.engines import memory, rows_by_memory
from appliance.errors import EnvironmentUnavailable
from appliance.machine.device import Device
from appliance.machine.disk import human
from appliance.process import console, files
from appliance.recipe.fields import TrainSection
from appliance.training import checkpoints
from appliance.wording import counted

FILE = "batch_size.json"


@dataclass(frozen=True)
class AtWork:
    """What a trainer was doing when memory ran out."""

    phase: Literal["training", "evaluation"]
    rows: int
    tokens: int  # of the longest row


class OutOfMemory(Exception):
    """Memory ran out in the step after `step`."""

    what = "out of memory"

    def __init__(self, at_work: AtWork, step: int, message: str) -> None:
        super().__init__(message)
        self.at_work, self.step = at_work, step


class TooFull(OutOfMemory):
    """It did not run out, but less of it stays free than `auto` leaves."""

    what = "too little memory stays free"


@dataclass(frozen=True)
class BatchSize:
    """`asked`: the recipe's micro batch. `notes`, `evaluation_notes`: each time memory ran out, in words. `chosen`:
    why `auto` came to this size; empty while that has to be tried."""

    asked: int | Literal["auto"]
    micro_batch_size: int
    gradient_accumulation_steps: int
    evaluation_rows: int
    notes: list[str] = field(default_factory=list)
    evaluation_notes: list[str] = field(default_factory=list)
    chosen: str = ""

    @classmethod
    def of_rows(cls, train: TrainSection, rows: int, chosen: str = "") -> BatchSize:
        """Micro batches of `rows`; an evaluation, which computes no gradients, takes as many and so less memory."""
        return cls(train.micro_batch_size, rows, train.effective_batch_size // rows, rows, chosen=chosen)

    @property
    def effective(self) -> int:
        return self.micro_batch_size * self.gradient_accumulation_steps

    @property
    def is_to_be_tried(self) -> bool:
        return self.asked == "auto" and not self.chosen

    def settled(self, why: str) -> BatchSize:
        """As `auto` has tried it; prints that."""
        console.say(f"micro batches of {self.micro_batch_size} of {counted(self.effective, 'row')} a step: {why}")
        return replace(self, chosen=why)

    def after(self, error: OutOfMemory, device: Device, stage_dir: Path) -> BatchSize:
        """Halves the micro batch, prints and records that.

        Raises EnvironmentUnavailable: even one row is too much, or the disk is full.
        """
        work = error.at_work
        rows = f"{counted(work.rows, 'row')} of up to {counted(work.tokens, 'token')}"
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
        console.say(f"{where}: {error.what}; continuing with {console.pairs(now)}", style="warning")
        smaller.remember(stage_dir / "checkpoints")
        line = {"step": error.step, "out_of_memory": smaller.notes[-1], **now}
        checkpoints.append_line(stage_dir / "metrics.jsonl", line)
        return smaller

    def halved(self, note: str) -> BatchSize:
        """With the largest micro batch that has at most half the rows and divides a step evenly."""
        half = self.micro_batch_size // 2
        smaller = next(size for size in rows_by_memory.divisors(self.effective) if size <= half)
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
        before = _kept(folder)
        return before if before and (before.asked, before.effective) == (self.asked, self.effective) else self

    def remember(self, folder: Path) -> None:
        """Raises EnvironmentUnavailable: the disk is full."""
        with checkpoints.room_for(folder / FILE, len(str(self))):
            files.write_json(folder / FILE, asdict(self))


def kept(train: TrainSection, folder: Path) -> BatchSize | None:
    """What a training that has begun computes with; None if there is none, or the recipe's batch has changed since."""
    before = _kept(folder)
    same = before and (before.asked, before.effective) == (train.micro_batch_size, train.effective_batch_size)
    return before if same else None


def _kept(folder: Path) -> BatchSize | None:
    path = folder / FILE
    return BatchSize(**files.read_json(path)) if path.is_file() else None


def chosen(
    train: TrainSection, needs: Callable[[int], int] | None, room: int, device: Device, mean_tokens: float
) -> BatchSize:
    """The recipe's micro batch; under `auto` the largest divisor of a step that leaves FREE_SHARE of the memory free.

    Args:
        needs: bytes that a step takes with micro batches of so many rows; None: unknown, all rows of a step are tried.
        room: the free bytes of `device` before anything is loaded.
        mean_tokens: of a row; on a CPU, a micro batch has no more rows than make it faster.
    """
    if train.micro_batch_size != "auto":
        return BatchSize.of_rows(train, train.micro_batch_size)
    batch, limit = train.effective_batch_size, rows_by_memory.usable(room, device.memory_bytes)
    fits = batch if needs is None else rows_by_memory.of_a_step(batch, needs, limit)
    if device.kind == "cuda":  # it is tried before the first step
        return BatchSize.of_rows(train, fits)
    rows = min(fits, rows_by_memory.of_a_step_on_cpu(batch, mean_tokens))
    by = f"estimated at {human(needs(rows))}; {human(limit)} may be used" if needs else "its memory cannot be estimated"
    return BatchSize.of_rows(train, rows).settled(by)
