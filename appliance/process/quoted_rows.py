"""Texts of rows that a message quotes so that its reader finds the place: for the terminal, never for a log.

A log may be sent to somebody who helps; the rows are the user's own. Whoever quotes one says so (`learn`).
"""

from __future__ import annotations

MASK = "‹text of a row›"
# A message quotes a few rows. What quotes every odd row of a large file would fill memory: of such a file no more are
# shown than of any other, and those come first.
_MOST = 2000
_quoted: dict[str, None] = {}


def learn(quoted: str) -> str:
    """`quoted`, a row's text as a message shows it, quotes included, which every log leaves out from now on."""
    if len(_quoted) < _MOST:
        _quoted[quoted] = None
    return quoted


def masked(text: str) -> str:
    """`text` without what was quoted, the longest first: one may be part of another."""
    for quoted in sorted((one for one in _quoted if one in text), key=len, reverse=True):
        text = text.replace(quoted, MASK)
    return text


def forget() -> None:
    """For tests, which share a process."""
    _quoted.clear()
