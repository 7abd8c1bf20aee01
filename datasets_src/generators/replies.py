"""Turns what models write into texts: lists and question-answer pairs without the chatter; and lists what was rejected.

Pure except for `write_rejected`. Knows no generator, no model and no prompt.

>>> listed('Sure!\\n1. "가격은 얼마예요?"\\n2) 얼마인가요?')
['가격은 얼마예요?', '얼마인가요?']
"""

from __future__ import annotations

import csv
import json
import os
import re
import unicodedata
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from datasets_src.pairs import Dropped

_HANGUL = re.compile("[\u1100-\u11ff\u3130-\u318f\ua960-\ua97f\uac00-\ud7ff]")  # unicode.org/Public/UNIDATA/Blocks.txt
# As appliance/rows/split.py, which says why: what a reader does not see.
_UNSEEN = re.compile(
    "[\u00ad\u034f\u0600-\u0605\u061c\u06dd\u070f\u0890\u0891\u08e2\u115f\u1160\u17b4\u17b5\u180b-\u180f"
    "\u200b-\u200f\u202a-\u202e\u2060-\u206f\u3164\ufe00-\ufe0f\ufeff\uffa0\ufff0-\ufffb\U000110bd\U000110cd"
    "\U00013430-\U0001343f\U0001bca0-\U0001bca3\U0001d173-\U0001d17a\U000e0000-\U000e0fff]"
)
_THOUGHTS = re.compile(r"\A\s*<think>.*?</think>", re.DOTALL)  # reasoning models think aloud first
_FENCE = re.compile(r"```[a-zA-Z]*\n(.*?)```", re.DOTALL)
_NUMBERED = re.compile(r"^\s*(?:\*\*)?(?:[(\[]?\d{1,3}[.):\]](?!\d)(?:\*\*)?|[①-⑳])\s*")
_BULLETED = re.compile(r"^\s*[-*•·▪]\s+")
_QUOTES = {'"': '"', "'": "'", "“": "”", "‘": "’", "「": "」", "『": "』", "«": "»", "`": "`", "**": "**"}
_LABELS = re.compile(
    r"^\s*(?:\*\*)?(?P<label>input|output|입력|출력|답변|answer|response)(?:\*\*)?\s*[:：](?:\*\*)?\s*",
    re.IGNORECASE | re.MULTILINE,
)
# What belongs to prompts, tokenizers and terminals, never to a question or an answer; U+FFFD replaces a lost character.
LEAKED = re.compile(
    r"<\|[^|>]*\|>|</?s>|\[/?INST\]|#{2,} ?(?:instruction|input|response)\b|</?think>"
    "|[\x00-\x08\x0b\x0c\x0e-\x1f\x7f\ufffd]",
    re.IGNORECASE,
)


@dataclass(frozen=True)
class Rejected(Dropped):
    """A text that a model wrote but that becomes no row. `of`: the question or instruction it was written for."""

    text: str
    of: str = ""
    detail: str = ""


def rejected(text: str, reason: str, *, of: str = "", detail: str = "") -> Rejected:
    return Rejected(repr(text if len(text) <= 40 else text[:39] + "…"), reason, text, of, detail)


def rejected_path(out_path: Path) -> Path:
    """The path of the list of a CSV's rejected texts: next to it."""
    return out_path.with_name(out_path.name + ".rejected.csv")


def write_rejected(path: Path, entries: Iterable[Rejected]) -> None:
    """Writes them as a CSV of text, reason, detail and of, which appears complete or not at all."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("w", encoding="utf-8", newline="") as stream:
            writer = csv.writer(stream, lineterminator="\n")
            writer.writerow(("text", "reason", "detail", "of"))
            writer.writerows((entry.text, entry.reason, entry.detail, entry.of) for entry in entries)
            stream.flush()
            os.fsync(stream.fileno())
        temporary.replace(path)
    except BaseException as error:
        if isinstance(error, OSError) and error.errno is not None and error.filename in (None, str(temporary)):
            error.filename = str(path)  # a full disk names no file
        with suppress(OSError):  # a read-only file system: the error itself matters more
            temporary.unlink(missing_ok=True)
        raise


def is_korean(text: str) -> bool:
    """Whether at least half of the words with letters contain Hangul: one syllable stands for two Latin letters."""
    words = [word for word in text.split() if any(map(str.isalpha, word))]
    return bool(words) and 2 * sum(bool(_HANGUL.search(word)) for word in words) >= len(words)


def folded(text: str) -> str:
    """The text without compatibility forms (NFKC), case, whitespace and unseen characters, as a run splits rows: those
    equal in this form share a group."""
    # NFKC twice, as in Unicode's toNFKC_Casefold: folding case can undo the normal form.
    seen = _UNSEEN.sub("", text)
    return " ".join(unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", seen).casefold()).split())


def worded(text: str) -> str:
    """Like `folded`, and without end punctuation: texts equal in this form say the same in the same words."""
    return folded(text).rstrip(" .?!。…~") or folded(text)


def listed(reply: str) -> list[str]:
    """The entries of a list in a reply: JSON, numbered lines, bullets, or else all its lines.

    If lines are numbered, the others are chatter and left out. Empty entries are returned as "".
    """
    text = _plain(reply)
    found = _json(text, "[", "]")
    if isinstance(found, list) and any(isinstance(entry, str | dict) for entry in found):
        return [_bare(entry) for entry in map(_entry_text, found) if entry is not None]
    lines = text.splitlines()
    for mark in (_NUMBERED, _BULLETED):
        marked = [mark.sub("", line, count=1) for line in lines if mark.match(line)]
        if marked:
            return [_bare(line) for line in marked]
    return [_bare(line) for line in lines if line.strip()]


def answered(reply: str) -> tuple[str, str] | str:
    """(input, output) of a reply: from a JSON object, from labelled parts, or else all of it as the output.

    A text instead: why the reply is unusable.
    """
    text = _plain(reply)
    found = _json(text, "{", "}")
    if isinstance(found, dict):
        fields = {str(key).casefold(): value for key, value in found.items()}
        if "output" not in fields:
            return "JSON without an output"
        return _no_input(_cell(fields.get("input"))), _cell(fields["output"]).strip()
    if text.startswith("{"):
        return "broken JSON"
    marks = list(_LABELS.finditer(text))
    if not marks:
        return "", text
    parts: dict[str, str] = {}
    for mark, following in zip(marks, [*marks[1:], None], strict=True):
        label = "input" if mark["label"].casefold() in ("input", "입력") else "output"
        parts.setdefault(label, text[mark.end() : following.start() if following else None].strip())
    if "output" not in parts:
        return "an input without an output"
    return _no_input(parts.get("input", "")), parts["output"]


def _plain(reply: str) -> str:
    text = _THOUGHTS.sub("", reply).strip()
    fence = _FENCE.search(text)
    # Only if the fence contains data: an answer may well contain a program in a fence of its own.
    return fence[1].strip() if fence and fence[1].lstrip()[:1] in ("{", "[") else text


def _json(text: str, opening: str, closing: str) -> Any:
    """The JSON value between the first `opening` and the last `closing`, if the text begins or ends with it."""
    start, end = text.find(opening), text.rfind(closing)
    if start < 0 or end < start or (start > 0 and end < len(text) - 1):
        return None
    try:
        return json.loads(text[start : end + 1], strict=False)  # models break lines inside strings
    except (ValueError, RecursionError):
        return None


def _entry_text(entry: object) -> str | None:
    """A list's entry: text, or an object's first text ({"question": …})."""
    values = entry.values() if isinstance(entry, dict) else [entry]
    return next((value for value in values if isinstance(value, str)), None)


def _cell(value: object) -> str:
    if value is None:
        return ""
    if isinstance(value, list) and all(isinstance(entry, str) for entry in value):
        return "\n".join(value)
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _no_input(text: str) -> str:
    """ "" if the model says in words that there is no input."""
    words = {"none", "n/a", "na", "null", "없음", "입력 없음", "noinput", "no input", "<noinput>", "-"}
    return "" if text.strip().casefold().strip("().") in words else text.strip()


def _bare(text: str) -> str:
    """The text without quotes or asterisks around all of it."""
    text = text.strip()
    for opening, closing in _QUOTES.items():
        inner = text[len(opening) : len(text) - len(closing)]
        enclosed = text.startswith(opening) and text.endswith(closing) and len(text) > len(opening) + len(closing)
        if enclosed and opening not in inner and closing not in inner:
            return inner.strip()
    return text
