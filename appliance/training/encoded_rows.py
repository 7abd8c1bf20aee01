"""The rows of a prepared CSV as ids: what training fits and validates on, and what evaluate validates on again."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

from appliance.errors import DataError
from appliance.prompt.encoding import Encoding
from appliance.prompt.format import Encoded, Prompt
from appliance.rows import csv_file


@dataclass(frozen=True)
class Rows:
    """What the trainer knows about the rows of one side besides their ids: their lines in the user's CSV, their lengths
    in tokens."""

    lines: Sequence[int]
    lengths: Sequence[int]

    def name(self, indexes: Sequence[int]) -> str:
        """'CSV rows 3, 17'."""
        lines = sorted(self.lines[i] for i in indexes)
        return f"CSV row{'s' if len(lines) > 1 else ''} {', '.join(map(str, lines))}"


def encode(
    prompt: Prompt, path: Path, encoding: Encoding, *, only: Collection[int] | None = None
) -> tuple[list[Encoded], Rows]:
    """Every row of a prepared CSV, or `only` the rows from these lines of the user's CSV.

    Raises DataError: a row does not fit max_seq_length, or cannot be encoded.
    """
    encoded, lines, wanted = [], [], None if only is None else set(only)
    for row in csv_file.iter_canonical(path):
        if wanted is not None and row.line not in wanted:
            continue
        one = encoding.encode(prompt, row.instruction, row.input, row.output)
        if len(one) > encoding.max_seq_length:
            raise DataError(
                f"{path}: row {row.line} has {len(one)} tokens, over max_seq_length {encoding.max_seq_length}",
                hint="the tokenizer changed after `prepare`; redo it with --redo prepare",
            )
        encoded.append(one)
        lines.append(row.line)
    return encoded, Rows(lines, [len(one) for one in encoded])
