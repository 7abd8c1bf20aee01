"""What every prompt of a format begins with is tokenized once; the ids of a row are those of its whole text."""

from __future__ import annotations

from collections.abc import Callable
from itertools import product
from random import Random

import pytest
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

from appliance.prompt import fixed_start, in_batches
from appliance.prompt import format as prompt_format
from appliance.prompt.fixed_start import _PATTERNS, NONE
from appliance.prompt.format import Prompt

CHAT = (
    "<|im_start|>system\nAnswer.<|im_end|>\n"
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
# What a question may begin and end with: whatever could join the text around it, or change how that is divided.
PIECES = ["", "가격은?", "n", ":", "::\n", "'s", "’s", "\n", "\n\n\n", " ", "  \t", "\u1161", "\u0301", "1", "23", "🙂",
          "### Input:", "Instruction:", "<|im_start|>user", "\ufeff", "\u3000", "ß"]  # fmt: skip


def split(pattern: str) -> pre_tokenizers.PreTokenizer:
    of_bytes = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    return pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(pattern), "isolated"), of_bytes])


def made(before: pre_tokenizers.PreTokenizer, normalizer: normalizers.Normalizer | None = None) -> Tokenizer:
    """BPE that has learnt long tokens from texts like ours."""
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer, backend.decoder = before, decoders.ByteLevel()
    if normalizer:
        backend.normalizer = normalizer
    texts = [
        prompt_format.render(prompt_format.chat_template("alpaca"), prompt_format.user_message("가격은?\n\n'S 12"))
    ]
    special = ["<pad>", "<s>", "</s>", "<|im_start|>", "<|im_end|>"]
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(
        vocab_size=700, special_tokens=special, initial_alphabet=alphabet, show_progress=False, min_frequency=1
    )
    backend.train_from_iterator([*texts, "Instruction:: n: user: ?\n\n###"] * 9, trainer)
    return backend


def bound(backend: Tokenizer, name: str = "alpaca") -> Prompt:
    return prompt_format.bind(name, backend, "<s>", "</s>", "<pad>", own_template=CHAT)


KNOWN: dict[str, Callable[[], Tokenizer]] = {
    "GPT-2": lambda: made(pre_tokenizers.ByteLevel(add_prefix_space=False)),
    "Llama 3": lambda: made(split(_PATTERNS[0])),
    "Qwen": lambda: made(split(_PATTERNS[1]), normalizers.NFC()),
    "digits": lambda: made(
        pre_tokenizers.Sequence([pre_tokenizers.Digits(True), pre_tokenizers.ByteLevel(add_prefix_space=False)])
    ),
}


@pytest.mark.parametrize("name", KNOWN)
@pytest.mark.parametrize("template", ["alpaca", "alpaca_oneline", "chat"])
def test_rows_have_the_ids_of_their_whole_text(name: str, template: str) -> None:
    prompt = bound(KNOWN[name](), template)
    assert all(len(start.ids) > (1 if template == "chat" else 12) for start in prompt.starts)
    rng = Random(name)
    rows = [
        (a + b + c, rng.choice(PIECES), rng.choice(PIECES)) for a, b, c in product(PIECES, PIECES, ["", " 끝", "\n"])
    ]
    for cells, found in zip(rows, in_batches.encode(prompt, rows), strict=True):
        question, answer = prompt.texts(*cells)
        if "<|im_start|>" in "".join(cells):
            assert isinstance(found, Exception)
            continue
        before = prompt.backend.encode(question, add_special_tokens=False).ids
        after = prompt.backend.encode(answer, add_special_tokens=False).ids
        assert found == ([*before, *after, prompt.eos_token_id], len(before)), cells


def with_token(token: AddedToken) -> Tokenizer:
    backend = KNOWN["Qwen"]()
    backend.add_tokens([token])
    return backend


def with_dropout() -> Tokenizer:
    backend = KNOWN["GPT-2"]()
    backend.model.dropout = 0.1
    return backend


UNKNOWN: dict[str, Callable[[], Tokenizer]] = {
    "words that may begin in the start": lambda: made(pre_tokenizers.Metaspace()),
    "another pattern": lambda: made(split(r"[\s\S]{1,7}")),
    "bytes without words": lambda: made(pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)),
    "a space before each text": lambda: made(pre_tokenizers.ByteLevel(add_prefix_space=True)),
    "a text that is rewritten": lambda: made(split(_PATTERNS[1]), normalizers.Replace("n:", "m")),
    "a token that looks at what is before it": lambda: with_token(AddedToken(":a", single_word=True)),
    "merges left out at random": with_dropout,
}


@pytest.mark.parametrize("name", UNKNOWN)
def test_any_other_tokenizer_gets_every_prompt_whole(name: str) -> None:
    assert bound(UNKNOWN[name]()).starts == (NONE, NONE)


def test_a_token_across_the_place_moves_it() -> None:
    usual, moved = bound(KNOWN["Qwen"]()).starts[0], bound(with_token(AddedToken("on:\n"))).starts[0]
    assert usual.text.endswith("### Instruction:")
    assert moved.text.endswith("completes the request.")


def test_what_the_probes_disprove_is_not_used() -> None:
    backend = KNOWN["Qwen"]()
    prompts = ["### Instruction:\nx", "### Instruction:\ny"]

    def ids(text: str) -> list[int]:
        return [len(text)]

    assert fixed_start.of_prompts(backend, prompts, ids) == NONE
