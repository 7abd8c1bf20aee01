"""The string constants of the product's source: what tests of "this stands in one place" look through."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[2]


def literals() -> Iterator[tuple[str, int, str]]:
    """(file, line, text) of every string in appliance/ without a space: no docstring, no message, but names."""
    for path in sorted((ROOT / "appliance").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Constant) and isinstance(node.value, str) and " " not in node.value:
                yield str(path.relative_to(ROOT)), node.lineno, node.value
