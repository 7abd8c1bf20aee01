"""All output: results on stdout, progress and messages on stderr, everything else in the run's log file.

With a terminal: colours and live progress bars. Without one: plain lines, nothing redrawn.
"""

from __future__ import annotations

import io
import logging
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stdout, suppress
from pathlib import Path
from typing import IO, Any, cast

from rich.console import Console
from rich.markup import escape
from rich.text import Text
from rich.theme import Theme

from appliance import findings
from appliance.errors import ApplianceError, Interrupted
from appliance.process import files, redact, signals, std_streams, tables
from appliance.process.step_bar import step_bar
from appliance.process.terminal import in_one_line, printable
from appliance.process.typed import as_typed

_log = logging.getLogger("appliance")
shows_all = False  # --verbose: what is usual is shown too


class _Screen(io.TextIOBase):
    """sys.stderr, whatever it is at the time.

    If nobody is left to read it (a closed terminal, a pipe whose other end has died), the work goes on unseen: a
    checkpoint matters more than its message.
    """

    @property
    def encoding(self) -> str:  # type: ignore[override]
        """By this, rich chooses between its own lines and bars and those in ASCII."""
        return str(getattr(self._stream, "encoding", None) or "utf-8")

    def write(self, text: str) -> int:
        try:
            self._stream.write(text)
            self._stream.flush()
        except OSError:
            std_streams.send_nowhere(2)
        return len(text)

    def flush(self) -> None:
        """Nothing to do: every write flushes."""

    def isatty(self) -> bool:
        return self._stream.isatty()

    def fileno(self) -> int:
        return self._stream.fileno()

    @property
    def _stream(self) -> IO[str]:
        """While a bar is drawn, rich replaces sys.stderr with a proxy, which would lead back here."""
        return cast(IO[str], getattr(sys.stderr, "rich_proxied_file", sys.stderr))


# Red and magenta alone: yellow, green and cyan are hard to read on white, blue on black, grey on one of them.
THEME = Theme(
    {
        "warning": "magenta",
        "bar.complete": "magenta",
        "bar.finished": "magenta",
        "bar.pulse": "magenta",
        "bar.back": "dim",
        "progress.download": "none",
        "progress.remaining": "none",
    }
)


def _console(terminal: bool, **more: Any) -> Console:
    # Without a terminal rich would assume 80 columns; a table in a log file may be wider.
    width = None if terminal else 160
    return Console(highlight=False, emoji=False, soft_wrap=True, theme=THEME, width=width, **more)


_stderr = _console(sys.stderr.isatty(), file=cast(IO[str], _Screen()))
_stdout = _console(sys.stdout.isatty())


def say(text: str, *, style: str = "") -> None:
    """A message on stderr and in the log file. Control characters in the user's data never reach the terminal."""
    _print(_stderr, Text(_shown(text), style=style))
    _log.info("%s", text)


def glimpse(*parts: str) -> None:
    """Rows of the user as one line on a terminal, each part cut so that all fit; nothing in a pipe, nor in the log."""
    if _stderr.is_terminal:
        _stderr.print(in_one_line(map(_shown, parts), _stderr.width), style="dim", markup=False)


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
    """A log may be sent to somebody who helps: home folders, names and tokens never get into it."""

    def format(self, record: logging.LogRecord) -> str:
        return redact.redact(super().format(record), redact.names_here())


class _LogFile(logging.FileHandler):
    """On a full disk the log has a gap; the base class would print a traceback for every line."""

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

    An unexpected exception leaves its traceback there, and gets a note that says so.
    """
    handler = _LogFile(path, encoding="utf-8")
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


class Steps:
    """Progress of a loop whose length is known: a bar on a terminal, a line every few seconds elsewhere."""

    def __init__(self, title: str, total: int, *, seconds_between_lines: float = 10.0) -> None:
        self._title = title
        self._total = total
        self._done = 0
        self._began = self._spoke = time.monotonic()
        self._pause = seconds_between_lines
        self._bar = step_bar(_stderr)
        self._task = self._bar.add_task(title, total=total, note="")

    def __enter__(self) -> Steps:
        self._bar.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._bar.stop()

    def advance(self, count: int = 1, note: str = "") -> None:
        """`count` more are done; `note` is shown next to the bar, for example the loss."""
        self.reach(self._done + count, note)

    def between(self, note: str) -> None:
        """What happens between two of the steps, if it takes long: `note` says how far it is."""
        self._bar.update(self._task, note=note)
        now = time.monotonic()
        if not _stderr.is_terminal and now - self._spoke >= self._pause:
            self._spoke = now
            say(f"{self._title} {self._done}/{self._total}  {note}")

    def reach(self, done: int, note: str = "") -> None:
        """`done` of the total are done. After a resume the first call sets where counting begins.

        Raises Interrupted, see `signals.check`.
        """
        signals.check()
        if self._done == 0 and done > 1:
            self._began, skipped = time.monotonic(), done
        else:
            skipped = 0
        self._done = done
        self._bar.update(self._task, completed=done, note=note)
        now = time.monotonic()
        if not _stderr.is_terminal and (now - self._spoke >= self._pause or done >= self._total):
            self._spoke = now
            rate = (now - self._began) / max(done - skipped, 1)
            left = "" if done >= self._total else f"  ETA {duration(rate * (self._total - done))}"
            say(f"{self._title} {done}/{self._total}  {note}{left}")


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
