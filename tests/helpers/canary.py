"""Secrets that must be found nowhere: how a text may spell one, every way to let it out, and the search for it."""

from __future__ import annotations

import base64
import html
import json
import logging
import re
import sys
import threading
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from urllib.parse import quote, quote_plus

from appliance.process import console

PIECE = 10  # characters of a spelling that count as a find
_LARGE = 300_000  # bytes; weights are searched for whole spellings

SPELLED: dict[str, Callable[[str], str]] = {
    "plain": str,
    "repr": repr,
    "repr of a repr": lambda secret: repr(repr(secret)),
    "repr of bytes": lambda secret: repr(secret.encode()),
    "JSON": json.dumps,
    "JSON, not ASCII": lambda secret: json.dumps(secret, ensure_ascii=False),
    "JSON with escaped slashes": lambda secret: json.dumps(secret).replace("/", "\\/"),
    "after an escaped line end": lambda secret: repr(f"x\n{secret}"),
    "quoted": quote,
    "quoted as a part": lambda secret: quote(secret, safe=""),
    "quoted in lower case": lambda secret: re.sub("%..", lambda found: found[0].lower(), quote(secret)),
    "quoted as a form": quote_plus,
    "every character quoted": lambda secret: "".join(f"%{byte:02x}" for byte in secret.encode()),
    "HTML": html.escape,
    "hexadecimal": lambda secret: secret.encode().hex(),
    "hexadecimal, upper case": lambda secret: secret.encode().hex().upper(),
    **{
        f"base64 behind {user!r}": lambda secret, user=user: base64.b64encode(f"{user}{secret}@".encode()).decode()
        for user in ("", "u:", "me:")
    },
    **{
        f"base64 for addresses behind {user!r}": lambda secret, user=user: base64.urlsafe_b64encode(
            f"{user}{secret}@".encode()
        ).decode()
        for user in ("", "u:", "me:")
    },
}


def parts(text: str, length: int = PIECE) -> set[str]:
    return {text[i : i + length] for i in range(len(text) - length + 1)}


def spellings(secret: str) -> set[str]:
    """Without quotes, and without the ends that base64 shares with what is around the secret."""
    return {spell(secret).strip("'\"")[4:-4] for spell in SPELLED.values()}


def found(texts: Iterable[tuple[str, bytes]], secret: str) -> list[str]:
    """The names of the texts that hold the secret, or ten characters of a spelling of it."""
    spelled = spellings(secret)
    pieces = {piece for one in spelled for piece in parts(one)}
    probes = {piece[i : i + 5] for piece in pieces for i in range(6)}
    names = []
    for name, content in texts:
        text = f"{name}\n{content.decode('latin-1')}"
        if len(text) > _LARGE:
            hit = any(one in text for one in spelled)
        else:  # ten characters hold a whole five at a multiple of six
            near = [i for i in range(0, len(text), 6) if text[i : i + 5] in probes]
            hit = any(text[i : i + PIECE] in pieces for at in near for i in range(max(0, at - 5), at + 1))
        if hit:
            names.append(name)
    return names


def files_in(folder: Path, *apart: Path) -> Iterator[tuple[str, bytes]]:
    """Name and content of every file, but for those where the secret was put."""
    for path in sorted(folder.rglob("*")):
        if path.is_file() and path not in apart:
            yield path.relative_to(folder).as_posix(), path.read_bytes()


class _Dying:
    def __init__(self, text: str) -> None:
        self._text = text

    def __del__(self) -> None:
        raise RuntimeError(self._text)


def in_all_spellings(secret: str) -> str:
    return f"leaked {secret} " + " ".join(spell(secret) for spell in SPELLED.values())


def leak(secret: str) -> None:
    """Lets the secret out in every way that this process has."""
    text = in_all_spellings(secret)
    half = len(secret) // 2
    log = logging.getLogger("some.library")
    log.warning("%s %r", text, {"Authorization": f"Bearer {secret}"})
    log.info("cut: %s", secret[:half])
    log.info("%s: the rest", secret[half:])
    try:
        raise KeyError(secret) from ValueError(text)
    except KeyError:
        log.exception("failed")
    warnings.warn(text, UserWarning, stacklevel=1)
    console.say(text)
    console.result(text)
    console.error(text, text)
    for to_stdout in (True, False):
        console.table(text, ("found", "narrow"), [(text, "x" * 200), (secret, secret)], to_stdout=to_stdout)
    with console.Steps(text, 1, seconds_between_lines=0) as steps:
        steps.advance(note=secret)
    for stream in (sys.stdout, sys.stderr):
        stream.write(text)
        for piece in (secret[:half], secret[half:], "\n", *secret, "\n", secret[:half], "\n", secret[half:], "\n"):
            stream.write(piece)
            stream.flush()
    thread = threading.Thread(target=lambda: {}[text])  # type: ignore[var-annotated]
    thread.start()
    thread.join()
    with suppress(RuntimeError):
        _Dying(text)
