"""The proof compares with the weights as they were loaded, without reading their files again; the files decide."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from appliance.errors import GateRefused
from appliance.tasks import causal
from appliance.weights import held, proof, proof_child, proof_tensors, proof_wanted
from appliance.weights.merge import merge_adapter, round_model
from appliance.weights.shards import Header
from tests.helpers.models import tiny_adapter, tiny_base
from tests.weights.test_proof import rows

UP = "model.layers.0.mlp.up_proj.weight"


@pytest.fixture(scope="module", params=[True, False], ids=["tied", "own head"])
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base, which tied or not stores a head; the model merged from it; both wholly trained."""
    folder = tmp_path_factory.mktemp("held")
    path = tiny_base(folder / "base", tied=request.param) / "model.safetensors"
    tensors = load_file(path)
    tensors["lm_head.weight"] = tensors.get("lm_head.weight", tensors["model.embed_tokens.weight"]).clone()
    save_file(tensors, path, metadata={"format": "pt"})
    round_model(folder / "base", folder / "merged", dtype="bfloat16")
    return folder


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """The folder of every file of which rows were read, once for each run of rows."""
    read: list[Path] = []
    rows_of = proof_wanted.Stored.rows

    def counted(self: proof_wanted.Stored, begin: int, end: int) -> torch.Tensor:
        read.append(self.path.parent)
        return rows_of(self, begin, end)

    monkeypatch.setattr(proof_wanted.Stored, "rows", counted)
    return read


def loaded(folder: Path, dtype: torch.dtype = torch.float32) -> Any:
    return AutoModelForCausalLM.from_pretrained(folder / "base", dtype=dtype)


def compared(base_dir: Path, trained_dir: Path, merged_dir: Path, model: Any) -> proof_tensors.Compared:
    wanted = proof.request(
        base_dir, trained_dir, dtype="bfloat16", device="cpu", rows=rows(count=1), task=causal.TASK.name
    )
    return proof_tensors.compare(wanted, merged_dir, model)


def unlike(folder: Path, merged_dir: Path, model: Any) -> list[str]:
    return compared(folder / "base", folder / "base", merged_dir, model).unlike_trained


def changed(folder: Path, name: str, merged_dir: Path) -> Path:
    """The merged folder with one wrong tensor."""
    merged_dir.mkdir()
    for path in (folder / "merged").iterdir():
        (merged_dir / path.name).write_bytes(path.read_bytes())
    tensors = load_file(merged_dir / "model.safetensors")
    tensors[name] *= -1
    save_file(tensors, merged_dir / "model.safetensors", metadata={"format": "pt"})
    return merged_dir


@pytest.mark.parametrize(
    ("base", "adapter"),
    [
        ({"sharded": True}, {}),
        ({"family": "qwen3", "tied": True}, {"trainable_token_indices": [2, 40]}),
        ({}, {"trainable_token_indices": {"embed_tokens": [2], "lm_head": [2]}, "dora": True}),
        ({"family": "gpt2", "tied": True}, {"fan_in_fan_out": True}),
    ],
    ids=["llama", "tied, with rows", "dora, with rows", "gpt2"],
)
def test_a_base_with_an_adapter_is_not_read_again(
    base: dict[str, Any], adapter: dict[str, Any], read: list[Path], tmp_path: Path
) -> None:
    base_dir = tiny_base(tmp_path / "base", **base)
    adapter_dir = tiny_adapter(tmp_path / "adapter", base_dir, **adapter)
    merge_adapter(base_dir, adapter_dir, tmp_path / "merged", dtype="bfloat16", task=causal.TASK)
    model = proof_child.load_with_peft(base_dir, adapter_dir, "float32", "cpu", causal.TASK)
    found = compared(base_dir, adapter_dir, tmp_path / "merged", model)
    assert (found.unlike_base, found.unlike_trained, found.not_finite) == ([], [], [])
    assert set(read) == {tmp_path / "merged"}
    assert len(read) == len(proof_wanted.tensors_of(tmp_path / "merged"))  # each once: none has two runs


def test_of_two_tied_tensors_both_files_are_read(folder: Path, read: list[Path]) -> None:
    model = loaded(folder)
    assert unlike(folder, folder / "merged", model) == []
    # twice for each: once as the trained tensor, once as the base's, which here are the same file
    tensors = len(proof_wanted.tensors_of(folder / "base"))
    assert read.count(folder / "base") == tensors + (2 if model.config.tie_word_embeddings else 0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", [UP, "lm_head.weight", "model.embed_tokens.weight", "model.norm.weight"])
def test_a_wrong_tensor_is_seen(name: str, dtype: torch.dtype, folder: Path, tmp_path: Path) -> None:
    """Also one that a model with tied weights does not use."""
    merged_dir = changed(folder, name, tmp_path / "merged")
    (fault,) = unlike(folder, merged_dir, loaded(folder, dtype))
    assert fault.startswith(f"{name} (")


def test_what_differs_in_memory_alone_is_not_a_fault_of_the_file(folder: Path) -> None:
    model = loaded(folder)
    model.get_parameter(UP).data.mul_(-1)
    assert unlike(folder, folder / "merged", model) == []


def test_merged_files_that_cannot_be_read_are_refused(folder: Path, tmp_path: Path) -> None:
    """It is the merge's fault: not the base's, which nobody has to download again."""
    merged_dir = changed(folder, UP, tmp_path / "merged")
    path = merged_dir / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(GateRefused, match=r"the merged model: .*model\.safetensors cannot be read"):
        unlike(folder, merged_dir, loaded(folder))


def test_which_types_hold_a_file_exactly() -> None:
    bfloat16, float32 = torch.zeros(2, dtype=torch.bfloat16), torch.zeros(2)
    assert held.is_exactly(bfloat16, Header("w", "BF16", (2,)))
    assert held.is_exactly(float32, Header("w", "F16", (2,)))
    assert not held.is_exactly(bfloat16, Header("w", "F16", (2,)))
    assert not held.is_exactly(bfloat16, Header("w", "F32", (2,)))
    assert not held.is_exactly(float32, Header("w", "I32", (2,)))
    assert not held.is_exactly(float32, Header("w", "F32", (1, 2)))
