"""The ids of the prepared rows, kept by `prepare` so that training and evaluation need not encode the rows again.

One Arrow file beside each prepared CSV, with its rows in its order: the line, how many tokens are the prompt, and all
ids, uncut and with EOS, so that neither `loss_on` nor max_seq_length matters here. They are used only if they came from
that CSV, byte for byte, and from a tokenizer and a format that give the same ids (`Prompt.fingerprint`).
"""

from __future__ import annotations

import importlib.util
import itertools
import os
from array import array
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryFile
from typing import TYPE_CHECKING, Any

from appliance.errors import RunDirError
from appliance.process import files
from appliance.prompt.format import Prompt

if TYPE_CHECKING:
    import numpy as np
    import pyarrow as pa

PATTERN = "{}_ids.arrow"  # of the stage prepare, one a side
_CSV, _FINGERPRINT = b"csv_sha256", b"prompt_fingerprint"
_BATCH_ROWS, _BATCH_TOKENS = 1024, 1 << 20  # written and read at a time, whichever comes first
_SPAN = 1 << 24  # bytes read at once for the rows of a batch; rows in another order than the file's lie further apart
_ID_BYTES = 4


@dataclass(frozen=True)
class Kept:
    """One row. `ids`: its tokens, EOS included, the first `prompt_tokens` of them the prompt."""

    line: int
    ids: list[int]
    prompt_tokens: int


def beside(csv_path: Path) -> Path:
    """Where the ids of a prepared CSV are."""
    return csv_path.with_name(PATTERN.format(csv_path.stem))


def can_be_kept() -> bool:
    """Whether pyarrow is here: it comes with the `train` extra, without which rows are only counted and split."""
    return importlib.util.find_spec("pyarrow") is not None


class Spool:
    """Ids in the order in which the rows were encoded, in a file that has no name: 8 bytes a row stay in memory.

    Whoever encodes rows, a fork too, appends their ids; the process that writes them out is told the lengths.
    """

    def __init__(self, folder: Path) -> None:
        self._named = folder / PATTERN.format("train")  # if the disk is full
        with files.naming(self._named):
            self._file = TemporaryFile(buffering=0, dir=folder)  # noqa: SIM115  closed by `close`
        self._begins = array("q", [0])  # where each row begins, in ids

    def append(self, ids: array[int]) -> None:
        """The ids of some rows, one after the other."""
        left = memoryview(ids.tobytes())
        with files.naming(self._named):
            while left:
                left = left[self._file.write(left) :]

    def count(self, length: int) -> None:
        """How many of the ids are those of the next row."""
        self._begins.append(self._begins[-1] + length)

    def close(self) -> None:
        self._file.close()

    def write(
        self, csv_path: Path, rows: Sequence[int], lines: Sequence[int], prompt_tokens: Sequence[int], fingerprint: str
    ) -> None:
        """The ids beside a prepared CSV. `rows`: which of the appended ones it holds, in its order; `lines` and
        `prompt_tokens` are by the number of the appended row."""
        import pyarrow as pa

        path = beside(csv_path)
        schema = _schema().with_metadata({_CSV: files.sha256_of(csv_path), _FINGERPRINT: fingerprint})
        with files.naming(path), pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, schema) as writer:
            for batch in self._batches(rows):
                columns = [
                    _column(array("q", [lines[i] for i in batch]), pa.int64()),
                    _column(array("i", [prompt_tokens[i] for i in batch]), pa.int32()),
                    self._lists(batch),
                ]
                writer.write_batch(pa.record_batch(columns, schema=schema))
        files.fsync(path)

    def _batches(self, rows: Sequence[int]) -> Iterator[list[int]]:
        batch: list[int] = []
        tokens, begins = 0, self._begins
        for row in rows:
            length = begins[row + 1] - begins[row]
            if batch and (len(batch) == _BATCH_ROWS or tokens + length > _BATCH_TOKENS):
                yield batch
                batch, tokens = [], 0
            batch.append(row)
            tokens += length
        if batch:
            yield batch

    def _lists(self, batch: list[int]) -> pa.ListArray:
        import numpy as np
        import pyarrow as pa

        rows, of_all = np.asarray(batch), np.asarray(self._begins)
        begins, ends = of_all[rows], of_all[rows + 1]
        first, last = int(begins.min()), int(ends.max())
        offsets = np.append(0, np.cumsum(ends - begins))
        if (last - first) * _ID_BYTES <= _SPAN:
            span = np.frombuffer(self._read(first, last), np.int32)
            values = span[np.repeat(begins - first - offsets[:-1], ends - begins) + np.arange(offsets[-1])]
        else:
            parts = (self._read(*row) for row in zip(begins.tolist(), ends.tolist(), strict=True))
            values = np.frombuffer(b"".join(parts), np.int32)
        return pa.ListArray.from_arrays(_column(offsets.astype(np.int32), pa.int32()), _column(values, pa.int32()))

    def _read(self, first: int, last: int) -> bytes:
        return os.pread(self._file.fileno(), (last - first) * _ID_BYTES, first * _ID_BYTES)


def why_not(csv_path: Path, prompt: Prompt) -> str:
    """Why the rows of this CSV have to be encoded again; "" if their ids are kept."""
    path = beside(csv_path)
    if not path.is_file():
        return "none are kept with it"
    if not can_be_kept():
        return "pyarrow is not installed"
    import pyarrow as pa

    try:
        with pa.memory_map(str(path)) as source:
            schema = pa.ipc.open_file(source).schema
    except (pa.ArrowInvalid, OSError) as error:
        return f"{path} cannot be read ({error})"
    found: dict[bytes, bytes] = schema.metadata or {}
    if not schema.equals(_schema()):
        return f"{path} has other columns"
    if found.get(_FINGERPRINT) != prompt.fingerprint.encode():
        return "they were prepared with another tokenizer or prompt format"
    if found.get(_CSV) != files.sha256_of(csv_path).encode():
        return f"{csv_path} is not the file that they were prepared with"
    return ""


def read(csv_path: Path, *, only: Collection[int] | None = None) -> Iterator[Kept]:
    """The rows of a prepared CSV for which there was nothing against it (`why_not`), or `only` those of these lines.

    Memory-mapped: a batch of rows is held at a time.
    """
    import pyarrow as pa

    with pa.memory_map(str(beside(csv_path))) as source:
        batches = pa.ipc.open_file(source)
        for number in range(batches.num_record_batches):
            yield from _rows(batches.get_batch(number), only)


def lengths(csv_path: Path, *, of_prompts: bool = False) -> list[int] | None:
    """How many tokens each prepared row has, EOS included, uncut; None if no ids are kept or pyarrow is not here.

    `of_prompts`: without its answer. Reads where rows begin, not their ids. Raises RunDirError: the file is damaged.
    """
    path = beside(csv_path)
    if not path.is_file() or not can_be_kept():
        return None
    import pyarrow as pa

    found: list[int] = []
    try:
        with pa.memory_map(str(path)) as source:
            batches = pa.ipc.open_file(source)
            for number in range(batches.num_record_batches):
                batch = batches.get_batch(number)
                batch.validate(full=True)
                found += batch.column("prompt_tokens").to_pylist() if of_prompts else _lengths(batch.column("ids"))
    except (pa.ArrowException, OSError, LookupError, AttributeError, TypeError) as error:
        hint = "make it again with --redo prepare"
        raise RunDirError(f"{path} is damaged: {error!s:.300}", hint=hint) from error
    return found


def _lengths(lists: pa.ListArray) -> Iterator[int]:
    """As `lists.value_lengths()`, which imports pyarrow.compute: longer than to read the lengths of 50,000 rows."""
    begins = memoryview(lists.buffers()[1]).cast("i")[lists.offset : lists.offset + len(lists) + 1]
    return (end - begin for begin, end in itertools.pairwise(begins))


def _rows(batch: Any, only: Collection[int] | None) -> Iterator[Kept]:
    lines, prompts, lists = batch.columns
    offsets, values = lists.offsets.to_numpy(), lists.values.to_numpy()
    for i, (line, prompt_tokens) in enumerate(zip(lines.to_pylist(), prompts.to_pylist(), strict=True)):
        if only is None or line in only:
            yield Kept(line, values[offsets[i] : offsets[i + 1]].tolist(), prompt_tokens)


def _column(numbers: array[int] | np.ndarray, kind: pa.DataType) -> pa.Array:
    """Of numbers that are as wide as their `kind`: pa.array would import pandas first, to ask whether they are its."""
    import pyarrow as pa

    return pa.Array.from_buffers(kind, len(numbers), [None, pa.py_buffer(numbers)])


def _schema() -> pa.Schema:
    import pyarrow as pa

    return pa.schema({"row": pa.int64(), "prompt_tokens": pa.int32(), "ids": pa.list_(pa.int32())})
