"""The rows of the tensors in one file of a base, run by run; the next runs are read while one is used.

What a model in memory holds of the file is taken from there, after a look at a few rows of each tensor.

>>> with StoredRows(base_dir / "model.safetensors") as stored:
...     for rows in stored.runs("model.norm.weight", 1 << 19):
...         ...
"""

from __future__ import annotations

import math
import os
from collections import deque
from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

from appliance.errors import EnvironmentUnavailable
from appliance.weights import held, shards

if TYPE_CHECKING:
    import torch

_AHEAD = 2  # runs in memory beside the one in use
_COMPARED = 8  # rows of a tensor in memory that are compared with the file's


class StoredRows:
    """A file of weights that stays as it is meanwhile.

    It is read, not mapped: each page of a mapping that is touched for the first time costs more than copying it does,
    and the thread that touches it waits for the disk. `model`: one that was loaded from it, with untouched weights.
    """

    def __init__(self, path: Path, model: Any = None) -> None:
        self._path, self._places = path, shards.places(path)
        self._held: Mapping[str, torch.Tensor] = {}
        if model is not None:
            self._held = held.of_model(model, {name: header for name, (header, _) in self._places.items()})
        self._file = os.open(path, os.O_RDONLY)
        self._reader = ThreadPoolExecutor(1)

    def __enter__(self) -> StoredRows:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        self._reader.shutdown(cancel_futures=True)
        os.close(self._file)

    def runs(self, name: str, items: int) -> Iterator[torch.Tensor]:
        """The tensor in runs of rows of about `items` values, not to be changed; a scalar is one run.

        Values are those of the file; floats may come as float32. Reading begins now, not with the first run that is
        asked for. Raises EnvironmentUnavailable: the file has become shorter. OSError.
        """
        header, _ = self._places[name]
        read = self._taken if self._is_as_stored(name) else self._read
        count, at_once = (header.shape or (1,))[0], max(1, items // max(1, math.prod(header.shape[1:])))
        to_read = ((name, begin, min(begin + at_once, count)) for begin in range(0, count, at_once))
        calls = (self._reader.submit(read, *run) for run in to_read)
        return self._one_by_one(deque(islice(calls, _AHEAD)), calls)

    @staticmethod
    def _one_by_one(
        under_way: deque[Future[torch.Tensor]], calls: Iterator[Future[torch.Tensor]]
    ) -> Iterator[torch.Tensor]:
        while under_way:
            rows = under_way.popleft().result()
            under_way.extend(islice(calls, 1))
            yield rows

    def _is_as_stored(self, name: str) -> bool:
        """Whether a model holds the tensor as the file does, by a few of its rows.

        A library may load some weights otherwise than they are stored, such as permuted; hence not at even distances.
        """
        import torch

        values = self._held.get(name)
        if values is None or not values.dim():
            return False
        rows = torch.randint(len(values), (_COMPARED,), generator=torch.Generator().manual_seed(0))
        return all(
            torch.equal(self._read(name, row, row + 1).to(values.dtype), self._taken(name, row, row + 1))
            for row in sorted(set(rows.tolist()))
        )

    def _taken(self, name: str, begin: int, end: int) -> torch.Tensor:
        """Rows [begin, end) of a tensor in memory."""
        return self._held[name][begin:end].to("cpu")

    def _read(self, name: str, begin: int, end: int) -> torch.Tensor:
        """Rows [begin, end) of a tensor; a scalar as a whole."""
        import torch

        header, offset = self._places[name]
        shape = (end - begin, *header.shape[1:]) if header.shape else ()
        rows = torch.empty(shape, dtype=getattr(torch, shards.TORCH_NAME[header.dtype]))
        left = rows.reshape(-1).view(torch.uint8).numpy().data
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
