"""A base's tokenizer as its files mean it: nothing is added, nothing is rebuilt by the rules of another."""

from __future__ import annotations

from pathlib import Path

import pytest

from appliance.errors import EnvironmentUnavailable
from appliance.process import files
from appliance.prompt import format as prompt_format
from appliance.prompt import tokenizer
from tests.helpers.models import tiny_tokenizer
from tests.helpers.tokenizer_kinds import KINDS, byte_level, wrap

SENTENCE = "질문: 배송은 이틀 걸리나요?\n답변: yes 👍🏽"


def folder_of(path: Path, tokenizer: object, *, named: bool = False, **config: object) -> Path:
    """A GPT-2's folder; unless `named`, without the files that say which tokens are special, as KoGPT2's."""
    tokenizer.save_pretrained(path)  # type: ignore[attr-defined]
    if not named:
        for name in ("tokenizer_config.json", "special_tokens_map.json"):
            (path / name).unlink(missing_ok=True)
    files.write_json(path / "config.json", {"model_type": "gpt2", "vocab_size": 600, **config})
    return path


def test_without_a_named_class_tokenizer_json_stands(tmp_path: Path) -> None:
    words = KINDS["metaspace"]()
    ids = {
        name: words.convert_tokens_to_ids(text) for name, text in (("eos_token_id", "</s>"), ("pad_token_id", "<pad>"))
    }
    folder = folder_of(tmp_path / "base", words, **ids)
    found = tokenizer.load(folder)
    assert (found.eos_token, found.pad_token, len(found)) == ("</s>", "<pad>", len(words))
    assert found(SENTENCE)["input_ids"] == words(SENTENCE)["input_ids"]
    # without torch and transformers the same is read
    light, full = prompt_format.from_folder("korean_qa", folder), prompt_format.from_transformers("korean_qa", found)
    assert (light.eos_token, light.pad_token_id) == (full.eos_token, full.pad_token_id)
    assert light.encode("가격은?", "", "만원").input_ids == full.encode("가격은?", "", "만원").input_ids


def test_what_the_files_name_comes_before_the_ids_of_the_model(tmp_path: Path) -> None:
    words = tiny_tokenizer()
    words.chat_template = "{{ messages }}"
    folder = folder_of(tmp_path / "base", words, named=True, eos_token_id=1)
    settings = files.read_json(folder / "tokenizer_config.json")
    del settings["tokenizer_class"]
    files.write_json(folder / "tokenizer_config.json", settings)
    found = tokenizer.load(folder)
    assert (found.eos_token, found.bos_token, found.pad_token) == ("</s>", "<s>", "<pad>")
    assert found.chat_template == "{{ messages }}"


def test_a_named_class_is_transformers_own_affair(tmp_path: Path) -> None:
    found = tokenizer.load(folder_of(tmp_path / "base", KINDS["gpt2"](), named=True))
    assert found.eos_token == "<|endoftext|>"
    assert found(SENTENCE)["input_ids"] == KINDS["gpt2"]()(SENTENCE)["input_ids"]


def test_a_named_class_without_an_eos_has_that_of_the_model(tmp_path: Path) -> None:
    words = KINDS["gpt2"]()
    text = words.convert_ids_to_tokens(0)
    words.eos_token = None
    folder = folder_of(tmp_path / "base", words, named=True, eos_token_id=0)
    full, light = tokenizer.load(folder), prompt_format.from_folder("korean_qa", folder)
    assert full.eos_token == light.eos_token == text
    assert len(full) == len(words)


def test_a_padding_id_of_minus_one_names_none(tmp_path: Path) -> None:
    """As some configs say "no padding"; tokenizers takes no negative id."""
    folder = folder_of(tmp_path / "base", KINDS["metaspace"](), eos_token_id=2, pad_token_id=-1)
    assert tokenizer.load(folder).pad_token is None


def test_an_eos_without_an_embedding_is_refused(tmp_path: Path) -> None:
    words = wrap(byte_level(["<s>"]), eos_token="<|never seen|>")
    folder = folder_of(tmp_path / "base", words, named=True, vocab_size=len(words) - 1)
    with pytest.raises(EnvironmentUnavailable, match=r"never seen.* has the id"):
        tokenizer.load(folder)


def test_a_base_that_names_no_eos_at_all_is_refused_by_the_prompt(tmp_path: Path) -> None:
    folder = folder_of(tmp_path / "base", KINDS["metaspace"]())
    with pytest.raises(EnvironmentUnavailable, match="no EOS token"):
        prompt_format.from_transformers("alpaca", tokenizer.load(folder))
