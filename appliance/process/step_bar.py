"""The bar that console.Steps draws: it fits into one line of the terminal, however narrow, also while it is resized.

The title, the count and the ETA always stay. What a note has at its end goes first, then the bar gets shorter.
"""

from __future__ import annotations

from rich.cells import cell_len
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, Task, TextColumn, TimeRemainingColumn
from rich.progress_bar import ProgressBar
from rich.table import Column
from rich.text import Text

BAR, SHORTEST_BAR = 24, 6  # columns
REMAINING = len("00:00:00")
BETWEEN_PARTS = "  "  # of a note


def step_bar(console: Console) -> Progress:
    """A bar on a terminal, nothing elsewhere. Each task has a field `note`."""
    return Progress(
        TextColumn("{task.description}", table_column=_column()),
        _Bar(console),
        MofNCompleteColumn(table_column=_column()),
        _Note(console),
        TextColumn("ETA", table_column=_column()),
        TimeRemainingColumn(table_column=_column()),
        console=console,
        transient=True,
        disable=not console.is_terminal,
    )


def note_that_fits(note: str, columns: int) -> str:
    """The note without the last of its parts, if it is wider than `columns`; at least the first one stays."""
    parts = note.split(BETWEEN_PARTS)
    while len(parts) > 1 and cell_len(BETWEEN_PARTS.join(parts)) > columns:
        parts.pop()
    return BETWEEN_PARTS.join(parts)


def _column() -> Column:
    return Column(no_wrap=True)


def _room(console: Console, task: Task) -> int:
    """Columns for the bar and the note together."""
    count = 2 * len(str(int(task.total or 0))) + 1
    return console.width - cell_len(task.description) - count - len("ETA") - REMAINING - 5  # one between two of six


class _Note(TextColumn):
    def __init__(self, console: Console) -> None:
        super().__init__("", table_column=Column(no_wrap=True, overflow="ellipsis"))
        self._console = console

    def render(self, task: Task) -> Text:
        return Text(note_that_fits(task.fields["note"], _room(self._console, task)))


class _Bar(BarColumn):
    def __init__(self, console: Console) -> None:
        super().__init__(table_column=_column())
        self._console = console

    def render(self, task: Task) -> ProgressBar:
        """Its width is what the note leaves; below SHORTEST_BAR it is not drawn."""
        room = _room(self._console, task)
        self.bar_width = min(BAR, room - cell_len(note_that_fits(task.fields["note"], room)))
        drawn = super().render(task)
        return drawn if self.bar_width >= SHORTEST_BAR else Text("")  # type: ignore[return-value]
