"""Removes secrets from text: tokens, Authorization headers, the query of links. Knows patterns, no library and no file.

>>> without_secrets("PUT https://cdn.example/a?X-Signature=abc failed for Bearer hf_abcdefghijklmnopqrstuv")
'PUT https://cdn.example/a?… failed for Bearer …'
"""

from __future__ import annotations

import getpass
import logging
import re
import socket
from collections.abc import Collection, Iterable, Mapping, Sequence
from functools import lru_cache

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
# The variables that hold a Hub token or name its file, in order of precedence. No other place lists them.
HUB_TOKEN_VARIABLES = ("HF_TOKEN", "HF_TOKEN_FILE", "HUGGING_FACE_HUB_TOKEN")
_SHORTEST_NAME = 4
HOME_FOLDER = re.compile(
    r"(?<![\w.~])(?:/home/[^/\s\"'`:,;)\]}>\\]+|/Users/[^/\s\"'`:,;)\]}>\\]+|/root(?![\w.-])(?=/|\b))"
)


def without_hub_token(environ: Mapping[str, str]) -> dict[str, str]:
    """The variables for a child process that needs no Hub token, or is given it in another way."""
    return {name: value for name, value in environ.items() if name not in HUB_TOKEN_VARIABLES}


@lru_cache
def names_here() -> tuple[str, ...]:
    """The names of this user and host that could identify them."""
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


_SECRETS = (
    # The storage links that a Hub hands out carry their access rights in the query.
    (re.compile(r"(https?://[^\s?'\"<>\\]+)\?[^\s'\"<>\\]+"), r"\1?…"),
    (re.compile(r"(https?://)[^\s/@'\"]+@"), r"\1…@"),
    (re.compile(r"(?i)\b(bearer|basic)\s+(?!…)[\w.~+/=-]+"), r"\1 …"),
    (re.compile(r"(?i)(authorization[\"']?\s*[:=]\s*[\"']?)(?!bearer|basic|…)[^\s\"',}]+"), r"\1…"),
    (re.compile(r"\bhf_[A-Za-z0-9]{16,}"), "hf_…"),
)


def without_secrets(value: str, secrets: Collection[str] = ()) -> str:
    """`value` without the given secrets and without anything that looks like one."""
    for secret in secrets:
        value = value.replace(secret, "…") if secret else value
    for pattern, instead in _SECRETS:
        value = pattern.sub(instead, value)
    return value


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
