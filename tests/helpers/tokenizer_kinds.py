"""Tiny tokenizers of many kinds, each built like those of a family of base models. No model, no network."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from appliance.prompt.format import Message, Prompt, from_transformers

CORPUS = [
    "Below is an instruction that describes a task. Write a response that appropriately completes the request.",
    "paired with an input that provides further context. ### Instruction: ### Input: ### Response:",
    "배송은 보통 이틀 걸립니다. 가격은 만 원입니다. 👍🏽 반품은 7일 안에 하세요!",
    "\n\n### Response:\nYes\n\n### Response:\nYes",
] * 3


def byte_level(special: list[str], *, use_regex: bool = True) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=use_regex)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=500, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    return tokenizer


def with_bos(tokenizer: Tokenizer, bos: str) -> Tokenizer:
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{bos} $A", pair=f"{bos} $A {bos} $B", special_tokens=[(bos, tokenizer.token_to_id(bos))]
    )
    return tokenizer


def wrap(tokenizer: Tokenizer, **special: str) -> PreTrainedTokenizerFast:
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special)


def _no_bos() -> PreTrainedTokenizerFast:
    """Like Qwen's: no BOS, and separate EOS and pad."""
    return wrap(byte_level(["<|end|>", "<|pad|>"]), eos_token="<|end|>", pad_token="<|pad|>")


def _bos_named_but_not_added() -> PreTrainedTokenizerFast:
    return wrap(byte_level(["<s>", "</s>", "<pad>"]), bos_token="<s>", eos_token="</s>", pad_token="<pad>")


def _bos_added() -> PreTrainedTokenizerFast:
    """Like Llama 3's and Gemma's: the post-processor puts BOS before every text."""
    tokenizer = with_bos(byte_level(["<s>", "</s>", "<pad>"]), "<s>")
    return wrap(tokenizer, bos_token="<s>", eos_token="</s>", pad_token="<pad>")


def _merges_across_lines() -> PreTrainedTokenizerFast:
    """No split before merging, so that the end of the prompt and the start of an answer become one token."""
    return wrap(byte_level(["</s>", "<pad>"], use_regex=False), eos_token="</s>", pad_token="<pad>")


def _reserved_for_pad() -> PreTrainedTokenizerFast:
    return wrap(
        with_bos(byte_level(["<s>", "</s>", "<unused0>", "<unused1>"]), "<s>"), bos_token="<s>", eos_token="</s>"
    )


def _pad_is_eos() -> PreTrainedTokenizerFast:
    return wrap(byte_level(["</s>", "<|reserved_0|>"]), eos_token="</s>", pad_token="</s>")


def _metaspace() -> PreTrainedTokenizerFast:
    """Like SentencePiece's: ▁ for a space and before the text, unknown characters as bytes, BOS added."""
    return _sentence_piece(pre_tokenizer=pre_tokenizers.Metaspace(prepend_scheme="always", split=False))


def _prepended() -> PreTrainedTokenizerFast:
    """Like Llama 2's tokenizer.json: ▁ is put before every text, even one that begins with a space."""
    before = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    return _sentence_piece(normalizer=before)


def _sentence_piece(**steps: Any) -> PreTrainedTokenizerFast:
    special = ["<unk>", "<s>", "</s>", "<pad>"]
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    for name, step in steps.items():
        setattr(tokenizer, name, step)
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    trainer = trainers.BpeTrainer(
        vocab_size=700, special_tokens=[*special, *(f"<0x{i:02X}>" for i in range(256))], show_progress=False
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    # The bytes are letters of the vocabulary, not commands.
    saved = json.loads(tokenizer.to_str())
    saved["added_tokens"] = [token for token in saved["added_tokens"] if token["content"] in special]
    return wrap(
        with_bos(Tokenizer.from_str(json.dumps(saved)), "<s>"),
        bos_token="<s>", eos_token="</s>", pad_token="<pad>", unk_token="<unk>",
    )  # fmt: skip


def _gpt2() -> PreTrainedTokenizerFast:
    """Like GPT-2's: one special token for everything, and none for padding."""
    end = "<|endoftext|>"
    return wrap(byte_level([end]), bos_token=end, eos_token=end, unk_token=end)


def _bos_is_eos() -> PreTrainedTokenizerFast:
    """Like OPT's: the token that ends a text also begins every text."""
    return wrap(with_bos(byte_level(["</s>", "<pad>"]), "</s>"), bos_token="</s>", eos_token="</s>", pad_token="<pad>")


KINDS: dict[str, Callable[[], PreTrainedTokenizerFast]] = {
    "no bos": _no_bos,
    "bos named but not added": _bos_named_but_not_added,
    "bos added": _bos_added,
    "merges across lines": _merges_across_lines,
    "reserved for pad": _reserved_for_pad,
    "pad is eos": _pad_is_eos,
    "metaspace": _metaspace,
    "prepended": _prepended,
    "gpt2": _gpt2,
    "bos is eos": _bos_is_eos,
}
ADD_BOS = {"bos added", "reserved for pad", "metaspace", "prepended", "bos is eos"}


def folder_of(path: Path, tokenizer: PreTrainedTokenizerFast, model_type: str, **config: Any) -> Path:
    """The files of a base as its makers left them: not as transformers 5 would write them."""
    path.mkdir(parents=True)
    tokenizer.backend_tokenizer.save(str(path / "tokenizer.json"))
    named = {name: text for name, text in tokenizer.special_tokens_map.items() if isinstance(text, str)}
    (path / "tokenizer_config.json").write_text(json.dumps(named | config), encoding="utf-8")
    (path / "config.json").write_text(json.dumps({"model_type": model_type, "vocab_size": 900}), encoding="utf-8")
    return path


def llama2_folder(path: Path, **config: Any) -> Path:
    """Llama 2's: transformers 5 rebuilds it by `legacy`, and strips a text's first space whatever that says."""
    settings = {"tokenizer_class": "LlamaTokenizer", "legacy": True, "add_bos_token": True, "model_max_length": 4096}
    return folder_of(path, KINDS["prepended"](), "llama", **settings | config)


def qwen_folder(path: Path, model_type: str = "qwen3", **config: Any) -> Path:
    """Qwen's: transformers 5 rebuilds it, and gets what its tokenizer.json says."""
    tokenizer = byte_level(["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|unused_0|>", "<|unused_1|>"])
    words = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}"
    words += r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
    bytes_ = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(words), "isolated"), bytes_])
    tokenizer.normalizer = normalizers.NFC()
    end = {"__type": "AddedToken", "content": "<|im_end|>", "lstrip": False, "normalized": False, "rstrip": False}
    settings: dict[str, Any] = {
        "tokenizer_class": "Qwen2Tokenizer",
        "eos_token": end | {"single_word": False, "special": True},
        "pad_token": "<|endoftext|>",
        "additional_special_tokens": ["<|im_start|>", "<|im_end|>"],
        "model_max_length": 32768,
        "errors": "replace",
        "chat_template": CHATML,
    }
    return folder_of(path, wrap(tokenizer), model_type, **settings | config)


# Chat templates like those of the usual families of instruct models.
CHATML = """
{%- if messages[0].role != 'system' %}<|im_start|>system\n{{ {'말': '<한국어>'} | tojson }}<|im_end|>\n{% endif %}
{%- for message in messages %}
    {{- '<|im_start|>' + message.role + '\\n' }}
    {%- if message.role == 'assistant' %}{% generation %}{{- message.content + '<|im_end|>' }}{% endgeneration %}
    {%- else %}{{- message.content + '<|im_end|>' }}{% endif %}
    {{- '\\n' }}
{%- endfor %}
{%- if tools is not none %}{{- tools | tojson }}{% endif %}
{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{% endif %}"""
LLAMA3 = """{{- bos_token }}
{%- if strftime_now is defined %}{%- set today = strftime_now("%d %b %Y") %}
{%- else %}{%- set today = "no clock" %}{%- endif %}
{{- '<|header|>system<|/header|>\\n\\nToday Date: ' + today + '<|eot_id|>' }}
{%- for message in messages %}
    {{- '<|header|>' + message['role'] + '<|/header|>\\n\\n' + message['content'] | trim + '<|eot_id|>' }}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|header|>assistant<|/header|>\\n\\n' }}{%- endif %}"""
GEMMA = """<s>{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}
{%- for message in messages %}{{ '<turn>' + message['role'] + '\\n' + message['content'] | trim + '<end_of_turn>\\n' }}
{%- endfor %}{% if add_generation_prompt %}{{ '<turn>model\\n' }}{% endif %}""".replace(
    "message['role'] + '\\n'", "('model' if message['role'] == 'assistant' else message['role']) + '\\n'"
)
MISTRAL = """{{ bos_token }}{% for message in messages %}{% if message['role'] == 'assistant' %}
{{- ' ' + message['content'] + eos_token }}{% else %}{{ '[INST] ' + message['content'] + ' [/INST]' }}{% endif %}
{%- endfor %}"""
TWO_ENDS = """{% for message in messages %}{% if message.role == 'assistant' %}{{ message.content + '<|end|>\\n' }}
{%- else %}{{ '<|' + message.role + '|>\\n' + message.content + eos_token }}{{ '\\n<|assistant|>\\n' }}{% endif %}
{%- endfor %}"""
THINKING = """{%- for message in messages %}
{{- '<|im_start|>' + message.role + '\\n' }}
{%- if message.role == 'assistant' and loop.last %}{{- '<think>\\n\\n</think>\\n\\n' }}{% endif %}
{{- message.content + '<|im_end|>\\n' }}{%- endfor %}
{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}
{%- if enable_thinking is defined and enable_thinking is false %}{{- '<think>\\n\\n</think>\\n\\n' }}{%- endif %}
{%- endif %}"""


def chat_kind(template: str, *tokens: str, plain: tuple[str, ...] = ()) -> PreTrainedTokenizerFast:
    backend = with_bos(byte_level(["<s>", "</s>", "<pad>", *tokens]), "<s>")
    backend.add_tokens([AddedToken(token, special=False) for token in plain])
    return wrap(backend, bos_token="<s>", eos_token="</s>", pad_token="<pad>", chat_template=template)


def _sentence_pieces(template: str) -> PreTrainedTokenizerFast:
    tokenizer = KINDS["metaspace"]()
    tokenizer.chat_template = template
    return tokenizer


CHATS = {  # template, and the token that has to end an answer
    "chatml": (lambda: chat_kind(CHATML, "<|im_start|>", "<|im_end|>"), "<|im_end|>"),
    "chatml, plain tokens": (lambda: chat_kind(CHATML, plain=("<|im_start|>", "<|im_end|>")), "<|im_end|>"),
    "llama 3": (lambda: chat_kind(LLAMA3, "<|header|>", "<|/header|>", "<|eot_id|>"), "<|eot_id|>"),
    "gemma": (lambda: chat_kind(GEMMA, "<turn>", "<end_of_turn>"), "<end_of_turn>"),
    "two ends": (lambda: chat_kind(TWO_ENDS, "<|end|>"), "<|end|>"),
    "mistral": (lambda: chat_kind(MISTRAL), "</s>"),
    "mistral, sentence pieces": (lambda: _sentence_pieces(MISTRAL), "</s>"),
    "thinking": (
        lambda: chat_kind(THINKING, "<|im_start|>", "<|im_end|>", plain=("<think>", "</think>")),
        "<|im_end|>",
    ),
}

OURS = ("alpaca", "alpaca_oneline", "korean_qa", "qa_tokens")
CASES = [*((name, kind) for name in OURS for kind in KINDS), *(("chat", kind) for kind in CHATS)]


@functools.cache
def case_of(name: str, kind: str) -> tuple[PreTrainedTokenizerFast, Prompt, PreTrainedTokenizerFast]:
    """The base's tokenizer, the format bound to it, and the tokenizer as a release carries it."""
    tokenizer = CHATS[kind][0]() if name == "chat" else KINDS[kind]()
    prompt = from_transformers(name, tokenizer)
    return tokenizer, prompt, as_released(tokenizer, prompt)


def as_released(tokenizer: PreTrainedTokenizerFast, prompt: Prompt) -> PreTrainedTokenizerFast:
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer.backend_tokenizer,
        chat_template=prompt.chat_template,
        bos_token=tokenizer.bos_token,
        eos_token=tokenizer.eos_token,
        pad_token=prompt.pad_token,
        unk_token=tokenizer.unk_token,
    )


def ids_of(tokenizer: Any, messages: list[Message], **options: Any) -> list[int]:
    return list(tokenizer.apply_chat_template(messages, return_dict=False, **options))
