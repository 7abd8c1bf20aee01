"""Whether a child process that transfers files makes progress, as its parent sees it.

xet's native code reads and writes by itself, beyond the clocks of `client`: all that is known of it is how many bytes
it has counted. So they buy time as those of an exchange do (process/exchange.py): what trickles runs out of time like
what stands still.
"""

from __future__ import annotations

import time
from collections import Counter

from appliance.process.exchange import Clock


class Watch:
    """The clock over one transfer: `seconds`, full again after a sign of life, and filled by bytes in between.

    It ends after at most (signs of life + 1) * seconds + counters * most / rate.

    Args:
        seconds: how long nothing may move, and the most that bytes can put in store.
        rate: bytes per second below which the clock runs out.
        most: bytes that the transfer can have; what a counter shows beyond them buys no time.
    """

    def __init__(self, seconds: float, rate: float, most: int) -> None:
        self._clock = Clock(seconds)
        self._rate, self._most = rate, most
        self._reached: Counter[str] = Counter()
        self._last_news = time.monotonic()

    def sign(self) -> None:
        """A sign of life, of which there is a bounded number: a request was begun, a piece of an exchange arrived."""
        self._last_news = time.monotonic()
        self._clock.wind_up()

    def reached(self, counter: str, total: int) -> None:
        """`counter`, such as "received", stands at `total` bytes; it may fall behind if a file is begun again."""
        before = self._reached[counter]
        if total > before:
            self._reached[counter] = total
            self._last_news = time.monotonic()
            self._clock.moved(min(total, self._most) - min(before, self._most), self._rate)

    @property
    def seconds_left(self) -> float:
        return max(self._clock.seconds_left, 0.0)

    def trouble(self) -> str:
        """Empty while there is time; then what the transfer did, after "the download"."""
        if self._clock.seconds_left > 0:
            return ""
        if time.monotonic() - self._last_news >= self._clock.seconds:
            return f"stalled for {self._clock.seconds:.0f} s"
        return f"was slower than {self._rate:,.0f} bytes/s for {self._clock.seconds:.0f} s"
