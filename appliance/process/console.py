"""All output: results on stdout, progress and messages on stderr, everything else in the run's log file.

With a terminal: colours and live progress bars. Without one: plain lines, nothing redrawn.
"""

from __future__ import annotations

import io
import logging
import os
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, redirect_stdout, suppress
from logging.handlers import RotatingFileHandler
from pathlib import Path
from typing import Any, cast

from rich.console import Console, Group, RenderableType
from rich.markup import escape
from rich.text import Text

from appliance import findings
from appliance.errors import ApplianceError, Interrupted
from appliance.process import files, live_view, quoted_rows, redact, screen, signals, step_bar, tables
from appliance.process.eta import Eta
from appliance.process.terminal import printable
from appliance.process.typed import as_typed

_log = logging.getLogger("appliance")
LOG_BYTES = 16 << 20  # a log file that has grown beyond becomes NAME.1, in place of an earlier one
shows_all = False  # --verbose: what is usual is shown too


_stderr, _stdout = screen.on_stderr(), screen.on_stdout()
_view, _stages = live_view.LiveView(), live_view.Stages(())


def say(text: str, *, style: str = "") -> None:
    """A message on stderr and in the log file. Control characters in the user's data never reach the terminal."""
    _print(_stderr, Text(_shown(text), style=style))
    _log.info("%s", text)


def glimpse(*parts: str) -> None:
    """Rows of the user as one line on a terminal, each part cut so that all fit; nothing in a pipe, nor in the log."""
    if _stderr.is_terminal:
        _stderr.print(tables.in_one_line(map(_shown, parts), _stderr.width), style="dim", markup=False)


def result(text: str) -> None:
    """A line of the command's result, on stdout, as it is: it may be JSON, or a path to copy."""
    _stdout.print(_shown(text), markup=False)


def result_prose(text: str) -> None:
    """A line of the command's result for people."""
    _print(_stdout, Text(_shown(text)))


def _print(console: Console, text: Text) -> None:
    """On a terminal, lines break between words, and a path or an address that is too long stays whole, to be copied."""
    if console.is_terminal and (plain := tables.paragraph(text.plain, console.width)) != text.plain:
        text = Text(plain, style=text.style, spans=text.spans)  # a line break takes the place of a space
    console.print(text)


def result_markup(text: str) -> None:
    """A result line with rich markup; its plain parts must have gone through `printable_markup`."""
    _stdout.print(text)


def printable_markup(text: str) -> str:
    return escape(_shown(text))


def _shown(text: str) -> str:
    """Masked before it is laid out: a table folds a long token over two lines."""
    return printable(redact.without_tokens(text))


def table(
    title: str,
    columns: Sequence[str],
    rows: Sequence[Sequence[str]],
    *,
    to_stdout: bool = False,
    logged: bool = True,
) -> None:
    """A table for people, as wide as the terminal at most. `logged`: also in the log file."""
    console = _stdout if to_stdout else _stderr
    cells = [[_shown(as_typed(cell)) for cell in row] for row in rows]
    console.print(tables.fitted(_shown(title), columns, cells, console.width), soft_wrap=False)
    for row in rows if logged else ():
        _log.info("%s: %s", title or columns[0], " | ".join(row))


def findings_table(rows: Sequence[Sequence[str]], *, to_stdout: bool = False) -> None:
    """A table of findings, whose cells are those of findings.COLUMNS; unless all is to be shown, what is ok is counted.

    The log file has all of them.
    """
    verdict = findings.COLUMNS.index("verdict")
    fine = [row for row in rows if row[verdict] == "ok"]
    if shows_all or len(fine) < 2:
        table("", findings.COLUMNS, rows, to_stdout=to_stdout)
        return
    for row in fine:
        _log.info("%s: %s", findings.COLUMNS[0], " | ".join(row))
    rest = [row for row in rows if row[verdict] != "ok"]
    if rest:
        table("", findings.COLUMNS, rest, to_stdout=to_stdout)
    line = f"{len(fine)} {'other ' if rest else ''}checks are ok (--verbose shows them)"
    _print(_stdout if to_stdout else _stderr, Text(line, style="dim"))


def error(message: str, hint: str) -> None:
    """An expected failure: what is wrong, and how to fix it."""
    hint = as_typed(hint)
    _print(_stderr, Text.assemble(("Error:", "bold red"), " ", _shown(redact.without_secrets(message))))
    if hint:
        _print(_stderr, Text.assemble(("Fix:", "bold"), " ", _shown(hint)))


class _Redacting(logging.Formatter):
    """A log may be sent to somebody who helps: home folders, names, tokens and rows never get into it."""

    def format(self, record: logging.LogRecord) -> str:
        return redact.redact(quoted_rows.masked(super().format(record)), redact.names_here())


class _LogFile(RotatingFileHandler):
    """On a full disk the log has a gap; the base class would print a traceback for every line."""

    def __init__(self, path: Path) -> None:
        super().__init__(path, backupCount=1, encoding="utf-8")

    def shouldRollover(self, _: logging.LogRecord) -> bool:
        """The base class would format, and so redact, every line twice to know its length."""
        return self.stream is not None and os.fstat(self.stream.fileno()).st_size > LOG_BYTES

    def _open(self) -> io.TextIOWrapper:
        return cast(io.TextIOWrapper, files.open_own(Path(self.baseFilename), "a", errors="backslashreplace"))

    def handleError(self, record: logging.LogRecord) -> None:
        if not isinstance(sys.exception(), OSError):
            super().handleError(record)

    def close(self) -> None:
        with suppress(OSError):  # its buffer holds what the full disk did not take; why the run ended matters more
            super().close()


@contextmanager
def log_file(path: Path) -> Iterator[None]:
    """Everything that any library logs or warns about goes to `path` (appended) while the block runs.

    Its size is bounded, however often a run is repeated: see LOG_BYTES.

    An unexpected exception leaves its traceback there, and gets a note that says so.
    """
    handler = _LogFile(path)
    handler.setFormatter(_Redacting("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    root = logging.getLogger()
    root.addHandler(handler)
    root.setLevel(logging.INFO)
    logging.captureWarnings(True)
    _log.info("appliance %s", " ".join(sys.argv[1:]))
    try:
        yield
    except (ApplianceError, Interrupted, KeyboardInterrupt) as exc:
        _log.error("stopped: %s | hint: %s", exc, getattr(exc, "hint", ""))
        raise
    except BaseException as exc:
        _log.error("a bug", exc_info=exc)
        exc.add_note(f"the traceback is in {path}")
        raise
    finally:
        logging.captureWarnings(False)
        root.removeHandler(handler)
        handler.close()


@contextmanager
def prints_to_log() -> Iterator[None]:
    """What libraries print while the block runs goes to the log: stdout is for results only. Unsloth prints."""
    with redirect_stdout(_LogLines()):
        yield


class _LogLines(io.TextIOBase):
    """Logs the lines written to it."""

    def __init__(self) -> None:
        self._begun = ""

    def write(self, text: str) -> int:
        *lines, self._begun = (self._begun + text).split("\n")
        for line in lines:
            _log.info("printed: %s", line)
        return len(text)


def quiet_libraries() -> None:
    """Call once transformers is imported: its handlers and bars write to stderr themselves; the log gets everything."""
    from transformers.utils import logging as transformers_logging

    transformers_logging.disable_progress_bar()
    for name in ("transformers", "datasets", "trl", "peft", "accelerate", "huggingface_hub", "bitsandbytes"):
        logger = logging.getLogger(name)
        logger.handlers.clear()
        logger.propagate = True


def plan(stages: Sequence[str], done: Mapping[str, float]) -> None:
    """The stages of the run that begins, in order; and those that were done before, with their seconds."""
    global _stages
    _stages = live_view.Stages(stages)
    for name, seconds in done.items():
        _stages.end(name, seconds)


@contextmanager
def stage(name: str) -> Iterator[None]:
    """On a terminal, the stages that are planned are shown while the block runs; one within another is part of it."""
    if _stages.current:
        yield
        return
    began = time.monotonic()
    _stages.begin(name)
    try:
        with _view.showing(_stderr, _stages.line):
            yield
    finally:
        _stages.end(name, time.monotonic() - began)


class Steps:
    """Progress of a loop whose length is known: a bar on a terminal, a line every few seconds elsewhere.

    `done`: how many were done before a resume. `warms_up`, `side_by_side`: see eta.py.
    """

    def __init__(
        self,
        title: str,
        total: int,
        *,
        done: int = 0,
        warms_up: bool = False,
        side_by_side: bool = False,
        seconds_between_lines: float = 10.0,
    ) -> None:
        self._title, self._total, self._done = _shown(title), total, done
        self._spoke, self._pause = time.monotonic(), seconds_between_lines
        self._note = ""
        self._details: Sequence[step_bar.Detail] = ()
        self._eta = Eta(total, done=done, warms_up=warms_up, side_by_side=side_by_side)
        self._shown = ExitStack()

    def __enter__(self) -> Steps:
        self._shown.enter_context(_view.showing(_stderr, self._drawn))
        return self

    def __exit__(self, *exc: object) -> None:
        self._shown.close()

    def advance(self, count: int = 1, note: str = "") -> None:
        """`count` more are done; `note` is shown next to the bar, for example the loss."""
        self.reach(self._done + count, note)

    def between(self, note: str) -> None:
        """What happens between two of the steps, if it takes long: `note` says how far it is."""
        self._eta.pause()
        self._note = _shown(note)
        if note:
            self._say_now_and_then(note)

    def reach(
        self, done: int, note: str = "", *, details: Sequence[step_bar.Detail] = (), pauses_left: int = 0
    ) -> None:
        """`done` of the total are done.

        On a terminal, `details` are lines above the bar, in place of the note. `pauses_left`: how often more `between`
        is to be expected. Raises Interrupted, see `signals.check`.
        """
        signals.check()
        self._eta.reach(done, pauses_left=pauses_left)
        self._done, self._details, self._note = done, details, "" if details else _shown(note)
        left = self._eta.seconds()
        parts = (note, f"ETA {duration(left)}" if left else "")
        self._say_now_and_then("  ".join(filter(None, parts)), is_last=done >= self._total)

    def _say_now_and_then(self, note: str, *, is_last: bool = False) -> None:
        now = time.monotonic()
        if not live_view.redraws(_stderr) and (now - self._spoke >= self._pause or is_last):
            self._spoke = now
            say(f"{self._title} {self._done}/{self._total}  {note}".rstrip())

    def _drawn(self, width: int) -> RenderableType:
        bar = step_bar.bar_line(width, self._title, self._done, self._total, self._note, self._eta.seconds())
        return Group(step_bar.detail_lines(self._details, width, live_view.levels(_stderr)), bar)


def duration(seconds: float) -> str:
    """Seconds for people: 75 -> '1 min 15 s'."""
    if round(seconds) < 60:
        return f"{seconds:.0f} s" if seconds >= 10 else f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s"


def pairs(values: Mapping[str, Any]) -> str:
    """'a 1, b 2' of a mapping."""
    return ", ".join(f"{key} {value}" for key, value in values.items())
