"""A base's own tokenizer as its files intend it: its tokenizer.json, with the special tokens that the files name.

transformers 5 rebuilds many tokenizers by the rules of their class or architecture, which are not always those of the
file: a Llama 2 tokenizer then loses the space before a text that begins with one, and KoGPT2's Korean encodes to
nothing. transformers 4, llama.cpp and `prompt.format.from_folder` read the file, and so does training. Knows tokenizer
files and config.json; no model, no prompt format.

>>> load(base_dir).eos_token
'</s>'
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from appliance import bounds
from appliance.errors import ApplianceError, DataError, EnvironmentUnavailable
from appliance.prompt import settings_values
from appliance.prompt.special_tokens import token_text

FILE, CONFIG, SPECIAL_TOKENS, TEMPLATE = (
    *("tokenizer.json", "tokenizer_config.json"),
    *("special_tokens_map.json", "chat_template.jinja"),
)
NAMES = ("bos_token", "eos_token", "unk_token", "pad_token")
# An encoder's tokenizer (BERT's, ELECTRA's) names what begins and ends a text only by these.
_OF_ENCODERS = {"bos_token": "cls_token", "eos_token": "sep_token"}
DOWNLOAD = "download the model again"
# Classes that take tokenizer.json as it is, in transformers 4 and 5. The name that 5 saves is unknown to 4.
PLAIN_CLASS = "PreTrainedTokenizerFast"
PLAIN_CLASSES = (None, PLAIN_CLASS, "TokenizersBackend")


def load(base_dir: Path) -> Any:
    """The transformers tokenizer of a base, with the special tokens that its files name; nothing is ever added.

    Raises EnvironmentUnavailable: its EOS has no embedding, so the model could neither read nor write it; or its files
    are damaged.
    """
    with loading(base_dir):
        tokenizer = _loaded(base_dir)
    for name, of_encoder in _OF_ENCODERS.items():
        if getattr(tokenizer, name) is None and getattr(tokenizer, of_encoder) is not None:
            setattr(tokenizer, name, getattr(tokenizer, of_encoder))
    embeddings = read(base_dir / "config.json").get("vocab_size")
    if tokenizer.eos_token_id is not None and embeddings and tokenizer.eos_token_id >= embeddings:
        raise EnvironmentUnavailable(
            f"{base_dir}: EOS {tokenizer.eos_token!r} has the id {tokenizer.eos_token_id}, but the model has only "
            f"{embeddings} embeddings",
            hint=f"in its {CONFIG}, set eos_token to the EOS of the vocabulary and tokenizer_class to {PLAIN_CLASS}",
        )
    return tokenizer


class NotTokenized(DataError):
    """The tokenizer gives up on a text, for instance because a regular expression takes too many attempts on it."""


@contextmanager
def tokenizing() -> Iterator[None]:
    """Raises NotTokenized for whatever a tokenizer raises on a text."""
    try:
        yield
    except BaseException as error:  # an Exception without a kind of its own, or a panic
        if not (isinstance(error, Exception) or is_panic(error)):
            raise
        raise NotTokenized(f"the base's tokenizer fails on it: {error}") from error


@contextmanager
def loading(base_dir: Path) -> Iterator[None]:
    """Raises EnvironmentUnavailable for whatever transformers and tokenizers make of somebody else's files."""
    try:
        yield
    except (ApplianceError, MemoryError):
        raise
    except BaseException as error:
        if not (isinstance(error, Exception) or is_panic(error)):
            raise
        said = " ".join(str(error).split()) or repr(error)
        hint = _class_of_others(base_dir) or DOWNLOAD
        raise EnvironmentUnavailable(f"{base_dir}: its tokenizer does not load: {said}", hint=hint) from error


def _class_of_others(base_dir: Path) -> str:
    """What to do about a tokenizer of a class that transformers lacks, as KoBERT's; "" if that is not the fault."""
    import transformers

    try:
        named = str(read(base_dir / CONFIG).get("tokenizer_class") or "")
    except EnvironmentUnavailable:
        return ""
    if not named or hasattr(transformers, named) or hasattr(transformers, named.removesuffix("Fast")):
        return ""
    return (
        f"{named} is no class of transformers: only a package of its own loads it, and users of the release would need "
        "that, too. Choose a base with a tokenizer.json; for Korean, for example, klue/bert-base or beomi/kcbert-base"
    )


def _loaded(base_dir: Path) -> Any:
    from transformers import AutoTokenizer, PreTrainedTokenizerFast

    options: dict[str, Any] = {"local_files_only": True}
    if not (base_dir / FILE).is_file():
        return AutoTokenizer.from_pretrained(str(base_dir), trust_remote_code=False, **options)
    tokenizer: Any = PreTrainedTokenizerFast.from_pretrained(str(base_dir), **options, **_of_class(base_dir))
    for name, text in from_ids(base_dir, tokenizer.backend_tokenizer).items():
        if getattr(tokenizer, name) is None:
            setattr(tokenizer, name, text)
    return tokenizer


def is_panic(error: BaseException) -> bool:
    """Whether native code gave up, by PyO3's PanicException: a BaseException that no module offers for import."""
    return type(error).__name__ == "PanicException"


def _of_class(base_dir: Path) -> dict[str, str]:
    """Special tokens that no file names, but that the named class has by default (GPT2Tokenizer's <|endoftext|>)."""
    from transformers import AutoTokenizer

    found = settings(base_dir)
    unnamed = [name for name in NAMES if name not in found]
    if not unnamed or found.get("tokenizer_class") in PLAIN_CLASSES:
        return {}
    own = AutoTokenizer.from_pretrained(str(base_dir), local_files_only=True, trust_remote_code=False)
    own_backend = backend(base_dir)
    by_default = {name: getattr(own, name) for name in unnamed}
    return {name: text for name, text in by_default.items() if text and own_backend.token_to_id(text) is not None}


def from_ids(base_dir: Path, backend: Tokenizer) -> dict[str, str]:
    """EOS and padding by the ids that config.json gives them: the last resort if no tokenizer file names them."""
    config = read(base_dir / "config.json")
    ids = {name: config.get(f"{name}_id") for name in ("eos_token", "pad_token")}
    texts = {name: backend.id_to_token(found) for name, found in ids.items() if isinstance(found, int) and found >= 0}
    return {name: text for name, text in texts.items() if text is not None}


def types(base_dir: Path) -> int:
    """How many types of tokens a base knows, by its config.json: BERT 2, RoBERTa 1, DistilBERT and causal models 0."""
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    config = read(base_dir / "config.json")
    kind = config.get("model_type")
    by_default = getattr(CONFIG_MAPPING[kind], "type_vocab_size", 0) if kind in CONFIG_MAPPING else 1
    return int(config.get("type_vocab_size", by_default))


def settings(folder: Path) -> dict[str, Any]:
    """tokenizer_config.json with special_tokens_map.json and chat_template.jinja, as transformers 4 and 5 join them.

    The map comes first, but is read only if the first file does not list the added tokens. Raises
    EnvironmentUnavailable: a file is damaged, or holds a value of an odd kind.
    """
    found = read(folder / CONFIG)
    if "added_tokens_decoder" not in found:
        found |= read(folder / SPECIAL_TOKENS)
    settings_values.refuse_odd(found, str(folder / CONFIG))
    if (folder / TEMPLATE).is_file():
        try:
            found["chat_template"] = bounds.read_text(folder / TEMPLATE)
        except ValueError as error:
            raise EnvironmentUnavailable(f"{folder / TEMPLATE} is damaged: {error}", hint=DOWNLOAD) from error
    return found


def named_tokens(folder: Path) -> dict[str, str | None]:
    """The texts of the special tokens that the files in `folder` name."""
    found = settings(folder)
    return {name: token_text(found.get(name)) or token_text(found.get(_OF_ENCODERS.get(name, name))) for name in NAMES}


def read(path: Path) -> dict[str, Any]:
    """The JSON object in a file; empty if there is none. Raises EnvironmentUnavailable: it is damaged."""
    if not path.is_file():
        return {}
    try:
        found = bounds.json_of(bounds.read_text(path))
    except ValueError as error:
        raise EnvironmentUnavailable(f"{path} is damaged: {error}", hint=DOWNLOAD) from error
    if not isinstance(found, dict):
        raise EnvironmentUnavailable(f"{path} is damaged: {str(found)[:60]!r} is not a JSON object", hint=DOWNLOAD)
    return found


def backend(folder: Path) -> Tokenizer:
    """tokenizer.json as it is. Raises EnvironmentUnavailable: it is damaged."""
    try:
        return Tokenizer.from_file(str(folder / FILE))
    except BaseException as error:  # tokenizers raises nothing narrower than Exception
        if not (isinstance(error, Exception) or is_panic(error)):
            raise
        raise EnvironmentUnavailable(f"{folder / FILE} is damaged: {error}", hint=DOWNLOAD) from error
