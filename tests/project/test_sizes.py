"""No file and no function that takes more than one sitting to read."""

from __future__ import annotations

import ast
from pathlib import Path

ROOT = Path(__file__).parents[2]
LONGEST_FILE, LONGEST_FUNCTION = 350, 80  # lines
P90 = 30  # lines that nine of ten functions do not exceed
MANY_PARAMETERS = 9


def paths() -> list[Path]:
    return [path for top in ("appliance", "datasets_src") for path in sorted((ROOT / top).rglob("*.py"))]


def functions() -> list[tuple[str, int, ast.FunctionDef | ast.AsyncFunctionDef]]:
    """(FILE:LINE NAME, lines, node) of each."""
    return [
        (f"{path.relative_to(ROOT)}:{node.lineno} {node.name}", (node.end_lineno or 0) - node.lineno + 1, node)
        for path in paths()
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    ]


def test_files_are_short() -> None:
    lines = {str(path.relative_to(ROOT)): path.read_text(encoding="utf-8").count("\n") for path in paths()}
    assert len(lines) > 100
    assert {name: count for name, count in lines.items() if count > LONGEST_FILE} == {}


def test_functions_are_short() -> None:
    found = functions()
    assert {name: lines for name, lines, _ in found if lines > LONGEST_FUNCTION} == {}
    assert sorted(lines for _, lines, _ in found)[len(found) * 9 // 10] <= P90


def test_many_parameters_are_explained() -> None:
    """A function that takes nine or more has an Args block, unless it is a command: there each option has its help."""
    unexplained = []
    for name, _, node in functions():
        if not name.startswith("appliance/cli/"):
            taken = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
            count = len([one for one in taken if one.arg not in ("self", "cls")])
            if count >= MANY_PARAMETERS and "Args:\n" not in (ast.get_docstring(node) or ""):
                unexplained.append(f"{name}: {count}")
    assert unexplained == []
