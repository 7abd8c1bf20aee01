"""What a merged model is made of: the files of a base or of a trained model, or a loaded base with an adapter's head.

weights/merge.py adds to it and rounds it.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from appliance.errors import GateRefused
from appliance.tasks.task import Task
from appliance.weights import whole_head
from appliance.weights.model_config import base_config
from appliance.weights.shards import INDEX, Header, files_of, headers
from appliance.weights.stored_rows import StoredRows
from appliance.weights.whole_head import Trained

if TYPE_CHECKING:
    import torch


class Rows(Protocol):
    """The tensors of one file; see StoredRows."""

    def runs(self, name: str, items: int) -> Iterator[torch.Tensor]: ...


class Source(Protocol):
    """What a merged model is made of: a model's folder, or a base with the head of an adapter.

    `config`: of the merged model, but for the ids of training. `trained_whole`: how many tensors an adapter brings.
    """

    folder: Path
    config: dict[str, Any]
    has_index: bool
    trained_whole: int

    def files(self) -> dict[Path, list[Header]]:
        """What is written to each file, and how it is stored or held now. Raises EnvironmentUnavailable."""
        ...

    def opened(self, path: Path) -> AbstractContextManager[Rows]:
        """The tensors for one of the files."""
        ...


class Files:
    """A model's folder. `loaded`: what has its tensors in memory."""

    trained_whole = 0

    def __init__(self, folder: Path, loaded: Any = None) -> None:
        self.folder, self.config, self._loaded = folder, base_config(folder), loaded
        self.has_index = (folder / INDEX).is_file()

    def files(self) -> dict[Path, list[Header]]:
        return {path: headers(path, names) for path, names in files_of(self.folder).items()}

    def opened(self, path: Path) -> AbstractContextManager[Rows]:
        return StoredRows(path, self._loaded)


class WithAHead:
    """A base that was loaded as a `task`'s model, with the head of an adapter."""

    has_index = False

    def __init__(self, folder: Path, model: Any, head: Mapping[str, Trained], task: Task) -> None:
        self.folder, self._held, self._head = folder, whole_head.tensors(model), head
        self.config = base_config(folder)
        self.config |= task.config(self.config)
        self.names, self.trained_whole = list(self._held), len(head)
        if other := sorted(head.keys() - self._held.keys()):
            raise GateRefused(
                f"the adapter holds {', '.join(other)}, but the model has no such tensors",
                hint="merge with the base model that the adapter was trained on",
            )

    def files(self) -> dict[Path, list[Header]]:
        found = [
            self._head[name].header if name in self._head else whole_head.header_of(name, values)
            for name, values in self._held.items()
        ]
        return {self.folder / whole_head.FILE: found}

    def opened(self, path: Path) -> AbstractContextManager[Rows]:  # noqa: ARG002
        return nullcontext(self)

    def runs(self, name: str, items: int) -> Iterator[torch.Tensor]:
        import torch

        values = self._head[name].read() if name in self._head else self._held[name].to("cpu")
        if not values.dim():
            yield values
            return
        yield from torch.split(values, max(1, items // max(1, math.prod(values.shape[1:]))))
