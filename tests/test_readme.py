"""README tells the truth: its table is generated, its commands run, its exit codes are those of the code."""

from __future__ import annotations

import re
from pathlib import Path

from appliance import catalogue, errors, resolve

README = (Path(__file__).parent.parent / "README.md").read_text(encoding="utf-8")
# What a test cannot run without running itself, and where it is run instead.
RUN_BY_CI = {
    "make test": ".ci/run",
    "make test-image": ".ci/run, where there is an engine",
    "make demo": "its command, `appliance demo`, by tests/test_demo.py",
}
RUN_BY_IMAGE_TEST = [
    "cp .env.example .env",
    """sed -i "s/^APP_UID=.*/APP_UID=$(id -u)/; s/^APP_GID=.*/APP_GID=$(id -g)/" .env""",
    "docker compose run --rm train",
]
MEASURED_BY_HAND = {"make bench"}


def commands() -> list[str]:
    """The lines after `$` in README's console blocks, in order."""
    blocks = re.findall(r"```console\n(.*?)```", README, re.DOTALL)
    return [line.removeprefix("$ ") for block in blocks for line in block.splitlines() if line.startswith("$ ")]


def test_the_recipe_table_is_generated() -> None:
    table = re.search(r"<!-- recipes: .*? -->\n(.*?)<!-- end -->", README, re.DOTALL)
    assert table is not None
    assert table[1] == catalogue.markdown()


def test_every_command_is_run_somewhere() -> None:
    makes = {command for command in commands() if command.startswith("make ")}
    assert makes == RUN_BY_CI.keys() | MEASURED_BY_HAND
    others = [command for command in commands() if command not in makes and not command.startswith("appliance ")]
    assert others == RUN_BY_IMAGE_TEST
    makefile = (Path(__file__).parent.parent / "Makefile").read_text(encoding="utf-8")
    assert all(re.search(rf"^{command.split()[1]}:", makefile, re.MULTILINE) for command in makes)


def test_the_exit_codes_are_those_of_the_code() -> None:
    listed = {int(code) for row in re.findall(r"^\| ([\d, ]+) \|", README, re.MULTILINE) for code in row.split(",")}
    raised = {kind.exit_code for kind in errors.ApplianceError.__subclasses__()}
    assert listed == raised | {0, 1, 129, 130, 143}


def test_the_recipe_list_prints_what_the_table_says() -> None:
    from typer.testing import CliRunner

    from appliance.cli import app

    printed = CliRunner().invoke(app, ["recipe", "list"]).stdout
    assert all(name in printed for name in resolve.shipped())
