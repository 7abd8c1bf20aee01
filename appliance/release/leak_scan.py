"""Scans a release and its logs for what must not be published: tokens, signed URLs, names of the machine and the user.

Knows texts and files, no recipe, no run directory, no Hub; process/redact.py removes from texts what this finds in
files. The caller passes the secrets; a hit names the file, the line and the kind, and never contains what was found.

Two kinds of things are searched for:

- secrets: what the caller passes, in every spelling that process/known_secrets.py knows, and anything shaped like a
  Hub token (`hf_` and 30 characters). In every text file, in the header of every safetensors and GGUF file, in
  the vocabularies of tokenizers.
- traces: Authorization headers, signed URLs, home folders, the paths of this run, the names of host and user. In every
  text file except vocabularies and licence texts, which come from the base (a vocabulary may well contain "root").

A name counts only as a whole word, and only if it identifies something: `root`, `app` and `localhost` do not, nor does
a word of fewer than four letters. What the user publishes on purpose (`public`: names of repositories, rows shown in
the card) is not a trace; a secret is always a secret.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from appliance.process import known_secrets
from appliance.process.redact import HOME_FOLDER, whole_word
from appliance.weights import gguf_header, model_files

_VOCABULARY_KEYS = ("tokenizer.ggml.tokens", "tokenizer.ggml.merges")  # of a GGUF file
_BINARY = (".png", ".pt", ".pth", ".bin", ".model")  # searched only for the bytes of secrets

_TOKEN = re.compile(r"hf_[A-Za-z0-9]{30,}")  # huggingface.co/docs/hub/security-tokens; currently 34 characters
_AUTHORIZATION = re.compile(
    r"\bauthorization\b[\"']?\s*[:=]\s*[\"']?(?:bearer|basic|token)\s+[^\s\"']{8,}|\bbearer\s+[\w.~+/-]{20,}",
    re.IGNORECASE,
)
_SIGNED = re.compile(r"[?&](?:X-Amz-Signature|X-Goog-Signature|Signature|sig)=[\w%.~+/-]{8,}", re.IGNORECASE)


@dataclass(frozen=True)
class Private:
    """What identifies this machine. `names`: host and user; `paths`: of the run and the base, absolute."""

    names: tuple[str, ...] = ()
    paths: tuple[str, ...] = ()
    public: str = ""  # text that is published on purpose


@dataclass(frozen=True)
class Hit:
    """Something that must not be published. `line` is 1-based; 0: not a text file."""

    path: str
    line: int
    kind: str
    is_secret: bool

    def sentence(self) -> str:
        return f"{self.path}{f', line {self.line}' if self.line else ''}: {self.kind}"


def scan(folder: Path, secrets: Sequence[str], private: Private) -> list[Hit]:
    """Every hit in the files in `folder`, which may also be a single file; paths are relative to it."""
    files = [folder] if folder.is_file() else sorted(path for path in folder.rglob("*") if path.is_file())
    hits: list[Hit] = []
    for path in files:
        name = path.name if folder.is_file() else path.relative_to(folder).as_posix()
        hits += _scan_file(path, name, secrets, private)
    return hits


def holding(paths: Iterable[Path], secrets: Sequence[str], below: Path) -> list[Hit]:
    """The files that contain one of `secrets`, whatever their format."""
    hits = []
    for path in paths:
        if known_secrets.holds(path.read_bytes(), secrets):
            hits.append(Hit(path.relative_to(below).as_posix(), 0, "a secret of this environment", is_secret=True))
    return hits


def holds_text(folder: Path, texts: Iterable[str], *, shortest: int = 12) -> list[Hit]:
    """The model cards in `folder` that contain one of `texts`, as typed or as a table cell."""
    wanted = {form for text in texts for form in (text.strip(), as_cell(text.strip())) if len(form) >= shortest}
    hits = []
    for path in sorted(folder.rglob("*.md")):
        card = path.read_text(encoding="utf-8", errors="replace")
        if any(text in card for text in wanted):
            hits.append(Hit(path.relative_to(folder).as_posix(), 0, "text of a CSV row", is_secret=False))
    return hits


def as_cell(text: str) -> str:
    """A text as the card writes it in a table."""
    return text.replace("|", "\\|").replace("\n", "<br>")


def _scan_file(path: Path, name: str, secrets: Sequence[str], private: Private) -> Iterator[Hit]:
    if path.suffix == ".safetensors":
        yield from _scan_text(_safetensors_header(path), name, secrets, private)
    elif path.suffix == ".gguf":
        yield from _scan_gguf(path, name, secrets, private)
    elif path.suffix in _BINARY:
        content = path.read_bytes()
        if known_secrets.holds(content, secrets) or re.search(_TOKEN.pattern.encode(), content):
            yield Hit(name, 0, "a secret", is_secret=True)
    elif path.name in model_files.VOCABULARY_FILES or model_files.is_licence(path.name):  # not our words
        yield from _scan_lines(path, name, secrets, None)
    else:
        yield from _scan_lines(path, name, secrets, private)


def _scan_lines(path: Path, name: str, secrets: Sequence[str], private: Private | None) -> Iterator[Hit]:
    text = path.read_text(encoding="utf-8", errors="replace")
    if not known_secrets.holds(text, secrets):  # one look for every spelling costs less than one a line
        secrets = ()
    for number, line in enumerate(text.split("\n"), 1):
        for hit in _scan_text(line, name, secrets, private):
            yield Hit(name, number, hit.kind, hit.is_secret)


def _scan_text(text: str, name: str, secrets: Sequence[str], private: Private | None) -> Iterator[Hit]:
    plain = text.replace("\\/", "/")  # JSON may escape a slash
    if known_secrets.holds(text, secrets):
        yield Hit(name, 0, "a secret of this environment", is_secret=True)
    elif _TOKEN.search(plain):
        yield Hit(name, 0, "a string shaped like a Hub token (hf_…)", is_secret=True)
    if private is None:
        return
    patterns = {
        "an Authorization header": _AUTHORIZATION,
        "a signed URL": _SIGNED,
        "a home folder": HOME_FOLDER,
    }
    for kind, pattern in patterns.items():
        if any(found[0] not in private.public for found in pattern.finditer(plain)):
            yield Hit(name, 0, kind, is_secret=False)
    if any(path in plain for path in private.paths):
        yield Hit(name, 0, "a path of this machine", is_secret=False)
    if any(whole_word(word).search(plain) and not whole_word(word).search(private.public) for word in private.names):
        yield Hit(name, 0, "the name of this host or user", is_secret=False)


def _scan_gguf(path: Path, name: str, secrets: Sequence[str], private: Private) -> Iterator[Hit]:
    """Its metadata and the names of its tensors; the tokenizer's words are the base's, as in tokenizer.json."""
    ours: list[str] = []
    words: list[str] = []
    try:
        for key, text in gguf_header.read(path).texts():
            (words if key in _VOCABULARY_KEYS else ours).append(text)
    except ValueError as error:
        yield Hit(name, 0, f"what it holds cannot be read: {error}", is_secret=False)
    found = dict.fromkeys(_scan_text("\n".join(ours), name, secrets, private))
    yield from found | dict.fromkeys(_scan_text("\n".join(words), name, secrets, None))


def _safetensors_header(path: Path) -> str:
    """The JSON at the start of the file, preceded by its length (github.com/safetensors/safetensors#format)."""
    with path.open("rb") as handle:
        size = int.from_bytes(handle.read(8), "little")
        return handle.read(min(size, 100_000_000)).decode(errors="replace")  # the format's own limit
