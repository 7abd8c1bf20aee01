"""What a terminal can show: what its encoding lacks is replaced, what would act or hide in it is made visible.

>>> "F1 40 % → 60 % … 완료".encode("ascii", errors=REPLACE).decode()
'F1 40 % -> 60 % ... ??'
"""

from __future__ import annotations

import codecs
import io
import re
import sys

REPLACE = "appliance-replace"  # the name of the error handler below
# What this program itself writes beyond ASCII, and its spelling where that cannot be shown.
_ASCII = {"→": "->", "…": "...", "×": "x", "·": "-", "–": "-", "—": "-", "’": "'", "‘": "'", "“": '"', "”": '"'}
_ASCII |= {"↵": "\\n"}
_ASCII |= {"├": "+", "└": "+", "─": "-", "│": "|", "━": "-", "╸": "-", "╺": "-"}

_CONTROLS = r"[\x00-\x08\x0b-\x1f\x7f-\x9f]"  # ANSI escapes, NUL, …; not newline and tab
# Characters that reorder the text around them (unicode.org/reports/tr9, section 2), those that take no room, and lone
# surrogates, which UTF-8 cannot hold. A joiner is left alone after emoji and the scripts that need it, and shown after
# these: Latin, Greek, Cyrillic, Hangul, kana and Han.
_HIDDEN = "[\u00ad\u061c\u180e\u200b\u200e\u200f\u202a-\u202e\u2060-\u206f\ud800-\udfff\ufeff]"
_JOINERS = "(?<![^\u0000-\u052f\u1100-\u11ff\u3040-\u9fff\uac00-\ud7ff])[\u200c\u200d]"
_UNPRINTABLE = re.compile(f"{_CONTROLS}|{_HIDDEN}|{_JOINERS}")


def printable(text: str) -> str:
    """`text` with control, bidi, zero-width and surrogate characters as \\x1b or \\u200b; newlines and tabs stay."""
    return _UNPRINTABLE.sub(lambda m: f"\\x{ord(m[0]):02x}" if m[0] < "\xa0" else f"\\u{ord(m[0]):04x}", text)


def _replaced(error: UnicodeError) -> tuple[str, int]:
    if not isinstance(error, UnicodeEncodeError):
        raise error
    lost = error.object[error.start : error.end]
    return "".join(_ASCII.get(character, "?") for character in lost), error.end


codecs.register_error(REPLACE, _replaced)


def replace_what_cannot_be_shown() -> None:
    """stdout and stderr in an encoding such as cp949, latin-1 or ASCII replace characters that it does not have."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors=REPLACE)
