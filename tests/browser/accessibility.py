"""What axe-core finds in a page: rules of WCAG 2.2 A and AA, and of good practice."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import axe_playwright_python

_AXE = Path(axe_playwright_python.__file__).with_name("axe.min.js")
# Rows that are far away are not laid out, so that nothing could be said about them.
_ALL_LAID_OUT = "* { content-visibility: visible !important }"
_ADOPTED = "(css) => { const s = new CSSStyleSheet(); s.replaceSync(css); document.adoptedStyleSheets = [s]; }"


def violations(opened: Any, within: str = "html") -> list[str]:
    """Each rule that is broken, with the first elements that break it and why. `within`: a selector."""
    opened.evaluate(_ADOPTED, _ALL_LAID_OUT)  # as a style element it would break the policy of a served page
    opened.evaluate(_AXE.read_text(encoding="utf-8"))
    found = opened.evaluate("(within) => axe.run(within, {resultTypes: ['violations']})", within)["violations"]
    return [
        f"{one['id']}: {[(node['html'][:200], node['failureSummary']) for node in one['nodes'][:3]]}" for one in found
    ]
