"""Imports without the garbage collector."""

from __future__ import annotations

import gc
from contextlib import suppress

import pytest

from appliance.process import imports


def test_what_an_import_leaves_is_not_collected_and_the_collector_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    states = []
    monkeypatch.setattr(imports.gc, "freeze", lambda: states.append(gc.isenabled()))  # of this process: never undone
    with suppress(ImportError), imports.uncollected("nothing_of_this_name"):
        states.append(gc.isenabled())
        raise ImportError
    assert [*states, gc.isenabled()] == [False, False, True]


def test_a_second_time_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(imports.gc, "freeze")
    with imports.uncollected("gc"):
        assert gc.isenabled()
    gc.disable()
    try:
        with imports.uncollected("nothing_of_this_name"):
            pass
        assert not gc.isenabled()
    finally:
        gc.enable()
