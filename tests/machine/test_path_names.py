"""Names in CP949 or Latin-1, as old archives bring them: refused at the start, by whichever way they come."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from appliance.errors import ApplianceError, DataError, EnvironmentUnavailable, RecipeError
from appliance.machine import path_names
from tests.helpers.in_process import Appliance, command_line

FOREIGN = os.fsdecode("영호".encode("cp949"))


@pytest.fixture
def appliance(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Iterator[Appliance]:
    with command_line(monkeypatch, capsys) as call:
        yield call


@pytest.fixture
def csv(tmp_path: Path) -> Path:
    path = tmp_path / f"{FOREIGN}.csv"
    path.write_text("instruction,output\n" + "".join(f"q{i},a{i}\n" for i in range(20)), encoding="utf-8")
    return path


@pytest.mark.parametrize("line", ["check {}", "run {}", "run demo --set data.csv={}", "dataset split {} out"])
def test_a_csv_whose_name_is_not_utf8_is_refused(line: str, csv: Path, appliance: Appliance) -> None:
    code, _, err = appliance(*line.format(csv).split(" "))
    assert code == 3, err
    assert r"\xbf\xb5\xc8\xa3.csv is not valid UTF-8" in err
    assert "if CP949 reads it right, rename it: mv $'" in err


def test_the_advice_can_be_pasted(csv: Path, appliance: Appliance) -> None:
    _, _, err = appliance("check", csv)
    subprocess.run(["bash", "-c", err.partition("rename it: ")[2].strip()], check=True)
    assert not csv.exists()
    assert appliance("check", csv.with_name("영호.csv"))[0] == 0


@pytest.mark.parametrize(
    ("arguments", "environ", "error"),
    [
        (["status", "--runs-dir", f"/x/{FOREIGN}"], {}, RecipeError),
        (["run", f"{FOREIGN}.yaml"], {}, RecipeError),
        ([], {"APPLIANCE_RUNS_DIR": FOREIGN}, EnvironmentUnavailable),
        ([], {"APPLIANCE_DATA__CSV": f"{FOREIGN}.CSV"}, DataError),
        ([], {"HF_HOME": FOREIGN}, EnvironmentUnavailable),
        (["run", "가격표.csv", "it's"], {"HOME": "/가", "OTHER": FOREIGN}, None),
    ],
)
def test_every_way_for_a_name_to_come(
    arguments: list[str], environ: dict[str, str], error: type[ApplianceError] | None
) -> None:
    if error is None:
        path_names.refuse_foreign(arguments, environ)
        return
    with pytest.raises(error, match="is not valid UTF-8") as caught:
        path_names.refuse_foreign(arguments, environ)
    assert "locale is UTF-8" in caught.value.hint  # there is no such file to rename
    assert str(caught.value).isprintable()


def test_a_working_directory_whose_name_is_not_utf8(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / os.fsdecode(b"caf\xe9\\'")
    folder.mkdir()
    monkeypatch.chdir(folder)
    with pytest.raises(EnvironmentUnavailable, match=r"the working directory .*caf\\xe9") as caught:
        path_names.refuse_foreign([], {})
    subprocess.run(["bash", "-c", caught.value.hint.partition("rename it: ")[2]], check=True)
    assert (tmp_path / "café\\'").is_dir()


def test_an_escape_in_a_recipe_that_is_no_text(tmp_path: Path, appliance: Appliance) -> None:
    recipe = tmp_path / "r.yaml"
    recipe.write_text('model: {id: a/b}\ndata: {csv: "a\\udcbf.csv"}\n', encoding="utf-8")
    code, _, err = appliance("check", recipe)
    assert (code, "data.csv (r.yaml): a text that UTF-8 can write is needed; found 'a\\udcbf.csv'" in err) == (2, True)
