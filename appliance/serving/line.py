"""Who is answered when: one at a time, a bounded number waiting in the order in which they came.

Knows asyncio; no model, no HTTP. A turn is given back when the work in its thread has ended, not when whoever asked for
it has left: two answers at a time would need twice the memory.

>>> line = Line(most_waiting=16)
>>> await line.turn(seconds=300)
>>> line.give_back()
"""

from __future__ import annotations

import asyncio
from collections import deque
from contextlib import suppress


class Full(Exception):
    """As many wait as may."""


class TooLong(Exception):
    """The turn did not come in time."""


class Closing(Exception):
    """Nobody's turn comes any more."""


class Line:
    """Must be used from one event loop only."""

    def __init__(self, *, most_waiting: int) -> None:
        self._most_waiting = most_waiting
        self._waiting: deque[asyncio.Future[None]] = deque()
        self._is_taken = self._is_closing = False

    @property
    def waiting(self) -> int:
        return len(self._waiting)

    @property
    def is_taken(self) -> bool:
        """Whether somebody is being answered."""
        return self._is_taken

    @property
    def is_closing(self) -> bool:
        return self._is_closing

    async def turn(self, seconds: float) -> None:
        """Returns when it is the caller's turn. Raises Full, TooLong (after `seconds`), Closing."""
        if self._is_closing:
            raise Closing
        if not self._is_taken:
            self._is_taken = True
            return
        if len(self._waiting) >= self._most_waiting:
            raise Full
        mine = asyncio.get_running_loop().create_future()
        self._waiting.append(mine)
        try:
            async with asyncio.timeout(seconds):
                await mine
        except BaseException as error:
            with suppress(ValueError):
                self._waiting.remove(mine)
            if mine.done() and not mine.cancelled() and mine.exception() is None:
                self.give_back()  # it came while the caller left
            if isinstance(error, TimeoutError):
                raise TooLong from error
            raise

    def give_back(self) -> None:
        """The turn has ended: it is the next one's."""
        while self._waiting:
            following = self._waiting.popleft()
            if not following.done():
                following.set_result(None)
                return
        self._is_taken = False

    def close(self) -> None:
        """Nobody else is let in, and who waits leaves; the one whose turn it is goes on."""
        self._is_closing = True
        while self._waiting:
            following = self._waiting.popleft()
            if not following.done():
                following.set_exception(Closing())
