"""The section of the report about the sweep that chose the settings of the run."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from appliance.report import page
from appliance.rundir import chosen
from tests.helpers.shown_run import shown_run
from tests.rundir.test_chosen import CHOSEN


def test_the_report_says_among_how_many_it_was_chosen(tmp_path: Path) -> None:
    run = shown_run(tmp_path / "shop")
    assert "Settings tried" not in page.write_html(run).read_text(encoding="utf-8")
    chosen.write(run, CHOSEN)
    text = page.write_html(run).read_text(encoding="utf-8")
    assert "Settings tried" in text
    assert "Chosen among 3 settings by the lowest val loss; the test rows were looked at once, afterwards" in text
    assert text.index("2-r-16") < text.index("1-r-8")
    assert text.count('<b class="good">chosen</b>') == 1
    chosen.write(run, replace(CHOSEN, trained="trained again, with other settings"))
    assert "Settings tried" not in page.write_html(run).read_text(encoding="utf-8")
