"""`appliance watch` or `serve` as a process of its own, a fork of this one, and a run that grows before its eyes.

>>> with server("--runs-dir", str(runs), cwd=tmp_path) as watching:
...     watching.address
'http://127.0.0.1:40123'
"""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.helpers import warm
from tests.helpers.shown_run import shown_run

PATIENCE = 60.0  # seconds, on a machine that others use as well


@dataclass
class Watching:
    """`address`: with its port, without a path."""

    address: str
    process: warm.Started

    def end(self, number: int = signal.SIGTERM) -> int | None:
        """Its exit code after a signal."""
        os.kill(self.process.pid, number)
        return self.process.wait()


@contextmanager
def server(*arguments: str, cwd: Path, command: str = "watch") -> Iterator[Watching]:
    """A server on a free port, its output in `command`.out. It is gone afterwards."""
    path = cwd / f"{command}.out"
    with path.open("w", encoding="utf-8") as out:
        words = [sys.executable, "-m", "appliance", command, "--port", "0", *arguments]
        process = warm.Started(words, cwd=cwd, stdout=out)
    try:
        yield Watching(_address(path, process), process)
    finally:
        process.kill()
        process.wait()


def _address(path: Path, process: warm.Started) -> str:
    ends = time.monotonic() + PATIENCE
    while time.monotonic() < ends:
        text = path.read_text(encoding="utf-8")
        if found := re.search(r"http://\S+?:[1-9]\d*", text):
            return found[0]
        assert process.poll() is None, text
        time.sleep(0.02)
    raise AssertionError(f"no address in {PATIENCE} s: {text}")


@dataclass
class Growing:
    """A run in its training, as far as it is: `step` of `steps`. Nothing holds its lock."""

    path: Path
    step: int = 20
    steps: int = 40

    @classmethod
    def begun(cls, path: Path) -> Growing:
        shown_run(path)
        for stage in ("evaluate", "merge", "publish"):
            (path / stage).rename(path / f".{stage}")
        for name in ("stage.json", "fit.json"):
            (path / "train" / name).rename(path / "train" / f".{name}")
        it = cls(path)
        (path / "train" / "started.json").write_text("{}", encoding="utf-8")
        (path / "train" / "steps.json").write_text(json.dumps({"steps": it.steps, "from": 0}), encoding="utf-8")
        it.answer(0, "모름")
        it.answer(20, "2층입니다")
        append(path / "appliance.log", "first\nlast \x1b[31m<script>\n")
        return it

    def train(self, loss: float) -> None:
        """One step more."""
        self.step += 1
        line = {"step": self.step, "loss": loss, "learning_rate": 1e-4, "grad_norm": 1.0, "tokens_per_second": 900.0}
        append(self.path / "train" / "metrics.jsonl", json.dumps(line | {"seconds": 2.0 * self.step}) + "\n")

    def answer(self, step: int, text: str) -> None:
        row: dict[str, Any] = {"row": 17, "question": "<b>우유</b>?", "wanted": "1층입니다", "answer": text}
        append(self.path / "train" / "samples.jsonl", json.dumps({"step": step, "rows": [row]}) + "\n")

    def finish(self) -> None:
        """What was moved aside is there, as if the stages had done it."""
        for name in ("stage.json", "fit.json"):
            (self.path / "train" / f".{name}").rename(self.path / "train" / name)
        (self.path / "train" / "started.json").unlink()
        for stage in ("evaluate", "merge", "publish"):
            shutil.rmtree(self.path / stage, ignore_errors=True)
            (self.path / f".{stage}").rename(self.path / stage)


def append(path: Path, text: str) -> None:
    with path.open("a", encoding="utf-8") as handle:
        handle.write(text)
