"""How the last `appliance run` ended, for whoever looks at the run later. One killed by SIGKILL records nothing."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Literal

from appliance.errors import (
    DataError,
    EnvironmentUnavailable,
    GateRefused,
    Interrupted,
    RecipeError,
    RunDirError,
)
from appliance.process import files, redact
from appliance.rundir.directory import RunDir

Kind = Literal["stopped", "refused", "failed"]
_FILE = "ended.json"
_LONGEST = 300  # characters of a message
# These say no before harm is done; every other error is a failure of what was tried.
_REFUSALS = (RecipeError, DataError, EnvironmentUnavailable, GateRefused, RunDirError)


@contextmanager
def recorded(run_dir: RunDir) -> Iterator[None]:
    """Records an exception that ends the block; what an earlier command recorded is gone."""
    path = run_dir.path / _FILE
    path.unlink(missing_ok=True)
    try:
        yield
    except BaseException as error:
        message = _in_one_line(redact.redact(str(error), redact.names_here()))
        with suppress(OSError):  # a full disk: the error itself matters more
            files.write_json(path, {"kind": kind_of(error), "stage": run_dir.under_way, "message": message})
        raise


def _in_one_line(message: str) -> str:
    """The first line; if it announces a list, that too. Of a long one the beginning."""
    first = message.partition("\n")[0]
    text = " ".join(message.split()) if first.endswith(":") else first
    return text if len(text) <= _LONGEST else f"{text[: _LONGEST - 1]}…"


def kind_of(error: BaseException) -> Kind:
    """Whether it stopped what was under way, refused it, or is its failure."""
    if isinstance(error, Interrupted | KeyboardInterrupt):
        return "stopped"
    return "refused" if isinstance(error, _REFUSALS) else "failed"


def last(run_dir: RunDir) -> dict[str, str]:
    """`kind`, `stage` and `message`; empty if the last command succeeded, was killed, or did not record its end."""
    try:
        found = files.read_object(run_dir.path / _FILE)
        return {key: value for key, value in found.items() if isinstance(value, str)}  # `stage` may be null
    except (OSError, ValueError):
        return {}
