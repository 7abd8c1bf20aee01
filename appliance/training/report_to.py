"""Passes the metrics of a training on to trackers, through transformers' own callbacks.

A tracker gets the metrics of each step and evaluation, the trainer's arguments and a few facts about the run: no row,
no answer, no token, no path of this machine. One that fails is given up with a warning; the training goes on.
"""

from __future__ import annotations

import copy
import json
import uuid
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from transformers import TrainerCallback
from transformers.integrations.integration_utils import INTEGRATION_TO_CALLBACK

from appliance.process import console, files, redact
from appliance.training import trackers


class ReportTo:
    """`callbacks` are for the trainer, which trains inside the block; after it, every tracker has been closed.

    `facts`: about the run, for the trackers to show beside its metrics.
    """

    def __init__(self, names: Sequence[str], stage_dir: Path, facts: Mapping[str, Any]) -> None:
        self._folder = stage_dir / trackers.FOLDER
        self.callbacks = [_Tracker(name, stage_dir.parent.name, facts) for name in names]
        self._open = ExitStack()

    def __enter__(self) -> None:
        if self.callbacks:
            self._folder.mkdir(mode=0o700, exist_ok=True)
            run_id = _kept_id(self._folder / "run_id")
            self._open.enter_context(trackers.environment(self._folder, run_id))
            for one in self.callbacks:
                one.run_name = f"{one.run_name}-{run_id}"
                self._open.callback(one.close)

    def __exit__(self, *exc: object) -> None:
        self._open.close()


def _kept_id(path: Path) -> str:
    """What names this training to the trackers, also when it continues; a redo gets another."""
    if not path.is_file():
        files.write_text(path, uuid.uuid4().hex[:8])
    return path.read_text(encoding="ascii")


class _Tracker(TrainerCallback):  # type: ignore[misc]
    """One of transformers' callbacks, made when training begins, with no more than it needs, and never in the way.

    Only these three events reach it: the others are for uploading weights.
    """

    def __init__(self, name: str, run_name: str, facts: Mapping[str, Any]) -> None:
        self.run_name = run_name
        self._name, self._facts = name, _Facts(facts)
        self._callback: Any = None
        self._failed = False

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        def begin() -> None:
            self._callback = INTEGRATION_TO_CALLBACK[self._name]()
            self._callback.on_train_begin(self._shown(args), state, control, model=self._facts)

        self._try(begin)

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
        numbers = {name: value for name, value in (logs or {}).items() if isinstance(value, int | float)}
        if self._callback:
            self._try(lambda: self._callback.on_log(self._shown(args), state, control, model=self._facts, logs=numbers))

    def on_train_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if self._callback:
            self._try(lambda: self._callback.on_train_end(self._shown(args), state, control, model=self._facts))

    def close(self) -> None:
        """Ends the tracker's run, also after a training that failed: some would go on until this process ends."""
        if self._callback:
            self._failed = False  # it is closed even so
            self._try(lambda: _end_run(self._name, self._callback))

    def _shown(self, args: Any) -> Any:
        """The trainer's arguments as the tracker gets them: without a path, with the name of the run."""
        shown = copy.copy(args)
        shown.output_dir, shown.run_name, shown.project = "checkpoints", self.run_name, trackers.PROJECT
        shown.trackio_static_space_id = False  # no copy of the dashboard on the Hub
        return shown

    def _try(self, act: Any) -> None:
        if self._failed:
            return
        try:
            act()
        except Exception as error:  # noqa: BLE001  whatever a tracker raises, hours of training matter more
            self._failed = True
            why = redact.without_secrets(str(error).partition("\n")[0])[:200]
            console.say(f"{self._name}: given up, training goes on: {type(error).__name__}: {why}", style="warning")


class _Facts:
    """Stands in for the model, of which transformers' callbacks read `config` and the number of parameters."""

    def __init__(self, facts: Mapping[str, Any]) -> None:
        self._facts = dict(facts)
        self.config = self

    def to_dict(self) -> dict[str, Any]:
        return dict(self._facts)

    def to_json_string(self) -> str:
        return json.dumps(self._facts, ensure_ascii=False)

    def num_parameters(self) -> int:
        return int(self._facts["parameters"])


def _end_run(name: str, callback: Any) -> None:
    """What transformers' callbacks leave open when training fails, and that of wandb always."""
    if name == "tensorboard" and callback.tb_writer:
        callback.tb_writer.close()
    elif name == "trackio" and callback._initialized:
        callback._trackio.finish()
    elif name == "wandb":
        callback._wandb.finish()
    elif name == "mlflow" and callback._ml_flow.active_run():
        callback._ml_flow.end_run()
