"""The tasks by the recipe's name for them: the one list."""

from __future__ import annotations

from importlib import import_module

from appliance.tasks.task import Task

NAMES = (
    "causal",
    "seq2seq",
    "classify",
    "extract",
)  # each a module of this package; the recipe's field `task` allows the same


def named(name: str) -> Task:
    """The task that the recipe, or a file of a run, calls `name`."""
    if name not in NAMES:
        raise ValueError(f"no task is called {name!r}; there are {', '.join(NAMES)}")
    task: Task = import_module(f"appliance.tasks.{name}").TASK
    return task
