"""The model cards: what people and the Hub read of a release."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

from appliance.process import files
from appliance.release import card, card_facts, dataset_card, languages, usage_snippets
from appliance.release.card_facts import Facts
from appliance.rundir import chosen
from appliance.rundir.directory import RunDir
from appliance.tasks import causal
from tests.helpers.finished import FinishedRun, finished_run
from tests.helpers.models import tiny_adapter
from tests.rundir.test_chosen import CHOSEN


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, base_dir: Path) -> FinishedRun:
    return finished_run(tmp_path_factory.mktemp("card") / "shop", base_dir)


def facts(run: FinishedRun, **changes: Any) -> Facts:
    wanted: dict[str, Any] = {
        "repos": {"model": "me/shop", "adapter": "me/shop-adapter", "dataset": "me/shop-dataset"},
        "stop": ["\n질문:", 'a "quote"'],
        "max_new_tokens": 64,
        "examples": True,
    }
    wanted |= {"name": "shop", "base": run.base, "prompt_name": "alpaca", "run_path": run.path, "task": causal.TASK}
    return card_facts.gather(**wanted | changes)


def front(text: str) -> dict[str, Any]:
    return dict(yaml.safe_load(text.split("---\n")[1]))


def test_a_text_with_backticks_stays_one_piece_of_code() -> None:
    assert card._code("a|b") == "`a|b`"
    assert card._code("run `x` or ``y``") == "``` run `x` or ``y`` ```"


def test_what_the_hub_reads(run: FinishedRun) -> None:
    on_hub = replace(run.base, public_id="maker/base", revision="0123abc")
    matter = front(card.model_card(facts(run, base=on_hub)))
    assert (matter["base_model"], matter["base_model_relation"]) == ("maker/base", "finetune")
    assert matter["license"] == (run.base.license or "unknown")
    assert matter["language"] == ["ko"]
    assert matter["library_name"] == "transformers"
    (result,) = matter["model-index"][0]["results"]
    metrics = files.read_json(run.path / "evaluate" / "metrics.json")
    assert {one["type"]: one["value"] for one in result["metrics"]}["f1"] == round(metrics["tuned"]["f1"], 4)
    assert result["dataset"]["split"] == "test"
    adapter = card.adapter_card(facts(run, base=on_hub))
    assert (front(adapter)["base_model"], front(adapter)["base_model_relation"]) == ("maker/base", "adapter")
    assert 'from_pretrained("maker/base", revision="0123abc", ' in adapter


@pytest.mark.parametrize("write", [card.model_card, card.adapter_card])
def test_a_base_that_is_on_no_hub_is_not_linked(write: Callable[[Facts], str], run: FinishedRun) -> None:
    """The Hub refuses metadata with a name that cannot be a repository, and a name of somebody else's would mislead."""
    text = write(facts(run))
    assert not {"base_model", "base_model_relation"} & set(front(text))
    assert f"Base model: {run.base.public_id} (a local folder, not named on the Hub)" in text
    assert f'from_pretrained("{run.base.public_id}"' not in text


def test_versions_that_load_the_release_are_named(run: FinishedRun, tmp_path: Path) -> None:
    """An adapter loads with what reads its base: transformers 4 would misread one that states its rope in 5's words."""
    both = "Loads with transformers 4.57.3 (peft 0.18.0) and transformers 5.17.0 (peft 0.21.2)."
    newer = run.base.config
    assert "rope_parameters" in newer
    older = {key: value for key, value in newer.items() if key != "rope_parameters"} | {"rope_theta": 10000.0}
    for config, of_adapter in ((older, both), (newer, "Loads with transformers 5.17.0 (peft 0.21.2).")):
        files.write_json(tmp_path / "config.json", config)
        known = facts(run, base=replace(run.base, dir=tmp_path))
        assert both in card.model_card(known)
        assert of_adapter in card.adapter_card(known)


def rows_card(*more: str, torn: int = 0) -> str:
    files = ("train.csv", "val.csv", "test.csv", "rows.csv", *more)
    return dataset_card.text("shop", {"train": 12, "val": 3, "test": 5}, "me/shop-dataset", files, torn)


def test_the_card_of_the_rows() -> None:
    text = rows_card()
    (config,) = front(text)["configs"]
    assert config["data_files"] == [
        {"split": "train", "path": "train.csv"},
        {"split": "validation", "path": "val.csv"},
        {"split": "test", "path": "test.csv"},
    ]
    assert 'load_dataset("me/shop-dataset")' in text
    settings = "`--set data.csv=hf://datasets/me/shop-dataset/rows.csv --set data.split=column`"
    (line,) = [line for line in text.splitlines() if settings in line]
    assert "trains with the same split" in line
    assert "(12 train)" in text
    assert "train_ds.csv" not in text
    assert "`train_ds.csv` has the train and validation rows" in rows_card("train_ds.csv", "test_ds.csv")
    assert f"7 questions are on two sides, so {settings} refuses it." in rows_card(torn=7)


def test_what_people_copy(run: FinishedRun) -> None:
    text = card.model_card(facts(run))
    assert 'from_pretrained("me/shop")' in text
    assert "max_new_tokens=64" in text
    assert "vllm serve me/shop" in text
    assert "text-generation-launcher --model-id me/shop" in text
    assert text.count('{"model": "me/shop", "messages": [{"role": "user", "content": "…"}], "temperature": 0}') == 2
    assert [f"With {name} (not tried with this release)" in text for name in ("vLLM", "TGI", "Ollama")] == [True] * 3
    assert "FROM ./model" in text
    # the newline behind the marker was trained: without it the prompt is another
    assert '### Instruction:\n{{ .Prompt }}\n\n### Response:\n"""' in text
    assert 'PARAMETER stop "</s>"' in text
    assert 'ollama run my-model "…"' in text  # one question: its interactive session sends earlier turns
    assert "Send every question alone" in text
    assert "Send every question alone" in card.adapter_card(facts(run))
    chats = replace(facts(run), counts=facts(run).counts | {"train_rows_with_turns": 9, "train": 60})
    text = card.model_card(chats)
    assert "9 of 60 train rows hold earlier turns" in text
    assert "User: …\n\nAssistant: …\n\nUser: …\n" in text
    assert "Send every question alone" not in text
    assert 'PARAMETER stop "\\n질문:"' in text
    assert 'PARAMETER stop "a \\"quote\\""' in text
    assert "FOLDER_OR_REPO" not in text
    adapter = card.adapter_card(facts(run))
    assert 'PeftModel.from_pretrained(base, "me/shop-adapter")' in adapter
    assert 'convert_tokens_to_ids("</s>")' in adapter
    assert "FOLDER_OR_REPO" in card.model_card(facts(run, repos={}))


def test_a_sweep_that_chose_the_settings_is_told_and_not_what_it_cost(run: FinishedRun) -> None:
    assert "## Settings" not in card.model_card(facts(run))
    record = RunDir(run.path).record("train")
    assert record
    chosen.write(run.path, replace(CHOSEN, trained=record.fingerprint))
    try:
        texts = card.model_card(facts(run)), card.adapter_card(facts(run))
    finally:
        chosen.remove(run.path)
    lines = [
        "## Settings",
        "",
        "Chosen among 3 settings by the lowest val loss; the test rows were looked at once, afterwards, with these "
        "settings alone.",
        "",
        "| trial | settings | val loss | steps | ended |",
        "| --- | --- | --- | --- | --- |",
        "| 2-r-16 | r 16, learning_rate 0.0002 | 1.2500 | 100 | ran to its end |",
        "| 1-r-8 | r 8, learning_rate 0.0002 | 1.5200 | 90 | stopped early |",
        "| 3-r-32 | r 32, target_modules q v | – | – | failed \\| 메모리 |",
    ]
    assert all("\n".join(["", *lines, ""]) in text for text in texts)


def test_what_it_was_made_from(run: FinishedRun) -> None:
    text = card.model_card(facts(run))
    for side in ("train", "val", "test"):
        assert f"{side}: sha256 {files.sha256_of(run.path / 'prepare' / f'{side}.csv')}" in text
    metrics = files.read_json(run.path / "evaluate" / "metrics.json")
    assert f"Verdict: **{metrics['verdict']}** (the test rows hold only 5 different questions (or groups); " in text
    assert "-10.0 to +20.0 points (95 % interval, 5 groups of equal questions)" in text
    assert "Answers on test rows" in text
    assert "Answers on test rows" not in card.model_card(facts(run, examples=False))


def test_a_verdict_of_an_earlier_version_has_no_groups(run: FinishedRun) -> None:
    metrics = files.read_json(run.path / "evaluate" / "metrics.json")
    earlier = {key: value for key, value in metrics.items() if key not in ("groups", "reason")}
    text = card.model_card(replace(facts(run), metrics=earlier))
    assert "Verdict: **not proven**. " in text
    assert "(95 % interval)" in text
    assert "cut to" not in text
    assert "3 long answers were cut to the length" in card.model_card(
        replace(facts(run), metrics={**metrics, "cut_rows": 3})
    )


def test_every_way_of_asking_the_base_is_a_column_and_the_verdict_names_the_best(run: FinishedRun) -> None:
    seen = facts(run)
    assert "Verdict: **not proven** (" in card.model_card(seen)  # a run that asked in one way names none
    few = seen.metrics["base"] | {"exact_match": 0.25, "loss": None}
    ways = {
        "base_asked": "examples",
        "base_examples": [3, 4],
        "bases": {"prompt": seen.metrics["base"], "examples": few},
    }
    metrics = seen.metrics | ways | {"base": few | {"loss": 0.5}, "verdict": "better", "reason": ""}
    text = card.model_card(replace(seen, metrics=metrics))
    header = "|  | base with up to 4 examples in its prompt | base with the same prompt | tuned |"
    assert f"{header}\n| --- | --- | --- | --- |\n" in text
    assert "| exact match | 25.0% | 50.0% | 50.0% |" in text
    assert "| loss in the trained prompt (nats per answer token) | 0.5000 | 0.5000 | 0.5000 |" in text
    assert "Verdict: **better than the base with up to 4 examples in its prompt**." in text


def test_cautions_stand_beside_the_verdict(run: FinishedRun) -> None:
    path = run.path / "evaluate" / "metrics.json"
    before = path.read_text(encoding="utf-8")
    metrics = files.read_json(path)
    row = {"row": 17, "wanted": "29층 | 가구", "got": "19층"}
    caution = {"name": "wrong_facts", "sentence": "3 of the 4 answers have a wrong number", "rows": [row]}
    for who in ("base", "tuned"):
        metrics[who]["facts_right"] = 0.25
    assert "facts right" not in card.model_card(facts(run))  # of a version that compared none
    try:
        files.write_json(path, metrics | {"verdict": "better", "rows_with_facts": 4, "cautions": [caution]})
        text = card.model_card(facts(run))
        assert "Verdict: **better, with 1 caution**" in text
        assert "> **Caution:** 3 of the 4 answers have a wrong number." in text
        assert "| 17 | 29층 \\| 가구 | 19층 |" in text
        assert "| facts right | 25.0% | 25.0% |" in text
        assert "of 4 of the 5 rows hold numbers" in text
        shown = {one["type"]: one["value"] for one in front(text)["model-index"][0]["results"][0]["metrics"]}
        assert shown["facts_right"] == 0.25
        without_rows = card.model_card(facts(run, examples=False))
        assert "3 of the 4 answers have a wrong number" in without_rows
        assert "29층" not in without_rows
    finally:
        path.write_text(before, encoding="utf-8")


def test_languages_are_what_a_tenth_of_the_rows_agree_on() -> None:
    korean = ["배송은 얼마나 걸리나요? 사흘 걸립니다"] * 8
    english = ["Where is my parcel now, please tell me"] * 3
    assert languages.of_texts(korean + english + ["ㅋㅋ"]) == ["ko", "en"]
    assert languages.of_texts(["ok", "1234", ""]) == []


def test_the_adapters_snippet_decodes_as_evaluation_did(base_dir: Path, tmp_path: Path) -> None:
    """A base that suppresses its EOS and samples: after the snippet's own lines neither is left."""
    adapter = tiny_adapter(tmp_path / "adapter", base_dir)
    base = AutoModelForCausalLM.from_pretrained(base_dir, dtype=torch.float32)
    base.generation_config.update(suppress_tokens=[2], min_new_tokens=4, do_sample=True, temperature=0.1)
    names = {"model": PeftModel.from_pretrained(base, adapter), "tokenizer": AutoTokenizer.from_pretrained(adapter)}
    lines = usage_snippets.with_peft("org/base", None, "me/adapter", "</s>").splitlines()
    begin = next(i for i, line in enumerate(lines) if line.startswith("eos ="))
    exec("from transformers import GenerationConfig\n" + "\n".join(lines[begin:-1]), names)

    asked = torch.tensor([[1, 9]])
    names["model"].generate(input_ids=asked, attention_mask=torch.ones_like(asked), max_new_tokens=2)

    used = base.generation_config
    assert (used.suppress_tokens, used.min_new_tokens, used.do_sample, used.temperature) == (None, None, None, None)
    assert (used.eos_token_id, used.pad_token_id) == (2, 0)
