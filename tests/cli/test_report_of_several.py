"""`appliance report RUN RUN`: the page of each run, and one of all."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.cli.conftest import Appliance
from tests.helpers.shown_run import shown_run


def test_the_command_writes_each_page_and_one_of_all(
    appliance: Appliance, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs = [shown_run(tmp_path / name) for name in ("plain", "longer")]
    monkeypatch.chdir(tmp_path)
    code, out, err = appliance("report", "plain", "longer")
    assert (code, "longer" in out) == (0, True), err
    assert "written: compare.html" in err
    assert all(path.is_file() for path in (*(run / "report.html" for run in runs), tmp_path / "compare.html"))
    code, _, err = appliance("report", *sorted(path.name for path in tmp_path.iterdir()))  # as * names them
    assert (code, err.count("written: ")) == (0, 3), err
    code, out, err = appliance("report", "plain", "longer", "--json", "--out", "other.html")
    assert (code, len(json.loads(out)), "written: other.html" in err) == (0, 4, True), err


def test_a_page_of_one_run_has_its_place(appliance: Appliance, tmp_path: Path) -> None:
    run = shown_run(tmp_path / "plain")
    code, _, err = appliance("report", run, "--out", tmp_path / "other.html")
    assert (code, "--out is for the page of several runs" in err) == (2, True)
    assert not (tmp_path / "other.html").exists()


def test_a_file_that_is_no_page_is_not_replaced(appliance: Appliance, tmp_path: Path) -> None:
    runs = [shown_run(tmp_path / name) for name in ("plain", "longer")]
    (tmp_path / "rows.csv").write_text("a,b\n", encoding="utf-8")
    code, _, err = appliance("report", *runs, "--out", tmp_path / "rows.csv")
    assert (code, "exists and is not a page that may be replaced" in " ".join(err.split())) == (2, True)
    assert (tmp_path / "rows.csv").read_text(encoding="utf-8") == "a,b\n"
    assert not (runs[0] / "report.html").exists()
