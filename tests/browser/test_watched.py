"""A watched page in a browser: it becomes what the run is, and keeps what its reader is doing."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from appliance.rundir.directory import RunDir
from tests.helpers.watching import PATIENCE, Growing, Watching, server

Visit = Callable[..., Any]


@pytest.fixture
def run(tmp_path: Path) -> Growing:
    return Growing.begun(tmp_path / "runs" / "가게")


@pytest.fixture
def watching(run: Growing, tmp_path: Path) -> Iterator[Watching]:
    with server("--runs-dir", str(run.path.parent), cwd=tmp_path) as found:
        yield found


def comes(opened: Any, script: str) -> None:
    """Waits until the script, an expression of JavaScript, is true. The page's policy forbids wait_for_function."""
    ends = time.monotonic() + PATIENCE
    while not opened.evaluate(script):
        assert time.monotonic() < ends, script
        opened.wait_for_timeout(50)


def test_the_page_follows_its_run_to_the_end(run: Growing, watching: Watching, visit: Visit) -> None:
    opened = visit(f"{watching.address}/", width=390)
    comes(opened, "document.getElementById('watch-status').textContent === 'live'")
    with RunDir(run.path).lock():
        comes(opened, "document.querySelector('.runs').textContent.includes('running: train 20/40')")
        opened.get_by_role("link", name="가게").click()
        comes(opened, "document.title === '20/40 · 가게'")
        assert opened.evaluate("document.documentElement.scrollWidth") <= 390
        run.train(0.0625)
        comes(opened, "document.title === '21/40 · 가게'")
        assert opened.locator("progress").get_attribute("value") == "21"
        assert "0.0625" in opened.locator("[data-chart=loss] .value").first.inner_text()
        run.answer(21, "1층입니다")
        answer = "document.querySelector('#training .marks tr:last-child td:last-child').textContent"
        comes(opened, f"{answer}.startsWith('1층입니다')")
        run.finish()
        comes(opened, "Boolean(document.getElementById('answers'))")
    comes(opened, "document.title === 'done · 가게'")
    order = opened.locator("main > section").evaluate_all("all => all.map((one) => one.id)")
    assert order.index("scores") < order.index("answers") < order.index("training") < order.index("log")
    links = opened.locator("header nav a").all_inner_texts()
    assert links == opened.locator("main > section > h2").all_inner_texts()
    opened.get_by_role("searchbox", name="Search in test rows").fill("주세요")  # scripts are bound to what came
    assert opened.locator("#test tbody tr:visible").count() == 1


def test_what_somebody_uses_waits(run: Growing, watching: Watching, visit: Visit) -> None:
    opened = visit(f"{watching.address}/runs/가게")
    slider = opened.get_by_role("slider", name="Step")
    slider.press("Home")
    opened.get_by_text("Evaluations as a table").click()
    slider.focus()
    run.train(0.0625)
    comes(opened, "document.title.includes('가게') && document.querySelector('progress').value === 21")
    assert slider.input_value() == "0"
    comes(opened, "document.getElementById('watch-status').textContent.includes('waits')")
    slider.blur()
    comes(opened, "document.querySelector('[data-chart=loss] .value').textContent.includes('0.0625')")
    assert opened.locator("#training details").first.get_attribute("open") == ""
    comes(opened, "document.getElementById('watch-status').textContent === 'live'")


def test_a_lost_connection_is_said(watching: Watching, chromium: Any) -> None:
    window = chromium.new_page()  # of its own: the browser writes an error to the console
    window.goto(f"{watching.address}/runs/가게")
    comes(window, "document.getElementById('watch-status').className === 'live'")
    assert watching.end() == 143
    comes(window, "document.getElementById('watch-status').textContent === 'connection lost; trying again'")
    window.close()


def test_without_scripts_the_page_is_what_it_was_when_it_was_loaded(watching: Watching, visit: Visit) -> None:
    opened = visit(f"{watching.address}/runs/가게", scripts=False)
    assert opened.get_by_text("Without scripts this page stays").is_visible()
    assert opened.get_by_text("step 20 of 40").is_visible()
