"""Removes secrets from text: those that this process holds, and what looks like one: tokens, headers, signed links.

Knows patterns, no library and no file; process/known_secrets.py knows the secrets.

>>> without_secrets("PUT https://cdn.example/a?X-Signature=abc failed for Bearer hf_abcdefghijklmnopqrstuv")
'PUT https://cdn.example/a?… failed for Bearer …'
"""

from __future__ import annotations

import logging
import re
from collections.abc import Collection, Iterable, Sequence
from functools import lru_cache

from appliance.process import known_secrets

# Names that many machines have; none of them tells whose machine it is.
_COMMON = frozenset(
    (
        *("root", "user", "users", "admin", "administrator", "guest", "nobody", "daemon", "default", "home", "work"),
        *("ubuntu", "debian", "fedora", "centos", "alpine", "docker", "podman", "container", "vscode", "node"),
        *("local", "localhost", "localdomain", "host", "hostname", "machine", "server", "worker", "runner", "builder"),
        *("app", "appliance", "test", "tester", "build", "workspace", "python", "conda", "jovyan", "data", "dataset"),
        *("base", "model", "train", "trainer", "tokenizer", "transformers", "alpaca", "lora", "adapter", "main"),
    )
)
_SHORTEST_NAME = 4
HOME_FOLDER = re.compile(
    r"(?<![\w.~])(?:/home/[^/\s\"'`:,;)\]}>\\]+|/Users/[^/\s\"'`:,;)\]}>\\]+|/root(?![\w.-])(?=/|\b))"
)


@lru_cache
def names_here() -> tuple[str, ...]:
    """The names of this user and host that could identify them."""
    import getpass  # these two: a tenth of what `--help` costs
    import socket

    try:
        user = getpass.getuser()
    except (OSError, KeyError):  # a uid without a name, as containers have
        user = ""
    host = socket.gethostname()
    return telling([user, host, host.partition(".")[0]])


def telling(names: Iterable[str]) -> tuple[str, ...]:
    """Those names that are not common words and are too long to occur by accident."""
    return tuple(sorted({n for n in names if len(n) >= _SHORTEST_NAME and n.lower() not in _COMMON}))


def redact(text: str, names: Sequence[str] = ()) -> str:
    """`text` for a log: secrets, home folders and `names` masked."""
    text = HOME_FOLDER.sub("~", without_secrets(text))
    for name in names:
        text = whole_word(name).sub("…", text)
    return text


def whole_word(name: str) -> re.Pattern[str]:
    return re.compile(rf"(?<![\w-]){re.escape(name)}(?![\w-])")


# An escape such as \n, \x3d, \u003d or %3D before a token is no part of it, though it ends in a letter or digit.
_AT_ITS_BEGIN = r"(?:(?<![A-Za-z0-9])|(?<=\\[abfnrtv])|(?<=\\x[0-9a-f]{2})|(?<=\\u[0-9a-f]{4})|(?<=%[0-9A-Fa-f]{2}))"
_SIGNATURE = r"X-(?:Amz|Goog)-(?:Signature|Credential|Security-Token)|AWSAccessKeyId|Signature|sig"
_BEGUN = re.compile(r"(?:hf_|sk-)[\w-]{0,200}\Z")
# What is a secret in any text, even in a result on standard output.
_CERTAIN = (
    (re.compile(r"hf_[A-Za-z0-9]{16,}"), "hf_…"),
    (re.compile(_AT_ITS_BEGIN + r"sk-(?=[\w-]*\d)[\w-]{20,}"), "sk-…"),
    (re.compile(rf"(?i){_AT_ITS_BEGIN}({_SIGNATURE})(=|%3D)[\w%.~+/-]{{8,}}"), r"\1\2…"),
)
_SECRETS = (
    # The storage links that a Hub hands out carry their access rights in the query.
    (re.compile(r"(https?://[^\s?'\"<>\\]+)\?[^\s'\"<>\\]+"), r"\1?…"),
    (re.compile(r"(https?://)[^\s/@'\"]+@"), r"\1…@"),
    (re.compile(r"(?i)\b(bearer|basic)\s+(?!…)[\w.~+/=-]+"), r"\1 …"),
    (re.compile(r"(?i)(authorization[\"']?\s*[:=,]\s*(?:b?[\"'])?+)(?!bearer|basic|…)[^\s\"',}]+"), r"\1…"),
    (re.compile(r"(?i)\b((?:set-)?cookie[\"']?\s*[:=,]\s*(?:b?[\"'])?+)(?!…)[^\s\"'][^\r\n\"']*"), r"\1…"),
)


def without_secrets(value: str, secrets: Collection[str] = ()) -> str:
    """`value` without the known and the given secrets, in any spelling, and without anything that looks like one."""
    value = known_secrets.masked(value, secrets)
    for pattern, instead in (*_SECRETS, *_CERTAIN):
        value = pattern.sub(instead, value)
    return value


def without_tokens(value: str) -> str:
    """`value` without known secrets, tokens and signatures: for output, whose links and headers are the user's own."""
    value = known_secrets.masked(value)
    for pattern, instead in _CERTAIN:
        value = pattern.sub(instead, value)
    return value


def begun_token(value: str) -> int:
    """How many characters at the end of `value` may be the beginning of a secret: its end may come with the next write.

    >>> begun_token("Bearer hf_abc")
    6
    """
    shaped = _BEGUN.search(value)
    return max(known_secrets.begun(value), len(shaped[0]) if shaped else 0)


class Filter(logging.Filter):
    """For a handler: no secret is written, whichever library logs it, in a message or a traceback."""

    def __init__(self, secrets: Collection[str] = ()) -> None:
        super().__init__()
        self._secrets = tuple(secrets)

    def filter(self, record: logging.LogRecord) -> bool:
        record.msg = without_secrets(record.getMessage(), self._secrets)
        record.args = ()
        if record.exc_info:
            record.exc_text = logging.Formatter().formatException(record.exc_info)
            record.exc_info = None
        if record.exc_text:
            record.exc_text = without_secrets(record.exc_text, self._secrets)
        return True
