"""Names of files that are not UTF-8: refused before anything is done with one.

Linux takes any bytes for a name; tokenizers and safetensors take only UTF-8, so a run would fail in its middle. Old
archives and disks of Windows bring names in CP949 or Latin-1. Python reads such a byte as a lone surrogate (PEP 383).
"""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Mapping, Sequence
from contextlib import suppress

from appliance.errors import ApplianceError, DataError, EnvironmentUnavailable, RecipeError

_FOREIGN = re.compile("[\udc80-\udcff]")
_FOREIGN_NAME = re.compile("[^/]*[\udc80-\udcff][^/]*")
# The variables whose value is a path that this program, or a library that it uses, reads or writes.
_PATHS = ("HF_HOME", "HF_HUB_CACHE", "HF_XET_CACHE", "HOME", "TMPDIR", "XDG_CACHE_HOME")
_CHARSETS = ("cp949", "cp1252")  # what names were written in, the likeliest first


def refuse_foreign(arguments: Sequence[str], environ: Mapping[str, str]) -> None:
    """Raises DataError: the name of a CSV is not UTF-8. RecipeError: another argument. EnvironmentUnavailable: the
    working directory, or a variable's value."""
    for argument in arguments:
        if _FOREIGN.search(argument):
            path = argument.partition("=")[2] or argument
            raise _refusal(RecipeError, f"the argument {_shown(argument)}", path)
    for name, value in environ.items():
        if (name in _PATHS or name.startswith("APPLIANCE_")) and _FOREIGN.search(value):
            raise _refusal(EnvironmentUnavailable, f"{name}={_shown(value)}", value)
    with suppress(FileNotFoundError):  # it was removed meanwhile; whoever needs it says so
        here = os.getcwd()  # noqa: PTH109 - as the system names it
        if _FOREIGN.search(here):
            raise _refusal(EnvironmentUnavailable, f"the working directory {_shown(here)}", here)


def _refusal(kind: type[ApplianceError], what: str, path: str) -> ApplianceError:
    if path.lower().endswith(".csv"):
        kind = DataError
    message = f"{what} is not valid UTF-8, in which tokenizers and safetensors need the names of files and folders"
    if not os.path.lexists(path):
        return kind(message, hint="type it in a terminal whose locale is UTF-8 (`locale` shows it)")
    for charset in _CHARSETS:
        with suppress(UnicodeDecodeError):
            renamed = shlex.quote(path.encode("utf-8", "surrogateescape").decode(charset))
            return kind(message, hint=f"if {charset.upper()} reads it right, rename it: mv {_typed(path)} {renamed}")
    return kind(message, hint="rename it, with letters that UTF-8 has")


def _shown(text: str) -> str:
    """Every byte beyond ASCII of a foreign name as \\xHH: some pairs of them would read as UTF-8 by chance."""
    return _FOREIGN_NAME.sub(lambda found: "".join(map(_byte, found[0].encode("utf-8", "surrogateescape"))), text)


def _byte(byte: int) -> str:
    return chr(byte) if byte < 0x80 else f"\\x{byte:02x}"


def _typed(path: str) -> str:
    """As bash takes it."""
    escaped = path.replace("\\", "\\\\").replace("'", "\\'")
    return f"$'{_shown(escaped)}'"
