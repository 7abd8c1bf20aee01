"""How long a loop still takes, from what has been done since it began; None rather than a wrong number. Pure.

A batch of answers may take minutes, and the next one longer or shorter: until the first is done nothing is known, and
what is known is corrected while one takes longer than expected. Pauses (an evaluation between two steps of training)
count for themselves: a loop that says how many are to come has them in its estimate.
"""

from __future__ import annotations

import time
from collections.abc import Callable


class Eta:
    """`done` of `total` were done before it began: after a resume. All times in seconds, as `clock` gives them.

    `warms_up`: the first one says nothing about the others, as in training, whose first step compiles kernels.
    `side_by_side`: several are done at once, so that some end together and the next ones much later.
    """

    def __init__(
        self,
        total: int,
        *,
        done: int = 0,
        warms_up: bool = False,
        side_by_side: bool = False,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._every_one_counts = side_by_side
        self._clock, self._total, self._done, self._warms_up = clock, total, done, warms_up
        self._marked = clock()  # everything until then is accounted for
        self._chunks = 0  # how often more was done
        self._first = (0, 0.0)  # what the first of them did, and its seconds: it also compiles, allocates, fills caches
        self._count, self._worked = 0, 0.0  # the same for all
        self._last = 0  # what the last one did
        self._pauses, self._paused = 0, 0.0
        self._in_pause = False
        self._pauses_left = 0

    def reach(self, done: int, *, pauses_left: int = 0) -> None:
        """`done` of the total are done; `pauses_left` pauses are to come before the end."""
        now = self._clock()
        more, self._done = done - self._done, done
        if more > 0:
            self._last = more
            self._count, self._worked = self._count + more, self._worked + now - self._marked
            self._chunks += 1
            if self._chunks == 1:
                self._first = self._count, self._worked
            self._marked = now
            self._in_pause = False
        self._pauses_left = pauses_left

    def pause(self) -> None:
        """What happened since the last call was no part of the loop."""
        now = self._clock()
        self._pauses += not self._in_pause
        self._paused += now - self._marked
        self._in_pause, self._marked = True, now

    def seconds(self) -> float | None:
        """Until all is done; None if that is not known."""
        left = self._total - self._done
        if left <= 0:
            return 0.0
        if self._chunks < (2 if self._warms_up else 1):
            return None
        rate = self._rate(0, 0.0)
        chunk = min(self._last, left)
        spent = self._clock() - self._marked  # on the chunk that is under way, or on a pause that is not reported
        if spent <= rate * chunk:
            return rate * left - spent + self._pauses_to_come()
        if left == chunk:  # the last one takes longer than those before: how much longer, nobody knows
            return None
        return self._rate(chunk, spent) * (left - chunk) + self._pauses_to_come()

    def _rate(self, more: int, seconds: float) -> float:
        """Seconds for each, if `more` are done in `seconds`; without the first chunk once there are others."""
        count, worked = (0, 0.0) if self._chunks < 2 or self._every_one_counts else self._first
        return (self._worked - worked + seconds) / (self._count - count + more)

    def _pauses_to_come(self) -> float:
        return self._pauses_left * self._paused / self._pauses if self._pauses else 0.0


def clock_face(seconds: float | None) -> str:
    """Of constant width up to a day, so that a line does not jump.

    >>> clock_face(754.2), clock_face(None)
    ('0:12:34', '-:--:--')
    """
    if seconds is None:
        return "-:--:--"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}"
