"""Whether a release's tokenizer is the base's: its files compared field by field. No model, no network.

That prompts get the same ids is asked by release/reload.py; here, that nothing else was changed either: a word that no
test row holds, the order of two reserved tokens, a length limit that only a server looks at.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from appliance.findings import NAMED_ROWS, Gate
from appliance.process import files, redact
from appliance.prompt import tokenizer as prompt_tokenizer
from appliance.prompt import tokenizer_config
from appliance.prompt.special_tokens import token_text
from appliance.rundir import results, token_choice
from appliance.weights.model_files import VOCABULARY_FILES

NAME = "tokenizer_is_the_bases"
_IGNORED = ("version", "truncation", "padding")  # loaders set the last two with every text


def gate(release_dir: Path, run_path: Path, base_dir: Path, secrets: Collection[str] = ()) -> Gate:
    """Vocabulary, merges, added tokens, every step of encoding, and tokenizer_config.json, of each part of a release.

    Allowed are our changes only: chat template, padding, an EOS that training chose, and the class that takes
    tokenizer.json as it is. `secrets` are not shown, whatever field holds them.
    """
    trained = next(name for name in ("adapter", "model") if (run_path / "train" / name).is_dir())
    chosen = {"pad_token": results.read(run_path, "train", f"{trained}/prompt.json")["pad"]}
    if eos_token := token_choice.read(run_path / "train").eos_token:
        chosen["eos_token"] = eos_token
    found = [
        f"{part}/{difference}"
        for part in ("model", "adapter")
        if (release_dir / part).is_dir()
        for difference in differences(release_dir / part, base_dir, chosen)
    ]
    listed = f": {redact.without_secrets('; '.join(found[:NAMED_ROWS]), secrets)}" if found else ""
    return Gate(NAME, not found, len(found), 0, f"differences from the base's tokenizer{listed}")


def differences(folder: Path, base_dir: Path, chosen: Mapping[str, str | None]) -> list[str]:
    """Every difference between the tokenizer files of `folder` and the base's that is not one of our changes.

    `chosen`: the special tokens that training chose.
    """
    ours, theirs = prompt_tokenizer.settings(folder), prompt_tokenizer.settings(base_dir)

    @cache
    def special() -> set[str]:
        stored = json.loads(_text_of(base_dir))
        return {str(token["content"]) for token in stored["added_tokens"]} | {str(stored["model"].get("unk_token"))}

    types = prompt_tokenizer.types(base_dir)
    found = tokenizer_config.differences(theirs, ours, chosen, lambda text: text in special(), types=types)
    if not _same(folder / prompt_tokenizer.FILE, base_dir / prompt_tokenizer.FILE):
        named = {str(token_text(v)) for one in (ours, theirs) for k, v in one.items() if k.endswith("_token")}
        found += _of_tokenizers(_normal(_text_of(base_dir), named), _normal(_text_of(folder), named))
    # transformers 5 used to save tokenizer.json alone: what is not there misleads nobody
    others = (name for name in VOCABULARY_FILES if name != prompt_tokenizer.FILE and (folder / name).is_file())
    return found + [f"{name}: not the base's file" for name in others if not _same(folder / name, base_dir / name)]


def _same(one: Path, other: Path) -> bool:
    return one.is_file() and other.is_file() and files.sha256_of(one) == files.sha256_of(other)


def _text_of(folder: Path) -> str:
    """tokenizer.json; made as training made it if the base has none."""
    path = folder / prompt_tokenizer.FILE
    if path.is_file():
        return path.read_text(encoding="utf-8")
    return str(prompt_tokenizer.load(folder).backend_tokenizer.to_str())


def _normal(text: str, named: Collection[str]) -> dict[str, Any]:
    """tokenizer.json as today's tokenizers library writes it, without what changes no id.

    A token that tokenizer_config.json names as special becomes special when it is loaded, whatever is stored. The
    offsets of byte-level tokens, and all settings of their decoder, are for people who look where a token stood.
    """
    stored: dict[str, Any] = json.loads(Tokenizer.from_str(text).to_str())
    kept = {key: value for key, value in stored.items() if key not in _IGNORED}
    kept["added_tokens"] = {
        str(token["id"]): token | {"special": token["special"] or token["content"] in named}
        for token in stored["added_tokens"]
    }
    model = kept["model"] = {key: None if value == "" else value for key, value in kept["model"].items()}
    if isinstance(model.get("vocab"), list):  # Unigram: pieces with their scores, an id each
        model["vocab"] = {str(i): piece for i, piece in enumerate(model["vocab"])}
    for part, without in (("pre_tokenizer", {"trim_offsets"}), ("decoder", {"trim_offsets", "add_prefix_space"})):
        kept[part] = _without(kept.get(part), without | ({"use_regex"} if part == "decoder" else set()))
    kept["post_processor"] = _without(kept.get("post_processor"), {"trim_offsets"})
    return kept


def _without(step: Any, fields: Collection[str]) -> Any:
    """The step, and those inside it, with fewer fields of its byte-level parts."""
    if isinstance(step, list):
        return [_without(one, fields) for one in step]
    if not isinstance(step, dict):
        return step
    ignored = fields if step.get("type") == "ByteLevel" else ()
    return {key: _without(value, fields) for key, value in step.items() if key not in ignored}


def _of_tokenizers(base: Mapping[str, Any], released: Mapping[str, Any]) -> list[str]:
    """tokenizer.json by field; of vocabulary, merges and added tokens the entries."""
    parts = [(key, base.get(key), released.get(key)) for key in sorted({*base, *released} - {"model"})]
    models = (base["model"], released["model"])
    parts += [(f"model.{key}", *(one.get(key) for one in models)) for key in sorted({*models[0], *models[1]})]
    return [
        f"{prompt_tokenizer.FILE} {field}: base {_short(one)}, release {_short(other)}"
        for name, theirs, ours in parts
        for field, one, other in _fields(name, theirs, ours)
    ]


def _fields(name: str, base: Any, released: Any) -> Iterator[tuple[str, Any, Any]]:
    """(field, base's value, released value) where they differ."""
    if base == released:
        return
    if name in ("added_tokens", "model.vocab") and isinstance(base, dict) and isinstance(released, dict):
        for key in [*base, *(key for key in released if key not in base)]:
            if base.get(key) != released.get(key):
                yield f"{name}[{key!r}]", base.get(key), released.get(key)
    elif isinstance(base, list) and isinstance(released, list):
        longest = max(len(base), len(released))
        padded = ([*one, *[None] * (longest - len(one))] for one in (base, released))
        yield from ((f"{name}[{i}]", *pair) for i, pair in enumerate(zip(*padded, strict=True)) if pair[0] != pair[1])
    else:
        yield name, base, released


def _short(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 120 else f"{text[:119]}…"
