"""The whole page of a run, in a browser: for every reader, on every width, on paper, and whatever its cells hold."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from appliance.report import facts, page
from tests.browser import accessibility
from tests.helpers.shown_run import EXTRA, METRICS, ROWS, shown_run

Visit = Callable[..., Any]
LOOKS = [(1280, "light"), (1280, "dark"), (390, "light"), (390, "dark")]
ON_PAPER = 718  # CSS pixels: A4 without margins of 10 mm
HOSTILE = (
    "<script>document.title = 'ran'; alert(1)</script>",
    "<img src=x onerror=\"document.title = 'ran'\"><svg onload=alert(2)>",
    "</td></tr></table></section></main><style>* { display: none }</style>",
    "</script><script>alert(3)</script> --> ]]> <!--",
    "{{ 7 * 7 }} {% raw %} ${7 * 7}",
    "javascript:alert(4) https://example.com/x.png data:text/html,<b>",
    "\x1b[2J\x1b]8;;https://example.com\x07link\x00NUL\r\n\x7f",
    "\u202egnirts eht\u2066\u200b \ufeff",
    "\u0645\u0631\u062d\u0628\u0627 1234 \u05e9\u05dc\u05d5\u05dd",  # right to left
    "x" * 20_000,
    "\uac00" * 7_000,
    "\U0001f44d\U0001f3fd " * 300,
    "\"'`=&amp;&#60;b&#62;",
)


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return page.write_html(shown_run(tmp_path_factory.mktemp("runs") / "shop"))


@pytest.fixture(scope="module")
def hostile(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A page whose every cell is somebody's attempt, names and messages as well."""
    rows = [(str(i + 2), text, text, text, text + " 1", "loss", text, text, "no") for i, text in enumerate(HOSTILE)]
    extra = [("train", str(i), text, text, text, text) for i, text in enumerate(HOSTILE)]
    bad = HOSTILE[0] + "\ud800\x1b[2J\u202e" + HOSTILE[1] + HOSTILE[2]
    other = METRICS["other"] | {"name": bad}
    caution = {"name": "x", "sentence": bad, "rows": [{"row": 2, "wanted": bad, "got": "x" * 20_000}]}
    run = shown_run(
        tmp_path_factory.mktemp("hostile") / "<b>run & co", rows, extra, other=other, cautions=[caution], reason=bad
    )
    return page.write_html(run)


@pytest.mark.parametrize("scripts", [True, False])
def test_every_section_is_there_with_and_without_scripts(scripts: bool, report: Path, visit: Visit) -> None:
    opened = visit(report, scripts=scripts)
    titles = [section.title for section in page.sections(facts.of(report.parent)) if section.title]
    assert len(titles) >= 8
    assert opened.locator("main > section[aria-labelledby] h2").all_inner_texts() == titles
    for title in titles:
        assert opened.get_by_role("region", name=title, exact=True).is_visible()


@pytest.mark.parametrize(("width", "scheme"), LOOKS)
def test_axe_finds_nothing(width: int, scheme: str, report: Path, visit: Visit) -> None:
    assert accessibility.violations(visit(report, width=width, scheme=scheme)) == []


def test_axe_sees_the_colours_of_every_row(report: Path, visit: Visit) -> None:
    opened = visit(report)
    opened.add_style_tag(content="#test-3 td { color: #bbb }")  # the last row
    (found,) = accessibility.violations(opened)
    assert found.startswith("color-contrast")


@pytest.mark.parametrize("width", [390, 320])
def test_a_narrow_page_loses_no_column_and_does_not_scroll_sideways(width: int, report: Path, visit: Visit) -> None:
    opened = visit(report, width=width)
    opened.evaluate("document.querySelectorAll('details').forEach((one) => (one.open = true))")
    assert opened.evaluate("document.documentElement.scrollWidth") <= width
    assert outside(opened, width) == []
    label = "(cell) => getComputedStyle(cell, '::before').content"
    cells = opened.locator("#test-12 td")
    labels = [one.strip('"') for one in (cells.nth(i).evaluate(label) for i in range(cells.count()))]
    shown = ["question", "wanted", "base", "tuned", "other-model", "base with 4 examples in its prompt"]
    assert labels == shown
    assert all(cells.nth(i).bounding_box()["width"] > 0.8 * width for i in range(cells.count()))  # one below the other
    unlabelled = "(cells) => cells.filter((cell) => !cell.dataset.label && cell.tagName === 'TD').length"
    assert opened.locator("table.stack td").evaluate_all(unlabelled) == 0


def outside(opened: Any, width: int) -> list[str]:
    """Elements with text of their own that reach beyond the page, unless they can be scrolled to."""
    found = opened.evaluate(
        """(width) => [...document.querySelectorAll("body *")].filter((one) => {
            const box = one.getBoundingClientRect();
            const own = [...one.childNodes].some((node) => node.nodeType === 3 && node.data.trim());
            return own && box.width && box.right > width + 1 && !one.closest("pre") && !one.closest("svg");
        }).map((one) => one.outerHTML.slice(0, 200))""",
        width,
    )
    return list(found)


def test_on_paper_nothing_is_clipped_or_left_folded(tmp_path: Path, visit: Visit) -> None:
    long = " ".join(f"word{i}" for i in range(900))
    rows = [("2", long, long, "x" * 3000, long + " and more", "closer", "no", "no", "yes"), *ROWS]
    opened = visit(page.write_html(shown_run(tmp_path / "run", rows)), width=ON_PAPER)
    opened.emulate_media(media="print", color_scheme="light")
    clipped = opened.evaluate(
        """() => [...document.querySelectorAll("td, th, pre, .card, .caution, summary, li")].filter((one) =>
            one.scrollHeight > one.clientHeight + 1 && getComputedStyle(one).overflowY !== "visible"
            || one.scrollWidth > one.clientWidth + 1 && one.clientWidth
        ).map((one) => one.outerHTML.slice(0, 200))"""
    )
    assert clipped == []
    assert outside(opened, ON_PAPER) == []
    folded = opened.locator("#test details").first
    assert folded.get_attribute("open") is None
    height = "(one) => [...one.childNodes].at(-1).parentElement.getBoundingClientRect().height"
    assert folded.evaluate(height) > 100
    assert opened.locator(".tools:visible, nav:visible").count() == 0


@pytest.mark.parametrize("width", [1280, 390])
def test_hostile_cells_are_text(width: int, hostile: Path, visit: Visit) -> None:
    opened = visit(hostile, width=width)
    assert opened.title() == "<b>run & co · fine-tuning report"
    assert opened.locator("main img, main svg[onload], main style, main a[href^=javascript]").count() == 0
    assert opened.locator("#recipe").is_visible()  # below everything
    for i, text in enumerate(HOSTILE[:6]):
        assert opened.locator(f"#test-{i + 2} td").first.evaluate("(cell) => cell.textContent") == text
    shown = opened.locator("body").evaluate("(one) => one.textContent")
    assert "\\x1b[2J" in shown
    assert "\\x00NUL" in shown
    assert "\\u202egnirts" in shown
    assert not set(shown) & set("\x00\x1b\u202e\u2066\ud800")
    assert "\\ud800" in opened.locator("main").inner_text()
    assert opened.evaluate("document.documentElement.scrollWidth") <= width
    assert outside(opened, width) == []
    opened.get_by_role("searchbox", name="Search in test rows").fill("<script>document")
    assert opened.locator("#test tbody tr:visible").count() == 1


def test_text_from_right_to_left_keeps_to_its_cell(hostile: Path, visit: Visit) -> None:
    opened = visit(hostile)
    cell = opened.locator(f"#test-{HOSTILE.index(HOSTILE[8]) + 2} td").first
    assert cell.evaluate("(one) => getComputedStyle(one).unicodeBidi") == "plaintext"
    assert accessibility.violations(opened) == []


def test_the_first_stop_of_the_tab_key_leads_to_the_result(report: Path, visit: Visit) -> None:
    opened = visit(report)
    opened.keyboard.press("Tab")
    skip = opened.get_by_role("link", name="Skip to the result")
    assert skip.is_visible()
    opened.keyboard.press("Enter")
    assert opened.evaluate("document.activeElement.id") == "main"
    assert len(EXTRA) == opened.locator("#asked tbody tr").count()


def test_a_page_that_asks_for_anything_would_be_noticed(tmp_path: Path, chromium: Any) -> None:
    from tests.helpers import browser

    path = tmp_path / "page.html"
    path.write_text('<title>x</title><img src="https://page.invalid/x.png"><script>alert(1)</script>', encoding="utf-8")
    with pytest.raises(AssertionError, match=r"asked for https://page\.invalid"), browser.pages(chromium) as opened:
        opened(path)
