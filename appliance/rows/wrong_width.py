"""Why a line has more or fewer fields than the header, and what to do about it: judged by the first such line."""

from __future__ import annotations

import shlex
from itertools import islice
from pathlib import Path

from appliance.rows.charset import open_lines
from appliance.rows.dialect import CsvFormat
from appliance.rows.header import DELIMITERS
from appliance.rows.in_messages import quoted, shown

QUOTE_IT = 'a cell that contains the delimiter or a line break must be in double quotes: "like, this"'
_SHOWN = 120  # characters of the line
_CURLY = "“”„‟〝〞"


def fix_for(path: Path, fmt: CsvFormat, line: int) -> str:
    """What to do about `line`, which has another number of fields than the header; shows the line."""
    with open_lines(path, fmt.encoding.codec) as lines:
        text = next(islice(lines, line - 1, None), "").rstrip("\r\n")
    name = DELIMITERS.get(fmt.delimiter, shown(fmt.delimiter))
    seen = f"line {line} is {quoted(text, _SHOWN)}"
    fields = [field.strip() for field in text.split(fmt.delimiter)]
    if any(field[:1] and field[0] in _CURLY for field in fields):
        straight = "".join(f's/{mark}/"/g;' for mark in _CURLY if mark in text)
        command = f"sed '{straight}' {shlex.quote(str(path))} > OUT.csv"
        return f"{seen}: its quotes are curly, but a CSV's are straight; replace them: {command}"
    if text.rstrip().endswith(fmt.delimiter.strip() or fmt.delimiter) and text.count(fmt.delimiter) >= len(fmt.header):
        return f'{seen}: drop the last {name}; or, if one of its cells contains a {name}, quote that cell: "like, this"'
    return f"{seen}; {QUOTE_IT}"
