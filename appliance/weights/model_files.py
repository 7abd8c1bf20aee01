"""The files of a model folder by name: what is downloaded, what a result depends on, what is copied and released.

Names only: opens no file, and imports nothing of ours, so that every package above can ask. A file belongs to a list
here or to none: what is copied into a release may also be released, and what is downloaded to be loaded is part of the
base's identity.

>>> is_loaded("merges.txt"), is_loaded("README.md"), may_be_released("model", "optimizer.pt")
(True, False, False)
"""

from __future__ import annotations

from collections.abc import Iterable
from fnmatch import fnmatchcase

CARD = "README.md"
# What a tokenizer learnt: the base's own words, in which "root" or a path is no trace of this machine.
VOCABULARY_FILES = (
    *("tokenizer.json", "added_tokens.json", "vocab.json", "vocab.txt", "merges.txt"),
    *("tokenizer.model", "spiece.model", "sentencepiece.bpe.model"),
)
TOKENIZER_FILES = (*VOCABULARY_FILES, "tokenizer_config.json", "special_tokens_map.json", "chat_template.jinja")
# A base is judged by these before its weights are downloaded.
JUDGED_FILES = ("config.json", CARD, "model.safetensors.index.json")

_WEIGHTS = "*.safetensors"  # others can run code when they are loaded: they are never downloaded
_LOADED = ("*.json", _WEIGHTS, "*.jinja", "*.model", "*.txt")
LOADED_SUFFIXES_BEFORE = (".json", ".safetensors", ".jinja", ".model")  # what `is_loaded` was at first
_LICENCES = ("LICENSE*", "LICENCE*", "NOTICE*", "USE_POLICY*")
_OTHER_FORMATS = ("consolidated*", "original/*")  # the same weights in their maker's own format
_RELEASED = {
    "model": (
        *("config.json", "generation_config.json", "model*.safetensors", "model.safetensors.index.json"),
        *("*.gguf", "*.Modelfile"),  # the same model for llama.cpp and Ollama
    ),
    # config.json: what the head that was trained with it is for
    "adapter": ("adapter_config.json", "adapter_model.safetensors", "prompt.json", "config.json"),
}


def is_weights(name: str) -> bool:
    """Whether transformers can load weights from this file; it looks for them at the top of a folder only."""
    return "/" not in name and fnmatchcase(name, _WEIGHTS)


def is_licence(name: str) -> bool:
    """Whether the file is one of the texts that have to travel with what was made from a base."""
    return "/" not in name and _is_one_of(name, _LICENCES)


def is_downloaded(name: str) -> bool:
    """Whether the file of a base on the Hub is fetched."""
    wanted = _is_one_of(name, _LOADED) or name == CARD or is_licence(name)
    return wanted and not _is_one_of(name, _OTHER_FORMATS)


def is_loaded(name: str) -> bool:
    """Whether a result may depend on the file: every downloaded one at the top, but those that only people read."""
    return "/" not in name and is_downloaded(name) and name != CARD and not is_licence(name)


def may_be_released(part: str, name: str) -> bool:
    """Whether the file may be in this part of a release ("model" | "adapter").

    No pickle, no code, no optimizer, no log, no CSV.
    """
    is_text = name == CARD or is_licence(name)
    return "/" not in name and (is_text or name in TOKENIZER_FILES or _is_one_of(name, _RELEASED[part]))


def _is_one_of(name: str, patterns: Iterable[str]) -> bool:
    return any(fnmatchcase(name, pattern) for pattern in patterns)
