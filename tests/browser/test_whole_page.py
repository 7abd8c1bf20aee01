"""The whole page of a run, in a browser: it needs nothing beyond itself, with and without scripts."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from appliance.report import facts, page
from tests.helpers.shown_run import shown_run


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return page.write_html(shown_run(tmp_path_factory.mktemp("runs") / "shop"))


@pytest.mark.parametrize("scripts", [True, False])
def test_every_section_is_there_with_and_without_scripts(
    scripts: bool, report: Path, visit: Callable[..., Any]
) -> None:
    opened = visit(report, scripts=scripts)
    titles = [section.title for section in page.sections(facts.of(report.parent)) if section.title]
    assert len(titles) >= 8
    assert opened.locator("main > section[aria-labelledby] h2").all_inner_texts() == titles
    for title in titles:
        assert opened.get_by_role("region", name=title, exact=True).is_visible()
