"""Names of runs, from names of files and of other runs. Pure.

>>> of("my shop (2).v1"), of("...")
('my-shop-2-.v1', 'run')
"""

from __future__ import annotations

import re


def of(text: str) -> str:
    """`text` as the recipe's `name` takes it: letters, digits, `_`, `-` and `.`, the last two not at its ends."""
    return re.sub(r"[^\w.-]+", "-", text).strip("-.") or "run"
