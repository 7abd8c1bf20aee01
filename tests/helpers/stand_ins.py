"""Trackers that are not installed here, as far as transformers' callbacks use them; they keep every call."""

from __future__ import annotations

import importlib.machinery
import os
import sys
import types
from typing import Any

import pytest

NAMES = ("tensorboard", "trackio", "wandb", "mlflow")


class Recorder:
    """Any attribute is another recorder, and any call is kept: its dotted name, its arguments."""

    def __init__(self, calls: list[tuple[str, str]], name: str, fixed: dict[str, Any]) -> None:
        self._calls, self._name, self._fixed = calls, name, fixed

    def __getattr__(self, attribute: str) -> Any:
        if attribute.startswith("__"):
            raise AttributeError(attribute)
        name = f"{self._name}.{attribute}"
        return self._fixed[name] if name in self._fixed else Recorder(self._calls, name, self._fixed)

    def __setitem__(self, key: str, value: Any) -> None:
        self._calls.append((f"{self._name}[]", repr((key, value))))

    def __call__(self, *args: Any, **named: Any) -> Any:
        self._calls.append((self._name, repr((args, named))))
        if self._name.endswith(".init"):
            self._calls.append(("environment", repr(dict(os.environ))))
        return Recorder(self._calls, f"{self._name}()", self._fixed)


class Package(types.ModuleType):
    """An installed package whose attributes a Recorder answers."""

    def __init__(self, name: str, recorder: Recorder) -> None:
        super().__init__(name)
        self.__spec__ = importlib.machinery.ModuleSpec(name, None)
        self.__path__ = []
        self._recorder = recorder
        self._attributes: dict[str, Any] = {}  # those that change: called for their value

    def __getattr__(self, attribute: str) -> Any:
        if attribute in self._attributes:
            return self._attributes[attribute]()
        return getattr(self._recorder, attribute)


def installed(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str]]:
    """All four are there for the test. Returns what they are told: (dotted name, arguments), in order."""
    calls: list[tuple[str, str]] = []

    def active_run(name: str, begin: str, end: str) -> Recorder | None:
        called = [one for one, _ in calls]
        return Recorder(calls, name, fixed) if called.count(begin) > called.count(end) else None

    fixed: dict[str, Any] = {
        "mlflow.__version__": "3.17.2",
        "mlflow.utils.validation.MAX_PARAM_VAL_LENGTH": 500,
        "mlflow.utils.validation.MAX_PARAMS_TAGS_PER_BATCH": 100,
        "mlflow.active_run": lambda: active_run("mlflow.run", "mlflow.start_run", "mlflow.end_run"),
        "mlflow.is_tracking_uri_set": lambda: False,
        "trackio.context_vars.current_space_id.get": lambda: None,
    }
    for name in (*NAMES, "wandb.sdk", "wandb.sdk.lib", "wandb.sdk.lib.config_util", "torch.utils.tensorboard"):
        package = Package(name, Recorder(calls, name.rpartition(".")[2] if "torch" in name else name, fixed))
        monkeypatch.setitem(sys.modules, name, package)
    sys.modules["wandb"]._attributes["run"] = lambda: active_run("wandb.run", "wandb.init", "wandb.finish")  # type: ignore[attr-defined]
    sys.modules["mlflow"].__version__ = "3.17.2"  # type: ignore[attr-defined]
    sys.modules["wandb.sdk.lib.config_util"].ConfigError = KeyError  # type: ignore[attr-defined]
    return calls
