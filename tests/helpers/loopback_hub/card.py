"""The check of a model card's front matter, as far as the Hub's is known.

Parses with PyYAML, which huggingface_hub itself requires.
"""

from __future__ import annotations

import re
from typing import Any

from tests.helpers.loopback_hub.wire import Reply

# Some of the Hub's licence names; "other" also needs a license_name.
LICENSES = {
    *("afl-3.0", "agpl-3.0", "apache-2.0", "bsd-2-clause", "bsd-3-clause", "cc-by-4.0", "cc-by-nc-4.0"),
    *("cc-by-nc-nd-4.0", "cc-by-nc-sa-4.0", "cc-by-sa-3.0", "cc-by-sa-4.0", "cc0-1.0", "gemma", "gpl-2.0"),
    *("gpl-3.0", "lgpl-3.0", "llama2", "llama3", "llama3.1", "llama3.2", "llama3.3", "llama4", "mit", "mpl-2.0"),
    *("openrail", "openrail++", "other", "unknown", "unlicense", "bigscience-openrail-m", "creativeml-openrail-m"),
}


def reply(content: str) -> Reply:
    found = errors(content)
    warnings = [] if front_matter(content) else [{"message": "empty or missing yaml metadata in repo card"}]
    body = {"errors": [{"message": message} for message in found], "warnings": warnings}
    return Reply.of(body, 400 if found else 200)


def front_matter(content: str) -> Any:
    """The text between the first two `---` lines, as YAML; None if there is nothing, or nothing that YAML can read."""
    import yaml

    match = re.match(r"\s*---[ \t]*\r?\n(.*?)\r?\n---[ \t]*(\r?\n|$)", content, re.DOTALL)
    try:
        return yaml.safe_load(match[1]) if match else None
    except yaml.YAMLError:
        return None


def errors(content: str) -> list[str]:
    """What the Hub refuses in this card; no front matter is only a warning."""
    data = front_matter(content)
    if data is None:
        broken = re.match(r"\s*---[ \t]*\r?\n.*?\S", content, re.DOTALL) and not re.match(r"\s*---\s*---", content)
        return ["Invalid YAML"] if broken else []
    if not isinstance(data, dict):
        return ["Metadata must be a mapping"]
    found = []
    bases = data.get("base_model")
    for base in bases if isinstance(bases, list) else [bases]:
        if base is not None and not re.fullmatch(r"[\w.-]+(/[\w.-]+)?", str(base), re.ASCII):
            found.append(f'"base_model" with value "{base}" is not valid. Use a model id from https://hf.co/models.')
    names = data.get("license")
    for name in names if isinstance(names, list) else [names]:
        if name is not None and name not in LICENSES:
            found.append(f'"license" must be one of [{", ".join(sorted(LICENSES))}]')
    if "tags" in data and not (isinstance(data["tags"], list) and all(isinstance(tag, str) for tag in data["tags"])):
        found.append('"tags" must be an array')
    return found
