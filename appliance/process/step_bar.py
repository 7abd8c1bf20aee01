"""The line of console.Steps: title, bar, count, note, ETA. It fits into one line of the terminal, however narrow.

The count and the ETA always stay. What a note has at its end goes first, then the bar gets shorter, then the title.
"""

from __future__ import annotations

from collections.abc import Sequence

from rich.cells import cell_len
from rich.console import Group, RenderableType
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from appliance.process.eta import clock_face
from appliance.process.sparkline import sparkline
from appliance.process.tables import fitting

BAR, SHORTEST_BAR = 24, 6  # columns
SPARK, SHORTEST_SPARK = 24, 4
BETWEEN_PARTS = "  "  # of a note


def bar_line(width: int, title: str, done: int, total: int, note: str, eta: float | None) -> RenderableType:
    """`eta`: seconds, or None if not known."""
    count, left = f"{done:>{len(str(total))}}/{total}", f"ETA {clock_face(eta)}"
    room = width - len(count) - len(left) - 2
    title = fitting(title, room)
    room -= cell_len(title) + 1
    note = note_that_fits(note, room)
    bar = min(BAR, room - (cell_len(note) + 1 if note else 0))
    line = Table.grid(padding=(0, 1))
    cells: list[RenderableType] = [Text(title)]
    if bar >= SHORTEST_BAR:
        cells.append(ProgressBar(total=max(total, 1), completed=done if total else 1, width=bar))
    cells += [Text(text) for text in (count, note, left) if text]
    line.add_row(*cells)
    for column in line.columns:
        column.no_wrap = True
    return line


def note_that_fits(note: str, columns: int) -> str:
    """The note without the last of its parts, if it is wider than `columns`; of the first one, what fits."""
    parts = note.split(BETWEEN_PARTS)
    while len(parts) > 1 and cell_len(BETWEEN_PARTS.join(parts)) > columns:
        parts.pop()
    return fitting(BETWEEN_PARTS.join(parts), columns)


class Curve:
    """A name, the last value and the curve of all values, in as many columns as it gets."""

    def __init__(self, name: str, values: Sequence[float]) -> None:
        self._values = values
        self.text = f"{name} {values[-1]:.4f}" if values else f"{name} -"

    def drawn(self, columns: int, levels: str) -> str:
        curve = sparkline(self._values, min(columns, SPARK), levels) if columns >= SHORTEST_SPARK else ""
        return f"{self.text} {curve}".rstrip()


Detail = str | Sequence[Curve]  # a line above the bar: parts like those of a note, or curves side by side


def detail_lines(details: Sequence[Detail], width: int, levels: str) -> Group:
    """One line each."""
    return Group(*(Text(_detail(one, width, levels), no_wrap=True) for one in details if one))


def _detail(detail: Detail, width: int, levels: str) -> str:
    if isinstance(detail, str):
        return note_that_fits(detail, width)
    texts = sum(cell_len(curve.text) + 1 for curve in detail) + len(BETWEEN_PARTS) * (len(detail) - 1)
    each = (width - texts) // len(detail)
    return note_that_fits(BETWEEN_PARTS.join(curve.drawn(each, levels) for curve in detail), width)
