"""The secrets that this process holds, and every spelling in which one of them may be written.

A secret is known because a variable of the environment holds it, or because whoever read it said so (`learn`). Knows
no library, no file and no pattern; process/redact.py adds what looks like a secret without being known.

>>> masked(r"header 'Bearer x\\nhf_abcdefghijklmnopqrstu', cut: hf_abcdefghijk", ["hf_abcdefghijklmnopqrstu"])
"header 'Bearer x\\\\n…', cut: …"
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Collection, Iterable, Iterator, Mapping
from functools import lru_cache

MASK = "…"
# The variables that hold a Hub token or name its file, in order of precedence. No other place lists them.
HUB_TOKEN_VARIABLES = ("HF_TOKEN", "HF_TOKEN_FILE", "HUGGING_FACE_HUB_TOKEN")
NOTIFY_VARIABLE = "APPLIANCE_NOTIFY"  # addresses of notifications, each with its token or password
# Names of environment variables that hold secrets, whatever service they are for.
_SECRET_VARIABLE = re.compile(
    r"TOKEN(?!IZER)|SECRET|PASSWORD|PASSWD|PASSPHRASE|API_?KEY|ACCESS_?KEY|CREDENTIAL|COOKIE|WEBHOOK", re.IGNORECASE
)
_USER_AND_PASSWORD = re.compile(r"[a-z][a-z0-9+.-]*://([^\s/?#@:]*)(?::([^\s/?#]*))?@", re.IGNORECASE)
_SHORTEST = 8  # characters of a secret; a shorter text would be met by accident
_SHORTEST_GIVEN = 4  # of one that the caller means
# A text of so many characters without a space is random enough for a part of it to give it away.
_SHORTEST_RANDOM = 20
_PIECE = 10  # characters of a part that is masked: of 34 random ones, fewer are of no use
_PROBE, _STRIDE = 5, 6  # every stretch of 10 characters holds a whole 5 that begin at a multiple of 6
_MOST_HELD = 256  # characters; of a longer form, what goes before is masked piece by piece
_learnt: set[str] = set()


def of_environment(environ: Mapping[str, str], *more: str | None) -> tuple[str, ...]:
    """The values of the variables that are named like secrets, and `more`, the caller's own; line by line.

    A variable's value that is a path, short, a number or one plain word is no secret (HF_TOKEN_FILE,
    TOKEN_TYPE=standard): it would be met everywhere.
    """
    named = (value for name, value in environ.items() if _SECRET_VARIABLE.search(name))
    telling = {line for value in named for line in _lines(value) if _tells(line)}
    return tuple(sorted(telling | {line for value in more if value for line in _lines(value)}))


def learn(*secrets: str | None) -> None:
    """From now on these are masked, line by line, in everything that this process writes."""
    for line in (line for secret in secrets if secret for line in _lines(secret)):
        _learnt.update(part for part in (line, *line.split()) if len(part) >= _SHORTEST)


def forget() -> None:
    """Forgets what was learnt. For tests, which share a process."""
    _learnt.clear()


def known() -> tuple[str, ...]:
    """Every secret that this process could write: of its environment, of the addresses there, and what was learnt."""
    return _known(tuple(os.environ.items()), frozenset(_learnt))


def without(environ: Mapping[str, str], *, addresses: bool = False) -> dict[str, str]:
    """The variables for a child process that needs no secret, or is given it in another way.

    `addresses`: also without those that hold a user or password in an address, such as a proxy's; for a child that
    uses no network.
    """

    def holds_secret(name: str, value: str) -> bool:
        if name in (*HUB_TOKEN_VARIABLES, NOTIFY_VARIABLE) or of_environment({name: value}):
            return True
        return addresses and _USER_AND_PASSWORD.search(value) is not None

    return {name: value for name, value in environ.items() if not holds_secret(name, value)}


def forms(secret: str) -> frozenset[str]:
    """How a text may spell the secret: as it is, escaped, quoted for an address, in base64 or hexadecimal.

    In base64 (RFC 4648, with both alphabets) every third alignment looks different; characters that also depend on
    what stands before or after the secret are left out.
    """
    import base64  # these: not for a process without secrets
    import html
    from urllib.parse import quote, quote_plus

    raw = secret.encode("utf-8", "surrogatepass")
    spelled = {secret, repr(secret)[1:-1], repr(raw)[2:-1], html.escape(secret)}
    spelled |= {json.dumps(secret, ensure_ascii=ascii_only)[1:-1] for ascii_only in (True, False)}
    spelled |= {text.replace("/", "\\/") for text in spelled}  # as JSON may
    quoted = {quote(raw), quote(raw, safe=""), quote_plus(raw), "".join(f"%{byte:02X}" for byte in raw)}
    spelled |= quoted | {re.sub("%[0-9A-F]{2}", lambda found: found[0].lower(), text) for text in quoted}
    for before, unsure in enumerate((0, 2, 3)):
        whole = base64.b64encode(bytes(before) + raw).decode()
        text = whole[unsure : (before + len(raw)) * 8 // 6]
        spelled |= {text, text.replace("+", "-").replace("/", "_")}
    return frozenset(spelled | {raw.hex(), raw.hex().upper()})


def masked(text: str, more: Collection[str] = ()) -> str:
    """`text` with every spelling of a known secret, or of one in `more`, replaced by `…`.

    Of a long secret also every part of ten characters and more: of one that was cut, or is split over two lines.
    """
    own = (line.strip() for secret in more for line in secret.splitlines())
    return _mask((*known(), *(line for line in own if len(line) >= _SHORTEST_GIVEN))).applied(text)


def begun(text: str) -> int:
    """How many characters at the end of `text` may be the beginning of a known secret, which the next write ends."""
    return _mask(known()).begun(text)


def holds(content: str | bytes, secrets: Iterable[str]) -> bool:
    """Whether the content of a file spells one of `secrets` in any way."""
    spelled = _all_forms(tuple(secrets))
    if isinstance(content, bytes):
        return any(form.encode("utf-8", "surrogatepass") in content for form in spelled)
    return any(form in content for form in spelled)


class _Mask:
    """Masks these secrets: every form of each, and the pieces of the long ones."""

    def __init__(self, secrets: tuple[str, ...]) -> None:
        # an address is public in parts, such as its host; `known` lists those of its parts that are not
        random = [one for one in secrets if len(one) >= _SHORTEST_RANDOM and not re.search(r"\s|://", one)]
        self._whole = sorted(_all_forms(secrets), key=len, reverse=True)
        spelled = _all_forms(tuple(random))
        self._pieces = {form[i : i + _PIECE] for form in spelled for i in range(len(form) - _PIECE + 1)}
        self._probes = {piece[i : i + _PROBE] for piece in self._pieces for i in range(_STRIDE)}
        self._starts = {form[:n] for form in self._whole for n in range(1, min(len(form), _MOST_HELD))}
        self._longest = max(map(len, self._starts), default=0)

    def applied(self, text: str) -> str:
        covered = sorted([*self._of_forms(text), *self._of_pieces(text)])
        if not covered:
            return text
        joined = [covered[0]]
        for begin, end in covered[1:]:
            last_begin, last_end = joined[-1]
            if begin <= last_end:
                joined[-1] = last_begin, max(last_end, end)
            else:
                joined.append((begin, end))
        ends = [0, *(end for _, end in joined)]
        kept = [text[end:begin] for end, (begin, _) in zip(ends, joined, strict=False)]
        return MASK.join([*kept, text[ends[-1] :]])

    def begun(self, text: str) -> int:
        """The length of the longest end of `text` that is the beginning of a form, none of which has line ends."""
        if text.endswith("\n"):
            return 0
        for length in range(min(self._longest, len(text)), 0, -1):
            if text[-length:] in self._starts:
                return length
        return 0

    def _of_forms(self, text: str) -> Iterator[tuple[int, int]]:
        for form in self._whole:
            at = text.find(form)
            while at >= 0:
                yield at, at + len(form)
                at = text.find(form, at + 1)

    def _of_pieces(self, text: str) -> Iterator[tuple[int, int]]:
        if not self._pieces:
            return
        for at in range(0, len(text), _STRIDE):
            if text[at : at + _PROBE] in self._probes:
                for begin in range(max(0, at - _STRIDE + 1), at + 1):
                    if text[begin : begin + _PIECE] in self._pieces:
                        yield begin, begin + _PIECE


@lru_cache(maxsize=4)
def _known(variables: tuple[tuple[str, str], ...], learnt: frozenset[str]) -> tuple[str, ...]:
    environ = dict(variables)
    hub = (environ.get(name, "") for name in HUB_TOKEN_VARIABLES if not name.endswith("_FILE"))
    notify = environ.get(NOTIFY_VARIABLE, "").split()
    secrets = of_environment(environ, *learnt, *hub, *notify, *_in_addresses(environ))
    return (*secrets, *(part for one in secrets if "://" in one for part in _in_address(one)))


@lru_cache(maxsize=32)
def _mask(secrets: tuple[str, ...]) -> _Mask:
    return _Mask(secrets)


@lru_cache(maxsize=32)
def _all_forms(secrets: tuple[str, ...]) -> frozenset[str]:
    return frozenset(form for secret in secrets for form in forms(secret))


def _in_addresses(environ: Mapping[str, str]) -> Iterator[str]:
    """Users and passwords in the addresses of proxies, mirrors and endpoints, as typed and as sent."""
    from urllib.parse import unquote

    for name, value in environ.items():
        if "@" in value and name != NOTIFY_VARIABLE:
            for user, password in _USER_AND_PASSWORD.findall(value):
                for part in (user, password):
                    yield from (form for form in {part, unquote(part)} if _tells(form))
                if password:  # as Basic sends them, in base64: a short password is known by what stands before it
                    yield from (form for form in {f"{user}:{password}", f"{unquote(user)}:{unquote(password)}"})


def _in_address(address: str) -> Iterator[str]:
    """The tokens and passwords in an address that is a secret as a whole, such as a webhook's, as typed and decoded.

    They stand in its path, its query or, in Apprise's addresses (slack://TOKEN/TOKEN), in the place of the host. A
    user's name, a mail address and the name of a host are no secrets, and may occur elsewhere.
    """
    from urllib.parse import unquote

    place, *rest = re.split(r"[/?#&,;]", address.partition("://")[2])
    login, _, host = place.rpartition("@")
    password = login.partition(":")[2]
    words = [password, *(word for word in host.split(":") if "." not in word)]
    values = (word if word.endswith("=") else word.rpartition("=")[2] for word in rest)
    words += [value for value in values if "@" not in unquote(value)]
    yield from {form for word in words for form in (word, unquote(word)) if _tells(form)}
    if password:  # a short one is known by what stands before it
        yield from {login, unquote(login)}


def _tells(value: str) -> bool:
    """Whether a value that stands where secrets stand is one: it has letters, and digits or the length of a key."""
    if len(value) < _SHORTEST or value.startswith(("/", "~")) or not re.search(r"[^\W\d_]", value):
        return False
    return bool(re.search(r"\d", value)) or (len(value) >= _SHORTEST_RANDOM and not re.search(r"\s", value))


def _lines(text: str) -> list[str]:
    return [line.strip() for line in text.splitlines() if len(line.strip()) >= _SHORTEST]
