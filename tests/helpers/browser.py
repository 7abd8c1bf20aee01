"""A real browser for tests: Debian's chromium, driven through Playwright, which would download one of its own.

>>> with opened() as browser, pages(browser) as visit:
...     visit(run / "report.html", width=390, scheme="dark").get_by_role("searchbox").fill("우유")
"""

from __future__ import annotations

import importlib.util
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

NAMES = ("chromium", "chromium-browser", "google-chrome")
TIMEOUT_MS = 20_000  # for a machine that others use as well


def executable() -> str | None:
    """The browser on this machine; None if there is none, or no Playwright to drive it."""
    found = next(filter(None, map(shutil.which, NAMES)), None)
    return found if importlib.util.find_spec("playwright") else None


@contextmanager
def opened() -> Iterator[Browser]:
    """A browser; it and its driver are gone afterwards. Raises FileNotFoundError: there is none here."""
    from playwright.sync_api import sync_playwright

    path = executable()
    if path is None:
        raise FileNotFoundError(f"none of {', '.join(NAMES)} is here; on Debian: apt-get install chromium")
    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=path, chromium_sandbox=False, args=["--disable-gpu"])
        yield browser
        browser.close()


@contextmanager
def pages(browser: Browser) -> Iterator[Callable[..., Page]]:
    """Opens a file, or a server's address, in a window of its own each time: see _visit.

    Afterwards no page may have asked for anything beyond its own file or server, nor written an error to its console.
    """
    seen: list[str] = []
    windows: list[Any] = []

    def visit(place: Path | str, **settings: Any) -> Page:
        page = _visit(browser, place, seen, **settings)
        windows.append(page.context)
        return page

    yield visit
    for window in windows:
        window.close()
    assert not seen, "; ".join(seen)


def _visit(
    browser: Browser,
    place: Path | str,
    seen: list[str],
    *,
    width: int = 1280,
    height: int = 900,
    scheme: str = "light",
    scripts: bool = True,
) -> Page:
    """A loaded page. `scheme`: light or dark; `scripts`: whether they run. `seen`: what must not have happened."""
    address = place.resolve().as_uri() if isinstance(place, Path) else place
    window = browser.new_context(
        viewport={"width": width, "height": height}, color_scheme=scheme, java_script_enabled=scripts
    )
    window.set_default_timeout(TIMEOUT_MS)
    page = window.new_page()
    page.on("request", lambda one: None if _is_own(one.url, address) else seen.append(f"asked for {one.url:.200}"))
    page.on("pageerror", lambda error: seen.append(f"failed: {error}"))
    page.on("dialog", lambda one: (seen.append(f"asked the reader: {one.message}"), one.dismiss()))
    page.on("console", lambda line: seen.append(f"console: {line.text}") if line.type == "error" else None)
    page.goto(address)
    return page


def _is_own(url: str, address: str) -> bool:
    if address.startswith("file:"):
        return urlsplit(url)._replace(fragment="") == urlsplit(address)._replace(fragment="")
    return urlsplit(url)[:2] == urlsplit(address)[:2]
