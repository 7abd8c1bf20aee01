"""Imports without the garbage collector."""

from __future__ import annotations

import gc
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext, suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from appliance.base_model import demo
from appliance.engines import choose
from appliance.machine.device import Device
from appliance.pipeline import stages
from appliance.process import imports
from appliance.release import reload
from appliance.tasks import causal
from appliance.weights import proof_child


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


NO_JOB: Any = SimpleNamespace(engine=None)  # what follows the import fails on it


@pytest.mark.parametrize(
    ("imports_it", "module"),
    [
        (lambda: choose.load_engine("transformers", Device("cpu", "", 0, "float32"), Path(), causal.TASK),
         "appliance.engines.transformers"),
        (lambda: stages.train(NO_JOB, Path()), "appliance.pipeline.train"),
        (lambda: demo._write_base(Path(), 0, -1, NO_JOB), "torch"),
        (lambda: proof_child._import_libraries(), "torch"),
        (lambda: reload._look(Path("nowhere"), {}), "transformers"),
    ],
)  # fmt: skip
def test_what_takes_seconds_to_import_is_imported_so(
    imports_it: Callable[[], object], module: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []

    def uncollected(module: str) -> AbstractContextManager[None]:
        asked.append(module)
        return nullcontext()

    monkeypatch.setattr(imports, "uncollected", uncollected)
    with suppress(AttributeError, TypeError, OSError):
        imports_it()
    assert asked == [module]
