"""Wrong merges of every kind, and the gate that must refuse each; honest merges of every kind, which must all pass.

One reference for each kind of merge. What the files alone reveal is asked of the files: no model is loaded for it.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import pytest
import torch
from bitsandbytes.functional import dequantize_4bit, quantize_4bit
from safetensors.torch import load_file, save_file

from appliance.tasks import causal
from appliance.weights import proof, proof_child, proof_files, proof_wanted
from appliance.weights.merge import changed_by, merge_adapter, round_model
from appliance.weights.proof import ProofRequest, judge
from appliance.weights.shards import files_of
from tests.helpers.models import tiny_adapter, tiny_base, tiny_full
from tests.weights.test_merge import edit_json
from tests.weights.test_proof import GOOD, rows

Tensors = dict[str, torch.Tensor]
Attack = Callable[["Case", Tensors], Tensors]

# peft warns of just those combinations that these tests are about
pytestmark = pytest.mark.filterwarnings(
    "ignore:Model has `tie_word_embeddings=True`:UserWarning",
    "ignore:fan_in_fan_out is set to False:UserWarning",
    "ignore:Setting `save_embedding_layers` to `True`:UserWarning",
)

ATTACKED: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "llama, shards": ({"sharded": True}, {}),
    "llama, tied": ({"tied": True}, {"r": 2}),
    "qwen3, tied, shards, rslora": ({"family": "qwen3", "tied": True, "sharded": True}, {"rslora": True}),
    "dora": ({}, {"dora": True}),
    "transposed, dora": ({"family": "gpt2"}, {"fan_in_fan_out": True, "dora": True}),
}
HONEST: dict[str, tuple[dict[str, Any], dict[str, Any], str]] = {
    "llama, rank 1": ({}, {"r": 1, "alpha": 1}, "bfloat16"),
    "llama, rank above the width": ({}, {"r": 96, "alpha": 7}, "bfloat16"),
    "llama, float32 into float16, head": (
        {"dtype": "float32"},
        {"target_modules": ["q_proj", "lm_head"]},
        "float16",
    ),
    "llama, bfloat16 into float16, as strong as the base": ({}, {"strength": 1.0}, "float16"),
    "llama, hardly tuned": ({}, {"strength": 1e-6}, "bfloat16"),
    "llama, not tuned": ({}, {"strength": 0.0}, "bfloat16"),
    "qwen3, patterns": (
        {"family": "qwen3"},
        {"rank_pattern": {"q_proj": 2}, "alpha_pattern": {"v_proj": 5}, "rslora": True},
        "bfloat16",
    ),
    "gemma3, tied, dora, rslora": ({"family": "gemma3", "tied": True}, {"dora": True, "rslora": True}, "bfloat16"),
    "gemma2, tied, shards": ({"family": "gemma2", "tied": True, "sharded": True}, {}, "bfloat16"),
    "phi3": ({"family": "phi3"}, {"dora": True}, "bfloat16"),
    "gpt2, tied": ({"family": "gpt2", "tied": True}, {"fan_in_fan_out": True, "r": 3}, "bfloat16"),
    "gpt2, fan_in_fan_out left out": ({"family": "gpt2"}, {}, "float16"),
}


@dataclass(frozen=True)
class Case:
    """An honest merge: its folders, what peft's own merge has (`reference`), and the request for its proof."""

    folder: Path
    wanted: ProofRequest
    reference: Tensors

    @property
    def base(self) -> Path:
        return self.folder / "base"

    @property
    def merged(self) -> Path:
        return self.folder / "merged"

    @cached_property
    def before(self) -> Tensors:
        """The base's tensors."""
        return {name: tensor for path in files_of(self.base) for name, tensor in load_file(path).items()}

    @cached_property
    def exact(self) -> Tensors:
        """The trained tensors before rounding, float32."""
        stored, found = proof_wanted.tensors_of(self.base), {}
        for name, delta in changed_by(self.folder / "adapter", self.base).items():
            runs = proof_wanted.summed_runs(stored[name], delta, stored[name])
            found[name] = torch.cat([run.wanted for run in runs])
        return found

    @property
    def embedding(self) -> str:
        return next(name for name in self.before if name.endswith(("embed_tokens.weight", "wte.weight")))

    @property
    def norm(self) -> str:
        return next(name for name in self.before if name.endswith(("model.norm.weight", "ln_f.weight")))

    def judged(self, merged_dir: Path) -> dict[str, str]:
        """The gates that refuse by the files alone, each with what it says."""
        swallowed, faults = proof_files.compare_files(self.wanted, self.reference, merged_dir)
        seen = replace(GOOD, swallowed=swallowed, **proof_files.counted(faults))
        return {gate.name: gate.meaning for gate in judge(seen) if not gate.passed}


def made(folder: Path, base: dict[str, Any], adapter: dict[str, Any], dtype: str = "bfloat16") -> Case:
    base_dir = tiny_base(folder / "base", **base)
    adapter_dir = tiny_adapter(folder / "adapter", base_dir, **adapter)
    merge_adapter(base_dir, adapter_dir, folder / "merged", dtype=dtype, task=causal.TASK)
    wanted = proof.request(base_dir, adapter_dir, dtype=dtype, device="cpu", rows=rows(count=2), task=causal.TASK.name)
    with torch.no_grad():
        model = proof_child.load_with_peft(base_dir, adapter_dir, "float32", "cpu", causal.TASK)
        return Case(folder, wanted, proof_child._round_like_a_merge(model, wanted))


@pytest.fixture(scope="module")
def cases(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Case]:
    return {name: made(tmp_path_factory.mktemp("case"), *options) for name, options in ATTACKED.items()}


@pytest.mark.parametrize("name", HONEST)
def test_an_honest_merge_passes(name: str, tmp_path: Path) -> None:
    case = made(tmp_path, *HONEST[name])
    assert case.judged(case.merged) == {}


def test_the_attacked_merges_are_honest(cases: dict[str, Case]) -> None:
    assert {name: case.judged(case.merged) for name, case in cases.items()} == {name: {} for name in cases}


# Attacks: the tensors to be replaced, from a case and its merged tensors.


def unseen_rows_zeroed(case: Case, merged: Tensors) -> Tensors:
    merged[case.embedding][300:] = 0
    return {case.embedding: merged[case.embedding]}


def a_row_of_noise(case: Case, merged: Tensors) -> Tensors:
    merged[case.embedding][307] = torch.randn(64).to(torch.bfloat16)
    return {case.embedding: merged[case.embedding]}


def eos_row_zeroed(case: Case, merged: Tensors) -> Tensors:
    merged[case.embedding][2] = 0
    return {case.embedding: merged[case.embedding]}


def noisy_head(case: Case, merged: Tensors) -> Tensors:
    name = "lm_head.weight" if "lm_head.weight" in merged else case.embedding  # tied
    return {name: (merged[name] * (1 + 0.01 * torch.randn(merged[name].shape))).to(torch.bfloat16)}


def norm_scaled(case: Case, merged: Tensors) -> Tensors:
    return {case.norm: (merged[case.norm].float() * 1.01).to(torch.bfloat16)}


def one_bit_of_a_norm(case: Case, merged: Tensors) -> Tensors:
    merged[case.norm].view(torch.int16)[-1] ^= 1
    return {case.norm: merged[case.norm]}


def swapped(case: Case, merged: Tensors) -> Tensors:
    one, *others = case.exact
    other = next(name for name in others if merged[name].shape == merged[one].shape)
    return {one: merged[other], other: merged[one]}


def transposed(case: Case, merged: Tensors) -> Tensors:
    name = next(name for name in case.exact if merged[name].shape[0] == merged[name].shape[1])
    return {name: merged[name].T}


def scaled(factor: float) -> Attack:
    def scale(case: Case, _merged: Tensors) -> Tensors:
        return {n: (case.before[n] + factor * (w - case.before[n])).to(torch.bfloat16) for n, w in case.exact.items()}

    scale.__name__ = f"scaled by {factor}"
    return scale


def left_out_of_one(case: Case, _merged: Tensors) -> Tensors:
    name = list(case.exact)[-1]
    return {name: case.before[name]}


def one_value_to_the_next(case: Case, merged: Tensors) -> Tensors:
    """One weight of one tensor is the next number of the type."""
    name = next(iter(case.exact))
    merged[name].view(torch.int16)[5, 5] += 1
    return {name: merged[name]}


def added_in_16_bits(case: Case, _merged: Tensors) -> Tensors:
    """The delta is rounded before it is added."""
    deltas = {name: (weight - case.before[name]).to(torch.bfloat16) for name, weight in case.exact.items()}
    return {name: case.before[name] + delta for name, delta in deltas.items()}


def cut_instead_of_rounded(case: Case, _merged: Tensors) -> Tensors:
    cut = {name: weight.view(torch.int32) & -65536 for name, weight in case.exact.items()}
    return {name: bits.view(torch.float32).to(torch.bfloat16) for name, bits in cut.items()}


def into_the_base_in_4_bits(case: Case, _merged: Tensors) -> Tensors:
    """Added to the weights that a 4-bit training computes with, instead of the 16-bit base's."""
    found = {}
    for name, weight in case.exact.items():
        packed, state = quantize_4bit(case.before[name].float(), quant_type="nf4")
        coarse = dequantize_4bit(packed, state).reshape(weight.shape)
        found[name] = (weight - case.before[name].float() + coarse).to(torch.bfloat16)
    return found


def from_another_run(case: Case, _merged: Tensors) -> Tensors:
    """The same deltas' names and sizes, other values."""
    noise = torch.Generator().manual_seed(7)
    deltas = {name: weight - case.before[name] for name, weight in case.exact.items()}
    other = {n: d.std() * torch.randn(d.shape, generator=noise) for n, d in deltas.items()}
    return {name: (case.before[name] + delta).to(torch.bfloat16) for name, delta in other.items()}


def not_a_number(case: Case, merged: Tensors) -> Tensors:
    merged[case.embedding][310, 7] = torch.nan
    return {case.embedding: merged[case.embedding]}


def a_trained_weight_infinite(case: Case, merged: Tensors) -> Tensors:
    name = next(iter(case.exact))
    merged[name][3, 3] = torch.inf
    return {name: merged[name]}


def in_32_bits(case: Case, merged: Tensors) -> Tensors:
    return {case.norm: merged[case.norm].float()}


def of_another_shape(case: Case, merged: Tensors) -> Tensors:
    return {case.embedding: merged[case.embedding][:-1]}


UNTRAINED = (unseen_rows_zeroed, a_row_of_noise, eos_row_zeroed, noisy_head, norm_scaled, one_bit_of_a_norm)
TRAINED = (
    *(swapped, transposed, left_out_of_one, one_value_to_the_next, added_in_16_bits, cut_instead_of_rounded),
    *(into_the_base_in_4_bits, from_another_run, *map(scaled, (0.0, 0.91, 0.99, 1.2, 2.0))),
)
ATTACKS: dict[Attack, set[str]] = {
    **{attack: {"untrained_is_the_base"} for attack in UNTRAINED},
    **{attack: {"every_delta_is_in"} for attack in TRAINED},
    not_a_number: {"every_tensor_finite", "untrained_is_the_base"},
    a_trained_weight_infinite: {"every_tensor_finite", "every_delta_is_in"},
    in_32_bits: {"tensors_complete"},
    of_another_shape: {"tensors_complete"},
}


@pytest.mark.parametrize("attack", ATTACKS, ids=lambda attack: attack.__name__)
@pytest.mark.parametrize("name", ATTACKED)
def test_a_wrong_merge_is_refused_by_name(name: str, attack: Attack, cases: dict[str, Case], tmp_path: Path) -> None:
    case, merged_dir = cases[name], tmp_path / "merged"
    shutil.copytree(case.merged, merged_dir)
    torch.manual_seed(0)
    merged = {name: tensor for path in files_of(case.merged) for name, tensor in load_file(path).items()}
    changed = attack(case, merged)
    for path, names in files_of(case.merged).items():
        if changed.keys() & set(names):
            kept = {n: changed.get(n, merged[n]).contiguous() for n in names}
            save_file(kept, merged_dir / path.name, metadata={"format": "pt"})

    refused = case.judged(merged_dir)

    assert refused.keys() == ATTACKS[attack]
    for meaning in refused.values():
        assert any(name in meaning for name in changed), meaning


@pytest.mark.parametrize(
    ("name", "setting"),
    [
        ("qwen3, tied, shards, rslora", {"use_rslora": False}),
        ("llama, shards", {"use_rslora": True}),
        ("llama, shards", {"lora_alpha": 15}),
        ("llama, shards", {"alpha_pattern": {"v_proj": 8}}),
    ],
)
def test_a_misread_adapter_is_refused(name: str, setting: dict[str, Any], cases: dict[str, Case]) -> None:
    """Merge and check read the same wrong scale: peft's own merge, which read the adapter before, differs."""
    case = cases[name]
    config = case.folder / "adapter" / "adapter_config.json"
    honest = config.read_text()
    edit_json(config, **setting)
    try:
        merge_adapter(case.base, case.folder / "adapter", case.folder / "misread", dtype="bfloat16", task=causal.TASK)
        refused = case.judged(case.folder / "misread")
    finally:
        config.write_text(honest)
        shutil.rmtree(case.folder / "misread")
    assert refused.keys() == {"every_delta_is_in"}
    assert "peft computes other values" in refused["every_delta_is_in"]


def test_a_fully_tuned_model_is_its_weights_rounded(tmp_path: Path) -> None:
    base_dir = tiny_base(tmp_path / "base")
    trained_dir = tiny_full(tmp_path / "trained", base_dir)
    wanted = proof.request(
        base_dir, trained_dir, dtype="bfloat16", device="cpu", rows=rows(count=2), task=causal.TASK.name
    )
    case = Case(tmp_path, wanted, {})
    round_model(trained_dir, case.merged, dtype="bfloat16")
    assert case.judged(case.merged) == {}
    tensors = load_file(case.merged / "model.safetensors")
    tensors[case.norm].view(torch.int16)[0] ^= 1
    save_file(tensors, case.merged / "model.safetensors", metadata={"format": "pt"})
    refused = case.judged(case.merged)
    assert refused.keys() == {"every_delta_is_in"}
    assert f"{case.norm} (1 of 64 values" in refused["every_delta_is_in"]


def test_swallowed_tuning_is_a_caution(tmp_path: Path) -> None:
    """Two deltas: one as large as the weights' rounding, one a thousandth of it."""
    seen = {}
    for strength in (0.1, 1e-5):
        folder = tmp_path / str(strength)
        case = made(folder, {}, {"strength": strength})
        swallowed, faults = proof_files.compare_files(case.wanted, case.reference, case.merged)
        measures = replace(GOOD, swallowed=swallowed, **proof_files.counted(faults))
        seen[strength] = proof.Proof(judge(measures), measures, stored_dtype="bfloat16")
    assert all(found.passed for found in seen.values())
    assert seen[0.1].measures.swallowed < 0.05
    assert seen[0.1].as_json()["cautions"] == []
    assert seen[1e-5].measures.swallowed > 0.9
    (caution,) = seen[1e-5].as_json()["cautions"]
    assert (caution["name"], caution["rows"]) == ("tuning_swallowed", [])
    assert caution["sentence"].startswith(
        f"rounding to bfloat16 swallowed {seen[1e-5].measures.swallowed:.0%} of the tuning"
    )
