"""Texts beside each other in columns, as they grow; below each other where a terminal is too narrow for that.

>>> view = SideBySide(screen.on_stdout(), ("base", "tuned"))
>>> with view:
...     view.write(0, "모르겠습")
...     view.write(0, "니다.")
...     view.write(1, "만원입니다.")
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from types import TracebackType

from rich import box
from rich.console import Console
from rich.live import Live
from rich.table import Table
from rich.text import Text

from appliance.process import live_view, redact
from appliance.process.terminal import printable

LEAST_COLUMNS = 80  # of a terminal: each of two texts has 36 then, 18 letters of Korean
_SECONDS = 0.1  # between two drawings


class SideBySide:
    """Text number i is below `titles[i]`. A context manager; at its end everything is written, to stay."""

    def __init__(self, console: Console, titles: Sequence[str]) -> None:
        self._console, self._titles = console, titles
        self._texts = [""] * len(titles)
        self._begun: int | None = None  # below each other: the text that is being written
        self._drawn, self._live = 0.0, None if self._is_narrow else self._new_live()

    @property
    def _is_narrow(self) -> bool:
        return not self._console.is_terminal or self._console.width < LEAST_COLUMNS

    def _new_live(self) -> Live | None:
        if not live_view.redraws(self._console):
            return None
        return Live(console=self._console, auto_refresh=False, transient=True)

    def __enter__(self) -> SideBySide:
        if self._live is not None:
            self._live.start()
        return self

    def write(self, number: int, text: str) -> None:
        """Adds to a text. Where they are below each other, one is complete before the next begins."""
        self._texts[number] += text
        if self._is_narrow:
            self._begin(number)
            self._out(printable(text))
        elif self._live is not None and time.monotonic() - self._drawn > _SECONDS:
            self._live.update(self._table(), refresh=True)
            self._drawn = time.monotonic()

    def _begin(self, number: int) -> None:
        """Writes the title above a text, and above each that got none."""
        while self._begun is None or self._begun < number:
            above = "" if self._begun is None else "\n\n"
            self._begun = 0 if self._begun is None else self._begun + 1
            self._out(above)
            self._console.print(Text(f"{self._titles[self._begun]}:", style="bold"))

    def _out(self, text: str) -> None:
        """As it is: rich would break lines, and hold an unfinished one back."""
        self._console.file.write(text)
        self._console.file.flush()

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if self._live is not None:
            self._live.stop()
        if self._is_narrow:
            if kind is None:
                self._begin(len(self._titles) - 1)
            self._out("\n")
        elif any(self._texts):
            self._console.print(self._table(), soft_wrap=False)

    def _table(self) -> Table:
        width = self._console.width - len("^C")  # which a terminal writes where the cursor is: no line may become two
        table = Table(box=box.MINIMAL, header_style="bold", width=width, padding=(0, 1), pad_edge=False)
        for title in self._titles:
            table.add_column(Text(title), ratio=1, overflow="fold")
        # masked as a whole: a table folds a long token over two lines
        table.add_row(*(Text(printable(redact.without_tokens(text))) for text in self._texts))
        return table
