"""What people type first: a CSV instead of a recipe, another trainer's options, -h."""

from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from appliance.cli.app import app
from appliance.machine import device
from appliance.pipeline import run as pipeline_run
from appliance.recipe.fields import Recipe
from appliance.rundir.directory import RunDir
from tests.conftest import write_qa

GPU = device.Device("cuda", "a card", 1 << 34, "bfloat16")


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[tuple[Recipe, Path]]:
    """The recipe and the run directory of every run that was started, in the folder tmp_path."""
    runs: list[tuple[Recipe, Path]] = []

    def run(resolved: Any, run_dir: RunDir, *_: Any, **__: Any) -> None:
        runs.append((resolved.recipe, run_dir.path))

    monkeypatch.setattr(pipeline_run, "run", run)
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("APPLIANCE_RECIPE", raising=False)
    (tmp_path / "data").mkdir()
    write_qa(tmp_path / "data" / "내 자료 1.csv", [("가?", "나")] * 3)
    return runs


def typed(*arguments: str) -> Result:
    result = CliRunner().invoke(app, list(arguments))
    if result.exception and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


@pytest.mark.parametrize(("on_gpu", "base"), [(False, "demo"), (True, "Qwen/Qwen3-4B-Instruct-2507")])
def test_a_csv_is_run_with_the_usual_recipe_of_this_machine(
    on_gpu: bool, base: str, started: list[tuple[Recipe, Path]], monkeypatch: pytest.MonkeyPatch
) -> None:
    if on_gpu:
        monkeypatch.setattr(device, "device", lambda: GPU)
    result = typed("run", "data/내 자료 1.csv", "--set", "train.epochs=2")
    ((recipe, path),) = started
    assert (recipe.model.id, recipe.data.csv, recipe.train.epochs) == (base, "data/내 자료 1.csv", 2)
    assert path == Path("runs/내-자료-1")
    assert f"the recipe {'default' if on_gpu else 'chatbot-cpu'}" in result.stderr


def test_a_csv_is_run_with_the_recipe_beside_it(started: list[tuple[Recipe, Path]]) -> None:
    text = "name: mine\nmodel: {id: demo}\ndata: {csv: other.csv}\n"
    Path("data/recipe.yaml").write_text(text, encoding="utf-8")
    result = typed("run", "data/내 자료 1.csv")
    ((recipe, path),) = started
    assert (recipe.data.csv, path) == ("data/내 자료 1.csv", Path("runs/mine"))
    assert "data/recipe.yaml" in result.stderr


def test_a_csv_on_the_hub_and_a_name_of_ones_own(started: list[tuple[Recipe, Path]]) -> None:
    typed("run", "hf://datasets/a/b@v1/faq.csv", "--set", "name=own")
    ((recipe, path),) = started
    assert (recipe.data.csv, path) == ("hf://datasets/a/b@v1/faq.csv", Path("runs/own"))


@pytest.mark.parametrize(
    ("typed_option", "suggested"),
    [
        (("--epochs", "3"), "--set train.epochs=3"),
        (("--learning-rate=3e-4",), "--set train.learning_rate=3e-4"),
        (("--num_train_epochs", "1"), "--set train.epochs=1"),
        (("--lora-r", "8"), "--set tuning.r=8"),
        (("--data.csv", "x.csv"), "--set data.csv=x.csv"),
        (("--dora",), "--set tuning.dora=VALUE"),
    ],
)
@pytest.mark.parametrize("command", ["run", "check", "train", "publish"])
def test_an_option_that_is_a_field_is_answered_with_set(
    typed_option: tuple[str, ...], suggested: str, command: str, started: list[tuple[Recipe, Path]]
) -> None:
    result = typed(command, "demo", *typed_option)
    assert (result.exit_code, suggested in result.stderr, started) == (2, True, [])


def test_an_unknown_option_suggests_no_field() -> None:
    result = typed("run", "--zzz")
    assert (result.exit_code, "--set" in result.stderr) == (2, False)


@pytest.mark.parametrize("command", [(), ("run",), ("dataset", "hub"), ("recipe", "show")])
def test_dash_h_is_help(command: tuple[str, ...]) -> None:
    assert typed(*command, "-h").output == typed(*command, "--help").output


def test_publish_to_a_named_repository(started: list[tuple[Recipe, Path]]) -> None:
    Path("runs/shop").mkdir(parents=True)
    Path("runs/shop/recipe.yaml").write_text("name: shop\nmodel: {id: demo}\ndata: {csv: x.csv}\n", encoding="utf-8")
    typed("publish", "runs/shop", "--repo-id", "me/shop", "--visibility", "public")
    ((recipe, _),) = started
    assert (recipe.publish.repo_id, recipe.publish.visibility) == ("me/shop", "public")
