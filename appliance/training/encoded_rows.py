"""The rows of a prepared CSV as ids: what training fits and validates on, and what evaluate validates on again.

`prepare` has encoded them all; a row is encoded again only if its ids were not kept or do not hold here (kept_ids.py).
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

from appliance.errors import DataError
from appliance.prompt.encoding import Encoding
from appliance.prompt.format import Encoded, Prompt
from appliance.rows import csv_file
from appliance.tasks.task import Task
from appliance.training import encode_apart, kept_ids

if TYPE_CHECKING:
    from datasets import Dataset

_BATCH = 1024  # rows that are lists of numbers at a time
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Rows:
    """What the trainer knows about the rows of one side besides their ids: their lines in the user's CSV, the tokens
    of each that a model computes on."""

    lines: list[int]
    lengths: list[int]

    def name(self, indexes: Sequence[int]) -> str:
        """'CSV rows 3, 17'."""
        lines = sorted({self.lines[i] for i in indexes})  # once, however many windows a row has
        return f"CSV row{'s' if len(lines) > 1 else ''} {', '.join(map(str, lines))}"


def read(
    prompt: Prompt, path: Path, encoding: Encoding, *, task: Task, only: Collection[int] | None = None
) -> tuple[list[Encoded], Rows]:
    """Every row of a prepared CSV, or `only` the rows from these lines of the user's CSV, in the pieces of `task`.

    Raises DataError: a row does not fit max_seq_length, or cannot be encoded.
    """
    encoded: list[Encoded] = []
    lines: list[int] = []
    for line, whole in uncut(prompt, path, loss_on=encoding.loss_on, only=only):
        pieces = task.pieces(fitting(prompt, path, encoding, line, whole, task), encoding.max_seq_length)
        encoded.extend(pieces)
        lines.extend([line] * len(pieces))
    return encoded, Rows(lines, [task.length(one) for one in encoded])


def as_dataset(
    prompt: Prompt,
    path: Path,
    encoding: Encoding,
    *,
    only: Collection[int] | None = None,
    task: Task,
) -> tuple[Dataset, Rows]:
    """The same for a trainer, in the columns of `task`: 4 bytes a number, where a list of them takes 40."""
    import pyarrow as pa
    from datasets import Dataset
    from datasets.table import InMemoryTable

    kind, rows = pa.list_(pa.int32()), Rows([], [])
    schema = pa.schema(dict.fromkeys(task.columns, kind))
    wholes = uncut(prompt, path, loss_on=encoding.loss_on, only=only)
    batches = []
    while part := list(islice(wholes, _BATCH)):
        wholes_of = [(line, fitting(prompt, path, encoding, line, whole, task)) for line, whole in part]
        encoded = [(line, one) for line, row in wholes_of for one in task.pieces(row, encoding.max_seq_length)]
        features = [task.features(one) for _, one in encoded]
        columns = [pa.array([one[name] for one in features], kind) for name in task.columns]
        batches.append(pa.record_batch(columns, schema=schema))
        rows.lines.extend(line for line, _ in encoded)
        rows.lengths.extend(task.length(one) for _, one in encoded)
    return Dataset(InMemoryTable(pa.Table.from_batches(batches, schema))), rows


def fitting(prompt: Prompt, path: Path, encoding: Encoding, line: int, whole: Encoded, task: Task) -> Encoded:
    """A row as training has it, its answer cut if long rows are. Raises DataError: it does not fit max_seq_length."""
    one = encoding.fitted(prompt, whole)
    if task.answers_with != "span" and task.length(one) > encoding.max_seq_length:
        raise DataError(
            f"{path}: row {line} has {task.length(one)} tokens, over max_seq_length {encoding.max_seq_length}",
            hint="the tokenizer changed after `prepare`; redo it with --redo prepare",
        )
    return one


def uncut(
    prompt: Prompt, path: Path, *, loss_on: str, only: Collection[int] | None = None
) -> Iterator[tuple[int, Encoded]]:
    """Line and row, in the order of the prepared CSV: the kept ids if they hold here, else encoded now.

    Raises DataError: see `Prompt.encode`. EnvironmentUnavailable: see `encode_apart.encoded`.
    """
    wanted = None if only is None else frozenset(only)
    reason = kept_ids.why_not(path, prompt)
    if not reason:
        for kept in kept_ids.read(path, only=wanted):
            yield kept.line, prompt.labelled(kept.ids, kept.prompt_tokens, loss_on=loss_on)
        return
    _log.info("%s: its rows are encoded again: %s", path, reason)
    rows = (row for row in csv_file.iter_canonical(path) if wanted is None or row.line in wanted)
    for row, found in encode_apart.ids(prompt, rows, path):
        if isinstance(found, DataError):
            raise found
        yield row.line, prompt.labelled(*found, loss_on=loss_on)
