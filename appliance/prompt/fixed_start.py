r"""The text with which every prompt of a format begins, tokenized once for all rows: its ids are the same in each.

That holds only if no token can cross the place where the text is divided, and none before it depends on what follows.
Both are known of byte-level BPE whose words are found by one of a few patterns. With any other tokenizer there is no
such start, and every prompt is tokenized whole.
"""

from __future__ import annotations

import json
import string
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from os.path import commonprefix
from typing import Any

from tokenizers import Tokenizer, models

_CONTRACTIONS = "(?i:'s|'t|'re|'ve|'m|'ll|'d)|"
_REST = r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
# The patterns of Llama 3 and of Qwen 2 and 3 (pre_tokenizer in their tokenizer.json). Of these and of GPT-2's, which
# ByteLevel has built in (tokenizers, pre_tokenizers/byte_level.rs), each alternative is a run of one kind of character,
# looks at one character beyond it at most, and has a letter before punctuation only if that is an apostrophe.
_PATTERNS = (
    _CONTRACTIONS + r"[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}|" + _REST,
    _CONTRACTIONS + r"[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}|" + _REST,
)
_LETTERS, _PUNCTUATION = frozenset(string.ascii_letters), frozenset(string.punctuation) - {"'"}
_PROBES = ("", "a", " a", "\n\n", ":b", "가 ", "\u1161", "\u0301", "'s", "1")  # what may follow in a row


@dataclass(frozen=True, eq=False)  # a key of mappings, for every row: the hash of all its ids would be made each time
class Start:
    """Of a prompt that begins with `text`, the first `length` characters have these ids, and the rest has its own."""

    text: str
    length: int
    ids: tuple[int, ...]


NONE = Start("", 0, ())


def of_prompts(backend: Tokenizer, prompts: Sequence[str], ids: Callable[[str], Sequence[int]]) -> Start:
    """The longest start of all these prompts that can be tokenized apart; NONE if there is none."""
    text = commonprefix(list(prompts))  # noqa: RUF071  character by character, as wanted here
    if not _finds_words(backend):
        return NONE
    added = backend.get_added_tokens_decoder().values()
    if any(token.single_word for token in added):  # looks at the character before it
        return NONE
    for place in range(len(text) - 1, 0, -1):
        around = text[place - 1 : place + 1]
        if _ends_a_word(around) and not any(around in token.content for token in added):
            whole = [ids(text + probe) for probe in _PROBES]
            rest = [ids(text[place:] + probe) for probe in _PROBES]
            start = tuple(whole[0][: len(whole[0]) - len(rest[0])])
            holds = all([*start, *rest[i]] == list(whole[i]) for i in range(len(_PROBES)))
            return Start(text[: place + 1], place, start) if holds else NONE
    return NONE


def _ends_a_word(around: str) -> bool:
    return around[0] in _LETTERS and around[1] in _PUNCTUATION


def _finds_words(backend: Tokenizer) -> bool:
    """Whether it is byte-level BPE over words that end between a letter and punctuation, whatever stands around."""
    normalizer, model = backend.normalizer, backend.model
    if normalizer is not None and _settings(normalizer) != {"type": "NFC"}:
        return False
    if not isinstance(model, models.BPE) or model.dropout:
        return False
    found = _settings(backend.pre_tokenizer) if backend.pre_tokenizer is not None else {}
    steps = found["pretokenizers"] if found.get("type") == "Sequence" else [found]
    return all(map(_is_known, steps)) and any(map(_splits, steps))


def _settings(part: Any) -> dict[str, Any]:
    """As in tokenizer.json; {} for one that was written in Python."""
    try:
        found: dict[str, Any] = json.loads(part.__getstate__())
    except Exception:  # noqa: BLE001  tokenizers raises nothing narrower
        return {}
    return found


def _is_known(step: dict[str, Any]) -> bool:
    return _splits(step) or step.get("type") == "Digits" or _is_byte_level(step)


def _splits(step: dict[str, Any]) -> bool:
    if step.get("type") == "Split":
        isolates = step["behavior"] == "Isolated" and not step["invert"]
        return isolates and step["pattern"].get("Regex") in _PATTERNS
    return _is_byte_level(step) and bool(step.get("use_regex", True))


def _is_byte_level(step: dict[str, Any]) -> bool:
    return step.get("type") == "ByteLevel" and not step["add_prefix_space"]
