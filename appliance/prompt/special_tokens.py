"""BOS, EOS, padding and the chat template's own end of turn, found in a tokenizer that we did not make."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from tokenizers import Tokenizer

from appliance.errors import EnvironmentUnavailable, RecipeError

BRACKETED = re.compile(r"[<\[].*[>\]]", re.DOTALL)  # how control tokens are spelt


def required_template(own_template: str | None) -> str:
    if own_template:
        return own_template
    raise RecipeError(
        "prompt: chat uses the base's own chat template, and this base has none (it is not an instruct model)",
        hint="set prompt: alpaca (or alpaca_oneline, korean_qa, qa_tokens), or use the base's instruct model",
    )


def adds_bos(backend: Tokenizer, bos_token: str | None) -> bool:
    """Whether this tokenizer puts BOS before plain text. If so, and only then, our prompts have it too."""
    return bos_token is not None and backend.encode("a").ids[:1] == [backend.token_to_id(bos_token)]


def adds_eos(backend: Tokenizer, eos_token: str) -> bool:
    """Whether this tokenizer ends a plain text with EOS, as an encoder's does."""
    return backend.encode("a").ids[-1:] == [backend.token_to_id(eos_token)]


def separators(backend: Tokenizer) -> str:
    """The special tokens that this tokenizer puts between two texts, as BERT's [SEP] and RoBERTa's </s></s>.

    Raises EnvironmentUnavailable: it puts none, or does not end the second text with one token of the same kind: then
    nothing tells a model where its context begins.
    """
    found = backend.encode("a", "b")
    of_text = [[i for i, sequence in enumerate(found.sequence_ids) if sequence == number] for number in (0, 1)]
    between = found.ids[of_text[0][-1] + 1 : of_text[1][0]] if all(of_text) else []
    if not between or found.ids[of_text[1][-1] + 1 :] != between[:1] or len(set(between)) > 1:
        raise EnvironmentUnavailable(
            "this tokenizer does not put the same special token between two texts and behind the second",
            hint="choose a base whose tokenizer does, such as a BERT, RoBERTa or ELECTRA with a tokenizer.json",
        )
    return "".join(str(backend.id_to_token(i)) for i in between)


def find_end_token(backend: Tokenizer, tail: str, eos_token: str) -> str:
    """The token with which the template ends an answer: its own end of turn, or EOS if it writes none."""
    written = tail.lstrip()
    if not written:
        return eos_token
    added = [token.content for token in backend.get_added_tokens_decoder().values()]
    found = max((token for token in [*added, eos_token] if token and written.startswith(token)), key=len, default=None)
    if found is None:
        raise RecipeError(
            f"prompt: chat: the base's chat template ends an answer with {written[:40]!r}, which is not a single token "
            "of its tokenizer: a model could not learn to stop there",
            hint="set prompt: alpaca (or alpaca_oneline, korean_qa, qa_tokens)",
        )
    return found


def find_lead(backend: Tokenizer, lead: str) -> str:
    """What to put before an answer that is tokenized alone: nothing if the tokenizer adds a space there itself."""

    def ids(text: str) -> list[int]:
        return list(backend.encode(text, add_special_tokens=False).ids)

    return "" if lead == " " and ids(":") + ids("a") == ids(": a") else lead


# Names under which tokenizers reserve ids that no text produces; tried in this order.
_RESERVED = (r"pad", r"reserved|unused", r"unk", r"endoftext|mask|sep|cls")
_NEVER_IN_UTF_8 = (*range(0xFF, 0xF4, -1), 0xC1, 0xC0)


def find_padding(
    backend: Tokenizer, pad_token: str | None, taken: set[str | None], template: str
) -> tuple[str | None, int]:
    """(text, id) of what can serve as padding: the pad token, a reserved token, or a byte that no text contains.

    The vocabulary is never enlarged for it. The byte has an id but no text (GPT-2's token for 0xFF is spelt ÿ): as the
    tokenizer's pad token, its spelling would be cut out of ordinary text.
    """
    if pad_token is not None and pad_token not in taken and (known := backend.token_to_id(pad_token)) is not None:
        return pad_token, known
    vocabulary = backend.get_vocab(with_added_tokens=True)
    bracketed = sorted(t for t in vocabulary if BRACKETED.fullmatch(t) and t not in taken and t not in template)
    for pattern in _RESERVED:
        for token in bracketed:
            if re.search(pattern, token, re.IGNORECASE):
                return token, vocabulary[token]
    for token in _byte_tokens():
        if token in vocabulary and backend.decode([vocabulary[token]]) == "\ufffd":
            return None, vocabulary[token]
    raise EnvironmentUnavailable(
        "this tokenizer has no pad token other than EOS, and no reserved token or unused byte to use instead",
        hint="padding with EOS would teach the model never to stop; choose a base model with a pad or reserved token",
    )


def _byte_tokens() -> Iterator[str]:
    """Spellings of bytes that never occur in UTF-8: byte-level (each spelt as itself) and byte fallback."""
    for byte in _NEVER_IN_UTF_8:
        yield from (chr(byte), f"<0x{byte:02X}>")


def eos_ids(declared: int | list[int] | None) -> list[int]:
    """`eos_token_id` of a config.json or generation_config.json, which holds one id, several or none, as a list."""
    return [] if declared is None else list(declared) if isinstance(declared, list) else [declared]


_MASKS, _UNKNOWN = frozenset({"<mask>", "[MASK]"}), frozenset({"<unk>", "[UNK]"})
# Reserved ids by their spelling: Llama 3 and Qwen, Gemma, Phi-3, T5 and EXAONE, Mistral. No text produces them.
_UNUSED = re.compile(r"reserved|unused|placeholder|extra_id|control_\d|dummy", re.IGNORECASE)


def unused_ids(backend: Tokenizer, rows: int) -> list[int]:
    """Ids below `rows` (of the embeddings) that no text produces: reserved tokens, and those beyond the vocabulary."""
    vocabulary = backend.get_vocab(with_added_tokens=True)
    reserved = {i for text, i in vocabulary.items() if BRACKETED.fullmatch(text) and _UNUSED.search(text)}
    return sorted(i for i in {*reserved, *set(range(rows)).difference(vocabulary.values())} if i < rows)


def token_text(token: Any) -> str | None:
    """The text of a special token in tokenizer_config.json, which stores it as plain text or as an object."""
    return str(token["content"]) if isinstance(token, dict) else token


def default_template(templates: Any) -> str | None:
    """The chat template that transformers uses by default; there may be several, by name or as a list."""
    if isinstance(templates, list):
        templates = {one["name"]: one["template"] for one in templates}
    return templates.get("default") if isinstance(templates, dict) else templates


def added_tokens(backend: Tokenizer) -> dict[int, Any]:
    """Its added tokens by id, except for the one that an encoder's tokenizer writes for what it cannot spell.

    Encoders met it in every rare word of their pre-training: to them it is a word. In another tokenizer an unknown
    token is a hole in the text.
    """
    unknown = unknown_word(backend)
    return {i: token for i, token in backend.get_added_tokens_decoder().items() if token.content != unknown}


def unknown_word(backend: Tokenizer) -> str | None:
    """The token that an encoder's tokenizer writes for what it cannot spell; None if it is not an encoder's.

    Of WordPiece (BERT, ELECTRA), or of SentencePiece's unigrams if the model was trained on masked words and reads a
    whole text behind a token of its own (XLM-RoBERTa, DeBERTa, ALBERT; not T5 nor mBART, which write such tokens).
    """
    kind = type(backend.model).__name__
    added = {i: token.content for i, token in backend.get_added_tokens_decoder().items()}
    if kind == "WordPiece":
        found: str | None = getattr(backend.model, "unk_token", None)
        return found
    if kind != "Unigram" or _MASKS.isdisjoint(added.values()) or not added.keys() & set(backend.encode("a").ids[:1]):
        return None
    return next((text for text in added.values() if text in _UNKNOWN), None)
