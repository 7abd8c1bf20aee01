"""Tables and paragraphs that fit a terminal: a word is broken only if it has no room of its own. Pure.

Columns are those of a terminal here: a Korean letter takes two.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from rich.cells import cell_len, set_cell_size
from rich.markup import escape
from rich.table import Table

Rows = Sequence[Sequence[str]]
_KEPT_WHOLE = 10  # columns: a cell as short as `1 h 23 min` takes no second line


def paragraph(text: str, width: int) -> str:
    """`text` with line breaks between words, as far in as the line that is broken.

    A word wider than `width` stays whole, so that it can be copied.
    """
    return "\n".join(_lines(line, width) for line in text.split("\n"))


def _lines(text: str, width: int) -> str:
    done, line = "", ""
    indent = text[: len(text) - len(text.lstrip())]
    for word in re.findall(r"\s*(?:\d[\d.,]* (?=[A-Za-z%]))?\S+", text):  # a number keeps its unit
        if line and cell_len(line) + cell_len(word) > width:
            done, line = f"{done}{line}\n", indent + word.lstrip()
        else:
            line += word
    return done + line


def fitting(text: str, columns: int) -> str:
    """`text`, cut at `columns` with an ellipsis for what is missing."""
    if cell_len(text) <= columns:
        return text
    return set_cell_size(text, columns - 1).rstrip() + "…" if columns > 1 else ""


def in_one_line(parts: Iterable[str], columns: int) -> str:
    """`parts` with a space between them; the longest are cut, with an ellipsis, if they are wider than `columns`.

    >>> in_one_line(["step 40", "│", "배송비는 얼마인가요?", "│", "3,000원"], 32)
    'step 40 │ 배송비는 얼… │ 3,000원'
    """
    texts = [" ".join(part.split()) for part in parts]
    room, share = columns - (len(texts) - 1), dict[int, int]()
    by_width = sorted(range(len(texts)), key=lambda i: cell_len(texts[i]))
    for rest, i in zip(range(len(texts), 0, -1), by_width, strict=True):
        share[i] = min(cell_len(texts[i]), room // rest)
        room -= share[i]
    return " ".join(fitting(text, share[i]) for i, text in enumerate(texts))


def fitted(title: str, columns: Sequence[str], rows: Rows, width: int) -> Table:
    """A table of at most `width` columns.

    If it is wider, its columns move closer, words go to further lines, and each `fix` goes below what was `found`: next
    to it, both would be too narrow to read or to copy.
    """
    natural = _natural(columns, rows)
    if sum(natural) + 2 * (len(columns) - 1) <= width:
        return _drawn(title, columns, rows, natural, gap=2)
    columns, rows = _fixes_below(columns, rows)
    return _drawn(title, columns, rows, widths(columns, rows, width - len(columns) + 1), gap=1)


def widths(columns: Sequence[str], rows: Rows, room: int) -> list[int]:
    """The width of each column, `room` in all.

    Every column has room for its longest word, if there is that much; the rest goes where lines are the longest.
    """
    natural, words = _natural(columns, rows), [0] * len(columns)
    for row in [columns, *rows]:
        words = [max(seen, *map(cell_len, ("", *cell.split()))) for seen, cell in zip(words, row, strict=True)]
    words = [full if full <= _KEPT_WHOLE else word for full, word in zip(natural, words, strict=True)]
    while sum(words) > room and max(words) > 1:
        words[words.index(max(words))] -= 1
    for _ in range(room - sum(words)):
        lines = [full / one if full > one else 0 for full, one in zip(natural, words, strict=True)]
        if not any(lines):
            break
        words[lines.index(max(lines))] += 1
    return words


def _natural(columns: Sequence[str], rows: Rows) -> list[int]:
    return [
        max(cell_len(line) for cell in cells for line in cell.split("\n"))
        for cells in zip(*[columns, *rows], strict=True)
    ]


def _drawn(title: str, columns: Sequence[str], rows: Rows, sizes: Sequence[int], *, gap: int) -> Table:
    drawn = Table(title=title or None, title_justify="left", box=None, header_style="bold", pad_edge=False)
    drawn.padding = (0, gap, 0, 0)
    for column, size in zip(columns, sizes, strict=True):
        drawn.add_column(escape(column), overflow="fold", width=max(size, 1))
    for row in rows:
        drawn.add_row(*map(escape, row))
    return drawn


def _fixes_below(columns: Sequence[str], rows: Rows) -> tuple[Sequence[str], Rows]:
    """The table without its column `fix`, whose cells end those of `found`; other tables as they are."""
    if not {"found", "fix"} <= set(columns):
        return columns, rows
    found, fix = columns.index("found"), columns.index("fix")
    moved = []
    for row in rows:
        cells = list(row)
        if cells[fix]:
            cells[found] += f"\n→ {cells[fix]}"
        moved.append(cells[:fix] + cells[fix + 1 :])
    return [*columns[:fix], *columns[fix + 1 :]], moved
