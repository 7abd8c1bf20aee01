"""Full fine-tuning after training: rounded instead of merged, proven all the same, released without an adapter."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from appliance.errors import RecipeError
from appliance.pipeline import run as pipeline_run
from appliance.process import files
from appliance.process.files import write_json
from appliance.recipe import resolve
from appliance.rundir.directory import RunDir
from appliance.tasks import causal
from appliance.weights import proof, proof_child
from appliance.weights.merge import round_model
from appliance.weights.proof import ProofRow, judge
from tests.conftest import write_qa
from tests.helpers.models import tiny_base, tiny_full

Change = Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]]


def rows() -> list[ProofRow]:
    ids = torch.randint(3, 259, (16, 60), generator=torch.Generator().manual_seed(0)).tolist()
    return [ProofRow((1, *row, 2), prompt_tokens=31) for row in ids]


def examined(base_dir: Path, trained_dir: Path, merged_dir: Path, work_dir: Path, dtype: str = "bfloat16") -> set[str]:
    """The gates that refuse."""
    work_dir.mkdir()
    wanted = proof.request(base_dir, trained_dir, dtype=dtype, device="cpu", rows=rows(), task=causal.TASK.name)
    write_json(work_dir / "request.json", {k: str(v) if isinstance(v, Path) else v for k, v in asdict(wanted).items()})
    proof_child.write_reference(work_dir, merged_dir, partial(proof_child.load_with_peft, task=causal.TASK))
    seen = proof_child.examine(work_dir, merged_dir)
    return {gate.name for gate in judge(seen) if not gate.passed}


@pytest.mark.parametrize(
    ("options", "dtype", "strength"),
    [
        ({}, "bfloat16", 0.1),
        ({"family": "qwen3", "tied": True, "sharded": True}, "bfloat16", 0.01),
        ({"family": "gpt2", "tied": True}, "float16", 0.1),
        ({}, "bfloat16", 1e-5),  # less than the rounding
    ],
)
def test_trained_weights_are_rounded_once_and_proven(
    options: dict[str, Any], dtype: str, strength: float, tmp_path: Path
) -> None:
    base_dir = tiny_base(tmp_path / "base", **options)
    trained_dir = tiny_full(tmp_path / "model", base_dir, strength=strength)
    summary = round_model(trained_dir, tmp_path / "merged", dtype=dtype)
    trained, written = load_file(trained_dir / "model.safetensors"), load_file(tmp_path / "merged/model.safetensors")
    assert trained.keys() == written.keys()
    assert summary.merged_tensors == 0
    assert all(torch.equal(trained[name].to(getattr(torch, dtype)), tensor) for name, tensor in written.items())
    assert (tmp_path / "merged" / "tokenizer.json").is_file()
    assert files.read_json(tmp_path / "merged" / "config.json")["dtype"] == dtype
    assert examined(base_dir, trained_dir, tmp_path / "merged", tmp_path / "work", dtype) == set()


def one_layer_of(base: dict[str, torch.Tensor]) -> Change:
    return lambda tensors: {k: base[k] if ".layers.1." in k else v for k, v in tensors.items()}


@pytest.mark.parametrize(
    ("wrong", "gates"),
    [
        (lambda base, _: base, {"every_delta_is_in", "merged_equals_trained", "nearer_to_tuned"}),
        (lambda base, trained: one_layer_of(base)(trained), {"every_delta_is_in", "merged_equals_trained"}),
        (
            lambda base, trained: trained | {"model.norm.weight": base["model.norm.weight"]},
            {"every_delta_is_in"},
        ),
        (lambda _, trained: {k: v for k, v in trained.items() if k != "lm_head.weight"}, {"tensors_complete"}),
    ],
    ids=["the base", "one layer of the base", "the base's last norm", "no head"],
)
def test_what_is_not_the_trained_model_is_refused(wrong: Any, gates: set[str], tmp_path: Path) -> None:
    base_dir = tiny_base(tmp_path / "base")
    trained_dir = tiny_full(tmp_path / "model", base_dir)
    round_model(trained_dir, tmp_path / "merged", dtype="bfloat16")
    path = tmp_path / "merged" / "model.safetensors"
    changed = wrong(load_file(base_dir / "model.safetensors"), load_file(path))
    save_file({name: tensor.contiguous() for name, tensor in changed.items()}, path, metadata={"format": "pt"})
    assert gates <= examined(base_dir, trained_dir, tmp_path / "merged", tmp_path / "work")


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (("model.load_in_4bit=true",), "set model.load_in_4bit to false"),
        (("tuning.r=8", "tuning.dora=true"), "tuning.r, tuning.dora: no effect with method: full"),
        (("publish.merged=false",), "leaves nothing to release"),
    ],
)
def test_what_full_fine_tuning_cannot_have(overrides: tuple[str, ...], message: str) -> None:
    plain = ["tuning.r=16", "tuning.alpha=32", "tuning.dropout=0.05", "tuning.method=full"]
    with pytest.raises(RecipeError, match=message):
        resolve.load("demo", overrides=[*plain, *overrides], environ={})


@pytest.mark.slow
@pytest.mark.usefixtures("warm")
def test_a_run_from_csv_to_release(base_dir: Path, tmp_path: Path) -> None:
    names = ["사과", "배", "감", "귤", "밤"]
    write_qa(tmp_path / "train.csv", [(f"{names[i % 5]} {i}?", f"{names[i % 5]}!") for i in range(40)])
    recipe = tmp_path / "full.yaml"
    recipe.write_text(
        f"""name: full
model: {{id: {base_dir}, load_in_4bit: false}}
data: {{csv: {tmp_path / "train.csv"}, test_fraction: 0.2}}
tuning: {{method: full}}
train: {{max_steps: 12, micro_batch_size: 8, gradient_accumulation_steps: 1, learning_rate: 2e-3,
         optimizer: adamw_torch, eval_every: 4}}
evaluate: {{max_new_tokens: 8}}
""",
        encoding="utf-8",
    )
    run = tmp_path / "runs" / "full"
    pipeline_run.run(resolve.load(str(recipe), environ={}), RunDir(run), tmp_path / "cache")
    metrics = files.read_json(run / "evaluate" / "metrics.json")
    assert metrics["tuned"]["loss"] < 0.9 * metrics["base"]["loss"]
    proven = files.read_json(run / "merge" / "proof.json")
    assert proven["passed"]
    assert proven["kl_effect"] > 10 * proven["kl_tuned"]
    assert {path.name for path in (run / "publish" / "release").iterdir()} == {"model"}
    card = (run / "publish" / "release" / "model" / "README.md").read_text(encoding="utf-8")
    assert "all of its weights fine-tuned" in card
    assert "LoRA" not in card
    assert str(tmp_path) not in card
    weights = load_file(run / "publish" / "release" / "model" / "model.safetensors")
    assert {tensor.dtype for tensor in weights.values()} == {torch.bfloat16}
    # what was trained and what a checkpoint holds are one file on disk
    best = files.read_json(run / "train" / "fit.json")["best_step"]
    kept, saved = run / "train/model/model.safetensors", run / f"train/checkpoints/checkpoint-{best}/model.safetensors"
    assert kept.stat().st_ino == saved.stat().st_ino

    shutil.rmtree(run / "train" / "model")  # as if killed before the best was kept: training is not repeated
    (run / "train" / "stage.json").unlink()
    before = (run / "train" / "metrics.jsonl").read_bytes()
    pipeline_run.run(resolve.load(str(recipe), environ={}), RunDir(run), tmp_path / "cache", until="train")
    assert load_file(kept).keys() == weights.keys()
    assert (run / "train" / "metrics.jsonl").read_bytes() == before
