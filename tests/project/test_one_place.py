"""What is done in one place only: a second copy fails here, with the line where it was written."""

from __future__ import annotations

import ast
from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def calls(name: str) -> Callable[[ast.AST], bool]:
    """Whether a node is a call of `name`, such as "os.fsync"."""
    return lambda node: isinstance(node, ast.Call) and ast.unparse(node.func) == name


def adds_up_sizes(node: ast.AST) -> bool:
    """Whether a node is sum(path.stat().st_size for …): how large a folder is."""
    return (
        calls("sum")(node)
        and isinstance(node, ast.Call)
        and any(isinstance(part, ast.Attribute) and part.attr == "st_size" for part in ast.walk(node))
    )


ONE_PLACE: dict[str, tuple[Callable[[ast.AST], bool], str]] = {
    "what is on the disk for good": (calls("os.fsync"), "process/files.py"),
    "free disk": (calls("shutil.disk_usage"), "machine/disk.py"),
    "the error of a full disk": (lambda node: "not enough disk space" in text_of(node), "machine/disk.py"),
    "whether a disk is full": (lambda node: "No space left on device" in text_of(node), "machine/write_errors.py"),
    "the size of a folder": (adds_up_sizes, "machine/disk.py"),
    "YAML, within bounds": (
        lambda node: calls("yaml.load")(node) or calls("yaml.safe_load")(node),
        "bounds.py",
    ),
    "the loop over the CSV": (calls("Remarks"), "rows/first_pass.py"),
}


def text_of(node: ast.AST) -> str:
    return node.value if isinstance(node, ast.Constant) and isinstance(node.value, str) else ""


@cache
def expressions(root: Path) -> list[tuple[str, ast.expr]]:
    """(file below appliance/, expression) of the whole package."""
    return [
        (path.relative_to(root / "appliance").as_posix(), node)
        for path in sorted((root / "appliance").rglob("*.py"))
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.expr)
    ]


def places(is_it: Callable[[ast.AST], bool], root: Path = ROOT) -> list[str]:
    """Every FILE:LINE below the package where it is done, the file below `appliance/`."""
    return [f"{file}:{node.lineno}" for file, node in expressions(root) if is_it(node)]


@pytest.mark.parametrize("what", ONE_PLACE)
def test_each_piece_of_work_has_one_place(what: str) -> None:
    is_it, place = ONE_PLACE[what]
    others = [found for found in places(is_it) if not found.startswith(f"{place}:")]
    assert not others, f"{what} is for appliance/{place}; here it is done again: {', '.join(others)}"


@pytest.mark.parametrize(
    ("what", "copy"),
    [
        ("what is on the disk for good", "import os\nos.fsync(3)"),
        ("free disk", "import shutil\nfree = shutil.disk_usage('/').free"),
        ("the error of a full disk", "error = f'{folder}: not enough disk space for it'"),
        ("whether a disk is full", "full = 'No space left on device' in str(error)"),
        ("the size of a folder", "size = sum(path.stat().st_size for path in folder.rglob('*'))"),
        ("the loop over the CSV", "remarks = Remarks(fmt)"),
    ],
)
def test_a_second_place_for_the_same_work_is_found(what: str, copy: str, tmp_path: Path) -> None:
    (tmp_path / "appliance" / "rows").mkdir(parents=True)
    (tmp_path / "appliance" / "rows" / "copy.py").write_text(copy, encoding="utf-8")
    (found,) = places(ONE_PLACE[what][0], tmp_path)
    assert found.startswith("rows/copy.py:")
