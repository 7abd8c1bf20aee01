"""What a load found in the files of a base: tensors that were missing, or that nothing of the model uses.

transformers fills missing tensors with random numbers and logs a table; here they end the load.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import Any

from appliance.errors import EnvironmentUnavailable
from appliance.findings import NAMED_ROWS
from appliance.process import console

HINT = (
    "download the model again; if the folder is your own, check that every tensor was saved and that config.json "
    "belongs to these weights"
)


def judge(base_dir: Path, info: Mapping[str, Any]) -> None:
    """`info`: what transformers' from_pretrained returns with output_loading_info (LoadStateDictInfo.to_dict).

    It leaves out tied tensors, and those that the architecture ignores by a rule of its own. Raises
    EnvironmentUnavailable: a tensor of the model is not in the files, or has another shape there. Tensors that the
    model does not use are a warning.
    """
    if mismatched := sorted(info.get("mismatched_keys", ())):
        seen = (
            f"{name}: {list(stored)} in the files, {list(made)} by config.json" for name, stored, made in mismatched
        )
        raise EnvironmentUnavailable(f"{base_dir}: the weights do not fit config.json: {_few(seen)}", hint=HINT)
    refuse_missing(base_dir, info.get("missing_keys", ()))
    if unused := sorted(info.get("unexpected_keys", ())):
        console.say(
            f"{base_dir}: not used, because the model that config.json describes has no such tensors: {_few(unused)}",
            style="warning",
        )


def refuse_missing(base_dir: Path, missing: Iterable[str]) -> None:
    """Raises EnvironmentUnavailable if any tensor is missing."""
    if names := sorted(missing):
        raise EnvironmentUnavailable(
            f"{base_dir}: the weights lack {_few(names)}: the model would have random numbers there",
            hint=HINT,
        )


def missing_of(model: Any, stored: Collection[str]) -> list[str]:
    """The parameters of a loaded model that no tensor in `stored` can have filled, one name for tied ones.

    For Unsloth, whose loader does not say what transformers found. Names are compared as transformers does: with the
    inner model's prefix (`model.`, `transformer.`) or without it. Loading in 4 bits keeps names; a name that an
    architecture renames while it loads would be taken for missing, and none that Unsloth loads does.
    """
    known, prefix = set(stored), f"{model.base_model_prefix}."
    tied: dict[int, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        tied.setdefault(id(parameter), []).append(name)
    return [
        names[0]
        for names in tied.values()
        if not any({name, name.removeprefix(prefix), prefix + name} & known for name in names)
    ]


def _few(names: Iterable[str]) -> str:
    listed = list(names)
    more = len(listed) - NAMED_ROWS
    return ", ".join(listed[:NAMED_ROWS]) + (f" and {more} more" if more > 0 else "")
