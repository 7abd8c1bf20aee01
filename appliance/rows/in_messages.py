"""How messages show what is in a file: names of columns, and texts of rows, which are the user's own."""

from __future__ import annotations

from appliance.process import quoted_rows


def shown(text: str, length: int = 40) -> str:
    """Quoted and escaped, so that a cell can neither flood a terminal nor control it."""
    return repr(text if len(text) <= length else text[: length - 1] + "…")


def quoted(text: str, length: int = 40) -> str:
    """As `shown`, of a row's text: for the terminal, and left out of every log."""
    return quoted_rows.learn(shown(text, length))
