from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from tests.helpers import browser as helpers_browser


@pytest.fixture(scope="package")
def chromium() -> Iterator[Any]:
    """One browser for this folder. It is gone before other tests, which may have an event loop of their own."""
    with helpers_browser.opened() as browser:
        yield browser


@pytest.fixture
def visit(chromium: Any) -> Iterator[Callable[..., Any]]:
    """`visit(path_or_address, width=390, scheme="dark", scripts=False)`: a playwright.sync_api.Page, loaded.

    After the test, a page that asked for anything beyond itself, or that logged an error, fails it.
    """
    with helpers_browser.pages(chromium) as opened:
        yield opened
