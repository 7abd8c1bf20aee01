"""Which files of earlier stages a stage opens for reading, as Python's audit hook reports them.

Files that a library opens without Python (safetensors, tokenizers) and those of child processes are not seen.

>>> with opened.recorded(run_path) as found:
...     pipeline_run.run(resolved, RunDir(run_path), cache_dir)
>>> found["merge"]
{'evaluate/proof_rows.json', …}
"""

from __future__ import annotations

import os
import sys
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import pytest

from appliance.pipeline import run as pipeline_run
from appliance.pipeline.job import Job
from appliance.process import files
from appliance.release import leak_scan
from appliance.rundir.directory import STAGES

_recording: list[_Recording] = []


class _Recording:
    def __init__(self, run_path: Path) -> None:
        self.run_path, self.stage = str(run_path) + "/", ""
        self.found: dict[str, set[str]] = defaultdict(set)

    def saw(self, path: str, flags: int) -> None:
        name = path.removeprefix(self.run_path)
        if name == path or not self.stage or flags & (os.O_WRONLY | os.O_RDWR) or _is_searched(sys._getframe(2)):
            return
        stage, _, file = name.partition("/")
        if stage in STAGES and stage != self.stage and file not in ("stage.json", "started.json"):
            self.found[self.stage].add(name)


def _is_searched(frame: FrameType | None) -> bool:
    """Whether the file is opened to be hashed, or to be searched for secrets as every file of the run is."""
    while frame is not None and frame.f_code.co_filename != pipeline_run.__file__:
        name, function = frame.f_code.co_filename, frame.f_code.co_name
        if name == leak_scan.__file__ or (name == files.__file__ and function == "sha256_of"):
            return True
        frame = frame.f_back
    return False


def _hook(event: str, arguments: tuple[Any, ...]) -> None:
    if event == "open" and _recording and isinstance(arguments[0], str):
        _recording[0].saw(arguments[0], arguments[2])


@contextmanager
def recorded(run_path: Path) -> Iterator[dict[str, set[str]]]:
    """Stage -> paths below the run directory, of other stages' folders."""
    here, run_stage = _Recording(run_path), pipeline_run._run_stage

    def noted(job: Job, stage: str, label: str = "") -> None:
        here.stage = stage
        try:
            run_stage(job, stage, label)
        finally:
            here.stage = ""

    sys.addaudithook(_hook)  # for good: it does nothing while nothing is recorded
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pipeline_run, "_run_stage", noted)
        _recording.append(here)
        try:
            yield here.found
        finally:
            _recording.clear()
