"""A base that never trained its tokenizer's EOS: from the check to the release, its answers learn to stop."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from appliance.pipeline import run as pipeline_run
from appliance.recipe import resolve
from appliance.rundir.directory import RunDir
from appliance.weights import proof
from tests.conftest import read_csv, write_qa
from tests.helpers import warm as helpers_warm
from tests.helpers.models import untrained_eos_base

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("warm")]
EOS = 2  # tests/helpers/models.py


def run(folder: Path, base: Path, *overrides: str, until: str = "publish") -> Path:
    csv = write_qa(folder / "train.csv", [(f"{'가나다라마'[i % 5]} {i}?", "네!") for i in range(60)])
    recipe = folder / "shop.yaml"
    recipe.write_text(
        f"""name: shop
engine: transformers
model: {{id: {base}, load_in_4bit: false}}
data: {{csv: {csv}, test_fraction: 0.2}}
tuning: {{r: 4, alpha: 8}}
train: {{max_steps: 24, micro_batch_size: 8, gradient_accumulation_steps: 1, learning_rate: 1e-2,
         optimizer: adamw_torch, eval_every: 8}}
evaluate: {{max_new_tokens: 16}}
publish: {{require_improvement: false}}
""",
        encoding="utf-8",
    )
    resolved = resolve.load(str(recipe), overrides=overrides, environ={})
    pipeline_run.run(resolved, RunDir(folder / "run"), folder / "cache", until=until)
    return folder / "run"


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("untrained")
    with pytest.MonkeyPatch.context() as patch:  # the fixture `warm` is each test's: it would come too late
        patch.setattr(proof, "subprocess", helpers_warm)
        return run(folder, untrained_eos_base(folder / "base", tied=True))


def test_the_check_names_eos_and_what_is_done(finished: Path) -> None:
    table = json.loads((finished / "check" / "table.json").read_text(encoding="utf-8"))
    (line,) = [line for line in table if line["what"] == "control tokens"]
    assert line["verdict"] == "warning"
    assert line["found"].startswith("EOS '</s>' (id 2) was never trained: cosine 1.00")
    assert "trained beside the adapter: the rows of '</s>'" in line["fix"]


def test_every_answer_stops(finished: Path) -> None:
    figures = json.loads((finished / "evaluate" / "metrics.json").read_text(encoding="utf-8"))
    assert figures["base"]["stop_rate"] == 0.0
    assert figures["tuned"]["stop_rate"] == 1.0


@pytest.mark.parametrize("kind", ["model", "adapter"])
def test_the_release_stops_when_loaded_with_nothing_of_ours(kind: str, finished: Path) -> None:
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = finished / "publish" / "release" / kind
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(
        folder if kind == "model" else finished.parent / "base", dtype=torch.float32
    )
    if kind == "adapter":
        model = PeftModel.from_pretrained(model, folder)
    assert tokenizer.eos_token_id == EOS
    for prediction in read_csv(finished / "evaluate" / "predictions.csv")[:3]:
        inputs = tokenizer.apply_chat_template(
            [{"role": "user", "content": prediction["question"]}],
            add_generation_prompt=True,
            return_tensors="pt",
            return_dict=True,
        )
        ids = model.generate(**inputs, max_new_tokens=16, do_sample=False)[0, inputs["input_ids"].shape[1] :].tolist()
        assert tokenizer.decode(ids, skip_special_tokens=True) == prediction["tuned"] == "네!"
        assert ids[-1] == EOS


def test_only_the_row_of_eos_differs_from_the_base(finished: Path) -> None:
    """In the embeddings, which the head shares; every other row is the base's, bit for bit."""
    name = "model.embed_tokens.weight"
    base, merged = (
        load_file(folder / "model.safetensors")[name]
        for folder in (finished.parent / "base", finished / "merge" / "model")
    )
    assert (base != merged).any(1).nonzero().flatten().tolist() == [EOS]
    trained = load_file(finished / "train" / "adapter" / "adapter_model.safetensors")
    (row,) = (tensor for key, tensor in trained.items() if key.endswith("trainable_tokens_delta"))
    assert torch.equal(merged[EOS], row[0].to(merged.dtype))


def test_the_trained_eos_of_the_config_ends_answers_in_training_and_release(tmp_path: Path) -> None:
    """The tokenizer names a token that the base never trained; config.json names the one it was trained with."""
    base = untrained_eos_base(tmp_path / "base", tied=True)
    named = "<unused0>"
    settings = json.loads((base / "tokenizer_config.json").read_text(encoding="utf-8"))
    (base / "tokenizer_config.json").write_text(json.dumps(settings | {"eos_token": named}), encoding="utf-8")
    weights = load_file(base / "model.safetensors")
    rows = weights["model.embed_tokens.weight"]
    rows[EOS] = torch.randn(rows.shape[1], generator=torch.Generator().manual_seed(1)).to(rows.dtype)
    save_file(weights, base / "model.safetensors", metadata={"format": "pt"})

    finished = run(tmp_path, base, "train.max_steps=2", "train.eval_every=1", "publish.min_stop_rate=0")

    assert "answers end with '</s>', which config.json names" in (finished / "appliance.log").read_text("utf-8")
    release = finished / "publish" / "release"
    for folder in (finished / "train" / "adapter", release / "model", release / "adapter"):
        assert json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8"))["eos_token"] == "</s>"
    assert json.loads((release / "model" / "generation_config.json").read_text(encoding="utf-8"))["eos_token_id"] == EOS
    gates = json.loads((finished / "publish" / "hub.json").read_text(encoding="utf-8"))["gates"]
    assert [gate["name"] for gate in gates if not gate["passed"]] == []
    trained = load_file(finished / "train" / "adapter" / "adapter_model.safetensors")
    assert not any("trainable_tokens" in name for name in trained)
