"""How messages name a number of things. Pure.

>>> counted(1, "row"), counted(0, "row"), counted(2, "reply is", "replies are")
('1 row', '0 rows', '2 replies are')
"""

from __future__ import annotations


def counted(number: int, one: str, more: str = "") -> str:
    """`number` with the word for it: `one` if there is one, else `more`, which is `one` and an s unless given."""
    return f"{number} {one if number == 1 else more or one + 's'}"
