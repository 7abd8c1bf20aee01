"""Replaces `subprocess` in weights/proof.py: forks of a process that has already imported the libraries.

Real processes, without five seconds of imports each. `run` forks this process; a `Spare` is another one, for a process
whose libraries the proof must not see (Unsloth rewrites them). The tests of the proof and of the reload
themselves, and a run of the whole pipeline, start their processes as the product does.

>>> python -m tests.helpers.warm     # a Spare's own process: a line of JSON in, an exit code out
"""

from __future__ import annotations

import functools
import gc
import importlib
import json
import logging
import os
import runpy
import shlex
import signal
import subprocess
import sys
import tempfile
import traceback
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from subprocess import CompletedProcess
from typing import IO, NoReturn

from appliance.process import child, imports
from appliance.weights import proof

LIBRARIES = (
    "torch", "transformers", "trl", "peft", "datasets", "pandas", "sklearn", "matplotlib.figure", "bitsandbytes",
)  # fmt: skip


@functools.cache
def load() -> None:
    """Imports the libraries that a command needs, and builds all commands: once, for all forks."""
    import typer.main

    from appliance.machine import packages
    from tests.helpers import in_process

    with imports.uncollected("trl"):
        for name in LIBRARIES:
            importlib.import_module(name)
    packages.installed()  # keeps what it reads
    typer.main.get_command(in_process.cli_app.app)  # in_process keeps what it makes
    gc.collect()
    gc.freeze()  # a collection in a fork would copy all that is here


def run(
    command: Sequence[str], *, stdout: IO[str], stderr: IO[str], env: Mapping[str, str], check: bool
) -> CompletedProcess[str]:
    """`python -m module …`, with its output in a file. It ends with this call, however that ends."""
    interpreter, flag, module, *arguments = command
    assert (interpreter, flag, stdout, check) == (sys.executable, "-m", stderr, False)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # about threads, which pytest's workers have: they are idle
        pid = os.fork()
    if pid == 0:
        _become(module, arguments, stdout.fileno(), env)
    try:
        status = os.waitpid(pid, 0)[1]
    except BaseException:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        raise
    return CompletedProcess(list(command), os.waitstatus_to_exitcode(status))


class Started:
    """`python -m module …` as a fork that goes on by itself, with what a killed `subprocess.Popen` is used for."""

    def __init__(
        self, command: Sequence[str], *, cwd: Path, stdout: IO[str], env: Mapping[str, str] = os.environ
    ) -> None:
        interpreter, flag, module, *arguments = command
        assert (interpreter, flag) == (sys.executable, "-m")
        self._code: int | None = None
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # as above
            self.pid = os.fork()
        if self.pid == 0:
            os.chdir(cwd)
            _become(module, arguments, stdout.fileno(), env)

    def poll(self) -> int | None:
        return self._ended(os.WNOHANG)

    def wait(self) -> int | None:
        return self._ended(0)

    def kill(self) -> None:
        if self._code is None:
            os.kill(self.pid, signal.SIGKILL)

    def _ended(self, options: int) -> int | None:
        if self._code is None:
            pid, status = os.waitpid(self.pid, options)
            self._code = os.waitstatus_to_exitcode(status) if pid else None
        return self._code


def typed(
    line: str, *, cwd: Path, env: Mapping[str, str], when_begun: Callable[[int], None] = lambda _: None
) -> CompletedProcess[str]:
    """`appliance …` as a user types it, `> FILE` at its end included, as a fork in the folder `cwd`.

    The processes that it starts for the proof are forks of it. It imports the Hub's client again, which reads its
    address, its token's place and whether it may go online from the environment when it is imported. Nobody
    types. `when_begun` gets the number of the process.
    """
    load()
    words = shlex.split(line)
    target = cwd / words[-1] if words[-2:-1] == [">"] else None
    arguments = words[1:-2] if target else words[1:]
    with tempfile.TemporaryFile("w+", encoding="utf-8") as out, tempfile.TemporaryFile("w+", encoding="utf-8") as err:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # as above
            pid = os.fork()
        if pid == 0:
            os.chdir(cwd)
            os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
            sys.stdin = os.fdopen(0, encoding="utf-8", closefd=False)
            for name in [name for name in sys.modules if name.partition(".")[0] == "huggingface_hub"]:
                del sys.modules[name]
            proof.subprocess = sys.modules[__name__]  # type: ignore[assignment]
            _become("appliance", arguments, out.fileno(), env, err.fileno())
        when_begun(pid)
        status = os.waitpid(pid, 0)[1]
        out.seek(0)
        err.seek(0)
        stdout, stderr = out.read(), err.read()
    if target:
        target.write_text(stdout, encoding="utf-8")
    return CompletedProcess(words, os.waitstatus_to_exitcode(status), stdout, stderr)


class Spare:
    """A process that has imported the libraries, in the background, and forks for every command.

    `pipes`: those of a `server`; without them, a process of its own.
    """

    def __init__(self, pipes: tuple[int, int] | None = None) -> None:
        if pipes:
            self._requests, self._answers = os.fdopen(pipes[0], "w"), os.fdopen(pipes[1])
        else:
            process = subprocess.Popen(
                [sys.executable, "-m", "tests.helpers.warm"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
            )
            assert process.stdin
            assert process.stdout
            self._process = process  # or Python would warn that it is still running
            self._requests, self._answers = process.stdin, process.stdout  # type: ignore[assignment]

    def run(
        self, command: Sequence[str], *, stdout: IO[str], stderr: IO[str], env: Mapping[str, str], check: bool
    ) -> CompletedProcess[str]:
        """As `run` of this module."""
        assert (stdout, check) == (stderr, False)
        request = {"command": list(command), "log": stdout.name, "env": dict(env)}
        self._requests.write(json.dumps(request) + "\n")
        self._requests.flush()
        return CompletedProcess(list(command), int(self._answers.readline()))


def server() -> tuple[int, tuple[int, int]]:
    """(process id, pipes) of a fork of this process for a Spare in another one, which imports nothing for it.

    Hand the pipes on, and close them here: it ends when the Spare's process does.
    """
    load()
    requests, answers = os.pipe(), os.pipe()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # as above
        pid = os.fork()
    if pid == 0:
        try:
            os.close(requests[1])
            os.close(answers[0])
            _serve(os.fdopen(requests[0]), os.fdopen(answers[1], "w"))
        finally:  # never return into the code that forked this process
            os._exit(0)
    os.close(requests[0])
    os.close(answers[1])
    return pid, (requests[1], answers[0])


def _serve(requests: IO[str], answers: IO[str]) -> None:
    with imports.uncollected("peft"):
        for name in (
            "torch",
            "transformers",
            "peft",
            "bitsandbytes",
            "appliance.weights.proof_child",
            "appliance.release.reload",
        ):
            importlib.import_module(name)
    for line in requests:
        request = json.loads(line)
        with Path(request["log"]).open("a", encoding="utf-8") as log:
            env = {**request["env"], **child.of_this_process()}  # they end with it
            done = run(request["command"], stdout=log, stderr=log, env=env, check=False)
        answers.write(f"{done.returncode}\n")
        answers.flush()


def code(text: str) -> CompletedProcess[str]:
    """`python -c`, as a fork: for code that costs less than what it imports. Never for what a fresh process imports."""
    with tempfile.TemporaryFile("w+", encoding="utf-8") as out, tempfile.TemporaryFile("w+", encoding="utf-8") as err:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # as above
            pid = os.fork()
        if pid == 0:
            program = compile(text, "<string>", "exec")
            _as_process(lambda: exec(program, {}), ["-c"], out.fileno(), os.environ, err.fileno())
        status = os.waitpid(pid, 0)[1]
        out.seek(0)
        err.seek(0)
        return CompletedProcess(["-c", text], os.waitstatus_to_exitcode(status), out.read(), err.read())


def _become(
    module: str, arguments: Sequence[str], out: int, env: Mapping[str, str], err: int | None = None
) -> NoReturn:
    """`python -m module`, its output in `out`, what it writes to stderr in `err` or there too."""
    _as_process(
        lambda: runpy.run_module(module, run_name="__main__", alter_sys=True), [module, *arguments], out, env, err
    )


def _as_process(
    start: Callable[[], object], words: Sequence[str], out: int, env: Mapping[str, str], err: int | None
) -> NoReturn:
    status = 1
    try:
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGALRM):
            signal.signal(number, signal.SIG_DFL)
        for name in (None, "appliance"):
            logging.getLogger(name).handlers.clear()
        os.dup2(out, 1)
        os.dup2(out if err is None else err, 2)
        sys.stdout, sys.stderr = (os.fdopen(os.dup(number), "w", encoding="utf-8") for number in (1, 2))
        variables = dict(env)  # `env` may be os.environ itself
        os.environ.clear()
        # Training a Unigram tokenizer starts threads that no fork has, for which encoding would wait. The library looks
        # after forks of a process that has encoded by threads, and of no other.
        os.environ.update({"TOKENIZERS_PARALLELISM": "false"} | variables)
        sys.argv = list(words)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # runpy: the module is already imported
            start()
        status = 0
    except SystemExit as done:
        status = done.code if isinstance(done.code, int) else 1 if done.code else 0
    except BaseException:  # noqa: BLE001  as the interpreter would
        traceback.print_exc()
    finally:  # never return into the code that forked this process
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


if __name__ == "__main__":
    _serve(sys.stdin, sys.stdout)
