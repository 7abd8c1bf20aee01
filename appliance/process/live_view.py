"""What is redrawn at the bottom of a terminal while a run works: its stages, and the loop that is under way.

Messages appear above it. Without a terminal, or on one that cannot move its cursor (TERM=dumb), nothing is drawn.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.text import Text

from appliance.process.eta import clock_face
from appliance.process.sparkline import ASCII_LEVELS, LEVELS

_PER_SECOND = 4  # redraws: each takes the interpreter away from training
_LEAST_HEIGHT = 8  # lines of a terminal: with fewer, only the loop's own line is shown


def redraws(console: Console) -> bool:
    """Whether anything can be drawn again in place."""
    return console.is_terminal and not console.is_dumb_terminal


def levels(console: Console) -> str:
    """The letters of a sparkline."""
    return LEVELS if console.encoding.lower().startswith("utf") else ASCII_LEVELS


class Stages:
    """The stages of a run in order, each with its seconds once it is done."""

    def __init__(self, names: Sequence[str], clock: Callable[[], float] = time.monotonic) -> None:
        self._seconds: dict[str, float | None] = dict.fromkeys(names)
        self._clock, self.current, self._began = clock, "", 0.0

    def begin(self, name: str) -> None:
        self.current, self._began = name, self._clock()

    def end(self, name: str, seconds: float) -> None:
        """It is done, now or in an earlier call of the command, and took `seconds`."""
        self._seconds[name] = seconds
        self.current = "" if self.current == name else self.current

    def line(self, width: int) -> Text:
        """The current stage and those to come; of those that are done, the last ones that have room."""
        texts = []
        for name, seconds in self._seconds.items():
            if name == self.current:
                texts.append((f"{name} {clock_face(self._clock() - self._began)}", "bold"))
            elif seconds is not None:
                texts.append((f"{name} {clock_face(seconds)}", ""))
            else:
                texts.append((name, "dim"))
        while len(texts) > 1 and sum(len(text) + 2 for text, _ in texts) - 2 > width:
            texts.pop(0 if texts[0][1] == "" else -1)
        line = Text(no_wrap=True, overflow="ellipsis")
        for number, (text, style) in enumerate(texts):
            line.append("  " if number else "").append(text, style=style)
        return line


class LiveView:
    """The region at the bottom of `console`. One for a terminal: what is shown within another is shown in that one."""

    def __init__(self) -> None:
        self._live: Live | None = None
        self._parts: list[Callable[[int], RenderableType]] = []

    @contextmanager
    def showing(self, console: Console, part: Callable[[int], RenderableType]) -> Iterator[None]:
        """`part` (of a width) is drawn below what is drawn already, again and again, until the block ends."""
        self._parts.append(part)
        opened = None
        if self._live is None and redraws(console):
            opened = self._live = Live(
                get_renderable=lambda: self._drawn(console),
                console=console,
                refresh_per_second=_PER_SECOND,
                transient=True,
            )
            opened.start()
        try:
            yield
        finally:
            self._parts.remove(part)
            if opened:
                self._live = None
                opened.stop()

    def refresh(self) -> None:
        """Draws at once."""
        if self._live:
            self._live.refresh()

    def _drawn(self, console: Console) -> RenderableType:
        parts = self._parts if console.height >= _LEAST_HEIGHT else self._parts[-1:]
        return Group(*(part(console.width) for part in parts))
