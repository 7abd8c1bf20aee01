"""Which machines get runs."""

from __future__ import annotations

from appliance.sweeps.places import Places

ROOM = {"a": 2, "b": 2}


def test_a_machine_is_opened_once_a_run_there_has_the_base() -> None:
    waits = Places(waits=True)
    assert (waits.opened(ROOM), waits.usable(ROOM)) == ({}, ROOM)
    waits.open("a")
    assert waits.opened(ROOM) == {"a": 2}
    waits.ended("b", "run", 3, "the CSV is wrong")  # it got further than the base
    assert waits.opened(ROOM) == ROOM
    assert Places(waits=False).opened(ROOM) == ROOM


def test_a_machine_that_fails_two_runs_gets_no_more() -> None:
    found = Places(waits=False)
    assert found.ended("a", "one", 4, "disk full") is None
    assert found.elsewhere(ROOM, "one") == {"b"}
    assert found.ended("a", "two", 137, "killed") == "a"
    assert found.usable(ROOM) == {"b": 2}
    assert found.excluded == {"a": "killed"}


def test_a_machine_is_excluded_at_once_if_its_failed_run_goes_well_elsewhere() -> None:
    found = Places(waits=False)
    found.ended("a", "one", 4, "disk full")
    assert found.ended("b", "one", 0, "") == "a"
    assert found.usable(ROOM) == {"b": 2}


def test_a_run_that_fails_on_two_machines_is_at_fault_itself() -> None:
    found = Places(waits=False)
    found.ended("a", "one", 4, "no memory")
    assert found.ended("b", "one", 4, "no memory") is None
    assert found.usable(ROOM) == ROOM


def test_a_success_in_between_clears_a_machine() -> None:
    found = Places(waits=False)
    for run, code in (("one", 4), ("two", 0), ("three", 4)):
        assert found.ended("a", run, code, "") is None
    assert found.usable(ROOM) == ROOM


def test_the_last_machine_is_never_excluded() -> None:
    found = Places(waits=False)
    for run in ("one", "two"):
        found.ended("a", run, 4, "disk full")
    assert found.usable({"a": 2}) == {"a": 2}
    assert found.elsewhere({"a": 2}, "two") == frozenset()
