"""The proof compares the merged weights as they were loaded, without reading their files again; the files decide."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from appliance.weights import proof, proof_tensors, proof_wanted
from appliance.weights.merge import round_model
from appliance.weights.shards import Header
from tests.helpers.models import tiny_base
from tests.weights.test_proof import rows

UP = "model.layers.0.mlp.up_proj.weight"


@pytest.fixture(scope="module", params=[True, False], ids=["tied", "own head"])
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base; the model merged from it, which tied or not stores a head; both wholly trained."""
    folder = tmp_path_factory.mktemp("held")
    path = tiny_base(folder / "base", tied=request.param) / "model.safetensors"
    tensors = load_file(path)
    tensors["lm_head.weight"] = tensors.get("lm_head.weight", tensors["model.embed_tokens.weight"]).clone()
    save_file(tensors, path, metadata={"format": "pt"})
    round_model(folder / "base", folder / "merged", dtype="bfloat16")
    return folder


def loaded(folder: Path, dtype: torch.dtype = torch.float32) -> Any:
    return AutoModelForCausalLM.from_pretrained(folder, dtype=dtype)


def compared(folder: Path, merged_dir: Path, model: Any) -> list[str]:
    wanted = proof.request(folder / "base", folder / "base", dtype="bfloat16", device="cpu", rows=rows(count=1))
    return proof_tensors.compare(wanted, {}, {}, merged_dir, model).unlike_trained


def changed(folder: Path, name: str, merged_dir: Path) -> Path:
    """The merged folder with one wrong tensor."""
    merged_dir.mkdir()
    for path in (folder / "merged").iterdir():
        (merged_dir / path.name).write_bytes(path.read_bytes())
    tensors = load_file(merged_dir / "model.safetensors")
    tensors[name] *= -1
    save_file(tensors, merged_dir / "model.safetensors", metadata={"format": "pt"})
    return merged_dir


def test_no_file_is_read_for_what_the_model_holds(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[Path] = []
    rows_of = proof_wanted.Stored.rows

    def counted(self: proof_wanted.Stored, begin: int, end: int) -> torch.Tensor:
        read.append(self.path)
        return rows_of(self, begin, end)

    monkeypatch.setattr(proof_wanted.Stored, "rows", counted)
    assert compared(folder, folder / "merged", loaded(folder / "merged")) == []
    tied = loaded(folder / "merged").config.tie_word_embeddings
    assert read.count(folder / "merged" / "model.safetensors") == (2 if tied else 0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", [UP, "lm_head.weight", "model.embed_tokens.weight", "model.norm.weight"])
def test_a_wrong_tensor_is_seen(name: str, dtype: torch.dtype, folder: Path, tmp_path: Path) -> None:
    """Also one that a model with tied weights does not use."""
    merged_dir = changed(folder, name, tmp_path / "merged")
    (fault,) = compared(folder, merged_dir, loaded(merged_dir, dtype))
    assert fault.startswith(f"{name} (")


def test_what_differs_in_memory_alone_is_not_a_fault_of_the_file(folder: Path) -> None:
    model = loaded(folder / "merged")
    model.get_parameter(UP).data.mul_(-1)
    assert compared(folder, folder / "merged", model) == []


def test_which_types_hold_a_file_exactly() -> None:
    bfloat16, float32 = torch.zeros(2, dtype=torch.bfloat16), torch.zeros(2)
    assert proof_wanted.is_exactly(bfloat16, Header("w", "BF16", (2,)))
    assert proof_wanted.is_exactly(float32, Header("w", "F16", (2,)))
    assert not proof_wanted.is_exactly(bfloat16, Header("w", "F16", (2,)))
    assert not proof_wanted.is_exactly(bfloat16, Header("w", "F32", (2,)))
    assert not proof_wanted.is_exactly(float32, Header("w", "I32", (2,)))
    assert not proof_wanted.is_exactly(float32, Header("w", "F32", (1, 2)))
