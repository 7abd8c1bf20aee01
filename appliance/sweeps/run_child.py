"""A whole `appliance` command as a child process of a Ray worker, on the GPU that Ray gave to it, or on none.

Knows no Ray: the worker's environment says which GPU. Stopped by SIGTERM, the child saves what it has; whatever kills
the worker, or the raylet above it, kills the child too, and the child's own children die with it.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType

from appliance.errors import ApplianceError, EnvironmentUnavailable, RecipeError
from appliance.machine import one_gpu
from appliance.process import child, files, signals
from appliance.recipe import resolve
from appliance.rundir.directory import RunDir
from appliance.sweeps import attempts
from appliance.sweeps.attempts import Attempt

MODULE = "appliance"
OUTPUT = "output.log"  # in the run directory: what the child's last attempt printed
THREADS_VARIABLE = "OMP_NUM_THREADS"
_LOOKS = 0.2  # seconds between two looks at the child
_NOTES = 10.0  # seconds between two notes of what it has cost so far
_LOCK_SECONDS = 120.0  # a killed worker's child dies within moments; a file server may notice a lost node later
_STOP_SECONDS = 600.0  # to finish a step and write its checkpoint
_TAIL_BYTES = 64 << 10


@dataclass(frozen=True)
class Stored:
    """Where a run is kept if the nodes share no disk, and its CSV there. `drops`: a finished run leaves its node."""

    url: str
    csv_sha256: str
    csv_name: str
    drops: bool


@dataclass(frozen=True)
class RunJob:
    """A command to be run on whichever node has room for it. Nothing in it is secret: Ray passes it on and keeps it.

    name: of the run, for people. words: behind `appliance`. run_path: the run directory. folder: the working directory.
    variables: names of the environment variables that it needs; their values are the node's own. gpus: 1, a fraction
    such as 1/2 if several runs share a card, or 0. threads: OMP_NUM_THREADS of the child; None: as many as it likes.
    On a CPU the bytes of a result depend on it. module: what `python -m` runs; tests and benchmarks have stand-ins.
    stored: where the run is kept if not on a disk that all nodes share (stored_run.py).
    """

    name: str
    words: tuple[str, ...]
    run_path: Path
    folder: Path
    variables: tuple[str, ...] = ()
    gpus: float = 1.0
    threads: int | None = None
    module: str = MODULE
    stored: Stored | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.gpus <= 1:
            raise RecipeError(f"{self.name}: a run uses one GPU, a part of one, or none; {self.gpus:g} were asked for")

    @property
    def output(self) -> Path:
        """Where what it prints goes."""
        return self.run_path / OUTPUT


@dataclass(frozen=True)
class RunOutcome:
    """How the last attempt ended. `seconds` and `attempts`: it, and how many there were with it. `message`: the first
    line of its error, or where to look; empty if it went well. `node`: where it took place."""

    name: str
    exit_code: int
    seconds: float
    node: str
    attempts: int
    message: str = ""


class Child:
    """The process. A context manager: a block that ends early, whatever ends it, stops the process and waits for it.

    Raises EnvironmentUnavailable: the node lacks a variable, or the run directory cannot be written. RunDirError:
    another command is at work in it.
    """

    def __init__(self, job: RunJob, node: str) -> None:
        self._job, self._node = job, node
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Child:
        job = self._job
        if missing := [name for name in job.variables if not os.environ.get(name)]:
            raise EnvironmentUnavailable(
                f"{job.name}: {', '.join(missing)} is not set on {self._node}",
                hint="export it there before `ray start`: its value is not passed on",
            )
        run_dir = RunDir(job.run_path)
        run_dir.create()
        await_lock(run_dir)
        self._before = attempts.read(job.run_path)
        self._attempt = Attempt(self._node, job.gpus, time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()), seconds=0.0)
        self._began = self._noted = time.monotonic()
        with files.open_own(job.output, "w") as output:
            command = [sys.executable, "-m", job.module, *job.words]
            self._process = subprocess.Popen(
                [sys.executable, "-m", "appliance.sweeps.start_child", str(os.getpid()), *command],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                cwd=job.folder,
                env=environment(job, os.environ),
                start_new_session=True,  # the terminal's Ctrl-C is for whoever started all this
            )
        self._note()
        return self

    def has_ended(self) -> bool:
        """Whether it has; also notes, now and then, what it has cost."""
        assert self._process
        if self._process.poll() is not None:
            return True
        if time.monotonic() - self._noted >= _NOTES:
            self._note()
        return False

    def stop(self) -> None:
        """Asks it to save what it has and to end, and waits for that."""
        assert self._process
        self._process.terminate()
        try:
            self._process.wait(_STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def outcome(self) -> RunOutcome:
        """Of the ended process. A signal that killed it counts as exit code 128 + its number, as in a shell."""
        assert self._process
        code = self._process.returncode
        message = _last_error(self._job.output) if code else ""
        if code < 0:
            message, code = message or child.ending(code), 128 - code
        if code and not message:
            message = f"ended without an error message; what it printed is in {OUTPUT}"
        tried = len(self._before) + 1
        return RunOutcome(self._job.name, code, self._attempt.seconds, self._node, tried, message)

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        assert self._process
        try:
            if self._process.poll() is None:
                self.stop()
        finally:  # a second request to stop does not wait
            self._process.kill()
            code = self._process.wait()
            self._note(code if code >= 0 else 128 - code)

    def _note(self, exit_code: int | None = None) -> None:
        self._noted = time.monotonic()
        seconds = round(self._noted - self._began, 1)
        self._attempt = replace(self._attempt, seconds=seconds, exit_code=exit_code)
        with suppress(OSError):  # a full disk: what the run says about it matters more
            attempts.write(self._job.run_path, [*self._before, self._attempt])


def run(job: RunJob, node: str) -> RunOutcome:
    """The child from its start to its end. KeyboardInterrupt, which is how Ray cancels a task, stops it."""
    try:
        with Child(job, node) as process:
            with suppress(KeyboardInterrupt):
                while not process.has_ended():
                    time.sleep(_LOOKS)
            if not process.has_ended():
                process.stop()
        return process.outcome()
    except ApplianceError as error:
        return RunOutcome(job.name, error.exit_code, 0.0, node, len(attempts.read(job.run_path)), str(error))


def environment(job: RunJob, environ: Mapping[str, str]) -> dict[str, str]:
    """The worker's variables as the child gets them: its GPU, if any; its threads; and nothing of Ray's own.

    Nor any that sets a field of the recipe: on each machine it may be another. `resolve.of_environment` turns those of
    the machine where the command was typed into words of the job.
    """
    kept = {name: value for name, value in environ.items() if not name.startswith("RAY_")}
    kept |= child.safe_path(job.folder)
    # Who signals every process at once sends it two: this one passes its own on, and ends the run if it takes too long.
    kept[signals.ONE_PRESS_VARIABLE] = str(_STOP_SECONDS)
    for name in resolve.variables(environ):
        if name not in job.variables:
            del kept[name]
    kept.pop(THREADS_VARIABLE, None)  # Ray sets it to the number of cores that it gives to a task
    if job.threads is not None:
        kept[THREADS_VARIABLE] = str(job.threads)
    if not job.gpus:
        kept[one_gpu.VARIABLE] = ""
    elif "," in kept.get(one_gpu.VARIABLE, ","):
        seen = kept.get(one_gpu.VARIABLE, "is not set")
        raise EnvironmentUnavailable(f"{job.name}: expected one GPU from Ray, but {one_gpu.VARIABLE} {seen}")
    return kept


def await_lock(run_dir: RunDir) -> None:
    """Waits while another process holds the run directory: the child of a worker that was killed, or of a lost node.

    Raises RunDirError: it may be a command of somebody else, whose output.log and attempts.json are not to be touched.
    """
    end = time.monotonic() + _LOCK_SECONDS
    while run_dir.is_locked:
        if time.monotonic() >= end:
            with run_dir.lock():  # names whose it is
                return
        time.sleep(_LOOKS)


def _last_error(output: Path) -> str:
    """The first line of the error that it printed last, without the word; empty if there is none."""
    try:
        with output.open("rb") as handle:
            handle.seek(max(0, output.stat().st_size - _TAIL_BYTES))
            lines = handle.read().decode("utf-8", "replace").splitlines()
    except OSError:
        return ""
    return next((line.removeprefix("Error: ") for line in reversed(lines) if line.startswith("Error: ")), "")
