"""The base that a training leaves in memory is the one that was loaded, and is loaded again if it is not."""

from __future__ import annotations

import gc
import weakref
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from appliance.engines.transformers import TransformersEngine
from appliance.machine.device import Device
from appliance.recipe.fields import ModelSection, TuningSection
from appliance.tasks import causal
from tests.helpers.models import tiny_adapter, tiny_base

PLAIN, IN_4BIT = ModelSection(id="x", load_in_4bit=False), ModelSection(id="x", load_in_4bit=True)
LORA = TuningSection(r=4, alpha=8)
IDS = torch.tensor([[1, 40, 70, 100, 130, 2]])
# Base, how it is loaded, adapter, type of computation.
KINDS: dict[str, tuple[dict[str, Any], ModelSection, dict[str, Any], str]] = {
    "float32": ({}, PLAIN, {}, "float32"),
    "tied, with rows": ({"family": "qwen3", "tied": True}, PLAIN, {"trainable_token_indices": [2, 40]}, "bfloat16"),
    "dora": ({"family": "gemma3"}, PLAIN, {"dora": True}, "float32"),
    "gpt2": ({"family": "gpt2"}, PLAIN, {"fan_in_fan_out": True}, "float32"),
    "4 bits": ({}, IN_4BIT, {}, "float32"),
    "4 bits, which peft widens": ({}, IN_4BIT, {}, "bfloat16"),
}

# peft says that it sets what GPT-2 needs
pytestmark = pytest.mark.filterwarnings("ignore:fan_in_fan_out is set to False:UserWarning")


@pytest.fixture
def loads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The folders whose weights have been read."""
    seen: list[str] = []
    load = AutoModelForCausalLM.from_pretrained

    def counted(folder: str, *args: Any, **named: Any) -> Any:
        seen.append(Path(folder).name)
        return load(folder, *args, **named)

    monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", counted)
    return seen


def engine(dtype: str = "float32") -> TransformersEngine:
    return TransformersEngine(Device("cpu", "a CPU", 8 << 30, dtype), causal.TASK)


def train(engine: TransformersEngine, base_dir: Path, model: ModelSection, rows: list[int] | None = None) -> None:
    """Two steps, with all that a trainer does to a model."""
    tuned, _ = engine.load_for_training(base_dir, model, LORA, 64, 1, rows or [])
    tuned.gradient_checkpointing_enable()
    tuned.enable_input_require_grads()
    tuned.config.use_cache = False
    tuned.generation_config.eos_token_id = 7
    tuned.train()
    optimizer = torch.optim.AdamW([weight for weight in tuned.parameters() if weight.requires_grad], lr=0.1)
    for _ in range(2):
        tuned(input_ids=IDS, labels=IDS).loss.backward()
        optimizer.step()


@pytest.mark.parametrize("kind", KINDS)
def test_the_kept_base_computes_what_a_loaded_one_does(kind: str, loads: list[str], tmp_path: Path) -> None:
    base, model, adapter, dtype = KINDS[kind]
    base_dir = tiny_base(tmp_path / "base", **base)
    adapter_dir = tiny_adapter(tmp_path / "adapter", base_dir, **adapter)
    fresh, _ = engine(dtype).load_for_inference(base_dir, model, adapter_dir)
    trains = engine(dtype)
    train(trains, base_dir, model, adapter.get("trainable_token_indices"))
    trains.release(keep_base=True)
    train(trains, base_dir, model)
    trains.release(keep_base=True)
    loads.clear()
    kept, tokenizer = trains.load_for_inference(base_dir, model, adapter_dir)
    assert loads == []
    assert tokenizer.eos_token_id == 2
    with torch.no_grad():
        for adapted in (True, False):
            if not adapted:
                fresh.base_model.disable_adapter_layers()
                kept.base_model.disable_adapter_layers()
            assert torch.equal(fresh(input_ids=IDS).logits, kept(input_ids=IDS).logits)
    assert {name: weight.dtype for name, weight in kept.named_parameters()} == {
        name: weight.dtype for name, weight in fresh.named_parameters()
    }
    assert kept.generation_config.to_dict() == fresh.generation_config.to_dict()
    assert kept.config.to_dict() == fresh.config.to_dict()
    asked = {"input_ids": IDS, "attention_mask": torch.ones_like(IDS), "max_new_tokens": 5, "do_sample": False}
    assert torch.equal(fresh.generate(**asked), kept.generate(**asked))
    assert not any(weight.requires_grad for weight in kept.parameters())


def test_a_second_training_is_the_first(loads: list[str], tmp_path: Path) -> None:
    """Same adapter, same loss, from a base that was read once."""
    base_dir, trains, losses = tiny_base(tmp_path / "base"), engine(), []
    for _ in range(2):
        tuned, _ = trains.load_for_training(base_dir, PLAIN, LORA, 64, 1)
        losses.append(tuned(input_ids=IDS, labels=IDS).loss.item())
        del tuned
        trains.release(keep_base=True)
    assert losses[0] == losses[1]
    assert loads == ["base"]


def test_a_base_that_changed_in_memory_is_loaded_again(
    loads: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    base_dir, trains = tiny_base(tmp_path / "base"), engine()
    tuned, _ = trains.load_for_training(base_dir, PLAIN, LORA, 64, 1)
    weight = tuned.get_base_model().model.norm.weight
    weight.data[3] = torch.nextafter(weight.data[3], torch.tensor(9.0))  # a single bit
    del tuned, weight
    trains.release(keep_base=True)
    found, _ = trains.load_for_inference(base_dir, PLAIN, None)
    assert loads == ["base", "base"]
    assert "its weights changed in memory: they are loaded again" in capsys.readouterr().err
    whole, _ = engine().load_for_inference(base_dir, PLAIN, None)
    assert torch.equal(found.model.norm.weight, whole.model.norm.weight)


def test_a_kept_base_is_given_out_unless_it_is_another_or_has_changed(loads: list[str], tmp_path: Path) -> None:
    base_dir, trains = tiny_base(tmp_path / "base"), engine()
    assert (trains.kept_base(base_dir), trains.kept_bytes) == (None, 0)
    train(trains, base_dir, PLAIN)
    trains.release(keep_base=True)
    assert trains.kept_base(tmp_path / "other") is None
    found = trains.kept_base(base_dir)
    assert trains.kept_bytes == sum(weight.nbytes for weight in found.parameters())
    assert loads == ["base"]
    found.model.norm.weight.data[3] += 1
    del found
    assert trains.kept_base(base_dir) is None


def test_another_base_or_another_way_to_load_it_is_loaded(loads: list[str], tmp_path: Path) -> None:
    base_dir, trains = tiny_base(tmp_path / "base"), engine()
    train(trains, base_dir, PLAIN)
    trains.release(keep_base=True)
    trains.load_for_inference(base_dir, IN_4BIT, None)
    trains.load_for_inference(tiny_base(tmp_path / "other", seed=1), PLAIN, None)
    assert loads == ["base", "base", "other"]


@pytest.mark.parametrize("method", ["lora", "full"])
def test_nothing_is_kept_unless_it_is_asked_for(method: str, tmp_path: Path) -> None:
    """Full fine-tuning changes the base itself."""
    base_dir, trains = tiny_base(tmp_path / "base"), engine()
    tuned, _ = trains.load_for_training(base_dir, PLAIN, TuningSection(method=method), 64, 1)
    embeddings = weakref.ref(tuned.get_input_embeddings().weight)
    del tuned
    trains.release(keep_base=method == "full")
    gc.collect()
    assert embeddings() is None
