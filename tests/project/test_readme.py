"""README.md and docs/ tell the truth: generated parts are fresh, commands run, links resolve, names exist."""

from __future__ import annotations

import importlib.util
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml

from appliance import errors
from appliance.cli.app import app
from appliance.recipe import fields as recipe_fields
from appliance.recipe import resolve
from tests.project.generated import ROOT

README = ROOT / "README.md"
PAGES = [README, *sorted((ROOT / "docs").glob("*.md"))]
ALL_PAGES = [*PAGES, *sorted((ROOT / "docs" / "help").glob("*.md"))]
MOST_LINES = {README: 250}
MOST_LINES_BELOW_DOCS = 200
# What a test cannot run without running itself, and what runs it instead.
RUN_BY_CI = {
    "make setup": "what .ci/run's `make test` begins with",
    "make test": ".ci/run",
    "make test-image": ".ci/run, if there is a container engine",
    "make test-transformers4": ".ci/run, if its packages can be had",
    "make demo": "its command, `appliance demo`, by tests/base_model/test_demo.py",
    "make docs": "its command by the test of generated parts below",
}
RUN_BY_IMAGE_TEST = [
    "cp .env.example .env",
    """sed -i "s/^APP_UID=.*/APP_UID=$(id -u)/; s/^APP_GID=.*/APP_GID=$(id -g)/" .env""",
    "docker compose run --rm train",
]
MEASURED_BY_HAND = {"make bench", "make bench-peers", "make test-faults"}


def text_of(page: Path) -> str:
    return page.read_text(encoding="utf-8")


def name_of(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


def blocks(language: str, pages: list[Path]) -> Iterator[str]:
    """The lines of the fenced blocks in this language."""
    for page in pages:
        for block in re.findall(rf"```{language}\n(.*?)```", text_of(page), re.DOTALL):
            yield from block.splitlines()


def commands() -> list[str]:
    """The lines after `$` in console blocks: README's in order, then those of each page below docs/."""
    return [line.removeprefix("$ ") for line in blocks("console", PAGES) if line.startswith("$ ")]


def prose(page: Path) -> str:
    """The page without its fenced blocks."""
    return re.sub(r"^```.*?^```", "", text_of(page), flags=re.DOTALL | re.MULTILINE)


def appliance_commands() -> list[str]:
    """Every whole `appliance …` command: of console and text blocks, and those in backticks."""
    lines = [*commands(), *blocks("text", PAGES)]
    lines += [" ".join(code.split()) for page in PAGES for code in re.findall(r"`([^`]+)`", prose(page))]
    return sorted({line for line in lines if line.startswith("appliance ")})


def test_the_generated_parts_are_fresh() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "tests.project.generated", "--check"],
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("page", ALL_PAGES, ids=name_of)
def test_a_page_is_short_enough_to_read(page: Path) -> None:
    assert len(text_of(page).splitlines()) <= MOST_LINES.get(page, MOST_LINES_BELOW_DOCS - 1)


def test_every_page_is_linked_from_readme() -> None:
    assert {f"docs/{page.name}" for page in PAGES[1:]} <= set(re.findall(r"\]\((docs/[\w-]+\.md)\)", text_of(README)))


def anchors(page: Path) -> set[str]:
    """What GitHub makes of the headings: lower case, signs dropped, blanks as hyphens."""
    headings = re.findall(r"^#+ (.+)$", prose(page), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", [*ALL_PAGES, ROOT / "CHANGELOG.md"], ids=name_of)
def test_the_links_resolve(page: Path) -> None:
    links = re.findall(r"\]\(([^)\s]+)\)", prose(page))
    for link in links:
        if link.startswith("https://"):
            continue
        target, _, anchor = link.partition("#")
        path = (page.parent / target).resolve() if target else page
        assert path.is_relative_to(ROOT), link
        assert path.exists(), link
        assert not anchor or anchor in anchors(path), link


def test_every_command_is_run_somewhere() -> None:
    makes = {command for command in commands() if command.startswith("make ")}
    assert makes == RUN_BY_CI.keys() | MEASURED_BY_HAND
    others = [command for command in commands() if command not in makes and not command.startswith("appliance ")]
    assert others == RUN_BY_IMAGE_TEST


def test_every_make_target_exists() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    named = {name for page in PAGES for name in re.findall(r"(?:`|^\$ )make ([\w-]+)`?", text_of(page), re.MULTILINE)}
    assert named == {name for name in named if re.search(rf"^{name}:", makefile, re.MULTILINE)}


def test_every_module_that_is_started_exists() -> None:
    named = {name for page in PAGES for name in re.findall(r"python -m ([\w.]+)", text_of(page))}
    assert all(importlib.util.find_spec(name) for name in named)


def test_every_service_and_variable_exists() -> None:
    services = set(yaml.safe_load((ROOT / "compose.yaml").read_text(encoding="utf-8"))["services"])
    text = "".join(map(text_of, PAGES))
    assert set(re.findall(r"docker compose run --rm (?:--entrypoint \S+ )?(\w+)", text)) <= services
    known = set(re.findall(r"^(?:# )?([A-Z_]+)=", (ROOT / ".env.example").read_text(encoding="utf-8"), re.MULTILINE))
    assert {line.split("=")[0] for line in blocks("dotenv", PAGES)} <= known


@pytest.mark.parametrize("line", appliance_commands())
def test_every_command_in_the_docs_is_valid(line: str) -> None:
    """Also what no test runs: the command and its options exist, and what is set is a field of the recipe.

    A command's name without arguments counts as a mention.
    """
    words = shlex.split(re.split(r" [>|] ", line)[0])[1:]
    command: Any = typer.main.get_command(app)
    while words and hasattr(command, "commands"):
        assert words[0] in command.commands
        command = command.commands[words.pop(0)]
    if not words:
        return
    # with the names of the help option: the command, which other tests share, keeps the first ones that it is asked for
    given = command.make_context(command.name, words, **app.info.context_settings).params
    source = given.get("source") or "default"
    if given.get("set_") and source in resolve.shipped():
        resolve.load(source, overrides=given["set_"], environ={})


def test_every_field_that_is_named_exists() -> None:
    """Alone (`train.epochs`), in a setting (`--set train.epochs=1`) or before a value (`train.epochs: 1`)."""
    known = {key for key, _ in recipe_fields.fields()}
    known |= {".".join(key.split(".")[:depth]) for key in known for depth in (1, 2)}  # a whole section
    sections = "|".join(recipe_fields.Recipe.model_fields)
    for page in PAGES:
        for code in [*re.findall(r"`([^`]+)`", prose(page)), *blocks("console", [page])]:
            named = re.findall(rf"(?<![\w./-])((?:{sections})\.[a-z_][\w.]*)", code)
            assert {name for name in named if not name.endswith((".csv", ".py"))} <= known, (page.name, code)


def test_the_exit_codes_are_those_of_the_code() -> None:
    rows = re.findall(r"^\| ([\d, ]+) \|", text_of(ROOT / "docs" / "recovery.md"), re.MULTILINE)
    listed = {int(code) for row in rows for code in row.split(",")}
    raised = {kind.exit_code for kind in errors.ApplianceError.__subclasses__()}
    assert listed == raised | {0, 1, 129, 130, 143}


def test_the_recipe_list_prints_what_the_table_says() -> None:
    from typer.testing import CliRunner

    printed = CliRunner().invoke(app, ["recipe", "list"]).stdout
    assert all(name in printed for name in resolve.shipped())
