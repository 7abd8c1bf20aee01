"""A reader of texts with a LoRA and a head trained as a whole, from a CSV to both parts of a release."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from appliance.process import files
from appliance.release import replay
from appliance.weights import proof
from tests.conftest import read_csv
from tests.helpers import plain_process, warm, whole_heads
from tests.helpers.stopped import stopped_at
from tests.whole_runs.test_extract import begin, finish

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("warm")]

STOPPED_AT = 23
LORA = {"tuning.method": "lora", "train.learning_rate": "1e-2", "train.max_steps": "60"}
HEAD = ("qa_outputs.weight", "qa_outputs.bias")


@pytest.fixture(scope="module")
def lora(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a finished run, of a BERT, which has types of tokens; rehearsed before."""
    folder = tmp_path_factory.mktemp("lora")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(proof, "subprocess", warm)
        finish(folder, begin(folder, **LORA, rehearse="always"))
    return folder


def test_the_cards_of_model_and_adapter_give_the_evaluated_answers_without_anything_of_ours(lora: Path) -> None:
    release = lora / "runs" / "reader" / "publish" / "release"
    rows = read_csv(lora / "runs/reader/evaluate/predictions.csv")
    prepared = {row["row"]: row for row in read_csv(lora / "runs/reader/prepare/test.csv")}
    asked = [(prepared[row["row"]]["instruction"], prepared[row["row"]]["input"]) for row in rows]
    code = "import json, sys\nasked, given = json.load(sys.stdin), []\n"
    for part in ("model", "adapter"):
        card = (release / part / "README.md").read_text(encoding="utf-8")
        shown = card.split("```python\n")[1].split("```")[0].replace("FOLDER_OR_REPO", str(release / part))
        code += shown.replace("FOLDER_OF_THE_BASE_MODEL", str(lora / "base"))
        code += "given.append([answers(q, c)[0][0] for q, c in asked])\n"
    code += "assert 'appliance' not in sys.modules\nprint(json.dumps(given))\n"
    wanted = [row["tuned"] for row in rows]
    of_model, of_adapter = plain_process.printed(code, asked)
    assert of_adapter == wanted
    assert of_model == wanted
    figures = files.read_json(lora / "runs/reader/evaluate/metrics.json")
    assert figures["tuned"]["exact_match"] > max(one["exact_match"] for one in figures["bases"].values())


def test_the_head_is_the_best_checkpoints_in_the_adapter_and_that_rounded_in_the_merged_model(lora: Path) -> None:
    run = lora / "runs" / "reader"
    merged = whole_heads.merged_with_head(run, HEAD)
    name = "bert.embeddings.word_embeddings.weight"
    assert torch.equal(merged[name], load_file(lora / "base" / "model.safetensors")[name].bfloat16())
    assert not any(name.startswith("cls.") for name in merged)
    assert files.read_json(run / "train" / "adapter" / "config.json")["architectures"] == ["BertForQuestionAnswering"]
    assert files.read_json(run / "train" / "adapter" / "adapter_config.json")["modules_to_save"] == ["qa_outputs"]
    assert files.read_json(run / "merge" / "proof.json")["passed"]


def test_replay_finds_nothing_changed(lora: Path) -> None:
    found = replay.replay_findings(lora / "runs" / "reader", lora / "cache")
    assert [one for one in found if one.verdict == "fails"] == []


def test_a_resumed_training_has_the_adapter_of_the_uninterrupted_one(
    lora: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(lora / "base", tmp_path / "base")
    shutil.copy(lora / "train.csv", tmp_path)
    resolved = begin(tmp_path, **LORA)
    with stopped_at(STOPPED_AT, monkeypatch):
        finish(tmp_path, resolved, until="train")
    resumed, whole = finish(tmp_path, resolved, until="train"), lora / "runs" / "reader"
    for name in ("adapter_model.safetensors", "adapter_config.json", "config.json"):
        assert files.sha256_of(resumed / "train/adapter" / name) == files.sha256_of(whole / "train/adapter" / name)
