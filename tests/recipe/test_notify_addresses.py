"""The recipe's `notify`: read from a file, a variable or --set; shown by no message and kept by no run directory."""

from __future__ import annotations

from pathlib import Path

import pytest

from appliance.cli import recipe_command
from appliance.errors import RecipeError
from appliance.pipeline import head
from appliance.recipe import earlier_runs, notify_addresses, resolve, stage_fields
from appliance.rundir.directory import STAGES

SECRET = "tOkEn-4hT9bXq2LmZr8VwC"
SLACK, MAIL = f"slack://{SECRET}/b/c", "mailto://me:pw@host?to=one@host,two@host"


def loaded(text: str = "", **environ: str) -> resolve.Resolved:
    overrides = [f"notify={text}"] if text else []
    return resolve.load("demo", overrides=overrides, environ={f"APPLIANCE_{k.upper()}": v for k, v in environ.items()})


@pytest.mark.parametrize(
    "text",
    [f"{SLACK} {MAIL}", f"{SLACK},{MAIL}", f"{SLACK}\n{MAIL}\n", f"[{SLACK}, '{MAIL}']", f"{SLACK} {MAIL} {SLACK}"],
)
def test_several_addresses_in_one_text(text: str) -> None:
    assert loaded(notify=text).recipe.notify == [SLACK, MAIL]
    assert loaded(text).recipe.notify == [SLACK, MAIL]


@pytest.mark.parametrize("written", [f"notify: {SLACK}\n", f"notify: [{SLACK}]\n", f"notify:\n  - {SLACK}\n"])
def test_a_recipe_file_may_hold_them(written: str, tmp_path: Path) -> None:
    path = tmp_path / "my.yaml"
    path.write_text("name: shop\nmodel: {id: demo}\ndata: {csv: demo}\n" + written, encoding="utf-8")
    assert resolve.load(str(path), environ={}).recipe.notify == [SLACK]
    assert resolve.load(str(path), overrides=["notify="], environ={}).recipe.notify == []


@pytest.mark.parametrize("origin", ["variable", "--set"])
def test_a_run_directory_keeps_none_and_says_where_they_came_from(origin: str, tmp_path: Path) -> None:
    resolved = loaded(notify=SLACK) if origin == "variable" else loaded(SLACK)
    (tmp_path / "recipe.yaml").write_text(resolved.to_yaml(), encoding="utf-8")
    assert SECRET not in resolved.to_yaml()
    again = resolve.load(str(tmp_path), environ={})
    assert again.recipe.notify == []
    assert again.origins["notify"] == f"{'APPLIANCE_NOTIFY' if origin == 'variable' else '--set'}, not kept"
    assert again.to_yaml() == resolved.to_yaml()
    with_them = resolve.load(str(tmp_path), environ={"APPLIANCE_NOTIFY": SLACK})
    assert earlier_runs.as_begun(with_them, tmp_path / "recipe.yaml").recipe.notify == [SLACK]


def test_no_stage_depends_on_them() -> None:
    stages = STAGES[1:]
    with_them, without = loaded(SLACK).recipe, loaded().recipe
    assert [stage_fields.of_stage(with_them, s) for s in stages] == [stage_fields.of_stage(without, s) for s in stages]


def test_they_are_shown_as_services() -> None:
    assert head._cell("notify", [SLACK, MAIL]) == "slack://…, mailto://…"
    assert SECRET not in repr(loaded(SLACK).recipe)


@pytest.mark.parametrize(
    "given",
    [
        f"hook/{SECRET}",
        f"{SLACK} {SECRET}",
        f"[{SLACK}, {SECRET}]",
        f"[{SLACK}, '{SECRET}",
        f"[[{SECRET}]]",
        f"[{{a: {SECRET}}}]",
    ],
)
@pytest.mark.parametrize("by", ["variable", "--set", "file"])
def test_no_error_shows_one(given: str, by: str, tmp_path: Path) -> None:
    path = tmp_path / "my.yaml"
    written = f"notify: {given}\n" if by == "file" else ""
    path.write_text("name: shop\nmodel: {id: demo}\ndata: {csv: demo}\n" + written, encoding="utf-8")
    environ = {"APPLIANCE_NOTIFY": given} if by == "variable" else {}
    with pytest.raises(RecipeError) as caught:
        resolve.load(str(path), overrides=[f"notify={given}"] if by == "--set" else [], environ=environ)
    assert SECRET not in str(caught.value) + caught.value.hint
    assert SECRET[:10] not in str(caught.value)
    assert "notify" in str(caught.value) or "line 4" in str(caught.value)


def test_a_mistyped_option_does_not_repeat_one() -> None:
    with pytest.raises(RecipeError) as caught:
        resolve.load("demo", overrides=[f"notify:{SLACK}"], environ={})
    assert SECRET not in str(caught.value)
    assert recipe_command._as_set("--notify", ["--notify", SLACK]) == ["--set notify=VALUE"]


def test_only_the_service_may_be_shown() -> None:
    assert notify_addresses.service(SLACK) == "slack"
    assert notify_addresses.is_secret("notify.0")
    assert not notify_addresses.is_secret("notifying")
