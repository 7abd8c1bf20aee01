"""The shipped recipes as a table: what each is for, when to choose it, and what it needs. Read from their headers.

A header is comment lines: first what the recipe is for, then labelled paragraphs (`# VRAM: …`). Knows no field of a
recipe and imports nothing heavy.

>>> python -m appliance.recipe.catalogue  # README's table; `make docs` writes it there
"""

from __future__ import annotations

import re
import sys
from dataclasses import dataclass
from pathlib import Path

from appliance.errors import RecipeError
from appliance.recipe.resolve import headline, read_text, shipped

_LABEL = re.compile(r"#\s?([A-Z][A-Za-z ]*): (.*)")


@dataclass(frozen=True)
class Entry:
    """One recipe's header. `vram`, `time` and `data` are what it needs."""

    name: str
    headline: str
    choose: str
    vram: str
    time: str
    data: str

    @property
    def needs(self) -> str:
        return f"VRAM: {self.vram}\ntime: {self.time}\ndata: {self.data}"


def entries() -> list[Entry]:
    """All shipped recipes, by name. Raises RecipeError: a header does not say what its recipe needs."""
    return [entry(path) for path in shipped().values()]


def entry(path: Path) -> Entry:
    """What the header of this recipe says. Raises RecipeError: a label is missing."""
    lines = read_text(path).split("\n")
    notes: dict[str, str] = {}
    label = ""
    for line in lines[1:]:
        if not line.startswith("#"):
            break
        found = _LABEL.fullmatch(line)
        if found:
            label = found[1]
            notes[label] = found[2]
        elif line.strip() == "#":
            label = ""
        elif label:
            notes[label] += " " + line.lstrip("# ")
    try:
        return Entry(path.stem, headline(path), notes["Choose it"], notes["VRAM"], notes["Time"], notes["Data"])
    except KeyError as error:
        raise RecipeError(
            f"{path}: its header has no `# {error.args[0]}: …`", hint="`appliance recipe show demo` shows all of them"
        ) from error


def markdown() -> str:
    """README's table."""
    rows = [
        "| recipe | what it is for | choose it when | VRAM | time | data |",
        "|---|---|---|---|---|---|",
        *(f"| `{e.name}` | {e.headline} | {e.choose} | {e.vram} | {e.time} | {e.data} |" for e in entries()),
    ]
    return "\n".join(rows) + "\n"


if __name__ == "__main__":
    sys.stdout.write(markdown())
