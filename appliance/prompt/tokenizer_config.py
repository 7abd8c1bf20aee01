"""tokenizer_config.json of what we release: the base's own, with the few fields that have to change.

The base's class and special-token fields stay, so that whatever loads the base loads the release. What differs is what
no release may hold (paths of a machine, code to run), what transformers 5 writes and 4 cannot read, our chat template
and our padding. Pure: dicts in, dicts out.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from appliance.prompt.format import Prompt
from appliance.prompt.special_tokens import token_text
from appliance.prompt.tokenizer import NAMES, PLAIN_CLASS, PLAIN_CLASSES

# Where and how someone once loaded it, and code that a loader would run.
TRACES = frozenset(
    {"name_or_path", "tokenizer_file", "special_tokens_map_file", "vocab_file", "merges_file", "files_loaded"}
    | {"is_local", "local_files_only", "_commit_hash", "auto_map", "device_map", "backend"}
)
_TYPES = "token_type_ids"
_INPUTS = ["input_ids", "attention_mask"]  # of a causal LM; 4's plain class would make token_type_ids, too
_WITH_TYPES = ["input_ids", _TYPES, "attention_mask"]  # of BERT and ELECTRA; 5's plain class would not make them
_FURTHER_NAMES = ("mask_token", "sep_token", "cls_token")
_VERY_LONG = int(1e30)  # what transformers saves for "no limit": VERY_LARGE_INTEGER in tokenization_utils_base.py


def candidates(own: Mapping[str, Any], prompt: Prompt, *, types: int = 1) -> Iterator[dict[str, Any]]:
    """What to save, best first: the base's own class; then the class that takes tokenizer.json as it is.

    `own`: the base's settings (`tokenizer.settings`); `types`: see tokenizer.types. The second is for bases
    whose class rebuilds the tokenizer by rules that are not those of its tokenizer.json, such as Llama 2's in
    transformers 5.
    """
    kept = readable(own)
    if not types and _TYPES in (kept.get("model_input_names") or ()):
        kept["model_input_names"] = _without_types(kept["model_input_names"])
    for name, text in (("pad_token", prompt.pad_token), ("eos_token", prompt.tokenizer_eos)):
        if token_text(kept.get(name)) != text:  # EOS: config.json's, or another that the base trained
            kept[name] = text
    if _prefix_space(prompt) and "add_prefix_space" not in kept:
        kept["add_prefix_space"] = True  # transformers 4 would take it out of the tokenizer otherwise
    if kept.get("tokenizer_class") != PLAIN_CLASS:
        yield kept
    plain = {"tokenizer_class": PLAIN_CLASS, "model_input_names": kept.get("model_input_names", _inputs(types))}
    yield kept | _missing(kept, prompt) | plain


def readable(own: Mapping[str, Any]) -> dict[str, Any]:
    """The base's settings in the form that transformers 4 and 5 both read, without traces and chat template."""
    kept = {key: value for key, value in own.items() if key not in TRACES and key != "chat_template"}
    if kept.get("tokenizer_class") in PLAIN_CLASSES:
        kept["tokenizer_class"] = PLAIN_CLASS
    if isinstance(kept.get("extra_special_tokens"), list):  # 5's; 4 wants a dict there
        more = kept.pop("extra_special_tokens")
        kept["additional_special_tokens"] = [*(kept.get("additional_special_tokens") or []), *more]
    if isinstance(kept.get("model_specific_special_tokens"), dict):
        kept["extra_special_tokens"] = kept.pop("model_specific_special_tokens") | kept.get("extra_special_tokens", {})
    return kept


def _inputs(types: int) -> list[str]:
    """What a tokenizer makes that doesn't say so: types of tokens if its model tells any apart."""
    return _WITH_TYPES if types > 1 else _INPUTS


def _without_types(names: Iterable[str]) -> list[str]:
    return [name for name in names if name != _TYPES]


def _missing(kept: Mapping[str, Any], prompt: Prompt) -> dict[str, str]:
    """Special tokens that the base's files don't name: its class did."""
    known = {"bos_token": prompt.bos_token, "unk_token": getattr(prompt.backend.model, "unk_token", None)}
    return {name: text for name, text in known.items() if text and not token_text(kept.get(name))}


def _prefix_space(prompt: Prompt) -> bool:
    return bool(getattr(prompt.backend.pre_tokenizer, "add_prefix_space", False))


def differences(
    own: Mapping[str, Any],
    released: Mapping[str, Any],
    trained: Mapping[str, str | None],
    is_special: Callable[[str], bool],
    *,
    types: int = 1,
) -> list[str]:
    """Fields of a released tokenizer_config.json that are neither the base's nor one of our changes.

    `own`, `released`: settings as `tokenizer.settings` reads them. `trained`: pad_token and, if training
    chose another than the tokenizer's, eos_token. `is_special`: whether a text is one of the base's added tokens; only
    those may get a name that the base left to its class or its config.json. `types`: see tokenizer.types.
    """
    ours, theirs = _normal(released), _normal(own)
    found = []
    for field in sorted({*ours, *theirs}):
        base, value = theirs.get(field), ours.get(field)
        if field in trained and value == trained[field]:
            continue
        if field == "tokenizer_class" and value == PLAIN_CLASS:
            continue
        if field == "model_input_names" and base is None and value in (_inputs(types), _INPUTS):
            continue  # the second also of BERT, in releases of earlier versions
        if field == "model_input_names" and not types and value == _without_types(base or ()):
            continue  # transformers 4 gives a model whatever its tokenizer makes
        if field in (*NAMES, *_FURTHER_NAMES) and base is None and is_special(str(value)):
            continue
        if field == "add_prefix_space" and base is None:
            continue  # says what tokenizer.json does; the prompts are compared
        if field == "added_tokens_decoder" and value is None:
            continue  # transformers 5 leaves it to tokenizer.json, which is compared
        if base != value:
            found.append(f"tokenizer_config.json {field}: base {base!r}, release {value!r}")
    return found


def _normal(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Without what has no effect: defaults that are spelt out, the form of a token, the suffix of a class.

    transformers 5 leaves add_bos_token and add_eos_token to the post-processor in tokenizer.json, too.
    """
    kept = readable(settings)
    kept["tokenizer_class"] = str(kept["tokenizer_class"]).removesuffix("Fast")
    if kept["tokenizer_class"] == PLAIN_CLASS.removesuffix("Fast"):
        kept["tokenizer_class"] = PLAIN_CLASS
    kept["model_max_length"] = min(int(kept.get("model_max_length") or _VERY_LONG), _VERY_LONG)
    more = kept.pop("additional_special_tokens", None) or ()
    by_name = kept.pop("extra_special_tokens", None) or {}
    special = {str(token_text(token)) for token in (*more, *by_name.values())}
    for name in [name for name in kept if name.endswith("_token") and isinstance(kept[name], (str, dict))]:
        kept[name] = token_text(kept[name])
        if name not in (*NAMES, *_FURTHER_NAMES):
            special.add(str(kept.pop(name)))
    kept["additional_special_tokens"] = sorted(special)
    for name in ("add_bos_token", "add_eos_token"):
        kept.pop(name, None)
    return {key: value for key, value in kept.items() if value not in (None, False, [], {})}
