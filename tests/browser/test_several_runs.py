"""The page of several runs in a browser: narrow, filtered, pointed at, with names that would act if they could."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from appliance.report import compare, facts
from tests.browser import accessibility
from tests.helpers.shown_run import ROWS, shown_run

NAMES = ("plain", "<script>alert(1)<_script>", "가나다" * 20, "d" * 90, "e", "f")


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs")
    runs = [shown_run(folder / name) for name in NAMES]
    return compare.write_html(runs, folder / compare.FILE, [facts.of(run) for run in runs])


@pytest.mark.parametrize(("width", "scheme"), [(1280, "light"), (390, "dark")])
def test_six_runs_fit_the_page(width: int, scheme: str, report: Path, visit: Callable[..., Any]) -> None:
    opened = visit(report, width=width, scheme=scheme)
    assert opened.evaluate("document.documentElement.scrollWidth") <= width
    outside = """cells => cells.filter((cell) => {
        const box = cell.getBoundingClientRect();
        return box.width > 1 && (box.left < -1 || box.right > innerWidth + 1);
    }).map((cell) => cell.textContent)"""
    cells = opened.locator("main td, main th[scope=row]")
    assert cells.count() > 60
    assert cells.evaluate_all(outside) == []
    assert opened.locator("[data-chart=val-loss] .name").all_inner_texts() == list(NAMES)
    headers = opened.locator("table.answers thead th").evaluate_all(
        "cells => cells.filter((cell) => document.elementFromPoint(...(({left, top}) => [left + 1, top + 1])"
        "(cell.getBoundingClientRect())) === cell).length"
    )
    assert headers == 0  # with so many columns, each answer has its title above it


def test_rows_are_filtered_by_how_many_runs_are_right(report: Path, visit: Callable[..., Any]) -> None:
    opened = visit(report)
    rows = opened.locator("#compared tbody tr")
    assert rows.count() == len(ROWS)
    opened.get_by_role("button", name=compare.ALL).click()
    assert opened.locator("#compared tbody tr:visible").count() == 2
    opened.get_by_role("button", name=compare.ALL).click()
    opened.get_by_role("searchbox").fill("주말 없는 말")
    assert opened.locator("#compared tbody tr:visible").count() == 0


def test_a_step_shows_the_values_of_every_run(report: Path, visit: Callable[..., Any]) -> None:
    opened = visit(report)
    opened.get_by_role("slider", name="Step").press("Home")
    assert opened.locator("[data-chart=val-loss] .value").all_inner_texts() == ["2.5"] * len(NAMES)
    assert opened.locator("[data-chart=loss] .value").all_inner_texts() == ["2.5 (step 1)"] * len(NAMES)


def test_the_links_lead_to_the_pages_of_the_runs(report: Path, visit: Callable[..., Any]) -> None:
    opened = visit(report)
    links = opened.locator("#runs tbody th a").evaluate_all("links => links.map((link) => decodeURI(link.href))")
    assert links == [f"{report.parent.as_uri()}/{name}/report.html" for name in NAMES]


@pytest.mark.parametrize(("width", "scheme"), [(1280, "dark"), (390, "light")])
def test_axe_finds_nothing(width: int, scheme: str, report: Path, visit: Callable[..., Any]) -> None:
    assert accessibility.violations(visit(report, width=width, scheme=scheme)) == []


CUT = """cells => cells.filter((cell) => cell.scrollWidth > cell.clientWidth + 1
    || cell.getBoundingClientRect().right > innerWidth + 1).map((cell) => cell.textContent)"""


# Words that are laid out on two lines, in cells and headings that are seen.
BROKEN = r"""cells => cells.filter((cell) => cell.getBoundingClientRect().right > 0).flatMap((cell) => {
    const found = [], texts = document.createTreeWalker(cell, NodeFilter.SHOW_TEXT), word = document.createRange();
    while (texts.nextNode())
        for (const match of texts.currentNode.textContent.matchAll(/[A-Za-z0-9]+/g)) {
            word.setStart(texts.currentNode, match.index);
            word.setEnd(texts.currentNode, match.index + match[0].length);
            if (new Set([...word.getClientRects()].map((box) => Math.round(box.top))).size > 1) found.push(match[0]);
        }
    return found;
})"""


@pytest.mark.parametrize("width", [600, 700, 740, 760, 900, 1000, 1280])
@pytest.mark.parametrize("is_fleet", [False, True])
def test_no_word_is_broken_in_a_table(is_fleet: bool, width: int, tmp_path: Path, visit: Callable[..., Any]) -> None:
    names = ("plain", "learning-rate-2e-4", "with-paraphrases", "seed_17_rank_32", "bert-classify-long", "batch-16")
    runs = [shown_run(tmp_path / name) for name in names]
    if is_fleet:
        path = compare.write_apart(runs, tmp_path / compare.FILE)
    else:
        path = compare.write_html(runs, tmp_path / compare.FILE, [facts.of(run) for run in runs])
    assert visit(path, width=width).locator("#runs :is(th, td), #scores :is(th, td)").evaluate_all(BROKEN) == []


@pytest.mark.parametrize(("media", "width"), [("print", 700), ("screen", 660), ("screen", 750)])
def test_nothing_is_cut_on_paper_and_on_a_tablet(
    media: str, width: int, report: Path, visit: Callable[..., Any]
) -> None:
    opened = visit(report, width=width)
    opened.emulate_media(media=media)
    assert opened.locator("main td, main th[scope=row]").evaluate_all(CUT) == []
    assert opened.evaluate("document.documentElement.scrollWidth") <= width
