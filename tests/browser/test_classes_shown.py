"""The page of a classifier: its tables by class, on every width, and whatever the classes are called."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from appliance.evaluation import class_verdict
from appliance.process import files
from appliance.report import page
from appliance.rundir import results
from tests.browser import accessibility
from tests.helpers.shown_run import shown_run

Visit = Callable[..., Any]
NAMES = ("기쁨", "슬픔", "분노", "중립", "불만", "칭찬", "문의", "환불", "<b>&")
CLASSES = [name + i % 4 * " 긴 이름" for i, name in enumerate(NAMES)]
WANTED = [CLASSES[i % 8] for i in range(64)]  # nothing of the last class
TUNED = [CLASSES[i % 8] if i % 3 else CLASSES[0] for i in range(64)]
LOOKS = [(1280, "light"), (1280, "dark"), (390, "light"), (390, "dark")]


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    baselines = {"linear": [CLASSES[0], *WANTED[1:]], "majority": [CLASSES[0]] * 64}
    found = class_verdict.compare(
        WANTED,
        TUNED,
        baselines,
        classes=CLASSES,
        groups=[str(i) for i in range(64)],
        losses={"tuned": 0.5, "majority": 2.0},
    )
    columns = (*results.PREDICTION_COLUMNS, results.BASE_COLUMN.format("majority"), results.PROBABILITY_COLUMN)
    rows = [
        (str(i + 2), f"글 {i}", wanted, baselines["linear"][i], TUNED[i], "tie", CLASSES[0], "0.7310")
        for i, wanted in enumerate(WANTED)
    ]
    folder = tmp_path_factory.mktemp("runs") / "moods"
    run = shown_run(folder, rows, (), columns)
    files.write_json(run / "evaluate" / results.COMPARISON, asdict(found) | {"rows_of_test": 64})
    return page.write_html(run)


@pytest.mark.parametrize(("width", "scheme"), LOOKS)
def test_axe_finds_nothing_and_the_page_does_not_scroll_sideways(
    width: int, scheme: str, report: Path, visit: Visit
) -> None:
    opened = visit(report, width=width, scheme=scheme)
    assert accessibility.violations(opened) == []
    assert opened.evaluate("document.documentElement.scrollWidth") <= width


def test_both_tables_have_every_class_and_its_figures(report: Path, visit: Visit) -> None:
    opened = visit(report)
    confusion = opened.get_by_role("region", name="Which class was taken for which").locator("table")
    lines = [[cell.strip() for cell in line.split("\t")] for line in confusion.inner_text().splitlines()]
    assert lines[0][1:] == CLASSES
    assert [line[0] for line in lines[1:]] == CLASSES
    counted = [[sum((w, t) == (a, b) for w, t in zip(WANTED, TUNED, strict=True)) for b in CLASSES] for a in CLASSES]
    assert [[int(cell) for cell in line[1:]] for line in lines[1:]] == counted
    text = opened.locator("main").inner_text()
    assert "Without a test row, and so not tested: <b>&" in text
    assert "worse than logistic regression on letter groups (TF-IDF)" in text
    assert "probability 0.7310" in text
    assert "exact match" not in text
