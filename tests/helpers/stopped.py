"""A training that a signal stops at a certain step, in this process."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from appliance.errors import Interrupted
from appliance.process import signals
from appliance.training.task_trainer import TaskTrainer


@contextmanager
def stopped_at(
    step: int, monkeypatch: pytest.MonkeyPatch, look: Callable[..., None] = lambda *_, **__: None
) -> Iterator[None]:
    """SIGTERM arrives while the step after `step` is computed; the block has to end with its step's checkpoint.

    `look` is called before each step, as its method.
    """
    computed, sent = TaskTrainer.training_step, list[int]()

    def stops(self: Any, *args: Any, **kwargs: Any) -> Any:
        look(self, *args, **kwargs)
        if self.state.global_step == step and not sent:
            sent.append(signal.SIGTERM)
            os.kill(os.getpid(), signal.SIGTERM)
        return computed(self, *args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(TaskTrainer, "training_step", stops)
        with pytest.raises(Interrupted, match=f"after step {step + 1}; it is saved"):
            yield
    signals.forget()  # what continues is another process
