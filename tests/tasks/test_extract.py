"""Rows whose answers stand in their texts: what a model reads and is asked, its head, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from appliance.base_model import tunable
from appliance.engines import loaded as engines_loaded
from appliance.errors import EnvironmentUnavailable, RecipeError
from appliance.process import files
from appliance.prompt import format as prompt_format
from appliance.prompt import spans, stop_check, tokenizer
from appliance.prompt.format import Prompt
from appliance.recipe import resolve
from appliance.tasks import causal, extract, find
from tests.helpers.classifiers import random_adapter, tiny_bert

TASK = extract.TASK
ROWS = [
    ("좋아요?", "사과 배 감 귤 밤", "감 귤"),
    ("별로?", "사과 최고 늦어요", ""),
    ("최고?", "기쁨 좋아요 " * 30 + "슬픔 중립", "슬픔"),
]
LENGTH, STRIDE = 24, 6


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_bert(tmp_path_factory.mktemp("bases") / "bert")


@pytest.fixture(scope="module")
def prompt(base: Path) -> Prompt:
    return prompt_format.from_transformers("context", tokenizer.load(base))


def windows(prompt: Prompt, rows: list[tuple[str, str, str]] = ROWS) -> list[Any]:
    task = extract.Extract(stride=STRIDE)
    return [one for row in rows for one in task.pieces(prompt.encode(*row), LENGTH)]


def batch_of(some: list[Any], prompt: Prompt) -> dict[str, torch.Tensor]:
    return TASK.collate([TASK.features(one) for one in some], pad_token_id=prompt.pad_token_id)


def test_a_window_is_two_texts_as_the_tokenizer_writes_them_and_the_places_of_the_answer(
    base: Path, prompt: Prompt
) -> None:
    words = AutoTokenizer.from_pretrained(base)
    (one,) = windows(prompt, ROWS[:1])
    features = TASK.features(one)
    whole = words(ROWS[0][0], ROWS[0][1])
    assert features["input_ids"] == whole["input_ids"]
    assert TASK.length(one) == len(features["input_ids"])
    first, last = features["labels"]
    assert words.decode(features["input_ids"][first : last + 1]) == "감 귤"
    begin = features["input_ids"].index(words.sep_token_id) + 1
    assert features["token_type_ids"] == [0] * begin + [1] * (len(features["input_ids"]) - begin)
    assert prompt_format.from_folder("context", base).fingerprint == prompt.fingerprint


def test_only_the_windows_that_hold_the_answer_point_at_it(prompt: Prompt) -> None:
    labels = [TASK.features(one)["labels"] for one in windows(prompt)]
    assert labels[1] == [0, 0]  # unanswerable
    assert len(labels) > 5
    assert [one != [0, 0] for one in labels[2:]] == [False] * (len(labels) - 3) + [True]


def test_padding_changes_neither_loss_nor_answers(base: Path, prompt: Prompt) -> None:
    some = windows(prompt)
    batch = batch_of(some, prompt)
    assert (batch["attention_mask"] == 0).any()
    model = TASK.load(base).eval()
    with torch.no_grad():
        logits, wanted = TASK.predicted(model, batch)
        assert int(TASK.trained(batch["labels"])) == len(wanted) == 2 * len(some)
        together = torch.nn.functional.cross_entropy(logits, wanted, reduction="none")
        for i, one in enumerate(some):
            alone, labels = TASK.predicted(model, batch_of([one], prompt))
            expected = torch.nn.functional.cross_entropy(alone, labels, reduction="none")
            assert torch.allclose(together[[i, i + len(some)]], expected, atol=1e-4)
            theirs = model(**{k: v for k, v in batch_of([one], prompt).items() if k != "labels"},
                           start_positions=labels[:1], end_positions=labels[1:]).loss  # fmt: skip
            assert expected.mean().item() == pytest.approx(theirs.item(), abs=1e-4)
            said = TASK.answer_logits(model, one.input_ids[: one.prompt_tokens], labels.tolist(), [0, 1])
            assert said.shape == (2, model.config.max_position_embeddings)
            assert torch.allclose(said[:, : alone.shape[1]], alone, atol=1e-4)
            assert (said[:, alone.shape[1] :] == -torch.inf).all()


def test_an_adapter_changes_nothing_about_what_the_model_reads(base: Path, prompt: Prompt, tmp_path: Path) -> None:
    """peft's own model for question answering takes types of tokens, and drops them."""
    tuned = PeftModel.from_pretrained(TASK.load(base), random_adapter(tmp_path / "adapter", base, TASK)).eval()
    some = windows(prompt)
    batch = batch_of(some, prompt)
    with torch.no_grad():
        logits, _ = TASK.predicted(tuned, batch)
        seen = {name: batch[name] for name in ("input_ids", "attention_mask")}
        untyped = tuned(**seen, token_type_ids=batch["token_type_ids"]).start_logits
        merged = tuned.merge_and_unload()
        wanted, _ = TASK.predicted(merged, batch)
        typed = merged(**seen, token_type_ids=batch["token_type_ids"]).start_logits
    assert torch.allclose(logits, wanted, atol=1e-4)
    begins = logits[: len(some)][batch["attention_mask"] == 1]
    assert torch.allclose(begins, typed[batch["attention_mask"] == 1], atol=1e-4)
    assert not torch.allclose(begins, untyped[batch["attention_mask"] == 1], atol=1e-2)  # if so, peft passes them on


def test_types_are_given_only_to_models_that_have_them(base: Path) -> None:
    model = TASK.load(base)
    assert extract.reads_types(model)
    model.config.type_vocab_size = 1
    assert not extract.reads_types(model)


def test_a_head_that_a_base_lacks_is_the_same_wherever_it_is_made_and_nothing_else_may_be_missing(
    base: Path, tmp_path: Path
) -> None:
    torch.manual_seed(1)
    one, info = TASK.load(base, output_loading_info=True)
    torch.manual_seed(2)
    other = TASK.load(base)
    assert torch.equal(one.qa_outputs.weight, other.qa_outputs.weight)
    engines_loaded.judge(base, TASK.found_in(base, info))
    lost = {**info, "missing_keys": [*info["missing_keys"], "bert.embeddings.word_embeddings.weight"]}
    with pytest.raises(EnvironmentUnavailable, match=r"lack bert\.embeddings\.word_embeddings\.weight"):
        engines_loaded.judge(base, TASK.found_in(base, lost))
    one.save_pretrained(tmp_path / "trained")
    with pytest.raises(EnvironmentUnavailable, match=r"lack qa_outputs\.weight"):  # a trained model has one
        engines_loaded.judge(base, TASK.found_in(tmp_path / "trained", {"missing_keys": ["qa_outputs.weight"]}))


def test_a_base_with_a_head_for_three_classes_gets_one_for_begin_and_end(base: Path, tmp_path: Path) -> None:
    AutoModelForSequenceClassification.from_pretrained(base, num_labels=3).save_pretrained(tmp_path)
    model, info = TASK.load(tmp_path, output_loading_info=True)
    engines_loaded.judge(tmp_path, TASK.found_in(tmp_path, info))
    assert model.qa_outputs.weight.shape[0] == 2
    config = TASK.config(files.read_json(tmp_path / "config.json"))
    assert config["architectures"] == ["BertForQuestionAnswering"]
    assert len(config["id2label"]) == 2
    assert "id2label" not in TASK.config(files.read_json(base / "config.json"))


def test_the_collated_rows_are_checked(prompt: Prompt) -> None:
    rows = [TASK.features(one) for one in windows(prompt)]

    def broken(**changes: Any) -> tuple[set[str], list[int]]:
        def collate(some: Any) -> dict[str, torch.Tensor]:
            batch = TASK.collate(some, pad_token_id=prompt.pad_token_id)
            return batch | {name: change(batch) for name, change in changes.items()}

        gates, faulty = stop_check.stops(rows, collate, prompt, **TASK.gated_as)
        return {gate.name for gate in gates if not gate.passed}, faulty

    assert broken() == (set(), [])
    everyone = list(range(len(rows)))
    assert broken(labels=lambda b: b["labels"].flip(1) + torch.tensor([[9, 0]])) == ({"one_span_is_trained"}, everyone)
    assert broken(labels=lambda b: b["labels"] * 0 + 1) == ({"one_span_is_trained"}, everyone)  # in the question
    assert broken(labels=lambda b: b["labels"][:, :1]) == ({"one_span_is_trained"}, everyone)
    padded = broken(attention_mask=lambda b: torch.ones_like(b["attention_mask"]))
    assert padded[0] == {"padding_is_not_seen"}
    assert padded[1]


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ("prompt=alpaca", "prompt: alpaca is not a format for an encoder"),
        ("data.answers=free", "data.answers: an answer is a part of the row's input"),
        ("data.group_by=title", "data.group_by: rows with the same input are the groups"),
        ("data.on_too_long=cut", "data.on_too_long: a long input is read in windows"),
        ("start_from=runs/x", "start_from: what the earlier run finds is not compared with what this one does"),
        ("train.loss_on=all", "train.loss_on: only the places of the answer are trained"),
        ("train.class_weights=balanced", "train.class_weights: there are no classes"),
        ("engine=unsloth", "engine: Unsloth has no code for encoders"),
        ("evaluate.primary=chrf", "evaluate.primary: spans are scored by F1 and exact match"),
        ("evaluate.train_questions=3", "evaluate.extra_prompts: a question without a text has no answer in it"),
        ("evaluate.other_answers=x.csv", "evaluate.other_answers: another model's answers are no parts of the text"),
        ('publish.gguf=["q8_0"]', "publish.gguf: GGUF files are made of models that continue text"),
    ],
)
def test_what_does_not_fit_is_refused_with_its_reason(settings: str, said: str) -> None:
    method = ["tuning.method=lora"] * settings.startswith("start_from")  # full fine-tuning has no adapter to go on from
    recipe = resolve.load("bert-squad", overrides=[settings, *method], environ={}).recipe
    with pytest.raises(RecipeError) as refused:
        TASK.refuse(recipe)
    assert said in str(refused.value)
    assert "--set" in str(refused.value.hint)


def test_the_shipped_recipe_fits_and_other_tasks_have_no_answers_in_inputs() -> None:
    recipe = resolve.load("bert-squad", environ={}).recipe
    find.named(recipe.task).refuse(recipe)
    find.named(recipe.task).refuse(resolve.load("bert-squad", overrides=["tuning.method=lora"], environ={}).recipe)
    other = resolve.load("chatbot-cpu", overrides=["data.answers=in_input"], environ={}).recipe
    with pytest.raises(RecipeError, match=r"data\.answers: answers that stand in the input are for task: extract"):
        causal.TASK.refuse(other)


def test_a_base_of_another_kind_is_refused() -> None:
    with pytest.raises(EnvironmentUnavailable, match="is not an encoder") as refused:
        tunable.refuse_config({"model_type": "llama", "architectures": ["LlamaForCausalLM"]}, "x/y", {}, TASK)
    assert "klue/bert-base" in str(refused.value.hint)
    config = {"model_type": "bert", "architectures": ["BertForQuestionAnswering"]}
    tunable.refuse_config(config, "x/y", {}, TASK)


def test_a_task_knows_what_prepare_found(tmp_path: Path) -> None:
    assert TASK.bound(tmp_path) == TASK
    files.write_json(tmp_path / extract.SPANS, {"stride": 7, "unanswerable": {"train": 2, "val": 0, "test": 0}})
    assert TASK.bound(tmp_path) == extract.Extract(stride=7, may_abstain=True)


def test_an_answer_is_found_where_it_was_pointed_at(prompt: Prompt) -> None:
    """From row to windows and back to characters."""
    for question, context, answer in ROWS:
        row = prompt.encode(question, context, answer)
        offsets = prompt.read(question, context).offsets
        for one in spans.in_windows(row, LENGTH, STRIDE):
            first, last = one.input_ids[-2:]
            if first:
                head = spans.context_begins(one.input_ids[: one.prompt_tokens])
                begin = np.array(one.input_ids[head:-3]).tolist()
                at = next(i for i in range(len(row.input_ids)) if row.input_ids[i : i + len(begin)] == begin)
                place = at - row.prompt_tokens
                assert spans.text_of(context, offsets, first - head + place, last - head + place) == answer
