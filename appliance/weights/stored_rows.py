"""The rows of the tensors in one file of a base, run by run; the next runs are read while one is used.

>>> with StoredRows(base_dir / "model.safetensors") as stored:
...     for rows in stored.runs("model.norm.weight", 1 << 19):
...         ...
"""

from __future__ import annotations

import math
import os
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING

from appliance.errors import EnvironmentUnavailable
from appliance.weights import shards

if TYPE_CHECKING:
    import torch

_AHEAD = 2  # runs in memory beside the one in use


class StoredRows:
    """A file of weights that stays as it is meanwhile.

    It is read, not mapped: each page of a mapping that is touched for the first time costs more than copying it does,
    and the thread that touches it waits for the disk.
    """

    def __init__(self, path: Path) -> None:
        self._path, self._places = path, shards.places(path)
        self._file = os.open(path, os.O_RDONLY)
        self._reader = ThreadPoolExecutor(1)

    def __enter__(self) -> StoredRows:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        self._reader.shutdown(cancel_futures=True)
        os.close(self._file)

    def runs(self, name: str, items: int) -> Iterator[torch.Tensor]:
        """The tensor in runs of rows of about `items` values, in memory of their own; a scalar is one run.

        Reading begins now, not with the first run that is asked for. Raises EnvironmentUnavailable: the file has become
        shorter. OSError.
        """
        header, _ = self._places[name]
        count, at_once = (header.shape or (1,))[0], max(1, items // max(1, math.prod(header.shape[1:])))
        to_read = ((name, begin, min(begin + at_once, count)) for begin in range(0, count, at_once))
        under_way = deque(self._reader.submit(self._read, *run) for run in islice(to_read, _AHEAD))
        return self._one_by_one(under_way, to_read)

    def _one_by_one(
        self, under_way: deque[Future[torch.Tensor]], to_read: Iterator[tuple[str, int, int]]
    ) -> Iterator[torch.Tensor]:
        while under_way:
            rows = under_way.popleft().result()
            under_way.extend(self._reader.submit(self._read, *run) for run in islice(to_read, 1))
            yield rows

    def _read(self, name: str, begin: int, end: int) -> torch.Tensor:
        """Rows [begin, end) of a tensor; a scalar as a whole."""
        import torch

        header, offset = self._places[name]
        shape = (end - begin, *header.shape[1:]) if header.shape else ()
        rows = torch.empty(shape, dtype=getattr(torch, shards.TORCH_NAME[header.dtype]))
        left = memoryview(rows.reshape(-1).view(torch.uint8).numpy())
        offset += begin * (left.nbytes // max(1, end - begin))
        while left:
            read = os.preadv(self._file, [left], offset)
            if not read:
                raise EnvironmentUnavailable(
                    f"{self._path} ended within {name}: it has become shorter since it was opened",
                    hint="nothing else may write to the base's folder during a run; restore the file",
                )
            left, offset = left[read:], offset + read
        return rows
