"""The gate tokenizer_is_the_bases: our own changes pass, any other difference refuses and is named."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer

from appliance.findings import NAMED_ROWS
from appliance.process import files
from appliance.prompt import format as prompt_format
from appliance.prompt import tokenizer
from appliance.release import tokenizer_files
from appliance.rundir.token_choice import TokenChoice
from appliance.training import tokenizer_files as training_files
from tests.helpers.classifiers import tiny_encoder
from tests.helpers.finished import edit_json
from tests.helpers.tokenizer_kinds import KINDS, folder_of, llama2_folder, qwen_folder


def run_of(folder: Path, base: Path, name: str = "alpaca", words: Any = None) -> tuple[Path, Path]:
    """(release, run directory) of a training on `base`: nothing but the tokenizer's files."""
    prompt = prompt_format.from_transformers(name, words or tokenizer.load(base))
    trained, release = folder / "run" / "train" / "adapter", folder / "release"
    trained.mkdir(parents=True)
    training_files.write(trained, base, prompt)
    files.write_json(trained / "prompt.json", {"prompt": name, "eos": prompt.eos_token, "pad": prompt.pad_token})
    for part in ("model", "adapter"):
        shutil.copytree(trained, release / part)
    return release, folder / "run"


BASES: dict[str, Callable[[Path], Path]] = {
    "llama 2": llama2_folder,
    "qwen": qwen_folder,
    "pads with eos": lambda path: folder_of(path, KINDS["pad is eos"](), "llama", pad_token="</s>"),
    "names no class": lambda path: folder_of(path, KINDS["bos added"](), "llama"),
    "an unknown pad": lambda path: folder_of(path, KINDS["gpt2"](), "gpt2", tokenizer_class="GPT2Tokenizer"),
}


@pytest.mark.parametrize("kind", BASES)
def test_our_own_changes_pass(kind: str, tmp_path: Path) -> None:
    base = BASES[kind](tmp_path / "base")
    gate = tokenizer_files.gate(*run_of(tmp_path, base), base)
    assert (gate.name, gate.passed, gate.measured, gate.bound) == ("tokenizer_is_the_bases", True, 0, 0), gate


@pytest.mark.parametrize(("kind", "takes_types"), [("distilbert-of-bert", False), ("bert", True)])
def test_a_tokenizer_makes_no_types_of_tokens_for_a_model_that_takes_none(
    kind: str, takes_types: bool, tmp_path: Path
) -> None:
    """transformers 4 gives a model whatever its tokenizer makes; a model may do without, but not with."""
    base, names = tiny_encoder(tmp_path / "base", kind), ["input_ids", "token_type_ids", "attention_mask"]
    edit_json(base / "tokenizer_config.json", model_input_names=names)
    release, run_path = run_of(tmp_path, base, "source")
    given = AutoTokenizer.from_pretrained(release / "model")("사과")
    assert ("token_type_ids" in given) == takes_types
    assert tokenizer_files.gate(release, run_path, base).passed
    for wrong in (["input_ids"], ["input_ids", "attention_mask"] if takes_types else names[:2]):
        edit_json(release / "model" / "tokenizer_config.json", model_input_names=wrong)
        assert "model_input_names: base" in tokenizer_files.gate(release, run_path, base).meaning


@pytest.mark.parametrize(("kind", "types"), [("bert", True), ("electra", True), ("roberta", False)])
def test_a_tokenizer_makes_types_of_tokens_for_a_model_that_tells_them_apart(
    kind: str, types: bool, tmp_path: Path
) -> None:
    """Also if the base leaves that to its class, and the release has the class that takes tokenizer.json as it is."""
    base = tiny_encoder(tmp_path / "base", kind)
    assert "model_input_names" not in files.read_object(base / "tokenizer_config.json")
    release, run_path = run_of(tmp_path, base, "source")
    for part in ("model", "adapter"):
        given = AutoTokenizer.from_pretrained(release / part)("사과", "배")
        assert ("token_type_ids" in given) == types
        assert not types or sorted(set(given["token_type_ids"])) == [0, 1]
    assert tokenizer_files.gate(release, run_path, base).passed


def test_an_eos_that_training_chose_passes(tmp_path: Path) -> None:
    base = qwen_folder(tmp_path / "base")
    words = tokenizer.load(base)
    words.eos_token = "<|unused_0|>"
    release, run_path = run_of(tmp_path, base, words=words)
    gate = tokenizer_files.gate(release, run_path, base)
    assert "eos_token: base '<|im_end|>', release '<|unused_0|>'" in gate.meaning
    TokenChoice(eos_token="<|unused_0|>").write(run_path / "train")
    assert tokenizer_files.gate(release, run_path, base).passed


@pytest.mark.parametrize("kind", ["qwen", "names no class"])
def test_what_earlier_versions_saved_passes(kind: str, tmp_path: Path) -> None:
    """They used transformers' own save_pretrained."""
    base = BASES[kind](tmp_path / "base")
    release, run_path = run_of(tmp_path, base)
    prompt = prompt_format.from_folder("alpaca", base)
    for part in ("model", "adapter"):
        shutil.rmtree(release / part)
        own = AutoTokenizer.from_pretrained(base)
        own.pad_token, own.chat_template = prompt.pad_token, prompt.chat_template
        own.save_pretrained(release / part)
    gate = tokenizer_files.gate(release, run_path, base)
    assert gate.passed, gate


def _config(**changes: Any) -> Callable[[Path], None]:
    return lambda folder: edit_json(folder / "tokenizer_config.json", **changes)


def _tokenizer(change: Callable[[dict[str, Any]], Any]) -> Callable[[Path], None]:
    def edited(folder: Path) -> None:
        saved = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
        change(saved)
        (folder / "tokenizer.json").write_text(json.dumps(saved, ensure_ascii=False), encoding="utf-8")

    return edited


def _swapped_ids(saved: dict[str, Any]) -> None:
    by_name = {token["content"]: token for token in saved["added_tokens"]}
    one, other = by_name["<|unused_0|>"], by_name["<|unused_1|>"]
    one["content"], other["content"] = other["content"], one["content"]
    vocabulary = saved["model"]["vocab"]
    vocabulary["<|unused_0|>"], vocabulary["<|unused_1|>"] = vocabulary["<|unused_1|>"], vocabulary["<|unused_0|>"]


def _swapped_words(saved: dict[str, Any]) -> None:
    vocabulary = saved["model"]["vocab"]
    one, other = list(vocabulary)[-2:]
    vocabulary[one], vocabulary[other] = vocabulary[other], vocabulary[one]


ATTACKS: dict[str, tuple[Callable[[Path], None], str]] = {
    "shorter texts": (_config(model_max_length=8), "tokenizer_config.json model_max_length: base 32768, release 8"),
    "another class": (_config(tokenizer_class="GPT2Tokenizer"), "tokenizer_class: base 'Qwen2Tokenizer'"),
    "another eos": (_config(eos_token="<|unused_0|>"), "eos_token: base '<|im_end|>', release '<|unused_0|>'"),
    "another pad": (_config(pad_token="<|im_end|>"), "pad_token: base '<|endoftext|>', release '<|im_end|>'"),
    "a word as unk": (_config(unk_token="배송"), "unk_token: base None, release '배송'"),
    "a word as special": (_config(additional_special_tokens=["<|im_start|>", "<|im_end|>", "배송"]), "'배송'"),
    "other added tokens": (_config(added_tokens_decoder={"3": {"content": "x"}}), "added_tokens_decoder: base None"),
    "padding on the left": (_config(padding_side="left"), "padding_side: base None, release 'left'"),
    "two unused ids swapped": (_tokenizer(_swapped_ids), "tokenizer.json added_tokens['3']: base {"),
    "two words swapped": (_tokenizer(_swapped_words), "tokenizer.json model.vocab["),
    "a merge less": (_tokenizer(lambda saved: saved["model"]["merges"].pop()), "tokenizer.json model.merges["),
    "no normalizer": (_tokenizer(lambda saved: saved.update(normalizer=None)), 'normalizer: base {"type": "NFC"}'),
    "another split": (
        _tokenizer(lambda saved: saved["pre_tokenizer"]["pretokenizers"].pop(0)),
        "tokenizer.json pre_tokenizer: base",
    ),
    "another decoder": (_tokenizer(lambda saved: saved.update(decoder={"type": "Fuse"})), "decoder: base"),
    "an eos behind every text": (
        _tokenizer(
            lambda saved: saved.update(
                post_processor={
                    "type": "TemplateProcessing",
                    "single": [{"Sequence": {"id": "A", "type_id": 0}}, {"SpecialToken": {"id": "e", "type_id": 0}}],
                    "pair": [],
                    "special_tokens": {"e": {"id": "e", "ids": [2], "tokens": ["<|im_end|>"]}},
                }
            )
        ),
        "tokenizer.json post_processor: base {",
    ),
    "a vocabulary file of another": (lambda folder: (folder / "merges.txt").write_text("a b"), "merges.txt: not"),
}


@pytest.mark.parametrize("part", ["model", "adapter"])
@pytest.mark.parametrize("attack", ATTACKS)
def test_any_other_difference_refuses_and_is_named(attack: str, part: str, tmp_path: Path) -> None:
    base = qwen_folder(tmp_path / "base")
    release, run_path = run_of(tmp_path, base)
    change, named = ATTACKS[attack]
    change(release / part)
    gate = tokenizer_files.gate(release, run_path, base)
    assert not gate.passed
    assert f"{part}/" in gate.meaning
    assert named in gate.meaning, gate.meaning


def test_a_base_without_tokenizer_json_is_compared_with_what_training_made_of_it(tmp_path: Path) -> None:
    base = qwen_folder(tmp_path / "base")
    saved = json.loads((base / "tokenizer.json").read_text(encoding="utf-8"))
    release, run_path = run_of(tmp_path, base)
    (base / "tokenizer.json").unlink()
    files.write_json(base / "vocab.json", saved["model"]["vocab"])
    merges = "\n".join(" ".join(pair) for pair in saved["model"]["merges"])
    (base / "merges.txt").write_text(merges, encoding="utf-8")
    shutil.rmtree(run_path)
    shutil.rmtree(release)
    release, run_path = run_of(tmp_path, base)
    assert tokenizer_files.gate(release, run_path, base).passed
    ATTACKS["two words swapped"][0](release / "model")
    assert not tokenizer_files.gate(release, run_path, base).passed


def test_no_more_than_a_few_differences_are_named(tmp_path: Path) -> None:
    base = qwen_folder(tmp_path / "base")
    release, run_path = run_of(tmp_path, base)
    _tokenizer(lambda saved: saved["model"]["merges"].clear())(release / "model")
    gate = tokenizer_files.gate(release, run_path, base)
    assert isinstance(gate.measured, int)
    assert gate.measured > NAMED_ROWS
    assert gate.meaning.count("model.merges[") == NAMED_ROWS
