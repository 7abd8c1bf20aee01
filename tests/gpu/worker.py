"""A process that runs parts of tests/gpu/parts.py one after the other, and the parent's side of it.

One process for all parts of an engine: libraries are imported once, which takes half a minute if nothing is cached.
What a part measures and claims is a line of JSON on standard output as soon as it is known, so that the results of a
killed part are not lost. What libraries print goes to standard error. Imports nothing heavy by itself.
"""

from __future__ import annotations

import gc
import json
import os
import select
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from appliance.process import child, imports
from appliance.tasks import causal

ROOT = Path(__file__).parents[2]  # `appliance` and `tests` are found there
POLL_SECONDS = 0.2  # how soon a signal is noticed
COMMAND = (sys.executable, "-m", "tests.gpu.worker")
QUIET = {"HF_HUB_OFFLINE": "1", "HF_HUB_DISABLE_TELEMETRY": "1", "TOKENIZERS_PARALLELISM": "false"}


@dataclass(frozen=True)
class Setup:
    """What a worker is started with. `engine`: what trains in it. `tokenizer_dir` "": the tests' own tokenizer."""

    engine: str
    is_tiny: bool
    work_dir: str
    out_dir: str
    tokenizer_dir: str = ""


class OverTime(Exception):
    """The part did not end within its time."""


class Died(Exception):
    """The worker ended in the middle of a part; the message says how."""


class Worker:
    """The parent's side."""

    def __init__(self, setup: Setup, command: Sequence[str] = COMMAND) -> None:
        """Starts the process; it writes its log into `setup.out_dir`."""
        log_path = Path(setup.out_dir) / f"{setup.engine}.log"
        with log_path.open("ab") as log:
            self._process = subprocess.Popen(
                [*command, json.dumps(asdict(setup))],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                env={**os.environ, **QUIET, **child.of_this_process()},
                cwd=ROOT,
                start_new_session=True,  # a group of its own: it is killed with everything it started
            )
        self._unread = b""

    def messages(self, part: str, seconds: float, check: Callable[[], None]) -> Iterator[dict[str, Any]]:
        """What the part reports until it ends. `check` is called all the while; what it raises ends the wait.

        Raises OverTime: the part took longer than `seconds`. Died: the worker ended.
        """
        deadline = time.monotonic() + seconds
        assert self._process.stdin
        with suppress(BrokenPipeError):  # it died earlier: its silence tells
            self._process.stdin.write(json.dumps({"part": part}).encode() + b"\n")
            self._process.stdin.flush()
        while True:
            for line in self._lines(deadline, check):
                message = json.loads(line)
                if message.get("ended"):
                    return
                yield message

    def _lines(self, deadline: float, check: Callable[[], None]) -> list[bytes]:
        """The complete lines that came next; none after at most POLL_SECONDS."""
        assert self._process.stdout
        check()
        left = deadline - time.monotonic()
        if left <= 0:
            raise OverTime
        if not select.select([self._process.stdout], [], [], min(left, POLL_SECONDS))[0]:
            return []
        came = os.read(self._process.stdout.fileno(), 1 << 16)
        if not came:
            code = self._process.wait()
            raise Died(f"killed by signal {-code}" if code < 0 else f"ended with exit code {code}")
        *lines, self._unread = (self._unread + came).split(b"\n")
        return lines

    def end(self) -> list[dict[str, Any]]:
        """Kill it with its whole process group; returns what it reported that nobody has read."""
        with suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        unread: list[bytes] = []
        with suppress(Died, OverTime):
            deadline = time.monotonic() + POLL_SECONDS
            while True:
                unread += self._lines(deadline, lambda: None)
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe:
                with suppress(BrokenPipeError):
                    pipe.close()
        return [json.loads(line) for line in unread]


@dataclass(frozen=True)
class Bench:
    """What a part works with, and where it reports what it sees."""

    engine: str
    is_tiny: bool  # shapes for a CPU; nothing is claimed about time and memory there
    work_dir: Path
    out_dir: Path
    tokenizer_dir: Path | None
    tell: Callable[[Mapping[str, Any]], None]

    @property
    def may_fork(self) -> bool:
        """Neither CUDA nor a rewritten library prevents it."""
        return self.is_tiny and self.engine != "unsloth"

    def measured(self, **values: Any) -> None:
        """Numbers by name, in JSON's types; units in the names."""
        self.tell({"measured": values})

    def claim(self, what: str, seen: Any, bound: Any, held: bool) -> None:
        """`held`: whether what was seen is within the bound."""
        self.tell({"claim": {"what": what, "seen": seen, "bound": bound, "held": bool(held)}})


def main(setup: Setup) -> None:
    """Run the parts that standard input names until it ends."""
    child.die_with_parent()
    asked, told = os.fdopen(os.dup(0), encoding="utf-8"), os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)  # a process started from here must not read a request
    os.dup2(2, 1)  # what libraries print is not a message

    def tell(message: Mapping[str, Any]) -> None:
        print(json.dumps(message, default=str), file=told, flush=True)

    tokenizer_dir = Path(setup.tokenizer_dir) if setup.tokenizer_dir else None
    bench = Bench(setup.engine, setup.is_tiny, Path(setup.work_dir), Path(setup.out_dir), tokenizer_dir, tell)
    with ExitStack() as stack:
        run_part = None
        for line in asked:
            try:
                run_part = run_part or _imported(bench, stack)
                run_part(json.loads(line)["part"], bench)
            except Exception as error:  # noqa: BLE001  whatever it is, it is this part's result
                traceback.print_exc()
                hint = getattr(error, "hint", "")
                tell({"error": f"{type(error).__name__}: {error}" + (f" ({hint})" if hint else "")})
            tell({"ended": True})


def _imported(bench: Bench, stack: ExitStack) -> Callable[[str, Bench], None]:
    """tests.gpu.parts.run, after the engine: Unsloth comes before the libraries that it rewrites."""
    began = time.monotonic()
    if bench.engine == "unsloth" and bench.is_tiny:
        from tests.helpers.unsloth_on_cpu import pretend_cuda

        stack.enter_context(pretend_cuda())
    from appliance.engines import choose
    from appliance.machine import device
    from appliance.weights import proof

    if bench.may_fork:
        from tests.helpers import warm

        proof.subprocess = warm  # type: ignore[attr-defined]
    if bench.is_tiny:
        choose.choose = lambda *args: (bench.engine, "tiny parts name it")  # noqa: ARG005
    choose.load_engine(bench.engine, device.device(), bench.work_dir / "cache", causal.TASK)
    with imports.uncollected("tests.gpu.parts"):
        from tests.gpu import parts
    gc.freeze()  # what was imported stays: looking through it before every stage takes a third of a second
    bench.measured(import_seconds=round(time.monotonic() - began, 1))
    return parts.run


if __name__ == "__main__":
    main(Setup(**json.loads(sys.argv[1])))
