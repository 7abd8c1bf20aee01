"""Many rows as ids at once, by the tokenizer's own threads: the ids of `Prompt.encode`, and its errors."""

from __future__ import annotations

from array import array
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

from appliance.errors import DataError
from appliance.prompt import fixed_start, tokenizer
from appliance.prompt.fixed_start import Start
from appliance.prompt.format import Prompt

# instruction, input, output; and where the output begins in the input, of a format that marks it there
Cells = tuple[str, str, str] | tuple[str, str, str, int | None]
Ids = tuple[list[int], int]  # of a whole row, EOS included; how many of them are the prompt
_T = TypeVar("_T")


@dataclass
class Packed:
    """R rows, one after the other, as arrays: those go through a pipe or into a file as they are.

    `ids`: of all rows that could be encoded, EOS included. `lengths` (R,) and `prompt_lengths` (R,): 0 of the others.
    `faults`: by the number of the row, why it could not be.
    """

    ids: array[int]
    lengths: array[int]
    prompt_lengths: array[int]
    faults: dict[int, DataError] = field(default_factory=dict)

    def __iter__(self) -> Iterator[Ids | DataError]:
        """Row by row."""
        end = 0
        for number, (length, prompt_length) in enumerate(zip(self.lengths, self.prompt_lengths, strict=True)):
            end += length
            yield self.faults.get(number) or (self.ids[end - length : end].tolist(), prompt_length)

    def refuse(self, number: int, fault: DataError) -> None:
        """Takes the ids of this row out."""
        begin = sum(self.lengths[:number])
        del self.ids[begin : begin + self.lengths[number]]
        self.lengths[number] = self.prompt_lengths[number] = 0
        self.faults[number] = fault


def encode(prompt: Prompt, rows: Sequence[Cells]) -> Packed:
    """The ids of each row, or why it cannot be encoded: what `Prompt.encode` raises."""
    if prompt.marks_spans:  # which tokens stand for which characters, the fast kind does not say
        return _alone(prompt, rows)
    texts = [_or_fault(prompt.texts, *cells[:3]) for cells in rows]
    starts = [_start(prompt, pair, bool(cells[1])) for pair, cells in zip(texts, rows, strict=True)]
    try:
        found = iter(_ids(prompt, list(_to_encode(texts, starts))))
    except BaseException as error:  # without a kind of its own, or a panic; it does not say over which row
        if not (isinstance(error, Exception) or tokenizer.is_panic(error)):
            raise
        return _alone(prompt, rows)
    packed, eos = _empty(), prompt.eos_token_id
    flat: list[int] = []
    for number, (pair, start) in enumerate(zip(texts, starts, strict=True)):
        begin = prompt_end = end = len(flat)
        if isinstance(pair, DataError):
            packed.faults[number] = pair
        else:
            flat += start.ids
            flat += next(found)
            prompt_end = len(flat)
            flat += next(found)
            flat.append(eos)
            end = len(flat)
        packed.lengths.append(end - begin)
        packed.prompt_lengths.append(prompt_end - begin)
    packed.ids.fromlist(flat)
    _refuse_commands(prompt, packed, starts, rows)
    return packed


def _empty() -> Packed:
    return Packed(array("i"), array("i"), array("i"))


def _alone(prompt: Prompt, rows: Sequence[Cells]) -> Packed:
    """One by one."""
    packed = _empty()
    for number, cells in enumerate(rows):
        row = _or_fault(prompt.encode, *cells)
        if isinstance(row, DataError):
            packed.faults[number] = row
        else:
            packed.ids.fromlist(row.input_ids)
        packed.lengths.append(0 if isinstance(row, DataError) else len(row))
        packed.prompt_lengths.append(0 if isinstance(row, DataError) else row.prompt_tokens)
    return packed


def _start(prompt: Prompt, texts: tuple[str, str] | DataError, has_input: bool) -> Start:
    start = prompt.starts[has_input]
    return start if not isinstance(texts, DataError) and texts[0].startswith(start.text) else fixed_start.NONE


def _to_encode(texts: Sequence[tuple[str, str] | DataError], starts: Sequence[Start]) -> Iterator[str]:
    for pair, start in zip(texts, starts, strict=True):
        if not isinstance(pair, DataError):
            yield pair[0][start.length :]
            yield pair[1]


def _ids(prompt: Prompt, texts: list[str]) -> list[list[int]]:
    # the fast kind leaves out where in the text each token is, nothing else
    return [one.ids for one in prompt.backend.encode_batch_fast(texts, add_special_tokens=False)]


def _refuse_commands(prompt: Prompt, packed: Packed, starts: Sequence[Start], rows: Sequence[Cells]) -> None:
    """Of the rows that hold more commands than EOS and those of their start, whichever `Prompt` refuses."""
    import numpy as np

    commands = prompt.command_ids
    if not commands or not packed.ids:
        return
    is_command = np.zeros(max(commands) + 2, np.bool_)
    is_command[list(commands)] = True
    found = is_command.take(np.frombuffer(packed.ids, np.int32), mode="clip")
    usual = {start: sum(token in commands for token in (*start.ids, prompt.eos_token_id)) for start in set(starts)}
    fewest = [usual[start] if length else 0 for start, length in zip(starts, packed.lengths, strict=True)]
    if np.count_nonzero(found) == sum(fewest):  # no row has fewer, so none has more
        return
    at = np.cumsum([0, *packed.lengths])
    more = np.diff(np.append(0, np.cumsum(found))[at]) > fewest
    for number in np.flatnonzero(more)[::-1].tolist():
        ids = packed.ids[at[number] : at[number + 1]].tolist()
        question, answer = ids[: packed.prompt_lengths[number]], ids[packed.prompt_lengths[number] : -1]
        refused = _or_fault(prompt.refuse_commands, question, answer, bool(rows[number][1]))
        if isinstance(refused, DataError):
            packed.refuse(number, refused)


def _or_fault(work: Callable[..., _T], *arguments: Any) -> _T | DataError:
    try:
        return work(*arguments)
    except DataError as error:
        return error
