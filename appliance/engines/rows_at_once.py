"""As many rows at once as memory holds: fewer wherever it runs out."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

import torch

from appliance.machine.out_of_memory import is_out_of_memory
from appliance.process import console

T = TypeVar("T")


@dataclass
class RowsAtOnce:
    """How many rows are computed together. Halved wherever memory runs out, which is said and noted."""

    rows: int
    purpose: str = "answers"  # for people
    notes: list[str] = field(default_factory=list)

    def each(self, items: Sequence[T], compute: Callable[[Sequence[T]], None]) -> None:
        """Calls `compute` with all items, some at a time, in their order.

        Where memory runs out it is called again with fewer of the same: it has to leave nothing behind before it is
        through. Raises RuntimeError (see `is_out_of_memory`) where there is no room for a single one.
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
                said = str(error).splitlines()[0]
            self._halve(len(part), said)  # out of the handler, which holds on to the tensors that did not fit

    def _halve(self, tried: int, said: str) -> None:
        self.rows = tried // 2
        self.notes.append(f"{self.purpose}: {tried} rows at once were too many: {said}")
        console.say(f"out of memory with {tried} rows at once ({said}): {self.purpose} of {self.rows}", style="yellow")
        torch.cuda.empty_cache()
