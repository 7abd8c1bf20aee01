"""CSV records with their physical lines, under a given delimiter and quoting. Knows no header and no column."""

from __future__ import annotations

import csv
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Literal

from appliance.errors import DataError
from appliance.rows import charset

Quoting = Literal["double", "backslash", "literal"]

_BACKSLASH = re.compile(r'\\(["\\\r\n])?')


def records(
    path: Path, lines: Iterable[str], delimiter: str, quoting: Quoting = "double", *, first_line: int = 1
) -> Iterator[tuple[int, list[str]]]:
    """Each CSV record with the physical line where it starts. Raises DataError: from there on it is not a CSV.

    `lines` are those of the file from `first_line` on.
    """
    csv.field_size_limit(charset.LIMIT)
    if quoting == "backslash":
        # \" and \\ are escapes, and so is \ before a line end (MySQL); \n, \N or C:\dir stay as typed (Spark)
        lines = (_BACKSLASH.sub(lambda m: m[0] if m[1] else "\\\\", line) for line in lines)
        reader = csv.reader(lines, delimiter=delimiter, escapechar="\\", strict=True)
    elif quoting == "literal":
        reader = csv.reader(lines, delimiter=delimiter, quoting=csv.QUOTE_NONE, strict=True)
    else:
        reader = csv.reader(lines, delimiter=delimiter, strict=True)
    start = first_line
    try:
        for cells in reader:
            yield start, cells
            start = reader.line_num + first_line
    except csv.Error as error:
        other = "" if quoting == "literal" else "; if quotes are plain text in this file: --set data.quoting=literal"
        raise DataError(
            f"{path}, line {start}: the record that begins here cannot be read ({error})",
            hint='look for an unclosed quote; a quote inside a quoted cell is written ""' + other,
        ) from error
