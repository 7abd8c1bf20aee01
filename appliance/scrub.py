"""Takes secrets out of text: tokens, Authorization headers, the query of links. Knows patterns, no library and no file.

>>> text("PUT https://cdn.example/a?X-Signature=abc failed for Bearer hf_abcdefghijklmnopqrstuv")
'PUT https://cdn.example/a?… failed for Bearer …'
"""

from __future__ import annotations

import logging
import re
from collections.abc import Collection

_SECRETS = (
    # The links that a Hub hands out for storage carry the right to use them in their query.
    (re.compile(r"(https?://[^\s?'\"<>\\]+)\?[^\s'\"<>\\]+"), r"\1?…"),
    (re.compile(r"(https?://)[^\s/@'\"]+@"), r"\1…@"),
    (re.compile(r"(?i)\b(bearer|basic)\s+(?!…)[\w.~+/=-]+"), r"\1 …"),
    (re.compile(r"(?i)(authorization[\"']?\s*[:=]\s*[\"']?)(?!bearer|basic|…)[^\s\"',}]+"), r"\1…"),
    (re.compile(r"\bhf_[A-Za-z0-9]{16,}"), "hf_…"),
)


def text(value: str, secrets: Collection[str] = ()) -> str:
    """`value` without the given secrets and without what looks like one."""
    for secret in secrets:
        value = value.replace(secret, "…") if secret else value
    for pattern, instead in _SECRETS:
        value = pattern.sub(instead, value)
    return value


class Filter(logging.Filter):
    """On a handler: no secret is written, whichever library logs it, in a message or a traceback."""

    def __init__(self, secrets: Collection[str] = ()) -> None:
        super().__init__()
        self._secrets = tuple(secrets)

    def filter(self, record: logging.LogRecord) -> bool:
        record.msg = text(record.getMessage(), self._secrets)
        record.args = ()
        if record.exc_info:
            record.exc_text = logging.Formatter().formatException(record.exc_info)
            record.exc_info = None
        if record.exc_text:
            record.exc_text = text(record.exc_text, self._secrets)
        return True
