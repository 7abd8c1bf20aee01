"""How a CSV is written: encoding, delimiter, quoting, and the role of each column.

`rows/header.py` knows the columns' names; `rows/csv_file.py` decides whether a row is usable. Exports of
databases and of spreadsheets from any country are understood without settings; `describe` reports what was detected.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from appliance.errors import DataError
from appliance.rows import charset
from appliance.rows.cell_text import AS_TYPED, CellText
from appliance.rows.charset import Encoding, open_bytes, open_lines
from appliance.rows.header import DELIMITERS, OPTIONAL, Header, column_of, header_of, trimmed
from appliance.rows.in_messages import shown
from appliance.rows.records import Quoting, records

_QUOTINGS: dict[Quoting, str] = {
    "double": "double quotes",
    "backslash": r"quotes escaped as \"",
    "literal": "no quoting",
}
_TRIAL_RECORDS = 1000
_SHOWN = 10  # columns named that are not read


@dataclass(frozen=True)
class CsvFormat:
    """How to read one file; instruction to side are column indexes."""

    encoding: Encoding
    delimiter: str
    header: tuple[str, ...]
    instruction: int
    input: int | None
    output: int
    group: int | None
    side: int | None = None
    system: int | None = None
    history: int | None = None
    tools: int | None = None
    answer_start: int | None = None
    in_input: bool = False  # whether answers stand in the input, or are empty
    names_class: bool = False  # whether outputs are classes (tasks/classify.py), written alike if they are the same
    quoting: Quoting = "double"
    cells: CellText = AS_TYPED
    header_line: int = 1  # the physical line where the header begins
    is_named: bool = False  # whether a line `sep=…` names the delimiter
    aliased: tuple[str, ...] = ()  # roles whose column was recognised only by a common name

    def describe(self) -> str:
        """One line for the console: UTF-8, comma, double quotes, instruction from 'Q', output from 'A'."""
        return f"{self.describe_text()}, {self.describe_columns()}"

    def describe_text(self) -> str:
        """UTF-8, comma, double quotes."""
        delimiter = DELIMITERS.get(self.delimiter, shown(self.delimiter)) + " (as `sep=` says)" * self.is_named
        parts = [self.encoding.describe(), delimiter, _QUOTINGS[self.quoting]]
        parts += [f"header in line {self.header_line}"] * (self.header_line > 1)
        return ", ".join(parts + self.cells.describe())

    def describe_columns(self) -> str:
        """instruction from 'Q', output from 'A' (both recognised by a common name); not read: 'topic'."""
        used = [f"{role} from {self.column(role)}" for role in ROLES if self._index(role) is not None]
        guess = f" ({' and '.join(self.aliased)} recognised by a common name)" if self.aliased else ""
        read = {self._index(role) for role in ROLES}
        others = [shown(name) for i, name in enumerate(self.header) if i not in read and trimmed(name)]
        more = f" and {len(others) - _SHOWN} more" if len(others) > _SHOWN else ""
        return ", ".join(used) + guess + (f"; not read: {', '.join(others[:_SHOWN])}{more}" if others else "")

    def column(self, role: str) -> str:
        """The name of this role's column, quoted."""
        index = self._index(role)
        return shown(self.header[index]) if index is not None else shown(role)

    def _index(self, role: str) -> int | None:
        found: int | None = getattr(self, role)
        return found


ROLES = ("instruction", "input", "output", "answer_start", "system", "history", "tools", "group", "side")


def sniff(
    path: Path,
    columns: Mapping[str, str | None],
    group_by: str | None,
    *,
    with_side: bool = False,
    in_input: bool = False,
    codec: str | None = None,
    quoting: Quoting | None = None,
    cells: CellText = AS_TYPED,
    header_line: int | None = None,
) -> CsvFormat:
    """Encoding, delimiter, quoting and columns of the CSV.

    Args:
        path: the CSV.
        columns: instruction, input, output -> name in the header; the other roles only if given.
        group_by: name of the column that groups rows.
        with_side: the file must have a column `side`.
        in_input: answers stand in the input, which has to be there; rows with the same input are one group.
        codec: the encoding, if it is given and not detected.
        quoting: the same for quoting.
        cells: what is changed in the text of a cell.
        header_line: the line of the header, if it is given.

    The delimiter is the one under which most wanted columns are found in the header. That beats judging by regularity,
    which picks the comma or the pipe inside the cells if the prose is regular (clevercsv does, for two rows of
    "a, b, c?<tab>d, e, f" and of "a|b|c,d|e|f"), and it needs no sample. Raises DataError: no such file, empty, another
    kind of file, an unclear encoding, no row below the header, a wanted column that is missing or ambiguous.
    """
    found_encoding = charset.detect(path) if codec is None else charset.known(codec)
    wanted: dict[str, str] = {}
    for role in ("instruction", "input", "output"):
        name = columns.get(role, role)
        wanted |= {role: name} if name is not None else {}
    wanted |= {
        role: name for role in ("system", "history", "tools", "answer_start") if (name := columns.get(role)) is not None
    }
    wanted |= {"group": group_by} if group_by is not None else {}
    wanted |= {"side": "side"} if with_side else {}
    header = header_of(path, found_encoding.codec, wanted, header_line)
    found = {role: column_of(path, header, role, wanted) for role in wanted}
    roles = {role: found[role][0] if role in found else None for role in ROLES}
    for role in OPTIONAL:
        if wanted.get(role) == role and roles[role] in (roles["instruction"], roles["output"]):
            roles[role] = None  # a column `input` that the recipe names for the question is not also its context
    instruction, output = roles["instruction"], roles["output"]
    assert instruction is not None
    assert output is not None
    if len({instruction, output, roles["input"]}) < 3:
        raise DataError(
            f"{path}: instruction, input and output need a column each; data.columns is {dict(columns)}",
            hint="a file without inputs needs no data.columns.input",
        )
    if in_input and roles["input"] is None:
        raise DataError(
            f"{path}: no column {shown(columns.get('input') or 'input')} with the text that answers stand in",
            hint="name it with --set data.columns.input=NAME",
        )
    return CsvFormat(
        encoding=found_encoding,
        delimiter=header.delimiter,
        header=header.names,
        instruction=instruction,
        input=roles["input"],
        output=output,
        group=roles["input"] if in_input else roles["group"],
        side=roles["side"],
        system=roles["system"],
        history=roles["history"],
        tools=roles["tools"],
        answer_start=roles["answer_start"],
        in_input=in_input,
        quoting=quoting or _quoting(path, found_encoding.codec, header),
        cells=cells,
        header_line=header.line,
        is_named=header.is_named,
        aliased=tuple(role for role in ROLES if role in found and found[role][1] and roles[role] is not None),
    )


def _quoting(path: Path, codec: str, header: Header) -> Quoting:
    """How quotes are written. Other readings are tried only if the plain one may fail, so they usually cost nothing.

    The plain one stays unless another reads the whole file, and more regularly. Only tab-separated files can be without
    quoting: elsewhere an unclosed quote is a mistake that no other reading should hide.
    """
    if not _is_suspicious(path, codec, header):
        return "double"
    best: Quoting = "double"
    fewest = _irregular(path, codec, header, best)
    others: list[Quoting] = ["backslash", "literal"] if header.delimiter == "\t" else ["backslash"]
    for quoting in others:
        if fewest == 0:
            break
        irregular = _irregular(path, codec, header, quoting)
        if irregular is not None and (fewest is None or irregular < fewest):
            best, fewest = quoting, irregular
    return best


def _is_suspicious(path: Path, codec: str, header: Header) -> bool:
    r"""Whether `\"` occurs, quotes do not pair, or the first records cannot be read or are ragged."""
    quotes, tail, zeros = 0, b"", codec.startswith(("utf-16", "utf-32"))
    with open_bytes(path) as stream:
        while chunk := stream.read(charset.CHUNK):
            chunk = chunk.replace(b"\0", b"") if zeros else chunk
            if b"\\" in tail + chunk and b'\\"' in tail + chunk:  # the first test is five times as fast
                return True
            quotes += chunk.count(b'"')
            tail = chunk[-1:]
    return quotes > 0 and (quotes % 2 == 1 or bool(_irregular(path, codec, header, "double", _TRIAL_RECORDS) != 0))


def _irregular(path: Path, codec: str, header: Header, quoting: Quoting, limit: int | None = None) -> int | None:
    """How many records of the file (of `limit` at most) are ragged under this quoting; None if it cannot read them.

    For `literal` also None if more cells are wrapped in quotes than merely begin with one.
    """
    ragged = wrapped = begun = 0
    with open_lines(path, codec) as lines:
        try:
            below = islice(lines, header.line - 1, None)
            for _, cells in islice(records(path, below, header.delimiter, quoting), limit):
                ragged += len(cells) != len(header.names) and any(cell.strip() for cell in cells)
                if quoting == "literal":
                    quoted = [cell for cell in cells if cell.startswith('"')]
                    closed = sum(len(cell) > 1 and cell.rstrip("\r\n").endswith('"') for cell in quoted)
                    wrapped, begun = wrapped + closed, begun + len(quoted) - closed
        except DataError:
            return None
    return None if wrapped > begun else ragged
