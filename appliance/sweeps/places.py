"""Which machines get runs: not before one run there has the base model, and not after runs failed for its own reasons.

Pure: knows no Ray. Ray places each run among the machines that it is allowed.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

# Exit codes that may be the machine's fault: it lacks something (a full disk, memory, a GPU), or the kernel killed the
# run, as it does when memory runs out. The same may be the run's own fault.
OF_THE_MACHINE = (4, 137)
_STRIKES = 2  # different runs that failed for such reasons, with none in between that did not


@dataclass
class Places:
    """`waits`: whether the first run on a machine has to fetch the base before others may start there."""

    waits: bool
    _open: set[str] = field(default_factory=set)
    _struck: dict[str, set[str]] = field(default_factory=dict)  # machine -> runs that failed there since one did not
    _excluded: dict[str, str] = field(default_factory=dict)  # machine -> the last reason
    _suspected: dict[str, tuple[str, str]] = field(default_factory=dict)  # run -> machine, reason

    def usable(self, room: Mapping[str, int]) -> dict[str, int]:
        """Those of `room`, machine -> runs at once, that are not excluded; all, if there were none."""
        return {id_: runs for id_, runs in room.items() if id_ not in self._excluded} or dict(room)

    def opened(self, room: Mapping[str, int]) -> dict[str, int]:
        """The usable ones that any run may take place on."""
        return {id_: runs for id_, runs in self.usable(room).items() if not self.waits or id_ in self._open}

    def open(self, place: str) -> None:
        self._open.add(place)

    @property
    def excluded(self) -> Mapping[str, str]:
        """Machine -> why."""
        return self._excluded

    def elsewhere(self, room: Mapping[str, int], run: str) -> frozenset[str]:
        """Where a run may be tried that failed for reasons of its machine: nowhere, if that was its second."""
        place, _ = self._suspected[run]
        return frozenset(self.usable(room)) - {place}

    def ended(self, place: str, run: str, exit_code: int, reason: str) -> str | None:
        """Learns how a run ended. Returns a machine that is excluded from now on, if any."""
        before = self._suspected.get(run)
        if exit_code not in OF_THE_MACHINE:
            self._struck.pop(place, None)
            self._open.add(place)
            return self._exclude(*before) if before and before[0] != place else None
        self._suspected[run] = (place, reason)
        if before:  # it failed in two places: rather the run's own fault
            return None
        struck = self._struck.setdefault(place, set())
        struck.add(run)
        return self._exclude(place, reason) if len(struck) >= _STRIKES else None

    def _exclude(self, place: str, reason: str) -> str | None:
        is_new = place not in self._excluded
        self._excluded[place] = reason
        return place if is_new else None


def selector(places: Iterable[str]) -> dict[str, str]:
    """Ray's label selector for these machines.

    >>> selector(["b", "a"])
    {'ray.io/node-id': 'in(a,b)'}
    """
    return {"ray.io/node-id": f"in({','.join(sorted(places))})"}
