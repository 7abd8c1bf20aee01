"""A head that was trained as a whole beside an adapter, of classifiers and readers: its merge and its proof."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModelForQuestionAnswering,
    AutoModelForSequenceClassification,
    BertForSequenceClassification,
    BertModel,
)

from appliance.engines import loaded as engines_loaded
from appliance.errors import EnvironmentUnavailable, GateRefused
from appliance.process.files import read_json, write_json
from appliance.tasks import extract
from appliance.tasks.classify import Classify
from appliance.tasks.task import Task
from appliance.weights import proof, proof_child, shards, whole_head
from appliance.weights.merge import merge_adapter
from appliance.weights.proof import Measures, ProofRow
from tests.helpers.classifiers import head_adapter, random_adapter, tiny_bert, tiny_encoder

NAMES = ("기쁨", "슬픔", "중립")
TASK = Classify(NAMES)


@pytest.fixture(scope="module")
def case(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `base`, `adapter` and what was `merged` of them."""
    folder = tmp_path_factory.mktemp("case")
    head_adapter(folder / "adapter", tiny_bert(folder / "base"))
    merge_adapter(folder / "base", folder / "adapter", folder / "merged", dtype="bfloat16", task=TASK)
    return folder


def by_peft(base: Path, adapter: Path, task: Task = TASK) -> dict[str, torch.Tensor]:
    """peft's own merge in float32, rounded once."""
    tuned = PeftModel.from_pretrained(task.load(base), adapter).merge_and_unload()
    return {name: values.bfloat16() for name, values in tuned.state_dict().items()}


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(values, other[name]) for name, values in one.items())


def as_inner_model(base: Path) -> None:
    """Without the inner model's name in front, and without a head, as KoBERT is stored."""
    weights = load_file(base / "model.safetensors")
    kept = {n.removeprefix("bert."): w.contiguous() for n, w in weights.items() if n.startswith("bert.")}
    save_file(kept, base / "model.safetensors", {"format": "pt"})


def as_of_old(base: Path) -> None:
    """As bert-base-uncased is stored: norms with `gamma` and `beta`."""
    weights = load_file(base / "model.safetensors")
    renamed = {
        n.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta"): w
        for n, w in weights.items()
    }
    save_file(renamed, base / "model.safetensors", {"format": "pt"})


def with_a_pooler(base: Path) -> None:
    """As klue/bert-base's siblings, which were trained on sentence pairs, too."""
    BertModel.from_pretrained(base).save_pretrained(base)


def for_other_classes(base: Path) -> None:
    """Somebody's classifier with five labels of its own."""
    BertForSequenceClassification.from_pretrained(base, num_labels=5).save_pretrained(base)


@pytest.mark.parametrize("stored", [as_inner_model, as_of_old, with_a_pooler, for_other_classes])
@pytest.mark.parametrize("how", [{}, {"use_dora": True, "use_rslora": True}], ids=["LoRA", "DoRA"])
def test_a_merge_is_pefts_own_whatever_the_base_calls_its_tensors_and_whatever_head_it_has(
    stored: Callable[[Path], None], how: dict[str, Any], tmp_path: Path
) -> None:
    stored(tiny_bert(tmp_path / "base", hidden=32))
    head_adapter(tmp_path / "adapter", tmp_path / "base", **how)
    summary = merge_adapter(tmp_path / "base", tmp_path / "adapter", tmp_path / "out", dtype="bfloat16", task=TASK)
    found = load_file(tmp_path / "out" / "model.safetensors")
    assert same(found, by_peft(tmp_path / "base", tmp_path / "adapter"))
    trained = load_file(tmp_path / "adapter" / "adapter_model.safetensors")
    for name in ("classifier.weight", "classifier.bias", "bert.pooler.dense.weight", "bert.pooler.dense.bias"):
        assert torch.equal(found[name], trained[f"base_model.model.{name}"].bfloat16())
    assert summary.tensors == len(found)
    assert summary.merged_tensors == 12 + 4
    config = read_json(tmp_path / "out" / "config.json")
    assert config["architectures"] == ["BertForSequenceClassification"]
    assert config["id2label"] == {"0": "기쁨", "1": "슬픔", "2": "중립"}
    _, info = AutoModelForSequenceClassification.from_pretrained(tmp_path / "out", output_loading_info=True)
    assert not any(info.values())


# What is trained as a whole in a reader of texts, as transformers calls it.
OF_READERS = {
    "bert": ["qa_outputs"],
    "roberta": ["qa_outputs"],
    "xlm-roberta": ["qa_outputs"],
    "electra": ["qa_outputs"],
    "distilbert": ["qa_outputs"],
    "deberta-v2": ["qa_outputs"],
    "albert": ["qa_outputs"],
    "modernbert": ["classifier", "head"],
}


@pytest.mark.parametrize("kind", OF_READERS)
def test_a_readers_merge_is_pefts_own_whatever_its_shape(kind: str, tmp_path: Path) -> None:
    base, task = tiny_encoder(tmp_path / "base", kind, hidden=32), extract.TASK
    loaded, info = task.load(base, output_loading_info=True)
    engines_loaded.judge(base, task.found_in(base, info))
    assert task.trained_whole(loaded) == OF_READERS[kind]
    random_adapter(tmp_path / "adapter", base, task)
    merge_adapter(base, tmp_path / "adapter", tmp_path / "out", dtype="bfloat16", task=task)
    found = load_file(tmp_path / "out" / "model.safetensors")
    assert same(found, by_peft(base, tmp_path / "adapter", task))
    trained = load_file(tmp_path / "adapter" / "adapter_model.safetensors")
    whole = [name for name in found if name.startswith(tuple(f"{module}." for module in OF_READERS[kind]))]
    assert whole
    for name in whole:
        assert torch.equal(found[name], trained[f"base_model.model.{name}"].bfloat16())
    _, info = AutoModelForQuestionAnswering.from_pretrained(tmp_path / "out", output_loading_info=True)
    assert not any(info.values())


def test_a_base_in_memory_is_used_if_it_is_exact(case: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    loaded = TASK.load(case / "base")
    short = TASK.load(case / "base", dtype=torch.bfloat16)
    with monkeypatch.context() as patch:
        patch.setattr(Classify, "load", lambda *_, **__: pytest.fail("read again"))
        merge_adapter(case / "base", case / "adapter", tmp_path / "a", dtype="bfloat16", loaded=loaded, task=TASK)
    merge_adapter(case / "base", case / "adapter", tmp_path / "b", dtype="bfloat16", loaded=short, task=TASK)
    merged = load_file(case / "merged" / "model.safetensors")
    for name in ("a", "b"):
        assert same(load_file(tmp_path / name / "model.safetensors"), merged)


def request(case: Path, **changed: Any) -> proof.ProofRequest:
    ids = torch.randint(5, 60, (16, 12), generator=torch.Generator().manual_seed(0)).tolist()
    rows = [ProofRow((2, *row, 3, 0), prompt_tokens=14) for row in ids]
    wanted = proof.request(case / "base", case / "adapter", dtype="bfloat16", device="cpu", rows=rows, task="classify")
    return replace(wanted, **changed)


def proven(case: Path, merged: Path, work_dir: Path, **changed: Any) -> Measures:
    """Both halves of the proof, in this process."""
    work_dir.mkdir()
    wanted = request(case, **changed)
    saved = {key: str(value) if isinstance(value, Path) else value for key, value in asdict(wanted).items()}
    write_json(work_dir / "request.json", saved)

    def load(model_dir: Path, adapter_dir: Path | None, dtype: str, device: str) -> Any:
        return proof_child.load_with_peft(model_dir, adapter_dir, dtype, device, TASK)

    proof_child.write_reference(work_dir, merged, load)
    return proof_child.examine(work_dir, merged)


@pytest.mark.parametrize("held", [{}, {"weights_dtype": "bfloat16", "compute_dtype": "bfloat16"}])
def test_a_proper_merge_is_proven_in_the_types_of_a_cpu_and_of_a_gpu(
    held: dict[str, str], case: Path, tmp_path: Path
) -> None:
    seen = proven(case, case / "merged", tmp_path / "work", **held)
    assert [gate.sentence() for gate in proof.judge(seen) if not gate.passed] == []
    assert seen.kl_base > 10 * seen.kl_tuned


def changed(case: Path, out: Path, change: Callable[[dict[str, torch.Tensor]], None]) -> Path:
    out.mkdir()
    for path in (case / "merged").iterdir():
        (out / path.name).write_bytes(path.read_bytes())
    weights = load_file(out / "model.safetensors")
    change(weights)
    save_file(weights, out / "model.safetensors", {"format": "pt"})
    return out


def one_bit(weights: dict[str, torch.Tensor]) -> None:
    weights["classifier.weight"].view(torch.int16)[0, 0] ^= 1


def one_bit_of_the_pooler(weights: dict[str, torch.Tensor]) -> None:
    weights["bert.pooler.dense.weight"].view(torch.int16)[3, 5] ^= 1


def classes_exchanged(weights: dict[str, torch.Tensor]) -> None:
    weights["classifier.weight"] = weights["classifier.weight"].flip(0).contiguous()


def no_head(weights: dict[str, torch.Tensor]) -> None:
    del weights["classifier.weight"]


def a_bit_of_the_base(weights: dict[str, torch.Tensor]) -> None:
    weights["bert.embeddings.word_embeddings.weight"].view(torch.int16)[7, 0] ^= 1


def a_delta_left_out(weights: dict[str, torch.Tensor]) -> None:
    name = "bert.encoder.layer.1.attention.self.query.weight"
    weights[name] = torch.zeros_like(weights[name])


@pytest.mark.parametrize(
    ("change", "gate", "named"),
    [
        (one_bit, "every_delta_is_in", "classifier.weight (1 of 192 values)"),
        (one_bit_of_the_pooler, "every_delta_is_in", "bert.pooler.dense.weight (1 of 4096 values)"),
        (classes_exchanged, "every_delta_is_in", "classifier.weight ("),
        (no_head, "tensors_complete", "classifier.weight"),
        (a_bit_of_the_base, "untrained_is_the_base", "bert.embeddings.word_embeddings.weight (1 of"),
        (a_delta_left_out, "every_delta_is_in", "layer.1.attention.self.query.weight ("),
    ],
)
def test_a_merge_with_anything_else_in_it_is_refused(
    change: Callable[[dict[str, torch.Tensor]], None], gate: str, named: str, case: Path, tmp_path: Path
) -> None:
    seen = proven(case, changed(case, tmp_path / "wrong", change), tmp_path / "work")
    failed = {one.name: one.meaning for one in proof.judge(seen) if not one.passed}
    assert named in failed[gate]


def test_an_adapter_without_the_head_that_its_config_names_is_refused(case: Path, tmp_path: Path) -> None:
    (tmp_path / "adapter").mkdir()
    for path in (case / "adapter").iterdir():
        (tmp_path / "adapter" / path.name).write_bytes(path.read_bytes())
    weights = load_file(case / "adapter" / "adapter_model.safetensors")
    lora = {name: values for name, values in weights.items() if ".lora_" in name}
    save_file(lora, tmp_path / "adapter" / "adapter_model.safetensors")
    with pytest.raises(GateRefused, match=r"has none of the modules .* bert\.pooler"):
        whole_head.of_adapter(tmp_path / "adapter")
    strange = {"base_model.model.classifier.extra.weight": torch.zeros(2)}
    save_file({**weights, **strange}, tmp_path / "adapter" / "adapter_model.safetensors")
    with pytest.raises(GateRefused, match=r"holds classifier\.extra\.weight, but the model has no such tensors"):
        merge_adapter(case / "base", tmp_path / "adapter", tmp_path / "out", dtype="bfloat16", task=TASK)
    with pytest.raises(EnvironmentUnavailable, match=r"has no adapter_config\.json"):
        whole_head.of_adapter(case / "base")


def test_a_causal_adapter_with_modules_trained_as_a_whole_is_refused_as_before(case: Path, tmp_path: Path) -> None:
    write_json(
        tmp_path / "adapter_config.json",
        {**read_json(case / "adapter" / "adapter_config.json"), "task_type": "CAUSAL_LM"},
    )
    with pytest.raises(GateRefused, match="modules_to_save: "):
        shards.adapter_config(tmp_path)
