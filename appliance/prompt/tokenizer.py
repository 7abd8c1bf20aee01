"""A base's own tokenizer as its files intend it: read by transformers or, where that goes wrong, from tokenizer.json.

For a folder that names no tokenizer class, transformers takes that of the architecture, which may rebuild the
vocabulary by other rules: KoGPT2's Korean then encodes to nothing, and its EOS becomes a new token beyond
the embeddings. Knows tokenizer files and config.json; no model, no prompt format.

>>> load(base_dir).eos_token
'</s>'
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from appliance.errors import EnvironmentUnavailable

_NAMES = ("bos_token", "eos_token", "pad_token", "unk_token")


def load(base_dir: Path) -> Any:
    """The transformers tokenizer of a base, with the special tokens that its files name; nothing is ever added.

    Raises EnvironmentUnavailable: its EOS has no embedding, so the model could neither read nor write it.
    """
    from transformers import AutoTokenizer, PreTrainedTokenizerFast

    path = base_dir / "tokenizer.json"
    if path.is_file() and not _json(base_dir / "tokenizer_config.json").get("tokenizer_class"):
        backend = Tokenizer.from_file(str(path))
        named = {**from_ids(base_dir, backend), **_named(base_dir)}
        tokenizer: Any = PreTrainedTokenizerFast(tokenizer_object=backend, **named)
        tokenizer.chat_template = _template(base_dir)
    else:
        tokenizer = AutoTokenizer.from_pretrained(str(base_dir), local_files_only=True, trust_remote_code=False)
        if tokenizer.eos_token is None and path.is_file():
            tokenizer.eos_token = from_ids(base_dir, tokenizer.backend_tokenizer).get("eos_token")
    embeddings = _json(base_dir / "config.json").get("vocab_size")
    if tokenizer.eos_token_id is not None and embeddings and tokenizer.eos_token_id >= embeddings:
        raise EnvironmentUnavailable(
            f"{base_dir}: EOS {tokenizer.eos_token!r} has the id {tokenizer.eos_token_id}, but the model has only "
            f"{embeddings} embeddings",
            hint="in its tokenizer_config.json, set eos_token to the EOS of the vocabulary and tokenizer_class to "
            "PreTrainedTokenizerFast",
        )
    return tokenizer


def from_ids(base_dir: Path, backend: Tokenizer) -> dict[str, str]:
    """EOS and padding by the ids that config.json gives them: the last resort if no tokenizer file names them."""
    config = _json(base_dir / "config.json")
    ids = {name: config.get(f"{name}_id") for name in ("eos_token", "pad_token")}
    texts = {name: backend.id_to_token(found) for name, found in ids.items() if isinstance(found, int)}
    return {name: text for name, text in texts.items() if text is not None}


def _named(base_dir: Path) -> dict[str, str]:
    found = {**_json(base_dir / "special_tokens_map.json"), **_json(base_dir / "tokenizer_config.json")}
    contents = {name: found[name] for name in _NAMES if found.get(name)}
    return {name: text["content"] if isinstance(text, dict) else str(text) for name, text in contents.items()}


def _template(base_dir: Path) -> str | None:
    path = base_dir / "chat_template.jinja"
    if path.is_file():
        return path.read_text(encoding="utf-8")
    found = _json(base_dir / "tokenizer_config.json").get("chat_template")
    return found if isinstance(found, str) else None


def _json(path: Path) -> dict[str, Any]:
    return dict(json.loads(path.read_text(encoding="utf-8"))) if path.is_file() else {}
