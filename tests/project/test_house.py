"""Who may import whom: lower floors, or files below in the same package; never up, never sideways, no circles."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
# Which package is on which floor. A new package is placed here first.
FLOORS = {
    **dict.fromkeys(("errors", "findings", "bounds", "wording"), 0),
    **dict.fromkeys(("process", "machine", "recipe", "prompt"), 1),
    "tasks": 2,
    **dict.fromkeys(("rows", "rundir", "hub", "engines", "weights", "listening"), 3),
    **dict.fromkeys(("base_model", "training", "evaluation", "release", "preflight", "notify"), 4),
    "report": 5,
    **dict.fromkeys(("serving", "pipeline", "web", "sweeps"), 6),
    "cli": 7,
}
DOORS = {"__init__", "__main__"}  # of the package appliance itself: its version, and `python -m appliance`
STAGES = {"check", "prepare", "rehearse", "train", "evaluate", "merge", "publish"}


def module_of(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imported(path: Path, modules: set[str]) -> Iterator[tuple[int, str]]:
    """(line, module) of every import of our own code in the file, also in functions and under TYPE_CHECKING."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path.relative_to(ROOT)}:{node.lineno}: a relative import"
            both = [f"{node.module}.{alias.name}" for alias in node.names]
            names = [name if name in modules else str(node.module) for name in both]
        else:
            continue
        yield from ((node.lineno, name) for name in names if name.split(".")[0] in ("appliance", "datasets_src"))


def package(module: str) -> str:
    return [*module.split("."), "__init__"][1]


def faults(root: Path = ROOT) -> list[str]:
    """Every import that breaks the order, as FILE:LINE and why."""
    paths = {module_of(path): path for top in ("appliance", "datasets_src") for path in (root / top).rglob("*.py")}
    found = []
    for module, path in sorted(paths.items()):
        own = package(module)
        for line, name in imported(path, set(paths)):
            why = None
            if module.startswith("datasets_src"):
                why = "datasets_src knows no appliance" if name.startswith("appliance") else None
            elif name.startswith("datasets_src"):
                why = None if own == "cli" else "only cli meets datasets_src"
            elif own in DOORS or package(name) in DOORS:
                continue
            elif own == package(name):
                parts = {module.split(".")[-1], name.split(".")[-1]}
                if own == "pipeline" and module != name and parts <= STAGES:
                    why = "a stage imports no stage"
            elif FLOORS[package(name)] >= FLOORS[own]:
                why = f"{own} is on floor {FLOORS[own]}, {package(name)} on floor {FLOORS[package(name)]}"
            if why:
                found.append(f"{path.relative_to(root)}:{line}: imports {name}: {why}")
    return found


def circles() -> list[str]:
    """The imports that close a circle of modules."""
    paths = {module_of(path): path for top in ("appliance", "datasets_src") for path in (ROOT / top).rglob("*.py")}
    edges = {module: {name: line for line, name in imported(path, set(paths))} for module, path in paths.items()}
    found, done = [], set[str]()

    def visit(module: str, way: list[str]) -> None:
        if module in way:
            at = way[-1]
            ring = " -> ".join([*way[way.index(module) :], module])
            found.append(f"{paths[at].relative_to(ROOT)}:{edges[at][module]}: closes the circle {ring}")
        elif module not in done:
            for name in edges.get(module, ()):
                if name != module:
                    visit(name, [*way, module])
            done.add(module)

    for module in sorted(edges):
        visit(module, [])
    return found


def test_every_package_has_its_floor() -> None:
    inside = (ROOT / "appliance").iterdir()
    names = {path.stem for path in inside if path.suffix == ".py" or (path / "__init__.py").is_file()}
    assert names - DOORS == FLOORS.keys()


def test_no_import_goes_up_or_sideways() -> None:
    assert not (found := faults()), "\n".join(found)


def test_no_imports_form_a_circle() -> None:
    assert not (found := circles()), "\n".join(found)


def users_of(library: str, root: Path = ROOT) -> list[str]:
    """The modules of the appliance that import the library, wherever in the file."""
    found = []
    for path in sorted((root / "appliance").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [str(node.module)] if isinstance(node, ast.ImportFrom) else []
            found += [str(path.relative_to(root)) for name in names if name.split(".")[0] == library]
    return found


def texts_in(path: Path) -> set[str]:
    """The string literals of a module, without its docstrings and comments."""
    return {
        node.value
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Constant) and isinstance(node.value, str)
    }


def test_only_hub_imports_the_client_library() -> None:
    users = users_of("huggingface_hub")
    assert users
    assert not [path for path in users if not path.startswith("appliance/hub/")]


def test_one_place_lists_the_variables_with_the_token() -> None:
    paths = (ROOT / "appliance").rglob("*.py")
    listed = [str(path.relative_to(ROOT)) for path in paths if "HUGGING_FACE_HUB_TOKEN" in texts_in(path)]
    assert listed == ["appliance/process/known_secrets.py"]


def test_one_place_finds_the_token() -> None:
    """No other module asks the library for it or reads its variable."""
    for path in (ROOT / "appliance").rglob("*.py"):
        names = {
            alias.name
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
            if isinstance(node, ast.ImportFrom)
            for alias in node.names
        }
        if path != ROOT / "appliance" / "hub" / "token.py":
            assert "get_token" not in names, path
        if path != ROOT / "appliance" / "process" / "known_secrets.py":
            assert "HF_TOKEN" not in texts_in(path), path


def test_one_place_names_the_failures_of_the_hub() -> None:
    """Others catch HfHubHTTPError and ask errors.failure_of, not the library's many kinds."""
    kinds = ("RepositoryNotFoundError", "GatedRepoError", "RevisionNotFoundError", "RemoteEntryNotFoundError")
    paths = (ROOT / "appliance").rglob("*.py")
    users = [str(path.relative_to(ROOT)) for path in paths if any(k in path.read_text(encoding="utf-8") for k in kinds)]
    assert users == ["appliance/hub/errors.py"]


@pytest.mark.parametrize(
    ("path", "line", "why"),
    [
        ("appliance/machine/disk.py", "from appliance.hub import client", "machine is on floor 1, hub on floor 3"),
        ("appliance/release/card.py", "from appliance.report import page", "release is on floor 4, report on floor 5"),
        ("appliance/pipeline/train.py", "from appliance.pipeline import merge", "a stage imports no stage"),
        ("appliance/rows/split.py", "from datasets_src import pairs", "only cli meets datasets_src"),
        ("datasets_src/pairs.py", "from appliance import errors", "datasets_src knows no appliance"),
    ],
)
def test_a_wrong_import_is_named(
    path: str, line: str, why: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in {path, "appliance/hub/client.py", "appliance/report/page.py", "appliance/pipeline/merge.py"}:
        (tmp_path / module).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / module).write_text(f"\n{line}\n" if module == path else "", encoding="utf-8")
    monkeypatch.setitem(globals(), "ROOT", tmp_path)
    assert [found.split(": ") for found in faults(tmp_path)] == [[f"{path}:2", f"imports {imported_name(line)}", why]]


def imported_name(line: str) -> str:
    """As faults() shows it: a module that is there by its own name, of another the package."""
    _, package_, _, name = line.split()
    known = {"client", "page", "merge"}
    return f"{package_}.{name}" if name in known else package_
