"""The page of several runs: scores with intervals, curves over each other, recipes diffed, answers side by side."""

from __future__ import annotations

import json
import re
from html import unescape
from pathlib import Path
from typing import Any

import pytest

from appliance.errors import RecipeError, RunDirError
from appliance.report import answers, compare, facts
from tests.helpers.shown_run import COLUMNS, ROWS, shown_run

TUNED = COLUMNS.index("tuned")
RECIPE = "name: {}\ntrain:\n  epochs: {}\n  learning_rate: 0.0001\n"


def run_of(path: Path, answers: dict[int, str] | None = None, *, epochs: float = 2.0, **metrics: Any) -> Path:
    """A finished run. `answers`: number of the row -> what the tuned model answers instead."""
    rows = [[*row] for row in ROWS]
    for number, text in (answers or {}).items():
        rows[number][TUNED] = text
    run = shown_run(path, rows, **metrics)
    (run / "recipe.yaml").write_text(RECIPE.format(json.dumps(path.name), epochs), encoding="utf-8")
    return run


@pytest.fixture
def two(tmp_path: Path) -> list[Path]:
    right = {number: ROWS[number][2] for number in (1, 2)}
    return [run_of(tmp_path / "plain"), run_of(tmp_path / "longer", right, epochs=4.0)]


def of(runs: list[Path]) -> dict[str, Any]:
    return dict(compare.of(runs, [facts.of(run) for run in runs], runs[0].parent))


def html_of(runs: list[Path]) -> str:
    page = runs[0].parent / compare.FILE
    return compare.write_html(runs, page, [facts.of(run) for run in runs]).read_text(encoding="utf-8")


def cells(html: str, section: str) -> list[list[str]]:
    """The texts of a section's table, row by row."""
    part = html.partition(f'<section id="{section}"')[2].partition("</section>")[0]
    rows = re.findall(r"<tr>(.*?)</tr>", part, re.DOTALL)
    return [
        [unescape(re.sub(r"<[^>]+>", "", one)) for one in re.findall(r"<t[hd][^>]*>(.*?)</t[hd]>", row, re.DOTALL)]
        for row in rows
    ]


def test_the_scores_stand_beside_each_other_with_their_intervals(two: list[Path]) -> None:
    table = cells(html_of(two), "runs_scores")
    assert [row[0] for row in table[1:4]] == ["plain", "longer", "base model example/base with the same prompt"]
    assert table[1][-1] == "–"
    assert re.fullmatch(r"[+-]\d+\.\d% to \+\d+\.\d%: not proven \(.* a verdict needs at least 10\)", table[2][-1])
    assert (table[1][1], table[2][1]) == ("33.3%", "66.7%")


def test_each_run_has_its_outcome_and_a_link_to_its_page(two: list[Path]) -> None:
    html = html_of(two)
    plain, longer = cells(html, "runs")[1:]
    assert plain[0] == "plain"
    assert longer[1].startswith("Not released: 1 gate refused it")
    assert "better than the base with the same prompt" in longer[2]
    assert "1 caution: 1 of the 4 answers has a wrong number." in longer[2]
    assert longer[4] == "no"
    assert re.findall(r'href="([^#"][^"]*)"', html) == ["plain/report.html", "longer/report.html"]


def test_only_what_differs_in_the_recipes_is_shown(two: list[Path]) -> None:
    table = cells(html_of(two), "runs_recipes")
    assert table == [["field", "plain", "longer"], ["name", "plain", "longer"], ["train.epochs", "2.0", "4.0"]]
    older = {"train.epochs": (2.0, "x")}
    assert compare.recipes([older, older | {"train.new": (1, "x")}]) == [("train.new", ["–", "1"])]


def test_the_curves_are_laid_over_each_other_in_styles_of_their_own(two: list[Path]) -> None:
    drawn = of(two)["curves"].drawn
    assert [one.chart.title for one in drawn[:2]] == ["Val loss", "Train loss"]
    assert [(line.name, line.style) for line in drawn[0].chart.lines] == [("plain", 1), ("longer", 2)]
    assert len(drawn[0].views) == 2
    assert len(drawn[0].views[0].paths) == 2


def test_a_run_without_a_figure_does_not_shift_the_others(two: list[Path]) -> None:
    (two[0] / "train" / "metrics.jsonl").write_text("", encoding="utf-8")
    found = of(two)["curves"]
    assert [line.name for line in found.drawn[0].chart.drawn_lines] == ["longer"]
    assert len(found.data["charts"]["loss"]) == 1


def test_the_answers_stand_beside_each_other_worst_first(two: list[Path]) -> None:
    table: answers.Table = of(two)["answers"]
    assert table.columns == ("question", "wanted", "base with the same prompt", "tuned, plain", "tuned, longer")
    assert table.filters == ((compare.NONE, 2), (compare.SOME, 2), (compare.ALL, 2))
    assert [row.entry.number for row in table.rows[2:]] == ["8", "12", "3", "21"]
    some = table.rows[2].entry
    assert some.texts == [*ROWS[1][1:4], "Within 14 days, with the receipt.", "Within 30 days, with the receipt."]
    assert some.note == "F1 80% · 100%"


def test_bases_that_answered_differently_have_columns_of_their_own(tmp_path: Path) -> None:
    runs = [run_of(tmp_path / name) for name in ("a", "b", "c")]
    predictions = runs[1] / "evaluate" / "predictions.csv"
    predictions.write_text(predictions.read_text("utf-8").replace("모르겠습니다.", "글쎄요."), encoding="utf-8")
    assert of(runs)["answers"].columns[2:4] == ("base of a, c", "base of b")


def test_runs_of_one_name_are_told_apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("first", "second"):
        run_of(tmp_path / name / "shop")
    monkeypatch.chdir(tmp_path)
    runs = [Path("first/shop"), Path("second/shop")]
    found = of(runs)
    assert found["labels"] == ["first/shop", "second/shop"]
    assert [link for _, link, _ in found["runs"]] == ["shop/report.html", "../second/shop/report.html"]


def test_names_and_answers_cannot_act(tmp_path: Path) -> None:
    hostile = "javascript:\u202e<img src=x onerror=alert(1)>//".replace("/", "_")
    script = '</script><script>alert(1)</script>"\x1b[2J\x00'
    html = html_of([run_of(tmp_path / hostile, {0: script}), run_of(tmp_path / "b", {1: script})])
    assert "<img" not in html
    assert html.count("<script>") == 1
    assert "\u202e" not in html
    assert "\x1b" not in html
    assert 'href="javascript:' not in html
    assert 'href="javascript%3A%E2%80%AE%3Cimg' in html


def test_other_test_rows_are_refused(two: list[Path], tmp_path: Path) -> None:
    fewer = shown_run(tmp_path / "fewer", ROWS[:4])
    with pytest.raises(RunDirError, match="were not tested on the same rows"):
        html_of([two[0], fewer])


def test_where_the_page_may_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert compare.usual_path([Path("runs/a"), Path("b")]) == Path("runs/compare.html")
    monkeypatch.chdir(tmp_path)
    assert compare.usual_path([Path()]) == tmp_path.parent / "compare.html"
    compare.refuse_other_file(Path("new.html"))
    Path("page.html").write_text("<!DOCTYPE html><p>", encoding="utf-8")
    compare.refuse_other_file(Path("page.html"))
    Path("rows.csv").write_text("a,b\n", encoding="utf-8")
    Path("link.html").symlink_to("page.html")
    Path("folder").mkdir()
    for name in ("rows.csv", "link.html", "folder"):
        with pytest.raises(RecipeError, match=f"{name} exists and is not a page that may be replaced"):
            compare.refuse_other_file(Path(name))
    with pytest.raises(RecipeError, match="is not a folder"):
        compare.refuse_other_file(Path("nowhere/page.html"))
