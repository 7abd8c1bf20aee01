"""Rows of the embeddings and of the head that were trained beside an adapter: peft's `trainable_token_indices`.

peft saves the rows themselves, not a delta: a merge puts them in the place of the base's
(peft/tuners/trainable_tokens/layer.py, merge).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from appliance.errors import GateRefused
from appliance.process.files import read_json
from appliance.weights.embedding_rows import HEADS, is_tied, is_weight_of
from appliance.weights.model_config import base_config
from appliance.weights.shards import ADAPTER_WEIGHTS, TOKEN_ROWS, Header, files_of, headers, stored_name
from appliance.wording import counted

if TYPE_CHECKING:
    import torch

AGAIN = "train again with --redo train"
SAME = "merge with the base model that the adapter was trained on"


@dataclass(frozen=True)
class TokenRows:
    """The trained rows of one module: `key` in the adapter's file `path` holds (len(ids), H)."""

    module: str
    path: Path
    key: str
    ids: tuple[int, ...]

    def read(self) -> torch.Tensor:
        """(len(ids), H) in float32."""
        from safetensors import safe_open

        with safe_open(self.path, framework="pt") as handle:
            rows: torch.Tensor = handle.get_tensor(self.key).float()
        return rows

    def put_into(self, run: torch.Tensor, begin: int) -> torch.Tensor:
        """Rows `begin` and following of the base's matrix -> the same in float32, with the trained ones in place."""
        import torch

        wide, trained = run.to(torch.float32, copy=True), self.read()
        for index, token in enumerate(self.ids):
            if begin <= token < begin + len(wide):
                wide[token - begin] = trained[index]
        return wide


def read_token_rows(adapter_dir: Path) -> list[TokenRows]:
    """Of an adapter saved by peft; none for most. Raises GateRefused: the file does not hold what its config says."""
    from safetensors import safe_open

    indices = read_json(adapter_dir / "adapter_config.json").get("trainable_token_indices") or {}
    path, found = adapter_dir / ADAPTER_WEIGHTS, []
    with safe_open(path, framework="pt") as handle:
        for key in handle.keys():  # noqa: SIM118 (not a dict)
            named = re.fullmatch(rf"base_model\.model\.(.+)\.{re.escape(TOKEN_ROWS)}", key)
            if named:
                ids = tuple(_ids_of(named[1], indices))
                if (stored := handle.get_slice(key).get_shape()[0]) != len(ids):
                    raise GateRefused(
                        f"{path}: {key} has {counted(stored, 'row')}; adapter_config.json names "
                        f"{counted(len(ids), 'token')}",
                        hint=AGAIN,
                    )
                found.append(TokenRows(named[1], path, key, ids))
    if bool(found) != bool(indices):
        raise GateRefused(f"{path} has no rows for the trainable_token_indices of adapter_config.json", hint=AGAIN)
    return found


def of_adapter(adapter_dir: Path, base_dir: Path) -> dict[str, TokenRows]:
    """Base tensor -> its trained rows. A head that is tied but stored as well gets the rows of the embeddings.

    Raises GateRefused: a module has no tensor of its own, or one of another shape.
    """
    files = {name: path for path, names in files_of(base_dir).items() for name in names}
    tied = is_tied(files, base_config(base_dir))
    matched: dict[str, TokenRows] = {}
    for rows in read_token_rows(adapter_dir):
        name = stored_name(rows.module, files)
        copies = [other for other in files if tied and is_weight_of(other, HEADS)]
        for found in [name, *copies] if name else []:
            _refuse_other_shape(headers(files[found], [found])[0], rows)
            matched[found] = rows
        if name is None:
            raise GateRefused(f"the adapter holds rows of {rows.module}, but the base has no weight for it", hint=SAME)
    return matched


def replaced(runs: Iterable[torch.Tensor], rows: TokenRows) -> Iterator[torch.Tensor]:
    """Runs of a matrix's rows, first to last -> the same in float32, with the trained rows in their places."""
    begin = 0
    for run in runs:
        yield rows.put_into(run, begin)
        begin += len(run)


def _refuse_other_shape(stored: Header, rows: TokenRows) -> None:
    count, width = stored.shape
    if rows.read().shape[1] != width or max(rows.ids) >= count:
        raise GateRefused(
            f"{stored.name} has shape {stored.shape}: the adapter's rows of {rows.module} (tokens "
            f"{', '.join(map(str, rows.ids))}, {rows.read().shape[1]} numbers each) are not of it",
            hint=SAME,
        )


def _ids_of(module: str, indices: Mapping[str, list[int]] | list[int]) -> list[Any]:
    """peft names a module by its whole name or by the end of it; a list means the embeddings."""
    if isinstance(indices, list):
        return indices
    return next((ids for name, ids in indices.items() if f".{module}".endswith(f".{name}")), [])
