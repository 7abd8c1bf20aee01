"""An encoder-decoder's rows, losses, answers and refusals, on tiny models with random weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForSeq2SeqLM, AutoTokenizer

from appliance.base_model import tunable
from appliance.engines import decoding
from appliance.errors import DataError, EnvironmentUnavailable, RecipeError
from appliance.evaluation import generate
from appliance.pipeline import run as pipeline_run
from appliance.prompt import format as prompt_format
from appliance.prompt import in_batches, stop_check, tokenizer
from appliance.prompt.batch import IGNORED
from appliance.prompt.format import Prompt, user_message
from appliance.recipe import resolve
from appliance.rundir.directory import RunDir
from appliance.tasks import causal, seq2seq
from appliance.training import tokenizer_files
from tests.helpers.encoder_decoders import Kind, t5_files, tiny_encoder_decoder

KINDS: tuple[Kind, ...] = ("t5", "mt5", "bart")
ROWS = [("가격은?", "", "만 원"), ("Where?", "a shop in 서울", "3층"), ("?", "", "a longer answer than the others")]


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("bases")
    return {kind: tiny_encoder_decoder(folder / kind, kind) for kind in KINDS}


def prompt_of(base: Path) -> Prompt:
    return prompt_format.from_transformers("source", AutoTokenizer.from_pretrained(base))


def loaded(base: Path) -> Any:
    model = AutoModelForSeq2SeqLM.from_pretrained(base).eval()
    decoding.keep_only_ids(model)
    return model


def batch_of(prompt: Prompt, rows: list[tuple[str, str, str]] = ROWS) -> dict[str, torch.Tensor]:
    features = [seq2seq.TASK.features(prompt.encode(*row)) for row in rows]
    return seq2seq.TASK.collate(features, pad_token_id=prompt.pad_token_id)


@pytest.mark.parametrize("kind", KINDS)
def test_question_and_answer_are_what_the_tokenizer_makes_of_their_texts(kind: Kind, bases: dict[str, Path]) -> None:
    """With its own BOS and EOS: what users do who call the tokenizer without a chat template."""
    prompt, words = prompt_of(bases[kind]), AutoTokenizer.from_pretrained(bases[kind])
    features = seq2seq.TASK.features(prompt.encode("가격은?", "상품: 컵", "만 원"))
    assert features["input_ids"] == words("가격은?\n상품: 컵")["input_ids"]
    assert features["labels"] == words("만 원")["input_ids"]
    assert features["labels"][-1] == words.eos_token_id
    assert prompt.answer_text(features["labels"]) == "만 원"


@pytest.mark.parametrize("kind", KINDS)
def test_rows_that_are_encoded_together_are_those_encoded_alone(kind: Kind, bases: dict[str, Path]) -> None:
    """Their own BOS and EOS are no commands, those in a cell are."""
    prompt = prompt_of(bases[kind])
    bad = [("a</s>", "", "b"), ("a", "", "b</s>")] + ([("a", "", "<s>b")] if kind == "bart" else [])
    found = list(in_batches.encode(prompt, [*ROWS, *bad]))
    alone = [prompt.encode(*row) for row in ROWS]
    assert found[: len(ROWS)] == [(row.input_ids, row.prompt_tokens) for row in alone]
    assert all(isinstance(one, DataError) for one in found[len(ROWS) :])


def test_a_tokenizer_of_t5s_own_class_is_saved_as_it_was_read(tmp_path: Path) -> None:
    """transformers rebuilds that class by rules of its own, not by the file; what is released does not name it."""
    base, saved = t5_files(tmp_path / "t5"), tmp_path / "saved"
    prompt = prompt_format.from_transformers("source", tokenizer.load(base))
    saved.mkdir()
    tokenizer_files.write(saved, base, prompt)
    words = AutoTokenizer.from_pretrained(saved)
    asked = words.apply_chat_template(user_message("가격은?"), add_generation_prompt=True, return_dict=True)
    assert asked["input_ids"] == words("가격은?")["input_ids"] == prompt.prompt_ids(user_message("가격은?"))
    assert asked["input_ids"][-1] == words.eos_token_id == 1
    assert prompt_format.from_folder("source", base).prompt_ids(user_message("가격은?")) == asked["input_ids"]
    with pytest.raises(DataError, match="'<extra_id_0>', which would be read as a command"):
        prompt.encode("What is <extra_id_0>?", "", "a shop")


@pytest.mark.parametrize("kind", KINDS)
def test_padding_is_neither_seen_nor_trained(kind: Kind, bases: dict[str, Path]) -> None:
    prompt, rows = prompt_of(bases[kind]), [prompt_of(bases[kind]).encode(*row) for row in ROWS]
    batch = batch_of(prompt)
    lengths = [row.prompt_tokens for row in rows], [len(row) - row.prompt_tokens for row in rows]
    assert batch["attention_mask"].sum(1).tolist() == lengths[0]
    assert (batch["labels"] != IGNORED).sum(1).tolist() == lengths[1]
    assert seq2seq.TASK.trained(batch["labels"]) == sum(lengths[1])
    assert seq2seq.TASK.computed(batch) == 3 * (max(lengths[0]) + max(lengths[1]))


@pytest.mark.parametrize("kind", KINDS)
def test_the_loss_is_the_models_own_and_padding_changes_nothing(kind: Kind, bases: dict[str, Path]) -> None:
    prompt, model = prompt_of(bases[kind]), loaded(bases[kind])
    with torch.no_grad():
        logits, wanted = seq2seq.TASK.predicted(model, batch_of(prompt))
        theirs = model(**batch_of(prompt)).loss
        alone = [seq2seq.TASK.predicted(model, batch_of(prompt, [row]))[0] for row in ROWS]
    assert torch.nn.functional.cross_entropy(logits, wanted).item() == pytest.approx(theirs.item(), rel=1e-5)
    assert torch.allclose(torch.cat(alone), logits, atol=1e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_what_the_proof_compares_is_what_training_computes(kind: Kind, bases: dict[str, Path]) -> None:
    prompt, model = prompt_of(bases[kind]), loaded(bases[kind])
    row = prompt.encode(*ROWS[1])
    question, answer = row.input_ids[: row.prompt_tokens], row.input_ids[row.prompt_tokens :]
    with torch.no_grad():
        logits, _ = seq2seq.TASK.predicted(model, batch_of(prompt, [ROWS[1]]))
        compared = seq2seq.TASK.answer_logits(model, question, answer, [0, len(answer) - 1])
    assert torch.allclose(compared, logits[[0, -1]], atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_an_answer_does_not_depend_on_what_shares_its_batch(kind: Kind, bases: dict[str, Path]) -> None:
    prompt, model = prompt_of(bases[kind]), loaded(bases[kind])
    prompts = [prompt.prompt_ids(user_message(*row[:2])) for row in ROWS]
    together = generate.answer(model, prompt, prompts, max_new_tokens=6, task=seq2seq.TASK)
    alone = [generate.answer(model, prompt, [one], max_new_tokens=6, task=seq2seq.TASK)[0] for one in prompts]
    assert together == alone
    assert all(1 <= len(one.ids) <= 6 for one in together)
    plain = model.generate(torch.tensor([prompts[0]]), max_new_tokens=6, do_sample=False)[0, 1:].tolist()
    assert plain[: len(together[0].ids)] == list(together[0].ids)


@pytest.mark.parametrize("spoilt", ["no EOS", "padding", "two EOS", "seen padding"])
def test_rows_that_would_not_teach_to_stop_are_named(spoilt: str, bases: dict[str, Path]) -> None:
    prompt = prompt_of(bases["t5"])
    rows = [seq2seq.TASK.features(prompt.encode(*row)) for row in ROWS]

    def collate(some: list[Any]) -> dict[str, torch.Tensor]:
        batch = seq2seq.TASK.collate(some, pad_token_id=prompt.pad_token_id)
        if spoilt == "no EOS":
            batch["labels"][batch["labels"] == prompt.eos_token_id] = IGNORED
        elif spoilt == "padding":
            batch["labels"][batch["labels"] == IGNORED] = prompt.pad_token_id
        elif spoilt == "two EOS":
            batch["labels"][:, 0] = prompt.eos_token_id
        else:
            batch["attention_mask"][:] = 1
        return batch

    found, broken = stop_check.stops(rows, collate, prompt, continues=False)
    failed = {gate.name for gate in found if not gate.passed}
    expected = {"no EOS": "eos_is_the_last_label", "two EOS": "eos_is_trained_once"}
    assert expected.get(spoilt, "padding_is_not_trained") in failed
    assert broken
    whole = stop_check.stops(rows, lambda some: seq2seq.TASK.collate(some, pad_token_id=0), prompt, continues=False)
    assert [gate.name for gate in whole[0] if not gate.passed] == []


def test_an_encoder_reads_one_question() -> None:
    template = prompt_format.chat_template("source")
    turns = [*user_message("a"), {"role": "assistant", "content": "b"}, *user_message("c")]
    with pytest.raises(DataError, match="an encoder reads one question, without earlier turns"):
        prompt_format.render(template, turns, eos_token="</s>")
    assert prompt_format.render(template, [{"role": "system", "content": "S"}, *user_message("a")]) == "S\na"


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        (["prompt=alpaca"], ["prompt: alpaca is not a format for an encoder-decoder", "--set prompt=source"]),
        (["train.loss_on=all"], ["train.loss_on: ", "--set train.loss_on=answer"]),
        (["model.load_in_4bit=true"], ["model.load_in_4bit: ", "--set model.load_in_4bit=false"]),
        (
            ["publish.gguf=[q8_0]"],
            ["publish.gguf: GGUF files are made of models that continue text", "publish.gguf=[]"],
        ),
        (["engine=unsloth"], ["Unsloth has no code for encoder-decoders", "--set engine=transformers"]),
        (["task=causal"], ["source is not a format for a causal language model", "--set prompt="]),
    ],
)
def test_what_does_not_fit_is_refused_before_anything_is_read(
    settings: list[str], named: list[str], tmp_path: Path
) -> None:
    resolved = resolve.load("seq2seq-instruct", overrides=settings, environ={})
    with pytest.raises(RecipeError) as raised:
        pipeline_run.run(resolved, RunDir(tmp_path / "run"), tmp_path / "cache", until="check")
    said = f"{raised.value}; {raised.value.hint}"
    assert all(one in said for one in named), said


def test_a_base_of_another_kind_is_refused_with_the_task_that_it_fits() -> None:
    t5 = {"model_type": "t5", "is_encoder_decoder": True, "architectures": ["T5ForConditionalGeneration"]}
    llama = {"model_type": "llama", "architectures": ["LlamaForCausalLM"]}
    tunable.refuse_config(t5, "org/t5", {}, seq2seq.TASK)
    for config, task, other in ((t5, causal.TASK, "seq2seq"), (llama, seq2seq.TASK, "causal")):
        with pytest.raises(EnvironmentUnavailable, match=f"is not {task.kind}: ") as raised:
            tunable.refuse_config(config, "org/base", {}, task)
        assert f"or set task={other} for this one" in raised.value.hint
        assert task.example in raised.value.hint
