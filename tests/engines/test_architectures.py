"""Every architecture that is said to work: encoded, trained for two steps, merged tensor by tensor, and proven."""

from __future__ import annotations

from dataclasses import asdict
from functools import partial
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from appliance.engines.transformers import TransformersEngine
from appliance.errors import EnvironmentUnavailable
from appliance.machine import device
from appliance.pipeline import run as pipeline_run
from appliance.process import files
from appliance.process.files import write_json
from appliance.recipe import resolve
from appliance.recipe.fields import ModelSection, TuningSection
from appliance.rundir.directory import RunDir
from appliance.tasks import causal
from appliance.weights import merge, proof, proof_child
from appliance.weights.proof import ProofRow, judge
from tests.conftest import write_qa
from tests.helpers.models import Family, tiny_base

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore:fan_in_fan_out is set to False:UserWarning"),  # peft notices Conv1D by itself
]

RECIPE = """name: shop
engine: transformers
model: {{id: {base}, load_in_4bit: false}}
data: {{csv: {csv}, test_fraction: 0.2}}
tuning: {tuning}
train: {{max_steps: 2, warmup_steps: 0, micro_batch_size: 8, gradient_accumulation_steps: 1, learning_rate: {rate},
         scheduler: constant, optimizer: adamw_torch, eval_every: 2}}
evaluate: {{max_new_tokens: 6}}
"""

# family, whether head and embeddings are one, method, linear layers in a block
CASES: list[tuple[Family, bool, str, int]] = [
    ("llama", False, "lora", 7),
    ("qwen3", True, "lora", 7),
    ("gemma", True, "lora", 7),  # norms that multiply by 1 + w, embeddings scaled by sqrt(hidden)
    ("gemma2", True, "lora", 7),  # logits and attention scores are capped
    ("gemma3", True, "lora", 7),
    ("phi", False, "lora", 6),  # biases, a head with one
    ("phi3", False, "lora", 4),  # q, k, v in one matrix, gate and up in another
    ("mistral", False, "lora", 7),
    ("gpt2", True, "lora", 4),  # Conv1D: weights lie transposed
    ("gpt2", True, "full", 0),
    ("gemma", True, "full", 0),
]


@pytest.mark.parametrize(("family", "tied", "method", "per_block"), CASES)
def test_trained_merged_and_proven(family: Family, tied: bool, method: str, per_block: int, tmp_path: Path) -> None:
    base_dir = tiny_base(tmp_path / "base", family=family, tied=tied, short_prompts=True)
    names = ["사과", "배", "감", "귤", "밤"]
    csv = write_qa(tmp_path / "train.csv", [(f"{names[i % 5]} {i}?", f"{names[i % 5]}!") for i in range(40)])
    is_full = method == "full"
    tuning = "{method: full}" if is_full else "{r: 4, alpha: 8, dropout: 0.0}"
    text = RECIPE.format(base=base_dir, csv=csv, tuning=tuning, rate="1e-2" if is_full else "3e-2")
    (tmp_path / "shop.yaml").write_text(text, encoding="utf-8")
    run = tmp_path / "shop"
    pipeline_run.run(
        resolve.load(str(tmp_path / "shop.yaml"), environ={}), RunDir(run), tmp_path / "c", until="evaluate"
    )

    figures = files.read_json(run / "evaluate" / "metrics.json")
    assert figures["tuned"]["loss"] < figures["base"]["loss"] - 0.01  # two steps, on rows that training did not see
    trained_dir, merged_dir = run / "train" / ("model" if is_full else "adapter"), tmp_path / "merged"
    if is_full:
        summary = merge.round_model(trained_dir, merged_dir, dtype="bfloat16")
    else:
        adapter = load_file(trained_dir / "adapter_model.safetensors")
        tuned = {name for name in adapter if name.endswith("lora_B.weight") and adapter[name].abs().sum() > 0}
        assert len(tuned) == 2 * per_block  # every linear layer of both blocks has moved, and nothing else is tuned
        assert len(adapter) == 2 * len(tuned)
        summary = merge.merge_adapter(base_dir, trained_dir, merged_dir, dtype="bfloat16", task=causal.TASK)
    assert summary.merged_tensors == 2 * per_block
    stored, merged = load_file(base_dir / "model.safetensors"), load_file(merged_dir / "model.safetensors")
    assert stored.keys() == merged.keys()
    assert sum(not torch.equal(stored[name], merged[name]) for name in stored) >= 2 * per_block

    refused, effect = examined(base_dir, trained_dir, merged_dir, run, tmp_path / "work")
    assert refused == set()
    assert effect > 1e-3  # the proof had something to tell apart
    loaded = AutoModelForCausalLM.from_pretrained(merged_dir)
    assert (loaded.get_output_embeddings().weight is loaded.get_input_embeddings().weight) == tied


def examined(base_dir: Path, trained_dir: Path, merged_dir: Path, run: Path, work_dir: Path) -> tuple[set[str], float]:
    """The gates that refuse, and how far training moved the model (nats)."""
    rows = [
        ProofRow(tuple(row["input_ids"]), row["prompt_tokens"])
        for row in files.read_json(run / "evaluate" / "proof_rows.json")
    ]
    work_dir.mkdir()
    wanted = proof.request(base_dir, trained_dir, dtype="bfloat16", device="cpu", rows=rows, task=causal.TASK.name)
    write_json(work_dir / "request.json", {k: str(v) if isinstance(v, Path) else v for k, v in asdict(wanted).items()})
    proof_child.write_reference(work_dir, merged_dir, partial(proof_child.load_with_peft, task=causal.TASK))
    seen = proof_child.examine(work_dir, merged_dir)
    return {gate.name for gate in judge(seen) if not gate.passed}, seen.kl_effect


def test_gpt2_in_4_bits_is_refused_before_it_is_loaded(tmp_path: Path) -> None:
    base_dir = tiny_base(tmp_path / "base", family="gpt2")
    engine = TransformersEngine(device.device(), causal.TASK)
    with pytest.raises(EnvironmentUnavailable, match="transposed layers") as caught:
        engine.load_for_training(base_dir, ModelSection(id="x", load_in_4bit=True), TuningSection(), 64, 0)
    assert "model.load_in_4bit=false" in caught.value.hint
