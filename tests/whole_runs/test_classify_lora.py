"""A classifier of an encoder with a LoRA and a head trained as a whole, from a CSV to both parts of a release."""

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
from tests.helpers.classifiers import tiny_encoder
from tests.helpers.stopped import stopped_at
from tests.whole_runs.test_classify import STOPPED_AT, begin, by_plain_pipeline, finish, write_labelled

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("warm")]

LORA = {"tuning.method": "lora", "train.learning_rate": "1e-2"}
HEAD = ("classifier.dense.weight", "classifier.dense.bias", "classifier.out_proj.weight", "classifier.out_proj.bias")


@pytest.fixture(scope="module")
def lora(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a finished run, of a RoBERTa with WordPiece (klue/roberta-base), rehearsed before."""
    folder = tmp_path_factory.mktemp("lora")
    tiny_encoder(folder / "base", "klue-roberta")
    write_labelled(folder / "train.csv")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(proof, "subprocess", warm)
        finish(folder, begin(folder, **LORA, rehearse="always"))
    return folder


def test_the_merged_model_and_the_adapter_give_the_evaluated_labels_without_anything_of_ours(lora: Path) -> None:
    run = lora / "runs" / "shop"
    rows = read_csv(run / "evaluate" / "predictions.csv")
    texts, wanted = [row["question"] for row in rows], [row["tuned"] for row in rows]
    assert by_plain_pipeline(run / "publish/release/model", texts) == wanted
    adapter = run / "publish" / "release" / "adapter"
    code = (adapter / "README.md").read_text(encoding="utf-8").split("```python\n")[1].split("```")[0]
    code = code.replace("FOLDER_OF_THE_BASE_MODEL", str(lora / "base")).replace("FOLDER_OR_REPO", str(adapter))
    code += "import json, sys\nassert 'appliance' not in sys.modules\n"
    code += "print(json.dumps([one['label'] for one in classify(json.load(sys.stdin))]))\n"
    assert plain_process.printed(code, texts) == wanted
    assert files.read_json(run / "evaluate" / "metrics.json")["tuned"]["accuracy"] >= 0.9


def test_the_head_is_the_best_checkpoints_in_the_adapter_and_that_rounded_in_the_merged_model(lora: Path) -> None:
    run = lora / "runs" / "shop"
    merged = whole_heads.merged_with_head(run, HEAD)
    base = load_file(lora / "base" / "model.safetensors")
    assert torch.equal(
        merged["roberta.embeddings.word_embeddings.weight"],
        base["roberta.embeddings.word_embeddings.weight"].bfloat16(),
    )
    assert not any("lm_head" in name for name in merged)
    config = files.read_json(run / "train" / "adapter" / "config.json")
    assert config["id2label"] == {"0": "기쁨", "1": "슬픔", "2": "중립"}
    assert files.read_json(run / "merge" / "proof.json")["passed"]


def test_replay_finds_nothing_changed(lora: Path) -> None:
    found = replay.replay_findings(lora / "runs" / "shop", lora / "cache")
    assert [one for one in found if one.verdict == "fails"] == []


def test_a_resumed_training_has_the_head_of_the_uninterrupted_one(
    lora: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(lora / "base", tmp_path / "base")
    shutil.copy(lora / "train.csv", tmp_path)
    resolved = begin(tmp_path, **LORA)
    with stopped_at(STOPPED_AT, monkeypatch):
        finish(tmp_path, resolved, until="train")
    resumed, whole = finish(tmp_path, resolved, until="train"), lora / "runs" / "shop"
    name = "train/adapter/adapter_model.safetensors"
    assert files.sha256_of(resumed / name) == files.sha256_of(whole / name)
