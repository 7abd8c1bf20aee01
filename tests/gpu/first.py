"""The first minutes on a card: the product from end to end on CUDA, its speed, its recoveries.

The most important part comes first. Each has its own time limit and is recorded as soon as it ends, so a run that is
cut short counts as far as it got. This process imports no torch; the parts (tests/gpu/parts.py) run in another one.

>>> python -m tests.gpu.first --minutes 11 --out ./gpu-first
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any, Literal

from tests.gpu.worker import COMMAND, Died, OverTime, Setup, Worker

COLUMNS = ("part", "seen", "claims that held", "seconds")
TINY_PATIENCE = 4  # times as long under --tiny, as the machine may be busy with other tests
END_SECONDS = 2.0  # reserved for killing a part and writing its record


@dataclass(frozen=True)
class Part:
    """`at_least`, `at_most`: seconds it needs to be worth starting, and may take. `tiny_engine`: its engine under
    --tiny, where each process with Unsloth costs minutes. `line`: measured name -> how a person reads it.
    """

    name: str
    shows: str
    at_least: float
    at_most: float
    line: Mapping[str, str]
    engine: str = "unsloth"
    tiny_engine: str = "transformers"


RUN_LINE = {
    "tokens_per_second": "{:.0f} tokens/s",
    "mfu": "MFU {:.1%}",
    "peak_gib": "peak {:.2f} GiB",
    "estimated_gib": "check estimated {:.2f} GiB",
    "proof_device": "proof on {}",
    "stage_seconds": "{}",
}
SPEED_LINE = {
    "tokens_per_second": "{:.0f} tokens/s",
    "step_seconds": "step {:.3f} s",
    "other_step_seconds": "against {:.3f} s",
    "time_ratio": "ratio {:.2f}",
    "largest_loss_difference": "losses within {:.1e}",
    "peak_gib": "peak {:.2f} GiB",
    "other_peak_gib": "against {:.2f} GiB",
}
AUTO_LINE = {
    f"{name}_{size}": f"{size}: {text}" if name == "rows" else text
    for size in ("0.6b", "4b")
    for name, text in {
        "rows": "micro batches of {}",
        "speedup": "{:.2f} times our 2 x 4",
        "speedup_of_bare": "{:.2f} times the bare script's",
        "tokens_per_second": "{:.0f} tokens/s",
        "peak_gib": "peak {:.2f} GiB",
    }.items()
}
PARTS = (
    Part(
        "starts",
        "versions, card, matmul rate, doctor; a tiny Qwen3 through the whole run, rehearsal and release included",
        0,
        200,
        {"device": "{}", "driver": "driver {}", "torch": "torch {}", "matmul_tflops": "matmul {:.3g} TFLOP/s"}
        | RUN_LINE,
    ),
    Part("default", "the shape of the recipe `default` in 4 bits: rehearsal, speed, memory, proof", 90, 480, RUN_LINE),
    Part("bare", "time, losses and memory against a bare Unsloth script", 80, 220, SPEED_LINE, tiny_engine="unsloth"),
    Part(
        "auto",
        "speed of micro_batch_size=auto against 2 x 4, ours and a bare Unsloth script's, at 0.6 and 4 billion weights",
        120,
        330,
        AUTO_LINE,
    ),
    Part("ko8b", "the shape of `llama3-ko-alpaca` in 4 bits: five steps and the proof", 150, 300, RUN_LINE),
    Part(
        "float16",
        "training in float16 with a scaled loss",
        25,
        90,
        {"losses": "losses {}", "skipped_steps": "{} steps skipped by the loss scale"},
        tiny_engine="unsloth",
    ),
    Part(
        "oom",
        "recovery from running out of memory",
        25,
        120,
        {"asked_rows": "{} rows requested", "fitting_rows": "{} fitted", "tries": "memory ran out {} times"},
    ),
    Part(
        "resume",
        "kill -9 in the middle of training, then the same command again",
        40,
        150,
        {"killed_after": "killed after step {}", "continued_from": "continued from {}", "repeated": "{} repeated"},
    ),
    Part("transformers", "the other engine on the rows of `bare`", 60, 200, SPEED_LINE, engine="transformers"),
)


@dataclass
class Record:
    """What is known about a part. `cut`: why it did not end by itself; `error`: what it raised."""

    part: Part
    measured: dict[str, Any] = field(default_factory=dict)
    claims: list[dict[str, Any]] = field(default_factory=list)
    seconds: float = 0.0
    cut: str = ""
    error: str = ""
    was_run: bool = True

    def take(self, message: Mapping[str, Any]) -> None:
        """One message of tests/gpu/worker.py."""
        self.measured |= message.get("measured", {})
        self.claims += [message["claim"]] if "claim" in message else []
        self.error = message.get("error", self.error)

    @property
    def outcome(self) -> Literal["held", "failed", "cut", "not run"]:
        if not self.was_run:
            return "not run"
        if self.error or not all(claim["held"] for claim in self.claims):
            return "failed"
        return "cut" if self.cut else "held"

    def as_json(self) -> dict[str, Any]:
        facts = {"part": self.part.name, "outcome": self.outcome, "seconds": round(self.seconds, 1)}
        return facts | {name: getattr(self, name) for name in ("cut", "error", "claims", "measured")}

    def as_markdown(self) -> str:
        """A row of the table in benchmarks/RESULTS.md."""
        if not self.was_run:
            return f"| {self.part.name} | not run: {self.cut} | – | – |"
        known = {name: self.measured[name] for name in self.part.line if self.measured.get(name) is not None}
        seen = [self.part.line[name].format(value) for name, value in known.items()]
        seen += [f"**{claim['what']}: {claim['seen']}, bound {claim['bound']}**" for claim in self._broken]
        seen += [said.splitlines()[0] for said in (self.cut, self.error) if said]
        held = f"{len(self.claims) - len(self._broken)} of {len(self.claims)}"
        return f"| {self.part.name} | {'; '.join(seen).replace('|', '/')} | {held} | {self.seconds:.0f} |"

    @property
    def _broken(self) -> list[dict[str, Any]]:
        return [claim for claim in self.claims if not claim["held"]]


class Stopped(Exception):
    """A signal came."""


class Stop:
    """Remembers a signal; `check` raises it when nothing is half written."""

    number: int | None = None

    def __enter__(self) -> Stop:
        self._before = {number: signal.signal(number, self._remember) for number in (signal.SIGTERM, signal.SIGINT)}
        return self

    def __exit__(self, *exc: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _remember(self, number: int, frame: FrameType | None) -> None:  # noqa: ARG002
        self.number = number

    def check(self) -> None:
        if self.number is not None:
            raise Stopped


def _print(line: str) -> None:
    print(line, flush=True)  # noqa: T201  what a person waits for


def run(
    parts: Sequence[Part],
    setup: Setup,
    seconds: float,
    *,
    command: Sequence[str] = COMMAND,
    say: Callable[[str], None] = _print,
) -> int:
    """Run the parts within `seconds` in total. Exit code 0 only if everything that ran held.

    Writes results.jsonl and results.md into `setup.out_dir`, a line after each part.
    """
    out_dir, ends_at = Path(setup.out_dir), time.monotonic() + seconds - END_SECONDS
    workers: dict[str, Worker] = {}
    outcomes = []
    _append(out_dir / "results.md", f"| {' | '.join(COLUMNS)} |\n|{'---|' * len(COLUMNS)}")
    with Stop() as stop:
        for part in parts:
            record = _run_part(part, setup, ends_at - time.monotonic(), workers, command, stop)
            outcomes.append(record.outcome)
            _append(out_dir / "results.jsonl", json.dumps(record.as_json(), ensure_ascii=False))
            _append(out_dir / "results.md", record.as_markdown())
            say(record.as_markdown())
        for worker in workers.values():
            worker.end()
    if stop.number is not None:
        return 128 + stop.number
    ran = [outcome for outcome in outcomes if outcome != "not run"]
    return 0 if ran and set(ran) == {"held"} else 1


def _run_part(
    part: Part, setup: Setup, left: float, workers: dict[str, Worker], command: Sequence[str], stop: Stop
) -> Record:
    """Run one part in its engine's worker, which is started if there is none and killed if the part is cut."""
    record, began = Record(part), time.monotonic()
    if stop.number is not None or left < part.at_least or left <= 0:
        record.was_run, record.cut = False, f"{max(left, 0):.0f} s left" if stop.number is None else "stopped before"
        return record
    engine = part.tiny_engine if setup.is_tiny else part.engine
    seconds = min(left, part.at_most * (TINY_PATIENCE if setup.is_tiny else 1))
    if engine not in workers:
        fields = vars(setup) | {"engine": engine}
        workers[engine] = Worker(Setup(**fields), command)
    try:
        for message in workers[engine].messages(part.name, seconds, stop.check):
            record.take(message)
    except OverTime:
        record.cut = f"cut: over its limit of {seconds:.0f} s"
    except Stopped:
        record.cut = f"cut: stopped by {signal.Signals(stop.number or 0).name}"
    except Died as error:
        record.error = f"the process {error}; see {engine}.log"
    if record.cut or record.error:  # also after an error: no part should start from what it left half done
        for message in workers.pop(engine).end():
            record.take(message)
    record.seconds = time.monotonic() - began
    return record


def _append(path: Path, line: str) -> None:
    """Append a whole line; it is on the disk when this returns."""
    with path.open("a", encoding="utf-8") as file:
        file.write(line + "\n")
        file.flush()
        os.fsync(file.fileno())


def main(arguments: Sequence[str] | None = None) -> int:
    names = [part.name for part in PARTS]
    default_out = os.environ.get("OUT") or "gpu-first"
    parser = argparse.ArgumentParser(prog="python -m tests.gpu.first", description=(__doc__ or "").split("\n\n>>>")[0])
    parser.add_argument("--minutes", type=float, default=11, help="for all parts together (default: %(default)s)")
    parser.add_argument(
        "--out", type=Path, default=Path(default_out), help="results and logs (default: $OUT, gpu-first)"
    )
    parser.add_argument(
        "--only", nargs="+", metavar="PART", choices=names, help="run only these parts, in the usual order"
    )
    parser.add_argument("--list", action="store_true", help="list the parts and what each shows")
    parser.add_argument("--tiny", action="store_true", help="shapes small enough for a CPU, to see that the parts work")
    parser.add_argument("--tokenizer", type=Path, metavar="DIR", help="a real tokenizer (default: the tests' own)")
    options = parser.parse_args(arguments)
    if options.list:
        for part in PARTS:
            print(f"{part.name:<13} at most {part.at_most:3.0f} s  {part.shows}")  # noqa: T201
        return 0
    if options.tiny and options.tokenizer:
        parser.error("--tokenizer is for a card: its prompts are too long for --tiny")
    options.out.mkdir(parents=True, exist_ok=True)
    chosen = [part for part in PARTS if part.name in (options.only or names)]
    work_dir = Path(tempfile.mkdtemp(prefix="gpu-first-"))  # bases and runs, some 60 GB
    try:
        tokenizer_dir = str(options.tokenizer.absolute()) if options.tokenizer else ""
        setup = Setup("", options.tiny, str(work_dir), str(options.out.absolute()), tokenizer_dir)
        return run(chosen, setup, options.minutes * 60)
    finally:
        shutil.rmtree(work_dir)


if __name__ == "__main__":
    sys.exit(main())
