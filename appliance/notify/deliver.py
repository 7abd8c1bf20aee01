"""Has a child process check addresses and send messages: it imports Apprise, and is ended when its time is over.

The addresses go to it on standard input. What comes back is a number and one of a few sentences for each, so that no
text that a library makes of an address is ever shown.
"""

from __future__ import annotations

import importlib.util
import os
import queue
import re
import subprocess
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict
from typing import IO

from appliance.errors import RecipeError
from appliance.findings import Finding
from appliance.notify.message import Message
from appliance.process import child, known_secrets
from appliance.recipe.notify_addresses import service
from appliance.wording import counted

INSTALL = "pip install -c constraints.txt '.[notify]'; the image has it"
SECONDS_TO_SEND = 30.0  # to all addresses at once; three of them start Python and load Apprise, more on a busy machine
SECONDS_TO_CHECK = 60.0
UNKNOWN, UNREACHABLE, REFUSED = "unknown", "unreachable", "refused"  # what the child tells, or a status of HTTP
_IN_WORDS = {
    UNKNOWN: "Apprise does not know such an address",
    UNREACHABLE: "the service cannot be reached",
    REFUSED: "the service did not take it",
}


def findings(addresses: Sequence[str]) -> list[Finding]:
    """For `check`: whether notifications could be sent. Sends nothing. Raises RecipeError: an address is malformed."""
    if not addresses:
        return []
    services = f"{counted(len(addresses), 'address', 'addresses')} ({', '.join(map(service, addresses))})"
    if importlib.util.find_spec("apprise") is None:
        return [Finding("notify", "apprise is not installed", f"it sends to {services}", "fails", INSTALL)]
    try:
        troubles = _troubles({"addresses": list(addresses), "message": None}, len(addresses), SECONDS_TO_CHECK)
    except OSError as error:
        troubles = [f"no process for it: {error.strerror}"]
    unknown = [number for number, trouble in enumerate(troubles) if trouble == _IN_WORDS[UNKNOWN]]
    if unknown:
        named = ", ".join(f"address {n + 1} of {len(addresses)} ({service(addresses[n])}://…)" for n in unknown)
        raise RecipeError(
            f"notify: {named}: {_IN_WORDS[UNKNOWN]}: another service was expected, or a part of it is missing",
            hint="Apprise's documentation shows the addresses of each service; docs/notify.md has examples",
        )
    if unsure := next(filter(None, troubles), ""):
        return [Finding("notify", f"{services} could not be checked: {unsure}", "", "warning", "try it again")]
    return [Finding("notify", services, "", "ok")]


def send(message: Message, addresses: Sequence[str], seconds: float = SECONDS_TO_SEND) -> list[str]:
    """Sends it to all addresses at once. Returns a sentence for each address that did not get it.

    Raises nothing but Interrupted: a signal came while it waited.
    """
    if importlib.util.find_spec("apprise") is None:
        return ["notifications were not sent: apprise is not installed"]
    try:
        troubles = _troubles({"addresses": list(addresses), "message": asdict(message)}, len(addresses), seconds)
    except OSError as error:  # no process, or no memory for one
        troubles = [f"no process for it: {error.strerror}"] * len(addresses)
    return [
        f"notification {number} of {len(addresses)} ({service(address)}) was not sent: {trouble}"
        for number, (address, trouble) in enumerate(zip(addresses, troubles, strict=True), 1)
        if trouble
    ]


def _troubles(job: Mapping[str, object], count: int, seconds: float) -> list[str]:
    """For each address its trouble, in words; empty if there was none. Raises OSError: no process can be started."""
    ends, told = time.monotonic() + seconds, dict[int, str]()
    environ = known_secrets.without(os.environ)  # it keeps the address of a proxy, which it may need
    with child.started("appliance.notify.deliver_child", job, environ) as process:
        for line in _lines_until(process, ends):
            message = child.message_in(line) or {}
            number, trouble = message.get("address"), message.get("trouble")
            if isinstance(number, int) and isinstance(trouble, str):
                told[number] = trouble and _IN_WORDS.get(trouble, _status(trouble))
            if len(told) == count:
                break
    silent = "its process ended too early" if time.monotonic() < ends else f"no answer within {seconds:.0f} s"
    return [told.get(number, silent) for number in range(count)]


def _status(trouble: str) -> str:
    return f"the service answered {trouble}" if re.fullmatch(r"[1-5]\d\d", trouble) else _IN_WORDS[REFUSED]


def _lines_until(process: subprocess.Popen[bytes], ends: float) -> Iterator[bytes]:
    """What the child writes on standard output, until it ends or its time is over. The rest nobody reads."""
    lines: queue.Queue[bytes | None] = queue.Queue()
    assert process.stdout
    assert process.stderr
    threading.Thread(target=_listen, args=(process.stdout, lines), daemon=True).start()
    threading.Thread(target=_listen, args=(process.stderr, queue.Queue()), daemon=True).start()
    while (left := ends - time.monotonic()) > 0:
        try:
            line = lines.get(timeout=left)
        except queue.Empty:
            return
        if line is None:
            return
        yield line


def _listen(stream: IO[bytes], lines: queue.Queue[bytes | None]) -> None:
    with suppress(ValueError):  # closed in the meantime: nobody listens any more
        for line in child.lines_of(stream):
            lines.put(line)
    lines.put(None)
