"""What can be made to go wrong, and when. Decides; `server` carries it out."""

from __future__ import annotations

import re
import threading
from dataclasses import dataclass, field

KINDS = ("status", "drop", "lose_reply", "delay", "hang", "revoke", "throttle", "flip")
KINDS += ("trickle", "flood", "bomb", "reply", "headers", "mutate")


@dataclass
class Fault:
    """One order to fail.

    When: on requests whose "METHOD /path?query", with " (anonymous)" behind it if there is no token, `match` finds,
    from number `at` on (the log's `index`) if given,
    skipping the first `nth` - 1 of them, and then `times` times (0: always). With `onwards`, also on every request
    after the first that met it, whatever its line. The client sends up to five LFS files at a time: for the same
    numbers in every run, upload with one thread or one such file. A client that repeats a call because this machine
    was slow shifts the numbers of those after it: name a call by `match` and `nth` if the fault must meet no other.

    What, by `kind`:
    status      reply `status` with `headers`, X-Error-Message `message`; nothing is done unless `executed`
    drop        abort the connection after `request_bytes` of the body; or, with `response_bytes`, do what was
                asked and abort after that many bytes of the reply's body
    lose_reply  do what was asked, then abort without a byte of reply
    delay       wait `seconds`, then continue as usual
    hang        wait until released (or `seconds`, if given), then abort; what was asked is done first if `executed`
    revoke      revoke the token `token_name` (default: the request's own) after `request_bytes` of the body
    throttle    read and send at `rate` bytes per second
    flip        invert one byte in the middle of the body, of the reply's if `response`
    trickle     do what was asked and send the reply, its head included, a byte every `seconds`
    flood       reply with `size` zeros in chunks, however few bytes were asked for
    bomb        reply with a gzip body that unpacks to `size` zeros
    reply       reply `status` with `headers` and the text `body`, and do nothing
    headers     wait `seconds` and do what was asked, with these `headers` in the reply; {index} in them is the
                request's number
    mutate      answer otherwise: one change to the JSON or to a header, drawn from `seed`
    """

    kind: str
    match: str = ""
    at: int | None = None
    nth: int = 1
    times: int = 1
    onwards: bool = False
    status: int = 500
    headers: dict[str, str] = field(default_factory=dict)
    message: str = ""
    executed: bool = False
    request_bytes: int = 0
    response_bytes: int | None = None
    seconds: float | None = None
    token_name: str = ""
    rate: int = 0
    response: bool = False
    size: int = 300_000_000
    body: str = ""
    seed: int = 0
    # what has happened so far
    seen: int = 0
    fired: int = 0
    released: threading.Event = field(default_factory=threading.Event, repr=False)

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ValueError(f"fault kind {self.kind!r}: expected one of {', '.join(KINDS)}")
        re.compile(self.match)


class Faults:
    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._all: list[Fault] = []

    def add(self, fault: Fault) -> None:
        with self._lock:
            self._all.append(fault)

    def clear(self) -> None:
        """Forget every fault and release hanging requests."""
        with self._lock:
            faults, self._all = self._all, []
        for fault in faults:
            fault.released.set()

    def take(self, line: str, index: int) -> Fault | None:
        """The fault that request `line` meets, the first of those that apply."""
        with self._lock:
            for fault in self._all:
                has_begun = fault.onwards and fault.fired > 0
                if not has_begun and ((fault.at or 0) > index or not re.search(fault.match, line)):
                    continue
                if fault.times and fault.fired >= fault.times:
                    continue
                fault.seen += 1
                if fault.seen >= fault.nth:
                    fault.fired += 1
                    return fault
        return None

    def fired(self) -> int:
        with self._lock:
            return sum(fault.fired for fault in self._all)
