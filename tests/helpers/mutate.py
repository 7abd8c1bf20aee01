"""Seeded damage: one small change to a JSON value, to bytes, or to a YAML file, and what it was, in words.

>>> json_text(random.Random(1), {"a": [1, 2]})
(b'{"a": [1, 2], "extra": null}', '$ gets another key, null')
"""

from __future__ import annotations

import copy
import json
import random
from collections.abc import Callable
from typing import Any

import yaml

# Stand for what `json.dumps` cannot write; replaced in its text.
_DEEP, _HUGE = "\ue000deep\ue000", "\ue000huge\ue000"
_SPELLED = {_DEEP: "[" * 3000 + "]" * 3000, _HUGE: "9" * 5000}

ODD: tuple[Any, ...] = (
    *(None, True, False, 0, -1, 1, 7, 10**12, 2**63, -(2**63) - 1, 10**400, 1.5, -0.0, 1e308, 5e-324),
    *(float("nan"), float("inf"), float("-inf"), _HUGE),
    *(
        "",
        " ",
        "true",
        "false",
        "null",
        "12",
        "-1",
        "1e5",
        "nan",
        "가나다",
        "e\u0301",
        "👍🏽",
        "a\nb",
        "a\0b",
        "\x1b[31mred",
    ),
    *(
        "\ud800",
        "\u202egnp",
        "\ufeff",
        "../../victim",
        "/",
        ".",
        "..",
        "../x",
        "a/../../b",
        "~",
        "x" * 300,
        "y" * 100_000,
    ),
    *("{{ 7 * 7 }}", "{% for i in range(10**9) %}x{% endfor %}", "%s%s%n", "<html>", "hf_x", "a" * 40, "f" * 64),
    *([], [None], [[]], ["a"], [1, 2, 3], {}, {"a": 1}, {"": ""}, [{}], _DEEP, ["x"] * 2000),
)


def json_text(rng: random.Random, value: Any) -> tuple[bytes, str]:
    """`value` with one change, as JSON (with NaN and lone surrogates, which Python's reader accepts)."""
    changed, what = json_value(rng, value)
    return _dumped(changed), what


def json_value(rng: random.Random, value: Any) -> tuple[Any, str]:
    """A copy of `value` in which one part, chosen evenly among all parts, has another value, is gone, or is doubled."""
    tree = [copy.deepcopy(value)]
    places: list[tuple[Any, Any, str]] = [(tree, 0, "$")]  # container, key, path
    for container, key, path in places:
        inner = container[key]
        if isinstance(inner, dict):
            places += [(inner, name, f"{path}.{name}") for name in inner]
        elif isinstance(inner, list):
            places += [(inner, i, f"{path}[{i}]") for i in range(min(len(inner), 50))]
    container, key, path = rng.choice(places)
    old = container[key]
    change = rng.choice(("odd", "odd", "odd", "drop", "wrap", "number", "text", "extra", "double", "swap"))
    odd = rng.choice(ODD)
    if change == "drop" and path != "$":
        del container[key]
        return tree[0], f"{path} is gone"
    if change == "wrap":
        container[key] = rng.choice(([old], {"a": old}, [old, old]))
        return tree[0], f"{path} is wrapped"
    if change == "number" and isinstance(old, int | float) and not isinstance(old, bool):
        container[key] = rng.choice((-old, old + 1, old * 2, old / 2, str(old), old * 10**9, bool(old)))
        return tree[0], f"{path} is {_shown(container[key])}, was {old}"
    if change == "text" and isinstance(old, str):
        container[key] = text(rng, old)
        return tree[0], f"{path} is {_shown(container[key])}"
    if change == "extra" and isinstance(old, dict):
        old[rng.choice(("extra", "", "__class__", "auto_map", "x" * 1000, *old))] = odd
        return tree[0], f"{path} gets another key, {_shown(odd)}"
    if change == "double" and isinstance(old, list) and old:
        container[key] = old * rng.choice((2, 50))
        return tree[0], f"{path} is repeated"
    if change == "swap":
        other, name, where = rng.choice(places)
        if where not in path and path not in where:
            container[key], other[name] = other[name], old
            return tree[0], f"{path} and {where} are swapped"
    container[key] = odd
    return tree[0], f"{path} is {_shown(odd)}"


def text(rng: random.Random, old: str) -> str:
    """`old` with one change."""
    at = rng.randrange(len(old) + 1)
    other = rng.choice(
        ("\0", "\n", " ", "/", "..", "가", "\u0301", "\u200b", '"', "'", "{", "%", "\x7f", "\ud83d", ":", "#")
    )
    return rng.choice((old[:at], old[at:], old[:at] + other + old[at:], old.upper(), old * 2, old[::-1], f" {old} "))


def raw(rng: random.Random, content: bytes) -> tuple[bytes, str]:
    """`content` with one change to its bytes."""
    at = rng.randrange(len(content) + 1)
    length = min(rng.choice((1, 2, 8, 100, 5000)), len(content) - at)
    end = at + length
    noise = rng.randbytes(max(length, 1))
    changes: dict[str, Callable[[], bytes]] = {
        f"cut off after {at} bytes": lambda: content[:at],
        f"without its first {at} bytes": lambda: content[at:],
        "emptied": lambda: b"",
        f"a bit flipped at {at}": lambda: content[:at] + _flipped(rng, content[at : at + 1]) + content[at + 1 :],
        f"{length} bytes replaced at {at}": lambda: content[:at] + noise + content[end:],
        f"{length} bytes zeroed at {at}": lambda: content[:at] + bytes(length) + content[end:],
        f"{length} bytes removed at {at}": lambda: content[:at] + content[end:],
        f"{len(noise)} bytes inserted at {at}": lambda: content[:at] + noise + content[at:],
        f"{length} bytes repeated at {at}": lambda: (
            content[:end] + content[at:end] * rng.choice((1, 20)) + content[end:]
        ),
        "reversed": lambda: content[::-1],
        "noise": lambda: rng.randbytes(min(len(content), 4000)),
        "with more at its end": lambda: content + rng.choice((b"\n", b"\0", b"\xff\n", b"}\n", b"]", b'"')),
    }
    what = rng.choice(list(changes))
    return changes[what](), what


def _flipped(rng: random.Random, byte: bytes) -> bytes:
    return bytes(value ^ 1 << rng.randrange(8) for value in byte)


_CELLS = (
    *(b"", b'"', b'""', b'"a\nb"', b"a,b", b"\xff\xfe", b"\x00", b"=1+1", b"\xe2\x80\xae", b"\xf0\x9f\x91\x8d", b"#"),
    *(
        b"</s>",
        b"<s>",
        b"x" * 20_000,
        b"\xa1\xa1",
        "가".encode("cp949"),
        b"\\",
        b"\t",
        b";",
        b"\r",
        b"\x1b[2J",
        b"NULL",
    ),
    b"\xed\xa0\x80",
)
_ENCODINGS = ("utf-16", "utf-32", "cp949", "utf-8-sig", "utf-16-be", "euc-kr", "johab")


def csv_bytes(rng: random.Random, content: bytes) -> tuple[bytes, str]:
    """A CSV with one change: of its bytes, a cell, a line, its line ends, its delimiter or its encoding."""
    lines = content.split(b"\n")
    at = rng.randrange(len(lines))
    cells = lines[at].split(b",")
    cell, odd = rng.randrange(len(cells)), rng.choice(_CELLS)
    utf8 = content.decode("utf-8", "replace")

    def with_cell() -> bytes:
        return b"\n".join([*lines[:at], b",".join([*cells[:cell], odd, *cells[cell + 1 :]]), *lines[at + 1 :]])

    changes: dict[str, Callable[[], bytes]] = {
        f"cell {cell} of line {at} is {odd[:20]!r}": with_cell,
        f"cell {cell} of line {at} is {odd[:20]!r} ": with_cell,
        f"line {at} is gone": lambda: b"\n".join(lines[:at] + lines[at + 1 :]),
        f"line {at} is there 50 times": lambda: b"\n".join(lines[:at] + lines[at : at + 1] * 50 + lines[at + 1 :]),
        f"line {at} has {odd[:20]!r} behind it": lambda: b"\n".join([*lines[:at], lines[at] + odd, *lines[at:]]),
        "the lines are shuffled": lambda: b"\n".join(rng.sample(lines, len(lines))),
        "only its header": lambda: lines[0] + b"\n",
        "without its header": lambda: b"\n".join(lines[1:]),
        "other line ends": lambda: content.replace(b"\n", rng.choice((b"\r", b"\r\n", b"\n\r", b"\r\r\n", b"\x0b"))),
        "another delimiter": lambda: content.replace(b",", rng.choice((b";", b"\t", b"|", b" ", b":", b"\x01", b",,"))),
        "another encoding": lambda: utf8.encode(rng.choice(_ENCODINGS), "replace"),
        "a quote that is never closed": lambda: content.replace(b",", b',"', rng.choice((1, 40))),
    }  # fmt: skip
    what = rng.choice(list(changes))
    return raw(rng, content) if rng.random() < 0.4 else (changes[what](), what.rstrip())


_LITERALS = (
    *(
        "0x10",
        "1_000",
        ".nan",
        "-.inf",
        "2026-01-01",
        "yes",
        "~",
        "!!binary aGk=",
        "!!python/object:os.system x",
        "|",
        ">",
    ),
    *(
        "*a",
        "&a 1",
        "&a [*a]",
        "0o17",
        "1:30",
        "1e400",
        "{a: 1}",
        "[1, 2",
        '"open',
        "'",
        "@x",
        "`x`",
        "%x",
        "? x",
        "- x",
    ),
    *("<<: *a", "", "\t1", "# x", "1" * 5000, "[" * 900 + "]" * 900),
)
_BOMB = "a: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{b}: &{b} [{', '.join(['*' + a] * 9)}]\n" for a, b in zip("abcdefghi", "bcdefghij", strict=True)
)


def yaml_text(rng: random.Random, old: str) -> tuple[bytes, str]:
    """A YAML file with one change: of a value in its tree, or of its text."""
    kind = rng.choice(("tree", "tree", "tree", "literal", "line", "indent", "bytes", "bomb", "deep"))
    if kind == "tree":
        tree, what = json_value(rng, yaml.safe_load(old))
        return _dumped(tree), what  # JSON is YAML
    lines = old.splitlines(keepends=True)
    at = rng.randrange(len(lines))
    if kind == "literal":
        key, _, _ = lines[at].rstrip().partition(":")
        lines[at] = f"{key}: {(odd := rng.choice(_LITERALS))}\n"
        return "".join(lines).encode(), f"{key.strip()}: {odd[:40]}"
    if kind == "line":
        lines[at] = rng.choice(
            (lines[at] * 2, "", lines[at].replace(":", ""), "---\n" + lines[at], f"{lines[at]}...\n")
        )
        return "".join(lines).encode(), f"line {at + 1} is {lines[at]!r}"
    if kind == "indent":
        lines[at] = rng.choice(("\t", " ", "   ", "")) + lines[at].lstrip()
        return "".join(lines).encode(), f"line {at + 1} is indented otherwise"
    if kind == "bomb":
        key, _, value = lines[at].rstrip().partition(":")
        lines[at] = f"{key}: *j\n" if value else lines[at]
        return (_BOMB + "".join(lines)).encode(), f"{key}: a list of 9^9, by aliases"
    if kind == "deep":
        depth = rng.choice((100, 5000, 100_000))
        return (old + "tags: " + rng.choice("[{") * depth + "\n").encode(), f"{depth} brackets"
    return raw(rng, old.encode())


def _dumped(value: Any) -> bytes:
    found = json.dumps(value)
    for stands_for, spelled in _SPELLED.items():
        found = found.replace(json.dumps(stands_for), spelled)
    return found.encode()


def _shown(value: Any) -> str:
    named = {_DEEP: "3000 brackets", _HUGE: "a number of 5000 digits"}
    found = named.get(value) if isinstance(value, str) else None
    return found or (text if len(text := repr(value)) <= 60 else f"{text[:57]}…")
