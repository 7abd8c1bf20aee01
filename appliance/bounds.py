"""How large and how deep somebody else's file may be, and readers of JSON and YAML that hold it to that.

A base model, its card and a recipe were written by others. Every figure that bounds such a file is here, far above what
is usual, so that an honest file never meets it and no file can take all the memory or hours. What is bounded by trying
it in a process of its own (tokenizer.json, chat templates) is in base_model/tokenizer_trial.py. Raises ValueError only:
the caller knows what the file is for, and what to do about it.

>>> json_of("[" * 5000)
Traceback (most recent call last):
ValueError: its brackets are nested too deeply
"""

from __future__ import annotations

import json
import re
import stat
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

Rules = Sequence[tuple[Sequence[str], Callable[[Any], bool], str]]  # keys, what their values must be, and in words
_KIB, _MIB = 1 << 10, 1 << 20
# The largest size of a base's file in bytes, by name. Usual sizes as published on the Hub:
LARGEST: Mapping[str, int] = {
    "config.json": 4 * _MIB,  # 1 to 30 kB; a classifier of 20,000 classes has 1 MB
    "generation_config.json": _MIB,  # below 1 kB
    "model.safetensors.index.json": 64 * _MIB,  # 30 kB to 100 kB; a mixture of 256 experts has 9 MB
    "tokenizer.json": 128 * _MIB,  # Llama 2 1.8 MB, Llama 3 9 to 17, Qwen 3 11, Gemma 3 33
    "tokenizer_config.json": 16 * _MIB,  # 1 to 60 kB; Gemma 3's lists 6,000 added tokens: 1.2 MB
    "special_tokens_map.json": _MIB,  # below 10 kB
    "added_tokens.json": 4 * _MIB,  # below 1 kB
    "chat_template.jinja": _MIB,  # up to some 20 kB
    **dict.fromkeys(("vocab.json", "merges.txt", "vocab.txt"), 64 * _MIB),  # Qwen's are 2.8 and 1.7 MB
    **dict.fromkeys(("tokenizer.model", "spiece.model", "sentencepiece.bpe.model"), 64 * _MIB),  # Gemma's is 4.7 MB
}
# Bytes of YAML. A recipe with every field and its origin has 5 kB, and PyYAML reads some 100 kB a second in Python; the
# front matter of a model card is read in C, and some list the results of hundreds of benchmarks in 200 kB.
LARGEST_RECIPE, LARGEST_FRONT_MATTER = 64 * _KIB, 512 * _KIB
DEPTH = 64  # of lists and objects in each other; no config of a model has ten
VALUES = 100_000  # of one YAML text, each alias (*name) counted with all that it stands for
DIGITS = 1000  # of one number: Python refuses 4,300 by an error that speaks of its own settings

_CHARACTERS = 64  # a long text counts as several values: aliases of it are long, too
_YAML_NUMBER = re.compile(r"[-+]?[0-9.][0-9a-fA-FxXoOeE_:.+-]*")


def refuse_large(name: str, size: int) -> None:
    """Raises ValueError: a base's file of this name with so many bytes is none that a model needs."""
    if size > LARGEST.get(name, size):
        raise ValueError(f"it has {size:,} bytes, expected at most {LARGEST[name]:,}")


def read_text(path: Path) -> str:
    """A text file, in UTF-8. Raises ValueError: as `refuse_odd_file`, or other bytes."""
    refuse_odd_file(path)
    return path.read_text(encoding="utf-8")


def refuse_odd_file(path: Path) -> None:
    """Raises ValueError: too large for its name, or no file at all. Reading a pipe would wait, a device never end."""
    seen = path.stat()
    if not stat.S_ISREG(seen.st_mode):
        raise ValueError(f"it is a {'folder' if stat.S_ISDIR(seen.st_mode) else 'pipe or device'}, expected a file")
    refuse_large(path.name, seen.st_size)


def refuse_odd_value(values: Mapping[str, Any], rules: Rules) -> None:
    """Raises ValueError: the first value that is not of its kind, and what was expected. null counts as not given."""
    for keys, is_right, expected in rules:
        for key in keys:
            value = values.get(key)
            if value is not None and not is_right(value):
                raise ValueError(f"{key} is {value!r:.60}, expected {expected}")


def json_of(text: str) -> Any:
    """Raises ValueError: not JSON, nested deeper than DEPTH, or a number of more than DIGITS digits."""
    too_deep = "its brackets are nested too deeply"
    try:
        found = json.loads(text, parse_int=_whole_number)
    except RecursionError as error:
        raise ValueError(too_deep) from error
    if _depth(found) > DEPTH:
        raise ValueError(too_deep)
    return found


def yaml_of(text: str, largest: int, loader: Any = None) -> Any:
    """`largest` in bytes; `loader`: one of PyYAML's safe kind, its own by default.

    Raises ValueError: too large, not YAML, nested deeper than DEPTH, aliases that stand for more than VALUES values or
    for themselves, or a number of more than DIGITS digits.
    """
    import yaml

    size = len(text.encode("utf-8", "surrogatepass"))
    if size > largest:
        raise ValueError(f"it has {size:,} bytes, expected at most {largest:,}")
    kind = loader or getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    try:
        _refuse_expanding(yaml.parse(text, Loader=kind))
        return yaml.load(text, Loader=kind)
    except yaml.YAMLError as error:
        raise ValueError(str(error)) from error
    # What PyYAML's own constructors make of `!!timestamp x`, `!!bool x`, impossible dates and the like.
    except (TypeError, AttributeError, LookupError, OverflowError, RecursionError) as error:
        raise ValueError(f"a value that cannot be read: {error!r}") from error


def _whole_number(digits: str) -> int:
    if len(digits) > DIGITS:
        raise ValueError(f"a number of {len(digits):,} digits, expected at most {DIGITS:,}")
    return int(digits)


def _depth(value: Any) -> int:
    depth, level = 0, [value]
    while level := [one for one in level if isinstance(one, (dict, list))]:
        depth += 1
        if depth > DEPTH:
            break
        level = [inner for one in level for inner in (one.values() if isinstance(one, dict) else one)]
    return depth


def _refuse_expanding(events: Iterable[Any]) -> None:
    """Judges a YAML text by its events, one after another: nothing is built, and nothing is called in itself."""
    from yaml import AliasEvent, CollectionEndEvent, CollectionStartEvent, ScalarEvent

    values = 0
    sizes: dict[str, int] = {}  # anchor -> values that it stands for
    begun: list[tuple[str | None, int]] = []  # anchor of each list or mapping not yet closed, values before it
    for event in events:
        if isinstance(event, CollectionEndEvent):
            anchor, before = begun.pop()
            if anchor is not None:
                sizes[anchor] = values - before
            continue
        if isinstance(event, AliasEvent):
            if event.anchor in (anchor for anchor, _ in begun):
                raise ValueError(f"&{event.anchor} contains itself")
            values += sizes.get(str(event.anchor), 1)
        elif isinstance(event, CollectionStartEvent):
            begun.append((event.anchor, values))
            values += 1
        elif isinstance(event, ScalarEvent):
            _refuse_digits(event)
            size = 1 + len(event.value) // _CHARACTERS
            values += size
            if event.anchor is not None:
                sizes[event.anchor] = size
        if len(begun) > DEPTH:
            raise ValueError(f"it is nested too deeply: more than {DEPTH} levels")
        if values > VALUES:
            raise ValueError(f"it holds more than {VALUES:,} values, its aliases (*name) written out")


def _refuse_digits(event: Any) -> None:
    text, is_plain = event.value, event.implicit[0]
    is_number = (is_plain and _YAML_NUMBER.fullmatch(text)) or str(event.tag or "").endswith((":int", ":float"))
    if len(text) > DIGITS and is_number:
        raise ValueError(f"a number of {len(text):,} digits, expected at most {DIGITS:,}")
