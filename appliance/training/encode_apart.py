"""Rows encoded in a fork that may be lost: on one row a base's tokenizer or chat template may run for hours, or take
all the memory.

What base_model/tokenizer_trial.py tried are a few rows; here is every one. While a batch is encoded, the next one is
read. If the fork is lost, the rows of its batch are tried one by one, so that the row is named.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import TypeVar

from appliance.errors import DataError, EnvironmentUnavailable
from appliance.process import forked
from appliance.process.forked import Lost, Worker
from appliance.prompt import in_batches
from appliance.prompt.format import Prompt
from appliance.prompt.in_batches import Cells, Ids
from appliance.rows.csv_file import Rejected, Row

_BATCH_ROWS, _BATCH_LETTERS = 256, 1 << 18  # encoded at a time, whichever comes first
_AHEAD = 1  # batches that are read while one is encoded
_ONE_THREAD = {"TOKENIZERS_PARALLELISM": "false"}
_R = TypeVar("_R")
Work = Callable[[Prompt, Sequence[Cells]], Iterable[_R]]  # one for each row
Record = Row | Rejected


@dataclass(frozen=True)
class Limits:
    """What a batch may take. Tokenizers encode a million characters a second and more, templates render 20,000 rows.

    `cpu_seconds` for any batch, and one more for every `letters_per_second`, of all threads together. `wall_factor`:
    how many times as long by the wall clock, for a machine that gives the fork no turn. `memory_bytes` beyond what this
    process has.
    """

    cpu_seconds: float = 30
    letters_per_second: float = 10_000
    wall_factor: float = 20
    memory_bytes: int = forked.MEMORY_BYTES

    def cpu(self, letters: int) -> float:
        return self.cpu_seconds + letters / self.letters_per_second


LIMITS = Limits()


def ids(prompt: Prompt, rows: Iterable[Row], path: Path) -> Iterator[tuple[Row, Ids | DataError]]:
    """Each row with its ids, or with why it has none. Raises EnvironmentUnavailable as `encoded`.

    By one thread: libraries that have encoded in this process before may have threads that a fork has not.
    """
    for row, found in encoded(prompt, rows, path, in_batches.encode, _ONE_THREAD):
        assert isinstance(row, Row)
        assert found is not None
        yield row, found


def encoded(
    prompt: Prompt,
    records: Iterable[Record],
    path: Path,
    work: Work[_R],
    environ: Mapping[str, str] | None = None,
) -> Iterator[tuple[Record, _R | None]]:
    """Every record of the CSV `path`, in order, each row with what `work` makes of it.

    Raises EnvironmentUnavailable: the base's tokenizer or chat template does not end on a row, takes too much memory,
    or ends its process.
    """
    import numpy  # noqa: F401  before the fork, whose memory has bounds

    waiting = deque[tuple[list[Record], float]]()

    def done(worker: Worker[list[Cells], Iterable[_R]]) -> Iterator[tuple[Record, _R | None]]:
        batch, seconds = waiting.popleft()
        try:
            found = iter(worker.receive(wall_seconds=seconds * LIMITS.wall_factor))
        except Lost as lost:
            raise _refusal(prompt, [row for row in batch if isinstance(row, Row)], path, lost) from lost
        for row in batch:
            yield row, next(found) if isinstance(row, Row) else None

    def of_batch(rows: list[Cells]) -> Iterable[_R]:
        return work(prompt, rows)

    with Worker(of_batch, LIMITS.memory_bytes, environ) as worker:
        for batch, rows, letters in _batches(records):
            seconds = LIMITS.cpu(letters)
            worker.send(rows, cpu_seconds=seconds)
            waiting.append((batch, seconds))
            if len(waiting) > _AHEAD:
                yield from done(worker)
        while waiting:
            yield from done(worker)


def _batches(records: Iterable[Record]) -> Iterator[tuple[list[Record], list[Cells], int]]:
    """Records, the cells of the rows among them, and the letters of those."""
    batch: list[Record] = []
    rows: list[Cells] = []
    letters = 0
    for record in records:
        batch.append(record)
        if isinstance(record, Row):
            cells = _cells(record)
            rows.append(cells)
            letters += len(cells[0]) + len(cells[1]) + len(cells[2])
        if len(batch) == _BATCH_ROWS or letters > _BATCH_LETTERS:
            yield batch, rows, letters
            batch, rows, letters = [], [], 0
    if batch:
        yield batch, rows, letters


def _cells(row: Row) -> Cells:
    return row.instruction, row.input, row.output, row.answer_start


def _refusal(prompt: Prompt, rows: Sequence[Row], path: Path, lost: Lost) -> EnvironmentUnavailable:
    """What to raise when the fork was lost on these rows: about the first that is lost alone, or else about all."""
    steps: dict[str, Callable[..., object]] = {"the chat template": prompt.texts, "the tokenizer": prompt.encode}

    def tried(step: tuple[str, Cells]) -> None:
        with suppress(DataError):  # what else the row is refused for is not asked here
            steps[step[0]](*(step[1][:3] if step[0] == "the chat template" else step[1]))

    with Worker(tried, LIMITS.memory_bytes, _ONE_THREAD) as worker:
        for row, what in product(rows, steps):
            seconds = LIMITS.cpu(sum(map(len, _cells(row)[:3])))
            worker.send((what, _cells(row)), cpu_seconds=seconds)
            try:
                worker.receive(wall_seconds=seconds * LIMITS.wall_factor)
            except Lost as again:
                where = f"line {row.line} of {path}"
                return _error(f"{what} of the base model {again} on {where}", f"remove {where}")
    lines = f"lines {rows[0].line} to {rows[-1].line}" if len(rows) > 1 else f"line {rows[0].line}"
    return _error(
        f"the base model's tokenizer, or its chat template, {lost} on {lines} of {path}", "repeat the command"
    )


def _error(message: str, otherwise: str) -> EnvironmentUnavailable:
    return EnvironmentUnavailable(message, hint=f"choose another base model, or correct its files; or {otherwise}")
