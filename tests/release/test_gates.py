"""The gates that need no release: what the collated rows teach, and the bounds of what the stages recorded."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from appliance.errors import GateRefused
from appliance.findings import Gate
from appliance.process import files
from appliance.prompt import batch as prompt_batch
from appliance.prompt import encoding as prompt_encoding
from appliance.prompt import format as prompt_format
from appliance.prompt import stop_check
from appliance.prompt.batch import IGNORED
from appliance.prompt.format import Prompt
from appliance.release import gates
from appliance.rundir import directory as rundir_directory
from tests.helpers.models import tiny_tokenizer

Row = dict[str, list[int]]
ROWS = [(f"질문 {i}? 👍🏽", "참고" * (i % 3), "답 " * (i % 7 + 1)) for i in range(150)]


def bos_adding(**special: str) -> PreTrainedTokenizerFast:
    """As Llama's: the post-processor puts BOS before every text."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: i for i, token in enumerate(["<pad>", "<s>", "</s>", *alphabet])}
    backend = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    bos = special["bos_token"]
    backend.post_processor = processors.TemplateProcessing(
        single=f"{bos} $A", pair=f"{bos} $A {bos} $B", special_tokens=[(bos, vocabulary[bos])]
    )
    return PreTrainedTokenizerFast(tokenizer_object=backend, **special)


TOKENIZERS: dict[str, Callable[[], PreTrainedTokenizerFast]] = {
    "no bos": tiny_tokenizer,
    "adds bos": partial(bos_adding, bos_token="<s>", eos_token="</s>", pad_token="<pad>"),
    "bos is eos": partial(bos_adding, bos_token="</s>", eos_token="</s>", pad_token="<pad>"),  # as OPT's
}


def encoded(prompt: Prompt, loss_on: str = "answer") -> list[Row]:
    rows = [prompt.encode(*row, loss_on=loss_on) for row in ROWS]
    return [{"input_ids": list(row.input_ids), "labels": list(row.labels)} for row in rows]


def looked_at(rows: Sequence[Row], prompt: Prompt, **changes: Any) -> tuple[set[str], list[int]]:
    collate = changes.get("collate", partial(prompt_batch.collate, pad_token_id=prompt.pad_token_id))
    found, broken = stop_check.stops(rows, collate, prompt)
    return {gate.name for gate in found if not gate.passed}, broken


@pytest.mark.parametrize("loss_on", ["answer", "all"])
@pytest.mark.parametrize("kind", TOKENIZERS)
def test_our_rows_teach_to_stop(kind: str, loss_on: str) -> None:
    prompt = prompt_format.from_transformers("alpaca", TOKENIZERS[kind]())
    rows = encoded(prompt, loss_on)
    assert looked_at(rows, prompt) == (set(), [])
    assert looked_at(Dataset.from_list(rows), prompt) == (set(), [])  # what the trainer gets
    short = [prompt_encoding.cut(prompt, prompt.encode(*row), 250) for row in ROWS]
    cut = [{"input_ids": row.input_ids, "labels": row.labels} for row in short]
    assert looked_at(cut, prompt) == (set(), [])


def _no_eos(row: Row, _prompt: Prompt) -> None:
    row["input_ids"].pop()
    row["labels"].pop()


def _masked_eos(row: Row, _prompt: Prompt) -> None:
    row["labels"][-1] = IGNORED


def _two_eos(row: Row, prompt: Prompt) -> None:
    for values in row.values():
        values.append(prompt.eos_token_id)


def _eos_inside(row: Row, prompt: Prompt) -> None:
    for values in row.values():
        values[-2] = prompt.eos_token_id


def _text_behind_eos(row: Row, _prompt: Prompt) -> None:
    row["input_ids"].append(77)
    row["labels"].append(IGNORED)


def _nothing_trained(row: Row, _prompt: Prompt) -> None:
    row["labels"] = [IGNORED] * len(row["labels"])


def _second_bos(row: Row, _prompt: Prompt) -> None:
    row["input_ids"].insert(0, row["input_ids"][0])
    row["labels"].insert(0, IGNORED)


def _no_bos(row: Row, _prompt: Prompt) -> None:
    row["input_ids"].pop(0)
    row["labels"].pop(0)


def _shifted_labels(row: Row, _prompt: Prompt) -> None:
    row["labels"][-2] = 5


@pytest.mark.parametrize("kind", ["adds bos", "bos is eos"])
@pytest.mark.parametrize(
    ("spoil", "names"),
    [
        (_no_eos, {"eos_is_the_last_label", "eos_is_trained_once", "bos_as_at_inference"}),
        (_masked_eos, {"eos_is_the_last_label", "eos_is_trained_once"}),
        (_two_eos, {"eos_is_trained_once", "bos_as_at_inference"}),
        (_eos_inside, {"eos_is_trained_once", "bos_as_at_inference"}),
        (_text_behind_eos, {"eos_is_the_last_label"}),
        (_nothing_trained, {"eos_is_the_last_label", "eos_is_trained_once"}),
        (_second_bos, {"bos_as_at_inference"}),
        (_no_bos, {"bos_as_at_inference"}),
        (_shifted_labels, {"padding_is_not_trained"}),
    ],
)
def test_one_row_that_does_not_is_found_by_its_place(
    spoil: Callable[[Row, Prompt], None], names: set[str], kind: str
) -> None:
    prompt = prompt_format.from_transformers("alpaca", TOKENIZERS[kind]())
    rows = encoded(prompt)
    spoil(rows[131], prompt)
    seen, broken = looked_at(rows, prompt)
    # where BOS and EOS are one token, a missing or a second EOS is another number of BOS too
    assert seen == (
        names if kind == "bos is eos" or spoil in (_second_bos, _no_bos) else names - {"bos_as_at_inference"}
    )
    assert broken == [131]


def test_a_collator_that_pads_with_eos_is_seen() -> None:
    """The trap of the usual setup: pad == eos, and the collator masks every pad, so also the real EOS."""
    prompt = prompt_format.from_transformers("alpaca", tiny_tokenizer())
    rows = encoded(prompt)

    def masks_eos(batch: list[Row]) -> dict[str, Any]:
        made = prompt_batch.collate(batch, pad_token_id=prompt.eos_token_id)
        made["labels"][made["input_ids"] == prompt.eos_token_id] = IGNORED
        return made

    seen, broken = looked_at(rows, prompt, collate=masks_eos)
    assert seen == {"eos_is_the_last_label", "eos_is_trained_once", "padding_is_not_trained"}
    assert len(broken) == len(rows)

    def trains_padding(batch: list[Row]) -> dict[str, Any]:
        made = prompt_batch.collate(batch, pad_token_id=prompt.pad_token_id)
        made["labels"] = made["input_ids"].clone()
        return made

    assert "padding_is_not_trained" in looked_at(rows, prompt, collate=trains_padding)[0]


def test_padding_with_eos_is_refused_by_its_id() -> None:
    prompt = prompt_format.from_transformers("alpaca", tiny_tokenizer())
    padded_with_eos = replace(prompt, pad_token=prompt.eos_token, pad_token_id=prompt.eos_token_id)
    assert looked_at(encoded(prompt), padded_with_eos) == ({"pad_is_not_eos"}, [])


def test_what_no_release_holds(tmp_path: Path) -> None:
    """By the part of the release; a link may lead anywhere; rows only where they were asked for."""
    for name in ("model/config.json", "model/model-00001-of-00002.safetensors", "adapter/adapter_model.safetensors"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    assert gates._only_known(tmp_path, dataset=False).passed
    (tmp_path / "dataset").mkdir()
    (tmp_path / "dataset" / "train.csv").touch()
    assert gates._only_known(tmp_path, dataset=True).passed
    assert gates._only_known(tmp_path, dataset=False).measured == 1
    for name in ("model/adapter_model.safetensors", "model/sub/config.json", "notes.txt", "adapter/model.safetensors"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
        assert gates._only_known(tmp_path, dataset=True).measured == 1, name
        (tmp_path / name).unlink()
    (tmp_path / "model" / "tokenizer.json").symlink_to("/etc/passwd")
    assert gates._only_known(tmp_path, dataset=True).measured == 1


def test_the_refusal_names_rows_by_their_line(tmp_path: Path) -> None:
    failed = [Gate("eos_is_the_last_label", False, 7, 0, "rows"), Gate("pad_is_not_eos", True, 0, "not 2", "id")]
    with pytest.raises(GateRefused, match=r"train\.csv.*rows 12, 13, 14, 15, 16 and 2 more") as caught:
        stop_check.refuse_rows(failed, range(2, 9), lambda: range(10, 30), tmp_path / "train.csv")
    assert caught.value.exit_code == 6
    assert "pad_is_not_eos" not in str(caught.value)
    stop_check.refuse_rows(failed[1:], [], lambda: [], tmp_path)


def test_the_stop_rate_at_its_bound() -> None:
    def rate(tuned: float | None, least: float) -> Gate:
        return gates.stop_rate({"rows_that_fit": 10, "base": 0.25, "tuned": tuned}, least)

    assert rate(0.8, 0.8).passed
    assert not rate(0.79, 0.8).passed
    assert "base 0.25" in rate(0.8, 0.8).meaning
    assert not gates.stop_rate({"rows_that_fit": 0, "base": None, "tuned": None}, 0.8).passed
    assert gates.stop_rate({"rows_that_fit": 0, "base": None, "tuned": None}, 0).passed
    asked_otherwise = gates.stop_rate({"rows_that_fit": 10, "base": None, "tuned": 0.9}, 0.8)
    assert (asked_otherwise.passed, "base" in asked_otherwise.meaning) == (True, False)
    assert "more steps" in rate(0.79, 0.8).meaning
    assert "publish.min_stop_rate" in rate(0.79, 0.8).meaning
    assert rate(0.8, 0.8).caution == ""


@pytest.mark.parametrize(
    ("stopped", "prompts", "passed", "cautioned"),
    [
        (0, 1, True, True),
        (0, 4, True, True),
        (0, 5, False, False),  # none stopped of five or more
        (1, 5, True, True),
        (0, 9, False, False),
        (7, 9, True, True),
        (8, 9, True, False),
        (1, 10, False, False),
        (7, 10, False, False),
    ],
)
def test_few_prompts_caution_and_seldom_refuse(stopped: int, prompts: int, passed: bool, cautioned: bool) -> None:
    gate = gates.stop_rate({"rows_that_fit": prompts, "base": 0.0, "tuned": stopped / prompts}, 0.8)
    assert (gate.passed, bool(gate.caution)) == (passed, cautioned)
    if cautioned or not passed:
        fix = gate.caution or gate.meaning
        assert "more steps" in fix
        assert "publish.min_stop_rate" in fix
    if cautioned:
        themselves = "itself" if stopped == 1 else "themselves"
        seen = f"{stopped} of {prompts} answers stopped by {themselves}"
        seen = "the only answer did not stop by itself" if prompts == 1 else seen
        assert gate.caution.startswith(f"{seen}, too few to refuse by: more steps")
    assert gates.stop_rate({"rows_that_fit": prompts, "base": 0.0, "tuned": stopped / prompts}, 0).caution == ""


def test_rows_whose_answer_cannot_fit_do_not_count() -> None:
    from appliance.evaluation.generate import Answer
    from appliance.evaluation.verdict import stop_rates

    def given(*stopped: bool) -> list[Answer]:
        return [Answer((1,), "x", one) for one in stopped]

    answers = {"base": given(False, False, True, False), "tuned": given(True, True, True, False)}
    assert stop_rates([True, True, False, True], answers) == {"rows_that_fit": 3, "base": 0.0, "tuned": 2 / 3}
    assert stop_rates([False], {"base": given(False), "tuned": given(True)}) == {
        "rows_that_fit": 0, "base": None, "tuned": None,
    }  # fmt: skip
    assert stop_rates([True], {"base": None, "tuned": given(True)}) == {"rows_that_fit": 1, "base": None, "tuned": 1.0}


@pytest.mark.parametrize(
    ("best", "again", "dtype", "passed"),
    [
        (2.0, 2.0001, "float32", True),
        (2.0, 2.0003, "float32", False),
        (2.0, 1.9997, "float32", False),
        (2.0, 2.09, "bfloat16", True),
        (2.0, 2.09, "float32, 4 bits", True),
        (2.0, 2.2, "float32, 4 bits", False),
        (2.0, 2.2, "bfloat16", False),
        (1e-6, 2e-6, "float32", True),  # far below what rounding leaves of a loss
        (2.0, float("nan"), "float32", False),
        (2.0, float("inf"), "float16", False),
    ],
)
def test_the_val_loss_after_a_reload(best: float, again: float, dtype: str, passed: bool) -> None:
    in_4bit = dtype.endswith(", 4 bits")
    seen = {"best": best, "again": again, "compute_dtype": dtype.removesuffix(", 4 bits"), "in_4bit": in_4bit}
    gate = gates.best_val_loss_again(seen)
    assert gate.passed is passed
    json.dumps(gate.as_json(), allow_nan=False)


@pytest.mark.parametrize(
    ("verdict", "required", "passed"),
    [
        ("better", False, True),
        ("not proven", False, True),
        ("worse", False, False),
        ("better", True, True),
        ("not proven", True, False),
        ("worse", True, False),
    ],
)
def test_not_worse(verdict: str, required: bool, passed: bool) -> None:
    assert gates.not_worse(verdict, required).passed is passed
    assert "only 7 different" in gates.not_worse(verdict, required, "only 7 different questions").meaning


@pytest.mark.slow
@pytest.mark.parametrize("broken", ["no eos", "a collator that masks"])
def test_training_refuses_before_the_first_step(
    broken: str, base_dir: Path, qa_csv: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from appliance.pipeline import run as pipeline_run
    from appliance.recipe import resolve

    recipe = tmp_path / "r.yaml"
    recipe.write_text(
        f"name: shop\nmodel: {{id: {base_dir}, load_in_4bit: false}}\ndata: {{csv: {qa_csv}, test_fraction: 0.2}}\n"
        "train: {max_steps: 2, optimizer: adamw_torch}\n",
        encoding="utf-8",
    )
    run_dir = rundir_directory.RunDir(tmp_path / "runs" / "shop")
    resolved = resolve.load(str(recipe), environ={})
    pipeline_run.run(resolved, run_dir, tmp_path / "cache", until="prepare")
    if broken == "no eos":
        labelled = Prompt.labelled  # through which every row goes, its ids kept by prepare or not

        def without_eos(self: Prompt, ids: list[int], prompt_tokens: int, **options: Any) -> prompt_format.Encoded:
            return labelled(self, ids[:-1], prompt_tokens, **options)

        monkeypatch.setattr(Prompt, "labelled", without_eos)
    else:
        collate = prompt_batch.collate

        def masks_last(rows: Any, **options: Any) -> Any:
            made = collate(rows, **options)
            made["labels"][:, -1] = IGNORED
            return made

        monkeypatch.setattr(prompt_batch, "collate", masks_last)

    with pytest.raises(GateRefused, match=r"would not learn to stop: eos_is_the_last_label: .*; rows \d+") as caught:
        pipeline_run.run(resolved, run_dir, tmp_path / "cache", until="train")

    assert caught.value.exit_code == 6
    recorded = files.read_json(run_dir.path / "train" / "gates.json")["gates"]
    assert "eos_is_the_last_label" in {gate["name"] for gate in recorded if not gate["passed"]}
    assert not (run_dir.path / "train" / "metrics.jsonl").exists()  # not one step
    assert not (run_dir.path / "train" / "adapter").exists()
