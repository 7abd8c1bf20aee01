"""The ids that llama.cpp gives a text, by the rules that it has for the kind of tokenizer a GGUF file names.

For machines without llama.cpp. The rules are those of its src/llama-vocab.cpp (github.com/ggml-org/llama.cpp, MIT):
llm_tokenizer_bpe and llm_tokenizer_spm, tokenizer_st_partition, and the patterns of llm_tokenizer_bpe's constructor.
Compared with llama.cpp itself, on texts in Korean, English, code and emoji: docs/export.md. transformers reads GGUF
files too, but by its own rules: it splits Llama 3's words otherwise, and knows no word that is added to a vocabulary.

>>> opened(Path("shop-q8_0.gguf")).ids_of("가격은?")
[31325, 101360, 33704, 30]
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from appliance.weights import gguf_header

_CONTRACTIONS = "'s|'t|'re|'ve|'m|'ll|'d"
_ANY_CASE = "(?:'[sS]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD])"
_GPT2 = rf"{_CONTRACTIONS}| ?\p{{L}}+| ?\p{{N}}+| ?[^\s\p{{L}}\p{{N}}]+|\s+(?!\S)|\s+"
_WORDS = rf"{_ANY_CASE}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|%s| ?[^\s\p{{L}}\p{{N}}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
# tokenizer.ggml.pre -> what splits a text into words, one after the other. Those that could be compared with llama.cpp.
_PATTERNS = {
    **dict.fromkeys(("gpt-2", "exaone4", "mellum"), (_GPT2,)),
    **dict.fromkeys(("llama-bpe", "smaug-bpe", "dbrx"), (_WORDS % r"\p{N}{1,3}",)),
    **dict.fromkeys(("qwen2", "stablelm2", "deepseek-r1-qwen", "megrez"), (_WORDS % r"\p{N}",)),
    **dict.fromkeys(("smollm", "starcoder", "refact", "command-r", "exaone"), (r"\p{N}", _GPT2)),
}
_WHOLE_WORDS_FIRST = {"llama-bpe"}  # a word that is in the vocabulary is not merged
_SPELLED = (2, 3, 4)  # token types: unknown, control, user-defined; found in a text as they are spelled
_STRIPPING = (
    "phi-3",
    "phi3",
)  # in general.name: spaces behind their special tokens are dropped, which is not done here
_VOCABULARY = ("model", "pre", "tokens", "token_type", "scores", "merges")
_SPACE = "▁"


@dataclass(frozen=True)
class FileTokenizer:
    """`spelled`: tokens that are found in a text as they are spelled, longest first. `bos`: None if there is none.

    `encode`: the ids of a piece between them; whether it stands at the beginning or behind such a token.
    """

    spelled: Sequence[tuple[str, int]]
    bos: int | None
    adds_bos: bool
    eos: int | None
    adds_eos: bool
    encode: Callable[[str, bool], list[int]]

    def ids_of(self, text: str) -> list[int]:
        """Without BOS and EOS."""
        ids: list[int] = []
        is_behind = True
        for piece in self._pieces(text):
            if isinstance(piece, int):
                ids.append(piece)
            else:
                ids += self.encode(piece, is_behind)
            is_behind = isinstance(piece, int)
        return ids

    def others(self, texts: Sequence[tuple[str, Sequence[int]]]) -> list[str]:
        """As llama_cpp_model.py, `Vocabulary.others`."""
        found = []
        for text, ids in texts:
            begins = [self.bos] if self.bos is not None and (self.adds_bos or ids[:1] == [self.bos]) else []
            ends = [self.eos] if self.adds_eos else []
            if [*begins, *self.ids_of(text), *ends] != list(ids):
                found.append(text[-60:])
        return found

    def _pieces(self, text: str) -> list[str | int]:
        """The text divided at the tokens that are spelled out in it: each in turn, as tokenizer_st_partition does."""
        pieces: list[str | int] = [text] if text else []
        for token, number in self.spelled:
            if token not in text:
                continue
            divided: list[str | int] = []
            for piece in pieces:
                if isinstance(piece, int):
                    divided.append(piece)
                    continue
                for i, part in enumerate(piece.split(token)):
                    divided += ([number] if i else []) + ([part] if part else [])
            pieces = divided
        return pieces


def adds_bos(path: Path) -> bool:
    """Whether llama.cpp puts BOS before a text by itself: as the file says, or as its kind has it."""
    said = gguf_header.read(path).metadata
    kinds = (said.get("tokenizer.ggml.model"), said.get("tokenizer.ggml.pre"))
    return bool(said.get("tokenizer.ggml.add_bos_token", kinds[0] == "llama" or kinds[1] == "llama-bpe"))


def opened(path: Path) -> FileTokenizer:
    """Raises ValueError: the file's kind of tokenizer is not known here, or it lacks what the kind needs."""
    said = gguf_header.read(path).metadata
    words = {key: said.get(f"tokenizer.ggml.{key}") for key in _VOCABULARY}
    if words["token_type"] is None or words["tokens"] is None:
        raise ValueError("the file has no vocabulary, or does not say of what kind each token is")
    name, model, pre = str(said.get("general.name", "")), words["model"], words["pre"]
    if any(one in name.casefold() for one in _STRIPPING):
        raise ValueError(f"llama.cpp has rules of its own for models named like {name!r}")
    if model == "gpt2" and pre in _PATTERNS:
        encode = _bpe(words, pre)
    elif model == "llama" and words["scores"] is not None:
        encode = _spm(words, has_prefix=bool(said.get("tokenizer.ggml.add_space_prefix", True)))
    else:
        raise ValueError(f"its kind of tokenizer, {model} {pre or ''}".rstrip() + ", is not known")
    spelled = [(str(t), i) for i, t in enumerate(words["tokens"]) if words["token_type"][i] in _SPELLED and t]
    return FileTokenizer(
        spelled=sorted(spelled, key=lambda one: -len(one[0].encode())),
        bos=said.get("tokenizer.ggml.bos_token_id"),
        adds_bos=adds_bos(path),
        eos=said.get("tokenizer.ggml.eos_token_id"),
        adds_eos=bool(said.get("tokenizer.ggml.add_eos_token", False)),
        encode=encode,
    )


def _bpe(words: Mapping[str, Any], pre: str) -> Callable[[str, bool], list[int]]:
    from tokenizers import Regex, Tokenizer, models, pre_tokenizers

    vocabulary = {token: i for i, token in enumerate(words["tokens"])}
    merges = [tuple(merge.split(" ", 1)) for merge in words["merges"] or ()]
    known = [pair for pair in merges if {*pair, "".join(pair)} <= vocabulary.keys()]
    tokenizer = Tokenizer(models.BPE(vocabulary, known, ignore_merges=pre in _WHOLE_WORDS_FIRST))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            *(pre_tokenizers.Split(Regex(pattern), "isolated") for pattern in _PATTERNS[pre]),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    return lambda text, _: list(tokenizer.encode(text, add_special_tokens=False).ids)


def _spm(words: Mapping[str, Any], *, has_prefix: bool) -> Callable[[str, bool], list[int]]:
    numbers = {token: i for i, token in enumerate(words["tokens"])}
    scores = words["scores"]
    unknown = next((i for i, kind in enumerate(words["token_type"]) if kind == _SPELLED[0]), 0)

    def encode(text: str, is_behind: bool) -> list[int]:
        text = f" {text}" if has_prefix and is_behind else text
        ids: list[int] = []
        for part in _merged(text.replace(" ", _SPACE), numbers, scores):
            if part in numbers:
                ids.append(numbers[part])
            else:
                ids += (numbers.get(f"<0x{byte:02X}>", unknown) for byte in part.encode())
        return ids

    return encode


def _merged(text: str, numbers: Mapping[str, int], scores: Sequence[float]) -> Iterator[str]:
    """The two neighbours that make the token of the highest score become one, of equals the first, until none do."""
    parts: list[str] = list(text)
    before, behind = list(range(-1, len(parts) - 1)), [*range(1, len(parts)), -1]
    queue: list[tuple[float, int, int, str]] = []

    def offer(left: int, right: int) -> None:
        if left >= 0 and right >= 0 and (number := numbers.get(joined := parts[left] + parts[right])) is not None:
            heapq.heappush(queue, (-scores[number], left, right, joined))

    for i in range(1, len(parts)):
        offer(i - 1, i)
    while queue:
        _, left, right, joined = heapq.heappop(queue)
        if not parts[left] or not parts[right] or parts[left] + parts[right] != joined:
            continue  # one of them is part of something longer now
        parts[left], parts[right] = joined, ""
        behind[left] = behind[right]
        if behind[left] >= 0:
            before[behind[left]] = left
        offer(before[left], left)
        offer(left, behind[left])
    return (part for part in parts if part)
