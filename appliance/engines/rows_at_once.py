"""Compute as many rows at once as fit in memory, and fewer when it runs out."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

import torch

from appliance.machine.out_of_memory import is_out_of_memory
from appliance.process import console
from appliance.wording import counted

T = TypeVar("T")


@dataclass
class RowsAtOnce:
    """How many rows are computed together. Halved, with a message and a note, whenever memory runs out."""

    rows: int
    purpose: str = "answers"  # as messages call them
    notes: list[str] = field(default_factory=list)

    def each(self, items: Sequence[T], compute: Callable[[Sequence[T]], None]) -> None:
        """Call `compute` with all items, some at a time, in order.

        When memory runs out, `compute` is called again with fewer of the same items, so it must not have side effects
        before it is done. Raises RuntimeError (see `is_out_of_memory`): a single item does not fit.
        """
        start = 0
        while start < len(items):
            part = items[start : start + self.rows]
            try:
                compute(part)
                start += len(part)
                continue
            except RuntimeError as error:
                if not is_out_of_memory(error) or len(part) == 1:
                    raise
                first_line = str(error).splitlines()[0]
            self._halve(len(part), first_line)  # after the handler: its traceback keeps the failed call's tensors alive

    def _halve(self, tried: int, first_line: str) -> None:
        self.rows = tried // 2
        self.notes.append(f"{self.purpose}: {counted(tried, 'row')} at once did not fit: {first_line}")
        found = f"{self.purpose}: out of memory with {counted(tried, 'row')} at once ({first_line})"
        console.say(f"{found}; trying {self.rows}", style="warning")
        torch.cuda.empty_cache()
