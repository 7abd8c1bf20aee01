"""Names of repositories and files on the Hub, judged without asking it. Raises only ValueError, with the rule.

>>> repo_id("https://huggingface.co/me/shop-model/")
'me/shop-model'
"""

from __future__ import annotations

import re
from urllib.parse import quote, unquote

# https://github.com/huggingface/huggingface_hub, utils/_validators.py: what its client refuses.
_MOST_CHARACTERS = 96  # of a user's name and of a repository's
_NAME = re.compile(r"\w(?:[\w.-]*\w)?", re.ASCII)
_PAGE = re.compile(r"(?:https?://)?(?:www\.)?(?:huggingface\.co|hf\.co)/(.*)", re.IGNORECASE)


def refuse_name(name: str) -> None:
    """Raises ValueError: the Hub does not accept `name`, which is NAME or USER/NAME, for a repository."""
    if fault := _fault(name):
        raise ValueError(f"{name!r} cannot be a repository on the Hub: {fault}")


def _fault(name: str) -> str:
    parts = name.split("/")
    longest = max(parts, key=len)
    if "://" in name or len(parts) > 2 or not all(parts):
        return "expected USER/NAME, or NAME for your own account"
    if other := re.search(r"[^\w./-]", name, re.ASCII):
        return f"only letters, digits, '-', '_' and '.' are allowed, not {other[0]!r}"
    if len(longest) > _MOST_CHARACTERS:
        return f"{longest!r} has {len(longest)} characters; {_MOST_CHARACTERS} are allowed"
    if not all(map(_NAME.fullmatch, parts)):
        return "a name begins and ends with a letter, a digit or '_'"
    if "--" in name or ".." in name:
        return "'--' and '..' are not allowed"
    return "a name must not end in '.git'" if name.endswith(".git") else ""


def repo_id(text: str) -> str:
    """NAME or USER/NAME from itself or from the address of its page. Raises ValueError: see `refuse_name`."""
    path = _path(text)
    name = text.strip() if path is None else path.removeprefix("models/").removeprefix("datasets/")
    refuse_name(name)
    return name


def model_id(text: str) -> str:
    """`text`, or USER/NAME if it is the address of a model's page. Raises ValueError: a page of something else."""
    path = _path(text)
    if path is None:
        return text
    found = re.fullmatch(r"([^/]+/[^/]+)(?:/(?:tree|blob|resolve)/(.+))?", path)
    if found is None or path.startswith(("datasets/", "spaces/")):
        raise ValueError("expected the address of a model's page on the Hub, or USER/NAME")
    if found[2] not in (None, "main"):
        raise ValueError(f"set model.id to {found[1]} and model.revision to the commit, tag or branch")
    return found[1]


def csv_address(text: str) -> str:
    """`text`, or hf://datasets/USER/NAME@REVISION/FILE if it is the address of a dataset's file on the Hub.

    Raises ValueError: another address on the web, or a page of the Hub that is not a dataset's file.
    """
    path = _path(text)
    found = re.fullmatch(r"datasets/([^/]+/[^/]+)/(?:blob|resolve|raw|viewer)/([^/]+)/(.+)", path) if path else None
    if found:
        revision = unquote(found[2])
        slashes = "/" if revision.startswith(("refs/convert/", "refs/pr/")) else ""
        at = "" if revision == "main" else f"@{quote(revision, safe=slashes)}"
        return f"hf://datasets/{found[1]}{at}/{unquote(found[3])}"
    if path is not None:
        raise ValueError("expected a dataset's file on the Hub: hf://datasets/USER/NAME@REVISION/FILE")
    if re.match(r"https?://", text, re.IGNORECASE):
        raise ValueError(
            "a file on the web is not downloaded; save it and give its path, or hf://datasets/… on the Hub"
        )
    return text


def _path(text: str) -> str | None:
    """The path of a page on the Hub, without query and final slash; None if `text` is not such an address."""
    found = _PAGE.fullmatch(text.strip())
    return re.split(r"[?#]", found[1])[0].strip("/") if found else None
