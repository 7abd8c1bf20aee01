"""Trainers that take turns, one optimizer step each: whatever else the machine does hits all of them alike."""

from __future__ import annotations

import itertools
import json
import os
import re
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path


class Ended(Exception):
    """A trainer ended before it was through."""


@dataclass
class Trainer:
    """A process under probe.py. `steps`: its reports so far, of the whole process; `log`: what it prints."""

    process: subprocess.Popen[bytes]
    turn: int
    reports: int
    log: Path
    steps: list[dict[str, float]] = field(default_factory=list)
    _unread: bytes = b""

    def wait_for_step(self) -> None:
        """Raises Ended."""
        while b"\n" not in self._unread:
            more = os.read(self.reports, 4096)
            if not more:
                raise Ended(f"exit code {self.process.wait()} after {len(self.steps)} steps: {self.last_line()}")
            self._unread += more
        line, _, self._unread = self._unread.partition(b"\n")
        self.steps.append(json.loads(line))

    def take_turn(self) -> None:
        """One more step. Raises Ended."""
        os.write(self.turn, b"1")
        self.wait_for_step()

    def end(self) -> None:
        """Lets it run to its end."""
        for pipe in (self.turn, self.reports):
            os.close(pipe)
        self.process.wait()

    def text(self) -> str:
        return self.log.read_text(encoding="utf-8", errors="replace")

    def last_line(self) -> str:
        return next((line[:300] for line in reversed(self.text().splitlines()) if line.strip()), "")

    def losses(self) -> dict[int, float]:
        """Of its steps, if it prints them as our scripts do."""
        return {int(step): float(loss) for step, loss in re.findall(r"^loss (\d+) (\S+)$", self.text(), re.MULTILINE)}


def start(python: str, command: Sequence[str], pad: int, work: Path, environ: Mapping[str, str]) -> Trainer:
    """Runs it up to the end of its first step: start-up is not what is measured. Raises Ended."""
    turn, our_turn = os.pipe()
    our_reports, reports = os.pipe()
    probe = str(Path(__file__).with_name("probe.py"))
    with (work / "log.txt").open("wb") as log:
        process = subprocess.Popen(
            [python, probe, str(turn), str(reports), str(pad), *command],
            stdout=log,
            stderr=subprocess.STDOUT,
            env=dict(environ),
            cwd=work,
            pass_fds=(turn, reports),
        )
    os.close(turn)
    os.close(reports)
    trainer = Trainer(process, our_turn, our_reports, work / "log.txt")
    trainer.wait_for_step()
    return trainer


@dataclass(frozen=True)
class Figure:
    """Processor time per real token, of all measured steps and of each third of them; the share of padding."""

    micros_per_token: float
    thirds: tuple[float, ...]
    padding: float


def figure(steps: Sequence[Mapping[str, float]], warm_up: int) -> Figure:
    """From the reports of a process; the first `warm_up` steps are not counted."""
    counted = steps[warm_up - 1 :]
    bounds = [round(i * (len(counted) - 1) / 3) for i in range(4)]
    thirds = tuple(_micros(counted[a], counted[b]) for a, b in itertools.pairwise(bounds))
    tokens, positions = (counted[-1][name] - counted[0][name] for name in ("tokens", "positions"))
    return Figure(_micros(counted[0], counted[-1]), thirds, 1 - tokens / positions)


def _micros(before: Mapping[str, float], after: Mapping[str, float]) -> float:
    return (after["cpu"] - before["cpu"]) / (after["tokens"] - before["tokens"]) * 1e6
