"""How a command on a run ends for whoever is not there: one message to each address, whatever the end was."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from appliance.errors import Interrupted
from appliance.notify import deliver
from appliance.notify import message as notify_message
from appliance.process import console, signals
from appliance.rundir.directory import RunDir


@dataclass
class Notice:
    """`is_due`: false once it is clear that the command has nothing to do, and so nothing to tell."""

    is_due: bool = True


@contextmanager
def told(run_dir: RunDir, until: str, addresses: Sequence[str]) -> Iterator[Notice]:
    """Tells how the block ended; what ended it goes on. A command that only checks tells nothing: its user is there.

    To be entered before what records the end and writes the page. SIGKILL, and the end of the machine, tell nothing.
    """
    notice = Notice()
    try:
        yield notice
    except BaseException as error:
        _tell(run_dir, until, addresses, error)
        raise
    if notice.is_due:
        _tell(run_dir, until, addresses, None)


def _tell(run_dir: RunDir, until: str, addresses: Sequence[str], error: BaseException | None) -> None:
    """Changes nothing about how the command ends: neither its exit code nor what is printed and recorded before."""
    if not addresses or until == "check":
        return
    try:
        for line in deliver.send(notify_message.of_run(run_dir, until, error), addresses):
            console.say(line, style="warning")
    except Interrupted:  # it came while this waited, and there is nothing else left to stop
        signals.forget()
        console.say("notifications that were not sent yet were given up", style="warning")
