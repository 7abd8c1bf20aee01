"""What is watched: one look at a time, shared by everybody who watches the same, and only while somebody does.

The next look comes after ten times the processor time of the one before, at least after a second: watching never takes
more than a tenth of a core from the training. Only the newest view is kept: a reader who is slow misses some.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path

from anyio import to_thread

from appliance.web import views
from appliance.web.views import View

PAUSE = 1.0  # seconds between looks, at least
_REST = 10  # times the processor time of a look


class Watched:
    """`look`: what there is to see now; called in a thread, never twice at a time."""

    def __init__(self, look: Callable[[], View]) -> None:
        self._look, self._lock = look, asyncio.Lock()
        self._view: View | None = None
        self._seen_at, self._pause = 0.0, PAUSE
        self._readers = 0

    @property
    def is_idle(self) -> bool:
        """Whether nobody watches."""
        return self._readers == 0

    async def view(self) -> View:
        """What there is to see, as of at most one pause ago; the same object as long as nothing changes."""
        async with self._lock:
            if self._view is None or time.monotonic() - self._seen_at >= self._pause:
                seen, took = await to_thread.run_sync(_timed, self._look)
                self._seen_at, self._pause = time.monotonic(), max(PAUSE, _REST * took)
                if self._view is None or seen != self._view:
                    self._view = seen
            return self._view

    async def views(self) -> AsyncIterator[View]:
        """The view now, and then the newest one whenever it has changed."""
        self._readers += 1
        last: View | None = None
        try:
            while True:
                view = await self.view()
                if view is not last:
                    yield view
                    last = view
                await asyncio.sleep(self._pause)
        finally:
            self._readers -= 1


def _timed(look: Callable[[], View]) -> tuple[View, float]:
    began = time.thread_time()
    return look(), time.thread_time() - began


def run(run_path: Path) -> Callable[[], View]:
    """A look at a run. Its report is made again only if one of its files has changed; its progress, each time."""
    kept: list[object] = [None, None]

    def look() -> View:
        for _ in range(2):  # a file may have been replaced while it was read: then it is whole now
            signed = views.signature(run_path)
            if kept[0] != signed:
                kept[:] = signed, views.report_of(run_path)
            if signed == views.signature(run_path):
                break
        return views.of_run(run_path, kept[1])  # type: ignore[arg-type]

    return look
