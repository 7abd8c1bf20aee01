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
from typer.main import get_command
from typer.testing import CliRunner

from appliance import __version__
from appliance.cli import app as cli_app
from appliance.cli import help as cli_help
from appliance.cli import inspect as cli_inspect
from appliance.prompt import format as prompt_format
from appliance.prompt import tokenizer
from appliance.recipe import fields as recipe_fields
from appliance.recipe import resolve
from appliance.training import kept_ids
from tests.conftest import write_qa

HEAVY = ["torch", "transformers", "trl", "peft", "unsloth", "datasets", "pandas", "sklearn", "huggingface_hub"]
HEAVY += ["ray", "starlette", "apprise"]

# The whole surface. Whoever changes it writes it there, and says in the review whom that serves.
FROZEN = Path(__file__).parents[1] / "fixtures" / "cli.json"
OPTIONS = {
    command: [name.partition("/")[0] for name in told["options"]]  # --turns/--no-turns stands under its first name
    for command, told in json.loads(FROZEN.read_text(encoding="utf-8"))["commands"].items()
    if not command.startswith("dataset ")  # these: tests/cli/test_cli_dataset.py
}
ALL = list(json.loads(FROZEN.read_text(encoding="utf-8"))["commands"])


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


# What a command may import beyond Python's own library: these are most of its start.
_TYPER = {"typer", "annotated_doc", "shellingham"}
_PYDANTIC = {"pydantic", "pydantic_core", "annotated_types", "typing_extensions", "typing_inspection"}
_LOADED = [
    ("--help", _TYPER),
    ("--version", _TYPER),
    ("run --help", _TYPER | _PYDANTIC),
    ("dataset --help", _TYPER | _PYDANTIC),
    ("status", _TYPER | _PYDANTIC | {"rich"}),
]
_PACKAGES = """
import sys
before = {name.partition(".")[0] for name in sys.modules}
from appliance.cli.app import main
try:
    main()
finally:
    loaded = {name.partition(".")[0] for name in sys.modules} - before - sys.stdlib_module_names
    loaded = {name for name in loaded if not name.startswith("_")}  # Python's own, named after the machine
    loaded |= {"pyarrow.compute"}.intersection(sys.modules)  # takes longer than all the rest of pyarrow
    print(*sorted(loaded - {"appliance", "datasets_src"}), "socket" in sys.modules, file=sys.stderr)
"""


@pytest.mark.parametrize(("command", "may"), _LOADED, ids=[command for command, _ in _LOADED])
def test_a_command_starts_with_few_packages(command: str, may: set[str]) -> None:
    done = _python(_PACKAGES, *command.split())
    *packages, has_socket = done.stderr.split()
    assert (done.returncode, set(packages) - may) == (0, set())
    assert "typer" in packages
    assert has_socket == str(bool(may & _PYDANTIC))  # only pydantic wants it


def test_check_and_prepare_load_neither_torch_nor_transformers(base_dir: Path, tmp_path: Path) -> None:
    """On a machine without a GPU, with a base in a folder: its tokens and rows are looked at all the same."""
    csv_path = write_qa(tmp_path / "train.csv", [(f"{i}?", "답") for i in range(40)])
    named = ["--set", f"model.id={base_dir}", "--set", f"data.csv={csv_path}", "--json"]
    done = _python(
        "import os; os.environ['CUDA_VISIBLE_DEVICES'] = ''" + _PACKAGES,
        *("check", "chatbot-cpu", *named, "--runs-dir", str(tmp_path), "--cache-dir", str(tmp_path / "cache")),
    )
    *packages, _ = done.stderr.splitlines()[-1].split()
    assert done.returncode == 0, done.stderr
    assert not {*HEAVY, "httpx", "scipy", "datasketch", "pyarrow"}.intersection(packages)
    found = {finding["what"]: finding["found"] for finding in json.loads(done.stdout)}
    assert found["control tokens"] == "EOS and the template's tokens look trained"
    assert "cores" in found["engine"]
    done = _python(
        "import os; os.environ['CUDA_VISIBLE_DEVICES'] = ''" + _PACKAGES, "prepare", str(tmp_path / "chatbot-cpu")
    )
    *packages, _ = done.stderr.splitlines()[-1].split()
    assert done.returncode == 0, done.stderr
    assert "pyarrow" in packages
    assert not {*HEAVY, "httpx", "scipy", "datasketch", "pyarrow.compute"}.intersection(packages)
    train_csv = tmp_path / "chatbot-cpu" / "prepare" / "train.csv"
    trained_with = prompt_format.from_transformers("alpaca", tokenizer.load(base_dir))
    assert kept_ids.why_not(train_csv, trained_with) == ""


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


def test_no_library_reports_to_the_hub_that_it_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HF_HUB_DISABLE_TELEMETRY")
    code = """
import sys
from appliance.cli.app import main
sys.argv = ["appliance", "--version"]
try:
    main()
except SystemExit:
    from huggingface_hub import constants
    print(constants.HF_HUB_DISABLE_TELEMETRY)
"""
    assert _python(code).stdout.splitlines()[-1] == "True"


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
        for name in re.findall(r"^  (\w+)", _help(group).partition("Commands:")[2].partition("\n\n")[0], re.MULTILINE)
    }
    assert listed | {""} == set(OPTIONS)


@pytest.mark.parametrize("command", OPTIONS)
def test_the_options_are_frozen(command: str) -> None:
    offered = re.findall(r"^  (-[\w-]+)", _help(command).partition("Options:")[2], re.MULTILINE)
    completion = [] if command else ["--install-completion", "--show-completion"]  # typer's own
    assert offered == [*OPTIONS[command], *completion, "-h"]


def _examples(command: str) -> list[str]:
    told, _, last = _help(command).partition("\nExamples:\n")
    usage, task, *_ = told.split("\n\n")
    assert usage.startswith("Usage:")
    assert re.match(r"  [A-Z][^:]+[.:]", task), "the help opens with the task"
    return [line.strip() for line in last.replace("\\\n", "").splitlines()]


@pytest.mark.parametrize("command", ALL)
def test_help_ends_with_two_examples_that_are_valid(command: str) -> None:
    examples = _examples(command)
    assert len(examples) >= 2
    assert any(example.startswith(f"appliance {command}") for example in examples)
    for example in examples:
        program, *arguments = shlex.split(example.partition(" > ")[0])
        assert program == "appliance"
        # --help stops before the command acts, but after the command and all option names were looked up
        parsed = CliRunner().invoke(cli_app.app, [*arguments, "--help"])
        assert parsed.exit_code == 0, (example, parsed.output)
        for option, value in itertools.pairwise(arguments):
            if option == "--set":
                assert value.partition("=")[0] in {key for key, _ in recipe_fields.fields()}
            if option == "--pattern":
                re.compile(value)
    assert CliRunner().invoke(cli_app.app, [*command.split(), "--no-such-option", "--help"]).exit_code == 2


@pytest.mark.parametrize("command", ALL)
def test_arguments_and_options_are_named_by_words(command: str) -> None:
    """Not by what Typer calls their Python types, as in `<list[Path]>` or `<int range>`."""
    listed = re.split(r"^(?=Arguments:|Options:|Commands:|Examples:)", _help(command), flags=re.MULTILINE)
    usage = listed[0].split("\n\n")[0]
    assert not set("{}<>") & set(usage), usage
    shown = [part for part in listed if part.startswith(("Arguments:", "Options:"))]
    for name in re.findall(r"^  (\S.*?)(?:  |$)", "\n".join(shown), re.MULTILINE):
        values = re.sub(r"--?[\w-]+", "", name).strip(" ,/")
        assert re.fullmatch(r"([A-Z][A-Za-z_./]*|[a-z]+\|[a-z]+|\[|\]|[|@= ])*", values), (command, name)
    assert "x>=" not in _help(command)
    assert "<=x" not in _help(command)


def test_run_comes_first() -> None:
    assert re.search(r"^Commands:\n  run ", _help(""), re.MULTILINE)


@pytest.mark.parametrize("group", ["", "recipe", "dataset"])
def test_what_a_command_does_is_not_cut_off_in_the_list(group: str) -> None:
    """The first sentence of its help, at 80 columns."""
    shown = CliRunner().invoke(cli_app.app, [*group.split(), "--help"], env={"COLUMNS": "80"})
    listed = shown.output.partition("Commands:")[2].splitlines()
    assert len(listed) > 3
    assert [line for line in listed if line.endswith("...")] == []


@pytest.mark.parametrize("width", [40, 60, 80])
def test_an_example_that_is_folded_is_the_same_command_to_a_shell(width: int) -> None:
    for command in ALL:
        for example in cli_help.split(_docstring(command))[1]:
            lines = cli_help.folded(example, width)
            words = [shlex.split(line.removesuffix(" \\")) for line in lines]
            assert list(itertools.chain.from_iterable(words)) == shlex.split(example)
            assert all(len(line) <= width or len(shlex.split(line.removesuffix(" \\"))) <= 2 for line in lines), lines
            assert [line.endswith(" \\") for line in lines] == [True] * (len(lines) - 1) + [False]


def _docstring(command: str) -> str:
    node = get_command(cli_app.app)
    for word in command.split():
        node = node.commands[word]  # type: ignore[attr-defined]
    return node.help or ""


def test_examples_name_recipes_that_exist() -> None:
    named = set(re.findall(r"appliance (?:run|check|recipe show) (\w[\w-]*)(?!\S)", " ".join(map(_help, OPTIONS))))
    assert named
    assert named <= set(resolve.shipped())


# --- what `inspect` prints


def test_inspect_names_what_is_masked_and_what_is_trained() -> None:
    """No information by colour alone: it has to survive a pipe."""
    told = list(cli_inspect.marked_lines([("질문: [b]?\n\n", False), ("답.\n끝</s>", True), ("\n", False)]))
    assert [re.sub(r"\[/?(bold|dim)?\]", "", line) for line in told] == [
        "masked   질문: \\[b]?↵",
        "         ↵",
        "trained  답.↵",
        "         끝</s>",
        "masked   ↵",
    ]
