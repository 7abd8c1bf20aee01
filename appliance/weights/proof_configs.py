"""config.json and generation_config.json of a merged model, compared with the base's: only our own changes are allowed.

Knows files and transformers' configuration classes; loads no weights. weights/proof.py judges.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from appliance.process.files import read_json
from appliance.process.redact import without_secrets
from appliance.tasks import find as tasks_find
from appliance.weights import rope
from appliance.weights.merge import special_ids
from appliance.weights.model_config import IDS, generation_config, is_harmless
from appliance.weights.proof import ProofRequest

# Says which release of transformers wrote the file, and from which folder it was loaded.
_STAMPS = ("transformers_version", "_name_or_path")


def changed_fields(wanted: ProofRequest, merged_dir: Path) -> list[str]:
    """Fields of config.json that are not the base's, with both values. The type and the ids of training are ours."""
    base, merged = read_json(wanted.base_dir / "config.json"), read_json(merged_dir / "config.json")
    expected = base | special_ids(wanted.trained_dir, base) | {"dtype": wanted.dtype}
    expected |= tasks_find.named(wanted.task).of_model(wanted.trained_dir).config(base)
    if "torch_dtype" in base | merged:  # transformers 4's word for dtype
        expected["torch_dtype"] = wanted.dtype
    of_rope = {rope.NEWER, *rope.OLDER}
    names = [key for key in sorted(expected.keys() | merged.keys()) if key not in of_rope and key not in _STAMPS]
    found = list(_differences(names, expected, merged))
    if {key: base[key] for key in of_rope & base.keys()} != {key: merged[key] for key in of_rope & merged.keys()}:
        found += _rope_differences(base, merged)
    return found


def changed_decoding(wanted: ProofRequest, merged_dir: Path) -> list[str]:
    """Fields of generation_config.json that are neither the ids of training, nor what evaluation used, nor harmless."""
    path = merged_dir / "generation_config.json"
    if not path.is_file():
        return [f"{path.name} is missing"]
    merged, base = read_json(path), generation_config(wanted.base_dir)
    kept = {key: value for key, value in base.items() if key in IDS or is_harmless(key, value)}
    expected = kept | special_ids(wanted.trained_dir, base) | dict(wanted.decoding)
    names = [key for key in sorted(expected.keys() | merged.keys()) if key not in _STAMPS]
    return list(_differences(names, expected, merged, "evaluation"))


def _differences(
    names: list[str], expected: Mapping[str, Any], merged: Mapping[str, Any], whose: str = "base"
) -> Iterator[str]:
    for key in names:
        if (key in expected) != (key in merged) or expected[key] != merged[key]:
            one, other = (_text(values[key]) if key in values else "absent" for values in (expected, merged))
            yield f"{key}: {whose} {one}, merged {other}"


def _rope_differences(base: Mapping[str, Any], merged: Mapping[str, Any]) -> list[str]:
    """Compares the rotary embeddings in transformers' own normal form, in each of the forms that `merged` has.

    A file may have both, for readers of either version: each of them alone has to say what the base says.
    """
    expected = rope.normal(base)
    newer: Mapping[str, Any] = {key: value for key, value in merged.items() if key not in rope.OLDER}
    before: Mapping[str, Any] = {key: value for key, value in merged.items() if key != rope.NEWER}
    both = ((newer, {rope.NEWER}), (before, set(rope.OLDER)))
    forms = [form for form, keys in both if keys & form.keys()] or [merged]
    wrong = [found for form in forms if (found := rope.normal(form)) != expected]
    return [f"{rope.NEWER}: base {_text(expected)}, merged {_text(found)}" for found in wrong]


def _text(value: Any) -> str:
    return without_secrets(json.dumps(value, ensure_ascii=False, sort_keys=True))
