"""The curves in a browser: pointing at a step, the two scales, a narrow screen, a section that is renewed."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from appliance.report import page
from tests.browser import accessibility
from tests.helpers.shown_run import shown_run


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return page.write_html(shown_run(tmp_path_factory.mktemp("runs") / "shop"))


def legend(opened: Any, chart: str = "loss") -> list[str]:
    return list(opened.locator(f"[data-chart={chart}] .value").all_inner_texts())


def test_pointing_at_a_chart_shows_the_values_of_that_step_in_all(report: Path, visit: Callable[..., Any]) -> None:
    opened = visit(report)
    assert legend(opened) == ["0.125", "0.225"]
    plot = opened.locator("[data-chart=speed] .plot")
    plot.scroll_into_view_if_needed()
    box = plot.bounding_box()
    opened.mouse.move(box["x"] + box["width"] * 0.6, box["y"] + box["height"] / 2)  # of 20 steps
    assert legend(opened) == ["0.2083", "0.25 (step 10)"]
    assert legend(opened, "speed") == ["912"]
    crosses = opened.locator(".cross").evaluate_all("lines => lines.map((line) => line.getAttribute('x1'))")
    assert set(crosses) == {"60%"}
    assert opened.locator(".probe output").inner_text() == "12"
    opened.mouse.move(0, 0)
    assert legend(opened) == ["0.125", "0.225"]
    assert opened.locator(".cross[visibility=visible]").count() == 0


def test_the_slider_points_with_keys_and_says_what_is_there(report: Path, visit: Callable[..., Any]) -> None:
    opened = visit(report)
    slider = opened.get_by_role("slider", name="Step")
    slider.press("Home")
    slider.press("ArrowRight")
    assert legend(opened) == ["2.5", "2.5 (step 0)"]
    said = slider.get_attribute("aria-valuetext")
    assert said.startswith("step 1: Loss train 2.5, Loss val 2.5 (step 0), Learning rate  1e-4")
    slider.press("Escape")
    assert legend(opened) == ["0.125", "0.225"]


@pytest.mark.parametrize("scripts", [True, False])
def test_the_logarithmic_scale_needs_no_script(scripts: bool, report: Path, visit: Callable[..., Any]) -> None:
    opened = visit(report, scripts=scripts)
    linear, log = (opened.get_by_role("img", name=f"Loss by step, {name} scale") for name in ("linear", "log"))
    assert (linear.is_visible(), log.is_visible()) == (True, False)
    opened.get_by_label("log", exact=True).check()
    assert (linear.is_visible(), log.is_visible()) == (False, True)


def test_on_a_narrow_screen_nothing_is_cut(report: Path, visit: Callable[..., Any]) -> None:
    opened = visit(report, width=390)
    assert opened.evaluate("document.documentElement.scrollWidth") <= 390
    outside = """texts => texts.filter((text) => {
        const box = text.getBoundingClientRect();
        return box.width && (box.left < 0 || box.right > 390);
    }).map((text) => text.textContent)"""
    texts = opened.locator(".plot text")
    assert texts.count() > 30
    assert texts.evaluate_all(outside) == []
    size = opened.locator(".plot text").first.evaluate("text => parseFloat(getComputedStyle(text).fontSize)")
    assert size >= 12


def test_a_section_that_is_renewed_keeps_the_scale_and_can_be_pointed_at(
    report: Path, visit: Callable[..., Any]
) -> None:
    opened = visit(report)
    opened.get_by_label("log", exact=True).check()
    opened.evaluate("""() => {
        const section = document.querySelector("#training");
        document.querySelectorAll(".probe, .cross").forEach((one) => one.remove());
        section.innerHTML = section.innerHTML;  // as the server sends it
        window.appliance.charts.renew(section);
        window.appliance.charts.renew(section);
    }""")
    assert opened.get_by_label("log", exact=True).is_checked()
    opened.get_by_role("slider", name="Step").press("Home")
    assert legend(opened)[1] == "2.5"


def test_axe_finds_nothing_where_a_step_is_pointed_at(report: Path, visit: Callable[..., Any]) -> None:
    opened = visit(report, scheme="dark")
    opened.get_by_label("log", exact=True).check()
    opened.get_by_role("slider", name="Step").press("Home")
    opened.locator("#training details").evaluate_all("all => all.forEach((one) => (one.open = true))")
    assert accessibility.violations(opened) == []


def test_a_dark_page_is_printed_in_light_colours(report: Path, visit: Callable[..., Any]) -> None:
    """Chromium leaves backgrounds out on paper, and what is bright on dark would be bright on white."""
    opened = visit(report, scheme="dark")
    drawn = """() => ["body", ".line.s1", ".unit", ".ring"].map((one) => {
        const style = getComputedStyle(document.querySelector(one));
        return [style.color, style.stroke];
    })"""
    dark = opened.evaluate(drawn)
    opened.emulate_media(media="print")
    assert opened.evaluate(drawn) == visit(report, scheme="light").evaluate(drawn) != dark
