"""What a recipe may have done to the text of a cell before it is a row. By default nothing: cells stay as typed.

>>> CellText(unescape=("newlines", "entities"), na_values=("nan",)).of(r"a\n&amp;b")
'a\n&b'
>>> CellText(na_values=("nan",)).of(" NaN ")
''
"""

from __future__ import annotations

import html
import re
import unicodedata
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

from appliance.rows.header import plain_name

Normalize = Literal["none", "nfc"]
Escape = Literal["newlines", "entities"]

# Cells that say nothing, as `plain_name` returns them: pandas, spreadsheets and Alpaca data write them for no value.
PLACEHOLDERS = frozenset(
    (
        *("nan", "na", "n/a", "#n/a", "none", "null", "nil", "undefined", "-", "--", "(blank)"),
        *("<noinput>", "<no input>", "noinput", "no input", "없음", "해당없음", "해당 없음"),
    )
)
# What `unescape` replaces. LaTeX commands that begin with \n or \t stay.
ESCAPES: dict[Escape, re.Pattern[str]] = {
    "newlines": re.compile(
        r"(?<!\\)\\(r\\n|n(?!abla|eq\b|e\b|u\b|ot\b|i\b|onumber|oindent|ewline)"
        r"|t(?!ext|imes|heta|an\b|anh\b|au\b|o\b|op\b|frac|ilde|riangle))"
    ),
    "entities": re.compile(
        r"&(?:amp|lt|gt|quot|apos|nbsp|hellip|mdash|ndash|[lr]dquo|[lr]squo|#\d{2,6}|#x[\da-fA-F]{2,5});"
    ),
}


@dataclass(frozen=True)
class CellText:
    """`unescape`: kinds of escapes that become what they stand for. `na_values`: texts of cells that count as empty."""

    normalize: Normalize = "none"
    unescape: tuple[Escape, ...] = ()
    na_values: tuple[str, ...] = ()

    @cached_property
    def changes(self) -> bool:
        """Whether any cell may differ from what was typed."""
        return self.normalize == "nfc" or bool(self.unescape or self.na_values)

    @cached_property
    def _empty(self) -> frozenset[str]:
        return frozenset(map(plain_name, self.na_values))

    def of(self, cell: str) -> str:
        """The text of this cell."""
        if plain_name(cell) in self._empty:
            return ""
        if "entities" in self.unescape:
            cell = ESCAPES["entities"].sub(lambda found: html.unescape(found[0]), cell)
        if "newlines" in self.unescape:
            cell = ESCAPES["newlines"].sub(lambda found: "\t" if found[1] == "t" else "\n", cell)
        return unicodedata.normalize("NFC", cell) if self.normalize == "nfc" else cell

    def describe(self) -> list[str]:
        """What is changed, in words; empty if nothing is."""
        return (
            ["normalised to NFC"] * (self.normalize == "nfc")
            + [f"{kind} unescaped" for kind in self.unescape]
            + [f"{', '.join(map(repr, self.na_values))} as empty"] * bool(self.na_values)
        )


AS_TYPED = CellText()
