"""An encoder-decoder from a CSV to a release that plain transformers loads; interrupted, resumed, replayed, asked."""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file

from appliance.errors import RecipeError
from appliance.pipeline import export
from appliance.pipeline import run as pipeline_run
from appliance.process import files
from appliance.recipe import resolve
from appliance.release import replay
from appliance.rundir import results
from appliance.rundir.directory import RunDir
from appliance.serving import loaded_model
from appliance.serving.conversation import Conversation
from tests.conftest import read_csv, write_qa
from tests.helpers import plain_process
from tests.helpers.encoder_decoders import Kind, tiny_encoder_decoder
from tests.helpers.stopped import stopped_at

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("warm")]

FRUITS = ["사과", "배", "감", "귤", "밤"]
STEPS, STOPPED_AT = 24, 10


def begin(folder: Path, kind: Kind, **settings: str) -> Any:
    """The recipe as shipped, on a tiny base and forty rows."""
    if not (folder / "base").is_dir():
        base = tiny_encoder_decoder(folder / "base", kind)
        as_published(base, kind)
        write_qa(folder / "train.csv", [(f"{FRUITS[i % 5]} {i}?", f"{FRUITS[i % 5]}!") for i in range(60)])
    small = {
        "model.id": str(folder / "base"),
        "data.csv": str(folder / "train.csv"),
        "data.test_fraction": "0.25",
        "train.max_steps": str(STEPS),
        "train.batch_size": "8",
        "train.micro_batch_size": "4",
        "train.eval_every": "8",
        "train.warmup_steps": "0",
        "train.learning_rate": "1e-2",
        "evaluate.max_new_tokens": "12",
        "publish.min_stop_rate": "0",
    }
    overrides = [f"{key}={value}" for key, value in {**small, **settings}.items()]
    return resolve.load("seq2seq-instruct", overrides=overrides, environ={})


def as_published(base: Path, kind: Kind) -> None:
    """As on the Hub: T5 with copies of its embeddings under all their names, BART as KoBART, saved without a head."""
    path = base / "model.safetensors"
    weights = load_file(path)
    if kind == "t5":
        copies = ("encoder.embed_tokens.weight", "decoder.embed_tokens.weight", "lm_head.weight")
        weights |= {name: weights["shared.weight"].clone() for name in copies}
    elif kind == "bart":
        weights = {n.removeprefix("model."): w for n, w in weights.items() if n.startswith("model.")}
        config = files.read_json(base / "config.json")
        files.write_json(base / "config.json", config | {"architectures": ["BartModel"]})
    save_file(weights, path, metadata={"format": "pt"})


def finish(folder: Path, resolved: Any, **how: Any) -> Path:
    run = folder / "runs" / "shop"
    pipeline_run.run(resolved, RunDir(run), folder / "cache", even_if_worse=True, **how)
    return run


@pytest.fixture(scope="module")
def t5(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a finished run, a LoRA."""
    folder = tmp_path_factory.mktemp("t5")
    finish(folder, begin(folder, "t5"))
    return folder


def losses(run: Path) -> list[float]:
    return [line["loss"] for line in results.read_metrics(run / "train" / "metrics.jsonl") if "loss" in line]


def answered_plainly(release: Path, questions: list[str]) -> list[str]:
    """By a process that knows transformers alone, with the code of the card's kind."""
    code = (
        "import json, sys, torch\n"
        "from transformers import AutoModelForSeq2SeqLM, AutoTokenizer\n"
        "tokenizer = AutoTokenizer.from_pretrained(sys.argv[1])\n"
        "model = AutoModelForSeq2SeqLM.from_pretrained(sys.argv[1], dtype=torch.float32).eval()\n"
        "said = []\n"
        "for question in json.load(sys.stdin):\n"
        "    messages = [{'role': 'user', 'content': question}]\n"
        "    inputs = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_tensors='pt',\n"
        "                                           return_dict=True)\n"
        "    assert inputs['input_ids'].tolist()[0] == tokenizer(question)['input_ids']\n"
        "    ids = model.generate(**inputs, max_new_tokens=12)[0]\n"
        "    said.append(tokenizer.decode(ids, skip_special_tokens=True).strip())\n"
        "assert 'appliance' not in sys.modules\n"
        "print(json.dumps(said))\n"
    )
    return list(plain_process.printed(code, questions, str(release)))


def test_the_release_answers_as_was_evaluated_without_anything_of_ours(t5: Path) -> None:
    run = t5 / "runs" / "shop"
    rows = read_csv(run / "evaluate" / "predictions.csv")
    said = answered_plainly(run / "publish" / "release" / "model", [row["question"] for row in rows])
    same = sum(text == row["tuned"] for text, row in zip(said, rows, strict=True))
    assert same >= 0.8 * len(rows)  # bfloat16 may flip a near-tie of so small a model
    assert any(said)
    figures = files.read_json(run / "evaluate" / "metrics.json")
    assert figures["tuned"]["loss"] < 0.7 * figures["base"]["loss"]
    assert files.read_json(run / "merge" / "proof.json")["passed"]
    assert set(figures["bases_left_out"]) == {"chat", "examples"}
    assert "without earlier turns" in figures["bases_left_out"]["examples"]


def test_what_was_released_says_how_to_load_it(t5: Path) -> None:
    run = t5 / "runs" / "shop"
    for part in ("model", "adapter"):
        card = (run / "publish" / "release" / part / "README.md").read_text(encoding="utf-8")
        assert "AutoModelForSeq2SeqLM" in card
        assert "pipeline_tag: text2text-generation" in card
        assert re.search(r"Loads with transformers 4\S* .* and transformers 5\.", card)
        assert "vllm" not in card.lower()
        assert "ollama" not in card.lower()
    page = (run / "report.html").read_text(encoding="utf-8")
    assert "AutoModelForSeq2SeqLM" in page
    assert "vllm serve" not in page
    settings = files.read_json(run / "publish" / "release" / "model" / "generation_config.json")
    assert settings["decoder_start_token_id"] == 0
    adapter = files.read_json(run / "publish" / "release" / "adapter" / "adapter_config.json")
    assert adapter["task_type"] == "SEQ_2_SEQ_LM"


def test_its_card_code_for_the_adapter_runs(t5: Path) -> None:
    run = t5 / "runs" / "shop"
    card = (run / "publish" / "release" / "adapter" / "README.md").read_text(encoding="utf-8")
    code = card.split("```python\n")[1].split("```")[0]
    code = code.replace("FOLDER_OF_THE_BASE_MODEL", str(t5 / "base"))
    code = code.replace("FOLDER_OR_REPO", str(run / "publish" / "release" / "adapter"))
    ask = "model.generate(**tokenizer('사과 1?', return_tensors='pt').to(model.device), max_new_tokens=4)"
    assert plain_process.printed(f"{code}\nprint(len({ask}))", None) == 1


def test_replay_finds_nothing_changed_and_it_can_be_asked(t5: Path) -> None:
    run = t5 / "runs" / "shop"
    found = replay.replay_findings(run, t5 / "cache")
    assert [one for one in found if one.verdict == "fails"] == []
    rows = read_csv(run / "evaluate" / "predictions.csv")
    model = loaded_model.load(run, max_new_tokens=None, temperature=None)
    said = [Conversation(model).say(row["question"]).answer for row in rows]
    evaluated = [row["tuned"].rstrip("\ufffd") for row in rows]  # of a chat, no half character is shown
    assert sum(text == other for text, other in zip(said, evaluated, strict=True)) >= 0.8 * len(rows)


def test_gguf_is_refused_with_the_reason(t5: Path) -> None:
    with pytest.raises(RecipeError, match="an encoder-decoder; GGUF files are made of models that continue text"):
        export.by_name(t5 / "runs" / "shop", ["q8_0"])


def test_a_resumed_training_is_the_uninterrupted_one(t5: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "again"
    folder.mkdir()
    for name in ("base", "train.csv"):
        (shutil.copytree if name == "base" else shutil.copy)(t5 / name, folder / name)  # type: ignore[operator]
    resolved = begin(folder, "t5")
    items: list[int] = []
    with stopped_at(STOPPED_AT, monkeypatch, lambda _, *args: items.append(int(args[2]))):
        finish(folder, resolved, until="train")
    counted = [
        line["trained_tokens"]
        for line in results.read_metrics(folder / "runs/shop/train/metrics.jsonl")
        if "loss" in line
    ]
    assert items == [tokens for tokens in counted for _ in range(2)]  # each micro batch is divided by its step's labels
    run = finish(folder, resolved, until="train")
    whole = t5 / "runs" / "shop"
    assert len(losses(run)) == STEPS
    assert losses(run) == losses(whole)
    name = "train/adapter/adapter_model.safetensors"
    assert files.sha256_of(run / name) == files.sha256_of(whole / name)


def test_every_weight_of_a_bart_is_trained_and_its_answers_begin_with_bos(tmp_path: Path) -> None:
    settings = {"tuning.method": "full", "tuning.r": "16", "tuning.alpha": "32", "train.learning_rate": "3e-3"}
    run = finish(tmp_path, begin(tmp_path, "bart", **settings))
    rows = read_csv(run / "evaluate" / "predictions.csv")
    said = answered_plainly(run / "publish" / "release" / "model", [row["question"] for row in rows])
    assert sum(text == row["tuned"] for text, row in zip(said, rows, strict=True)) >= 0.8 * len(rows)
    asked = files.read_json(run / "evaluate" / "proof_rows.json")
    assert {row["input_ids"][row["prompt_tokens"]] for row in asked} == {1}
    assert {row["input_ids"][0] for row in asked} == {1}
    figures = files.read_json(run / "evaluate" / "metrics.json")
    assert figures["tuned"]["exact_match"] > figures["base"]["exact_match"]
    assert files.read_json(run / "train" / "fit.json")["moved"]["trained"] > 0.5
