"""The command line: what it loads and what it offers."""

from __future__ import annotations

import itertools
import json
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from appliance import __version__
from appliance.cli import app as cli_app
from appliance.recipe import fields as recipe_fields
from appliance.recipe import resolve
from tests.conftest import write_qa

HEAVY = ["torch", "transformers", "trl", "peft", "unsloth", "datasets", "pandas", "sklearn", "huggingface_hub"]
HEAVY += ["ray", "starlette"]

# The whole surface. Whoever changes it writes it there, and says in the review whom that serves.
FROZEN = Path(__file__).parents[1] / "fixtures" / "cli.json"
OPTIONS = {
    command: [name.partition("/")[0] for name in told["options"]]  # --turns/--no-turns stands under its first name
    for command, told in json.loads(FROZEN.read_text(encoding="utf-8"))["commands"].items()
    if not command.startswith("dataset ")  # these: tests/cli/test_cli_dataset.py
}


def _help(command: str) -> str:
    result = CliRunner().invoke(cli_app.app, [*command.split(), "--help"], env={"TERMINAL_WIDTH": "200"})
    assert result.exit_code == 0, result.output
    return result.output


def _python(code: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=False)


# --- what it loads

_LIGHT = """
import sys
from appliance.cli.app import main
try:
    main()
finally:
    print(sorted(set(sys.modules) & set({heavy!r})), file=sys.stderr)
"""


_LIGHT_COMMANDS = ["--help", "run --help", "recipe list", "recipe schema", "status", "train --help", "chat --help"]
_LIGHT_COMMANDS += ["recipe show default", "--version"]


@pytest.mark.parametrize("command", _LIGHT_COMMANDS)
def test_a_light_command_loads_nothing_heavy(command: str) -> None:
    done = _python(_LIGHT.format(heavy=HEAVY), *command.split())
    assert (done.returncode, done.stderr) == (0, "[]\n")
    assert done.stdout


_WITHOUT_TORCH = """
import sys
for name in {heavy!r}:
    sys.modules[name] = None  # importing it raises ImportError
from appliance.cli.app import main
main()
"""


def test_check_of_a_csv_needs_neither_torch_nor_an_http_client(tmp_path: Path) -> None:
    path = write_qa(tmp_path / "질문.csv", [("가격은? :key:", "만원"), ("", "x"), ("언제?", "오늘"), ("c", "d")])
    done = _python(_WITHOUT_TORCH.format(heavy=[*HEAVY, "httpx"]), "check", str(path), "--json")
    report = json.loads(done.stdout)
    assert (done.returncode, "1 row cannot be used" in done.stderr) == (3, True)
    assert report["format"] == "UTF-8, comma, double quotes"
    assert report["columns"] == "instruction from 'instruction', output from 'output'"
    assert (report["usable"], report["rejected"], report["split"]) == (3, 1, {"train": 1, "val": 1, "test": 1})
    assert report["bad_rows"] == [{"line": 3, "reason": "column 'instruction': the instruction is empty"}]


def test_the_stage_check_loads_neither_torch_nor_transformers() -> None:
    """Without the extra `train`, a recipe is checked as far as that goes."""
    code = f"import sys; import appliance.pipeline.check; print([n for n in {HEAVY[:6]!r} if n in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


def test_python_dash_m_appliance_shows_the_version() -> None:
    done = subprocess.run([sys.executable, "-m", "appliance", "--version"], capture_output=True, text=True, check=True)
    assert done.stdout == f"{__version__}\n"


# --- what it offers


def test_the_surface_is_frozen() -> None:
    """Commands, arguments, options, defaults, variables, exit codes: scripts of users hang on them."""
    from tests.fixtures import cli

    assert json.loads(cli.as_json()) == json.loads(FROZEN.read_text(encoding="utf-8")), (
        "the command line is another. If that is meant, `python -m tests.fixtures.cli` writes tests/fixtures/cli.json; "
        "look at its diff: what is gone or renamed there breaks scripts"
    )


def test_the_commands_are_frozen() -> None:
    listed = {
        f"{group} {name}".strip()
        for group in ("", "recipe")
        for name in re.findall(r"^  (\w+)", _help(group).partition("Commands:")[2], re.MULTILINE)
    }
    assert listed | {""} == set(OPTIONS)


@pytest.mark.parametrize("command", OPTIONS)
def test_the_options_are_frozen(command: str) -> None:
    offered = re.findall(r"^  (-[\w-]+)", _help(command).partition("Options:")[2], re.MULTILINE)
    completion = [] if command else ["--install-completion", "--show-completion"]  # typer's own
    assert offered == [*OPTIONS[command], *completion, "-h"]


def _examples(command: str) -> list[str]:
    text = re.split(r"^(?:Arguments|Options):", _help(command), flags=re.MULTILINE)[0]
    paragraphs = [" ".join(part.split()) for part in text.strip().split("\n\n")]
    assert paragraphs[0].startswith("Usage:")
    assert not paragraphs[1].startswith("appliance"), "the help opens with the task"
    return paragraphs[-2:]


@pytest.mark.parametrize("command", OPTIONS)
def test_help_ends_with_two_examples_that_are_valid(command: str) -> None:
    examples = _examples(command)
    assert examples[0].startswith(f"appliance {command}")
    for example in examples:
        program, *arguments = shlex.split(example.partition(" > ")[0])
        assert program == "appliance"
        # --help stops before the command acts, but after the command and all option names were looked up
        parsed = CliRunner().invoke(cli_app.app, [*arguments, "--help"])
        assert parsed.exit_code == 0, (example, parsed.output)
        for option, value in itertools.pairwise(arguments):
            if option == "--set":
                assert value.partition("=")[0] in {key for key, _ in recipe_fields.fields()}
    assert CliRunner().invoke(cli_app.app, [*command.split(), "--no-such-option", "--help"]).exit_code == 2


def test_examples_name_recipes_that_exist() -> None:
    named = set(re.findall(r"appliance (?:run|check|recipe show) ([\w-]+)(?!\S)", " ".join(map(_help, OPTIONS))))
    assert named
    assert named <= set(resolve.shipped())
