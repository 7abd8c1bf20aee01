"""The tokenizer files that training saves: the base's own, giving the same ids to everyone who loads them."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from tokenizers import Tokenizer
from transformers import AutoTokenizer

from appliance.errors import EnvironmentUnavailable
from appliance.process import files
from appliance.prompt import format as prompt_format
from appliance.prompt import round_trip, tokenizer
from appliance.training import tokenizer_files
from tests.helpers.models import tiny_tokenizer
from tests.helpers.tokenizer_kinds import KINDS, OURS, folder_of, ids_of, llama2_folder, qwen_folder

ANSWERS = ("", " Below", "▁Below", "\n", "\n\n두 줄 ", "가격은?", "각", "👩‍👩‍👧 👍🏽", "  two", "a▁b")
MADE = {"llama 2": llama2_folder, "qwen": qwen_folder}


def saved(base: Path, name: str = "alpaca") -> Path:
    """What training leaves for a base."""
    folder = base.parent / "adapter"
    folder.mkdir()
    tokenizer_files.write(folder, base, prompt_format.from_transformers(name, tokenizer.load(base)))
    return folder


@pytest.mark.parametrize("name", OURS)
@pytest.mark.parametrize("kind", MADE)
def test_everyone_who_loads_it_gets_the_ids_of_training(kind: str, name: str, tmp_path: Path) -> None:
    base = MADE[kind](tmp_path / "base")
    trained = prompt_format.from_transformers(name, tokenizer.load(base))
    folder = saved(base, name)
    light, loaded = prompt_format.from_folder(name, folder), AutoTokenizer.from_pretrained(folder)
    for text in ANSWERS:
        asked = prompt_format.user_message(text or "?", text)
        ids = trained.prompt_ids(asked)
        assert light.prompt_ids(asked) == ids == ids_of(loaded, asked, add_generation_prompt=True)
        assert loaded(text, add_special_tokens=False)["input_ids"] == trained._ids(text)
    raw = Tokenizer.from_file(str(base / "tokenizer.json"))
    assert all(trained._ids(text) == raw.encode(text, add_special_tokens=False).ids for text in ANSWERS)


@pytest.mark.parametrize("kind", MADE)
def test_training_and_from_folder_encode_an_answer_alike(kind: str, tmp_path: Path) -> None:
    base = MADE[kind](tmp_path / "base")
    light = prompt_format.from_folder("korean_qa", base)
    trained = prompt_format.from_transformers("korean_qa", tokenizer.load(base))
    for text in ANSWERS:
        assert light.encode("가격은?", "", text) == trained.encode("가격은?", "", text)


def test_the_made_llama_2_is_one_that_transformers_rebuilds(tmp_path: Path) -> None:
    """Otherwise the tests above would say nothing: saved by transformers, every prompt would have other ids."""
    base = llama2_folder(tmp_path / "base")
    rebuilt = AutoTokenizer.from_pretrained(base)
    assert rebuilt(" Below")["input_ids"] != tokenizer.load(base)(" Below")["input_ids"]
    rebuilt.save_pretrained(tmp_path / "again")
    again = AutoTokenizer.from_pretrained(tmp_path / "again")
    assert again("<s>Below")["input_ids"] != tokenizer.load(base)("<s>Below")["input_ids"]


def test_class_and_special_tokens_stay_as_the_base_has_them(tmp_path: Path) -> None:
    base = qwen_folder(tmp_path / "base", name_or_path="/home/someone/qwen", auto_map={"AutoTokenizer": ["x.Y", None]})
    folder, own = saved(base, "chat"), files.read_json(base / "tokenizer_config.json")
    kept = {key: value for key, value in own.items() if key not in ("chat_template", "name_or_path", "auto_map")}
    assert files.read_json(folder / "tokenizer_config.json") == kept
    assert (folder / "tokenizer.json").read_bytes() == (base / "tokenizer.json").read_bytes()
    assert sorted(path.name for path in folder.iterdir()) == [
        "chat_template.jinja",
        "tokenizer.json",
        "tokenizer_config.json",
    ]


def test_a_class_that_rebuilds_another_tokenizer_gives_way_to_the_plain_one(tmp_path: Path) -> None:
    base = llama2_folder(tmp_path / "base")
    own = files.read_json(base / "tokenizer_config.json")
    kept = files.read_json(saved(base) / "tokenizer_config.json")
    # without the names of the inputs, transformers 4 would make token_type_ids, which no causal LM takes
    inputs = ["input_ids", "attention_mask"]
    assert kept == own | {"tokenizer_class": "PreTrainedTokenizerFast", "model_input_names": inputs}


def test_what_transformers_5_wrote_is_turned_into_what_4_reads(tmp_path: Path) -> None:
    base = tmp_path / "base"
    words = tiny_tokenizer()
    words.add_special_tokens({"additional_special_tokens": ["<s>"]})
    words.save_pretrained(base)
    own = files.read_json(base / "tokenizer_config.json")
    assert own["tokenizer_class"] == "TokenizersBackend"
    assert own["extra_special_tokens"] == ["<s>"]
    own["model_specific_special_tokens"] = {"image_token": "<pad>"}
    files.write_json(base / "tokenizer_config.json", own)
    kept = files.read_json(saved(base) / "tokenizer_config.json")
    assert kept["tokenizer_class"] == "PreTrainedTokenizerFast"
    assert kept["additional_special_tokens"] == ["<s>"]
    assert kept["extra_special_tokens"] == {"image_token": "<pad>"}
    assert "backend" not in kept


@pytest.mark.parametrize(
    ("own", "wanted"), [("</s>", "<|reserved_0|>"), (None, "<|reserved_0|>"), ("<|reserved_0|>", "<|reserved_0|>")]
)
def test_padding_is_ours_in_every_file_that_names_it(own: str | None, wanted: str, tmp_path: Path) -> None:
    base = folder_of(tmp_path / "base", KINDS["pad is eos"](), "llama", pad_token=own)
    files.write_json(base / "special_tokens_map.json", {"eos_token": "</s>"} | ({"pad_token": own} if own else {}))
    folder = saved(base)
    assert tokenizer.named_tokens(folder)["pad_token"] == wanted
    assert AutoTokenizer.from_pretrained(folder).pad_token == wanted


def test_without_a_usable_pad_token_none_is_named(tmp_path: Path) -> None:
    base = folder_of(tmp_path / "base", KINDS["gpt2"](), "gpt2", pad_token="<|endoftext|>")
    assert AutoTokenizer.from_pretrained(saved(base)).pad_token is None


def test_the_files_beside_tokenizer_json_go_along(tmp_path: Path) -> None:
    base = llama2_folder(tmp_path / "base")
    (base / "tokenizer.model").write_bytes(b"pieces")
    (base / "notes.txt").write_text("of the base's author")
    folder = saved(base)
    assert (folder / "tokenizer.model").read_bytes() == b"pieces"
    assert not (folder / "notes.txt").exists()


def test_a_tokenizer_that_no_saving_preserves_is_refused_with_the_first_difference(tmp_path: Path) -> None:
    """As a Qwen 2 whose tokenizer.json is another's: its architecture brings a class that rebuilds it."""
    base = folder_of(tmp_path / "base", KINDS["bos added"](), "qwen2", tokenizer_class="PreTrainedTokenizerFast")
    prompt = prompt_format.from_transformers("alpaca", tokenizer.load(base))
    with pytest.raises(EnvironmentUnavailable) as caught:
        tokenizer_files.refuse_lossy(tmp_path, base, prompt, [prompt_format.user_message("얼마예요?")])
    seen = re.search(
        r"the (prompt|text) '.*' is (\[.*\]) .*in training, and (\[.*\]) when read by (.*)", str(caught.value)
    )
    assert seen, str(caught.value)
    assert seen[2] != seen[3]
    assert "the merged model's files" in seen[4]
    assert caught.value.exit_code == 4
    assert "tokenizer_class" in caught.value.hint
    assert [path.name for path in tmp_path.iterdir()] == ["base"]


@pytest.mark.parametrize(("name", "value"), [("mlp_bias", "nan"), ("pretraining_tp", ".")])
def test_a_config_that_transformers_refuses_is_the_bases_fault(name: str, value: str, tmp_path: Path) -> None:
    base = llama2_folder(tmp_path / "base")
    prompt = prompt_format.from_transformers("alpaca", tokenizer.load(base))
    files.write_json(base / "config.json", files.read_json(base / "config.json") | {name: value})
    with pytest.raises(EnvironmentUnavailable, match=f"{base}: its tokenizer does not load: .*'{name}'") as caught:
        tokenizer_files.refuse_lossy(tmp_path, base, prompt, [])
    assert caught.value.exit_code == 4


def test_a_difference_shows_the_ids_around_it() -> None:
    found = round_trip.Difference("prompt", "x", [*range(20), 7, 8], [*range(20), 9], "a reader")
    assert "[16, 17, 18, 19, 7, 8] (ids from 16 on) in training, and [16, 17, 18, 19, 9] when" in str(found)
    shorter = round_trip.Difference("prompt", "x", [1, 2], [1, 2, 3], "a reader")
    assert "is [1, 2] in training, and [1, 2, 3] when" in str(shorter)
