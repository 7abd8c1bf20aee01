"""The proof: a proper merge passes, and no other; two real processes once, their functions in this one elsewhere."""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Callable
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from appliance.errors import EnvironmentUnavailable, GateRefused
from appliance.machine import disk
from appliance.machine.device import Device
from appliance.pipeline import merge as pipeline_merge
from appliance.process.files import write_json
from appliance.process.hashed_file import HashedFile
from appliance.tasks import causal
from appliance.weights import merge as weights_merge
from appliance.weights import proof, proof_child, proof_files, proof_tensors
from appliance.weights.merge import merge_adapter
from appliance.weights.proof import Measures, ProofRow, judge
from tests.helpers.models import change_adapter, swap_layers, tiny_adapter, tiny_base

CPU = Device("cpu", "a CPU", 8 << 30, "float32")
Change = Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]]
GOOD = Measures(
    rows=16,
    positions=496,
    top_tokens=319,
    kl_tuned=1.9e-4,
    kl_base=0.02,
    kl_calibrated=1.9e-4,
    kl_effect=0.02,
    agreement=0.98,
    agreement_calibrated=0.98,
    agreement_evaluated=0.9,
    agreement_evaluated_16bit=0.9,
    positions_not_finite=0,
    tensors_not_finite=0,
    tensors_not_finite_names="",
    tensors_wrong=0,
    tensors_wrong_names="",
    unlike_base=0,
    unlike_base_names="",
    unlike_trained=0,
    unlike_trained_names="",
    config_changed=0,
    config_changed_names="",
    decoding_changed=0,
    decoding_changed_names="",
    swallowed=0.0,
)


def rows(seed: int = 0, count: int = 16) -> list[ProofRow]:
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(3, 259, (count, 60), generator=generator).tolist()
    return [ProofRow((1, *row, 2), prompt_tokens=31) for row in ids]


def write_request(wanted: proof.ProofRequest, work_dir: Path) -> None:
    saved = {key: str(value) if isinstance(value, Path) else value for key, value in asdict(wanted).items()}
    write_json(work_dir / "request.json", saved)


def reference(
    base_dir: Path, adapter_dir: Path, work_dir: Path, merged_dir: Path, dtype: str = "bfloat16", count: int = 16
) -> Path:
    """The work folder with what the first process leaves for the second."""
    work_dir.mkdir()
    wanted = proof.request(
        base_dir, adapter_dir, dtype=dtype, device="cpu", rows=rows(count=count), task=causal.TASK.name
    )
    _in_process(wanted, work_dir, merged_dir)
    return work_dir


def examined(work_dir: Path, merged_dir: Path) -> Measures:
    """Of another merged model than the one that the reference was compared with: its files speak for themselves."""
    wanted, found = proof_child._read_request(work_dir), load_file(work_dir / "reference.safetensors")
    compared = proof_tensors.compare(wanted, merged_dir)
    write_json(work_dir / "weights.json", proof_files.of_weights(wanted, compared, found, merged_dir))
    return proof_child.examine(work_dir, merged_dir)


def _in_process(wanted: proof.ProofRequest, work_dir: Path, merged_dir: Path, _log: Path | None = None) -> None:
    write_request(wanted, work_dir)
    proof_child.write_reference(work_dir, merged_dir, partial(proof_child.load_with_peft, task=causal.TASK))


def _examined_in_process(work_dir: Path, merged_dir: Path, _log: Path) -> proof.Proof:
    measures = proof_child.examine(work_dir, merged_dir)
    return proof.Proof(judge(measures), measures)


def failed(measures: Measures) -> set[str]:
    return {gate.name for gate in judge(measures) if not gate.passed}


def scaled(factor: float, where: str = "") -> Change:
    return lambda tensors: {k: v * factor if "lora_B" in k and where in k else v for k, v in tensors.items()}


@pytest.fixture(scope="module")
def case(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base, an adapter whose deltas are a tenth of the weights, and the reference of both."""
    folder = tmp_path_factory.mktemp("case")
    tiny_base(folder / "base", family="qwen3", tied=True, sharded=True)
    tiny_adapter(folder / "adapter", folder / "base", strength=0.1)
    merge_adapter(folder / "base", folder / "adapter", folder / "merged", dtype="bfloat16", task=causal.TASK)
    reference(folder / "base", folder / "adapter", folder / "work", folder / "merged")
    return folder


@pytest.mark.parametrize(
    ("base_options", "adapter_options", "dtype"),
    [
        ({}, {}, "bfloat16"),
        ({"dtype": "float32", "family": "qwen3"}, {"rslora": True}, "bfloat16"),
        ({"tied": True}, {"dora": True, "strength": 0.02}, "float16"),
        ({"family": "gpt2"}, {"fan_in_fan_out": True}, "bfloat16"),
        ({"sharded": True}, {"dora": True, "rslora": True}, "bfloat16"),
        ({"tied": True, "family": "qwen3"}, {"trainable_token_indices": [2, 40]}, "bfloat16"),
        ({}, {"trainable_token_indices": {"embed_tokens": [2], "lm_head": [2]}}, "float16"),
        ({}, {"strength": 1e-5}, "bfloat16"),  # an adapter that changes next to nothing is merged properly too
        ({}, {"strength": 0.0}, "bfloat16"),
    ],
)
def test_a_proper_merge_passes(
    base_options: dict[str, Any], adapter_options: dict[str, Any], dtype: str, tmp_path: Path
) -> None:
    base_dir = tiny_base(tmp_path / "base", **base_options)
    adapter_dir = tiny_adapter(tmp_path / "adapter", base_dir, **adapter_options)
    merge_adapter(base_dir, adapter_dir, tmp_path / "merged", dtype=dtype, task=causal.TASK)
    work_dir = reference(base_dir, adapter_dir, tmp_path / "work", tmp_path / "merged", dtype)

    seen = proof_child.examine(work_dir, tmp_path / "merged")

    assert failed(seen) == set()
    assert (seen.rows, seen.positions) == (16, 16 * 31)
    assert (seen.unlike_base, seen.unlike_trained) == (0, 0)
    assert seen.kl_tuned <= 1.01 * seen.kl_calibrated + 1e-9
    if adapter_options.get("strength", 0.1) > 0.01:
        assert 0 < seen.kl_calibrated < seen.kl_effect / 10


@pytest.mark.parametrize(
    ("change", "gates"),
    [
        (scaled(0), {"merged_equals_trained", "top1_agreement", "nearer_to_tuned", "every_delta_is_in"}),
        (swap_layers, {"merged_equals_trained", "top1_agreement", "nearer_to_tuned", "every_delta_is_in"}),
        (scaled(2), {"merged_equals_trained", "top1_agreement", "every_delta_is_in"}),
        (scaled(0, "layers.1."), {"merged_equals_trained", "top1_agreement", "every_delta_is_in"}),
        (scaled(0, "layers.1.mlp.up_proj"), {"merged_equals_trained", "every_delta_is_in"}),
        (scaled(1.2), {"merged_equals_trained", "every_delta_is_in"}),
    ],
    ids=["zeroed", "swapped", "doubled", "one layer zeroed", "one module zeroed", "scaled by 1.2"],
)
def test_a_wrong_merge_fails(change: Change, gates: set[str], case: Path, tmp_path: Path) -> None:
    wrong = change_adapter(case / "adapter", tmp_path / "adapter", change)
    merge_adapter(case / "base", wrong, tmp_path / "merged", dtype="bfloat16", task=causal.TASK)
    assert gates <= failed(examined(case / "work", tmp_path / "merged"))


@pytest.mark.parametrize(
    ("tied", "row", "factor"),
    [(True, 300, 1.0), (False, 300, 1.0), (True, 40, 1.01)],
    ids=["the base's row, tied", "the base's row", "another row"],
)
def test_a_merge_with_a_wrong_row_beside_the_adapter_fails(tied: bool, row: int, factor: float, tmp_path: Path) -> None:
    """One row of thousands: that of EOS (300) is not the trained one, or one that was not trained is not the base's."""
    base_dir = tiny_base(tmp_path / "base", tied=tied)
    indices: Any = [300] if tied else {"embed_tokens": [300], "lm_head": [300]}
    adapter_dir = tiny_adapter(tmp_path / "adapter", base_dir, trainable_token_indices=indices)
    merge_adapter(base_dir, adapter_dir, tmp_path / "merged", dtype="bfloat16", task=causal.TASK)
    path, name = tmp_path / "merged" / "model.safetensors", "model.embed_tokens.weight" if tied else "lm_head.weight"
    tensors = load_file(path)
    tensors[name][row] = factor * load_file(base_dir / "model.safetensors")[name][row]
    save_file(tensors, path, metadata={"format": "pt"})
    work_dir = reference(base_dir, adapter_dir, tmp_path / "work", tmp_path / "merged")

    assert "every_delta_is_in" in failed(proof_child.examine(work_dir, tmp_path / "merged"))


def test_a_zeroed_merge_of_a_weak_adapter_fails_by_its_weights(tmp_path: Path) -> None:
    """Rounding to bfloat16 moves the answers more than this adapter does, so the answers cannot tell."""
    base_dir = tiny_base(tmp_path / "base")
    adapter_dir = tiny_adapter(tmp_path / "adapter", base_dir, strength=0.0005)
    zeroed = change_adapter(adapter_dir, tmp_path / "zeroed", scaled(0))
    merge_adapter(base_dir, zeroed, tmp_path / "merged", dtype="bfloat16", task=causal.TASK)
    work_dir = reference(base_dir, adapter_dir, tmp_path / "work", tmp_path / "merged")

    seen = proof_child.examine(work_dir, tmp_path / "merged")

    assert seen.kl_effect < 4 * seen.kl_calibrated
    assert failed(seen) == {"every_delta_is_in"}


@pytest.mark.parametrize("damage", ["missing", "added", "float32", "nan"])
def test_damaged_folders_fail(damage: str, case: Path, tmp_path: Path) -> None:
    merged = tmp_path / "merged"
    merge_adapter(case / "base", case / "adapter", merged, dtype="bfloat16", task=causal.TASK)
    index = json.loads((merged / "model.safetensors.index.json").read_text())["weight_map"]
    tensors = {k: v for name in set(index.values()) for k, v in load_file(merged / name).items()}
    for path in merged.glob("model*"):
        path.unlink()
    norm = "model.norm.weight"
    if damage == "missing":
        del tensors["model.layers.0.mlp.up_proj.weight"]
    elif damage == "added":
        tensors["model.layers.0.mlp.other.weight"] = tensors[norm].clone()
    elif damage == "float32":
        tensors[norm] = tensors[norm].float()
    else:
        tensors[norm][3] = float("nan")
    save_file(tensors, merged / "model.safetensors", metadata={"format": "pt"})

    seen = examined(case / "work", merged)

    assert ("all_finite" if damage == "nan" else "tensors_complete") in failed(seen)
    json.dumps(proof.Proof(judge(seen), seen).as_json(), allow_nan=False)


def test_a_weight_that_no_row_meets_must_be_finite_too(tmp_path: Path) -> None:
    """The embedding of a token that the compared rows do not hold: their logits are finite, the tensor is not."""
    base_dir = tiny_base(tmp_path / "base")
    adapter_dir = tiny_adapter(tmp_path / "adapter", base_dir)
    merge_adapter(base_dir, adapter_dir, tmp_path / "merged", dtype="bfloat16", task=causal.TASK)
    path = tmp_path / "merged" / "model.safetensors"
    tensors = load_file(path)
    tensors["model.embed_tokens.weight"][310, 7] = float("inf")
    save_file(tensors, path, metadata={"format": "pt"})
    work_dir = reference(base_dir, adapter_dir, tmp_path / "work", tmp_path / "merged")

    seen = proof_child.examine(work_dir, tmp_path / "merged")

    assert failed(seen) == {"every_tensor_finite", "untrained_is_the_base"}
    assert seen.tensors_not_finite_names == ": model.embed_tokens.weight"


def test_agreement_with_the_evaluated_answers_is_reported(tmp_path: Path) -> None:
    """Rows whose answers are the model's own greedy ones agree wholly; random ones hardly."""
    base_dir = tiny_base(tmp_path / "base")
    adapter_dir = tiny_adapter(tmp_path / "adapter", base_dir)
    model = proof_child.load_with_peft(base_dir, adapter_dir, "float32", "cpu", causal.TASK)
    asked = torch.tensor([row.input_ids[:31] for row in rows(count=4)])
    answered = model.generate(input_ids=asked, max_new_tokens=20, min_new_tokens=20, do_sample=False)
    greedy = [ProofRow(tuple(ids), 31) for ids in answered.tolist()]
    merge_adapter(base_dir, adapter_dir, tmp_path / "merged", dtype="bfloat16", task=causal.TASK)
    shares = []
    for name, compared in (("greedy", greedy), ("random", rows(count=4))):
        (tmp_path / name).mkdir()
        wanted = proof.request(
            base_dir, adapter_dir, dtype="bfloat16", device="cpu", rows=compared, task=causal.TASK.name
        )
        _in_process(wanted, tmp_path / name, tmp_path / "merged")
        seen = proof_child.examine(tmp_path / name, tmp_path / "merged")
        shares.append((seen.agreement_evaluated_16bit, seen.agreement_evaluated))
    assert shares[0][0] >= 0.95  # EOS is kept from coming, so not quite all
    assert shares[0][1] > 0.9
    assert max(shares[1]) < 0.3


def test_gates_at_their_bounds() -> None:
    assert failed(GOOD) == set()
    assert failed(replace(GOOD, kl_tuned=4.01 * GOOD.kl_calibrated)) == {"merged_equals_trained"}
    assert failed(replace(GOOD, agreement=0.96)) == {"top1_agreement"}
    assert failed(replace(GOOD, kl_base=1.8e-4)) == {"nearer_to_tuned"}
    assert failed(replace(GOOD, kl_base=1.8e-4, kl_effect=2e-4)) == set()  # an effect below rounding
    assert failed(replace(GOOD, unlike_base=1)) == {"untrained_is_the_base"}
    assert failed(replace(GOOD, unlike_trained=1)) == {"every_delta_is_in"}
    assert failed(replace(GOOD, config_changed=1)) == {"config_is_the_base"}
    assert failed(replace(GOOD, decoding_changed=1)) == {"decodes_as_evaluated"}
    assert failed(replace(GOOD, tensors_wrong=1)) == {"tensors_complete"}
    assert failed(replace(GOOD, tensors_not_finite=1)) == {"every_tensor_finite"}
    assert {"merged_equals_trained", "nearer_to_tuned"} <= failed(replace(GOOD, kl_tuned=float("nan")))


def test_the_lumped_divergence_is_a_lower_bound() -> None:
    torch.manual_seed(0)
    p, q = (torch.randn(8, 500, dtype=torch.float64).log_softmax(1) for _ in range(2))
    exact = (p.exp() * (p - q)).sum(1).mean().item()
    found = []
    for kept in (5, 50, 499):
        ids = p.topk(kept).indices
        lumped = proof_child.lump(p, ids)
        assert lumped.exp().sum(1).allclose(torch.ones(8, dtype=torch.float64))
        found.append(proof_child.divergence(lumped, proof_child.lump(q, ids)))
    assert 0 < found[0] < found[1] < found[2] == pytest.approx(exact)


def test_compared_positions() -> None:
    row = ProofRow((1, 10, 11, 20, 21, 2), prompt_tokens=3)
    assert row.positions() == [2, 3, 4]  # they predict 20, 21 and EOS
    long = ProofRow(tuple(range(300)), prompt_tokens=100)
    assert (len(long.positions()), long.positions()[0], long.positions()[-1]) == (proof.POSITIONS, 99, 298)
    request = proof.request(Path(), Path(), dtype="bfloat16", device="cpu", rows=rows(count=40), task=causal.TASK.name)
    assert (len(request.rows), request.compute_dtype) == (proof.ROWS, "float32")
    with pytest.raises(GateRefused, match="no held-out row"):
        proof.request(Path(), Path(), dtype="bfloat16", device="cpu", rows=[], task=causal.TASK.name)


def test_the_stage_with_its_two_processes(case: Path, tmp_path: Path) -> None:
    stage = tmp_path / "merge"

    summary, result = pipeline_merge.run(
        case / "base", case / "adapter", stage, dtype="bfloat16", rows=rows(count=4), device=CPU, task=causal.TASK.name
    )

    written = json.loads((stage / "proof.json").read_text())
    assert written["passed"] is result.passed is True
    assert (written["rows"], written["positions"]) == (4, 4 * 31)
    assert written["merge"] == asdict(summary)
    assert {gate["name"] for gate in written["gates"] if gate["passed"]} == {gate.name for gate in result.gates}
    assert (stage / "model" / "tokenizer.json").is_file()
    assert {path.name for path in stage.iterdir()} == {"model", "proof.json", "proof.log"}


def test_a_refused_merge_is_kept_under_another_name(
    case: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    zeroed = change_adapter(case / "adapter", tmp_path / "zeroed", scaled(0))
    monkeypatch.setattr(proof, "run_reference", _in_process)
    monkeypatch.setattr(proof, "run_examination", _examined_in_process)
    monkeypatch.setattr(
        weights_merge,
        "merge_adapter",
        lambda base, _, out, **options: merge_adapter(base, zeroed, out, **options),
    )
    stage = tmp_path / "merge"

    with pytest.raises(GateRefused, match=r"every_delta_is_in: 14, bound 0 .*up_proj") as caught:
        pipeline_merge.run(
            case / "base", case / "adapter", stage, dtype="bfloat16", rows=rows(), device=CPU, task=causal.TASK.name
        )

    assert "the trained weights are kept" in caught.value.hint
    assert {path.name for path in stage.iterdir()} == {"model.refused", "proof.json"}
    assert json.loads((stage / "proof.json").read_text())["passed"] is False


def test_a_merge_that_cannot_be_made_writes_proof_json(
    case: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(proof, "run_reference", lambda *_: None)
    with pytest.raises(EnvironmentUnavailable):
        pipeline_merge.run(
            tmp_path / "no-base",
            case / "adapter",
            tmp_path,
            dtype="bfloat16",
            rows=rows(),
            device=CPU,
            task=causal.TASK.name,
        )
    assert json.loads((tmp_path / "proof.json").read_text())["passed"] is False
    assert {path.name for path in tmp_path.iterdir()} == {"proof.json"}
    with pytest.raises(GateRefused, match="no held-out row"):
        pipeline_merge.run(
            case / "base",
            case / "adapter",
            tmp_path / "none",
            dtype="bfloat16",
            rows=[],
            device=CPU,
            task=causal.TASK.name,
        )
    assert json.loads((tmp_path / "none" / "proof.json").read_text())["passed"] is False


def test_a_disk_that_fills_up_under_the_merge_is_named_and_nothing_is_left(
    case: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nor can proof.json be written then; what it would have said matters less."""
    free = iter((True, False))

    def full(path: Path, *_: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))

    monkeypatch.setattr(HashedFile, "write", lambda self, _: next(free) or full(self.path))
    monkeypatch.setattr(pipeline_merge, "write_json", full)
    monkeypatch.setattr(disk, "require", lambda *_, **__: None)  # there was room when it began
    monkeypatch.setattr(disk, "free_disk_bytes", lambda _: 1000)
    with pytest.raises(EnvironmentUnavailable) as caught:
        pipeline_merge.run(
            case / "base",
            case / "adapter",
            tmp_path,
            dtype="bfloat16",
            rows=rows(),
            device=CPU,
            expected_bytes=2000,
            task=causal.TASK.name,
        )
    assert "not enough disk space for the merged model: 2000 bytes (2.0 KiB) needed, 1000" in str(caught.value)
    assert "the same command continues" in caught.value.hint
    assert list(tmp_path.iterdir()) == []


def test_a_process_without_room_says_so_in_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def lacking(_: list[str], stdout: Any, **__: Any) -> Any:
        stdout.write("Loading weights: 100%\nno room for the figures: 9 bytes needed; free space on that disk\n")
        return type("Ended", (), {"returncode": EnvironmentUnavailable.exit_code})

    monkeypatch.setattr("subprocess.run", lacking)
    with pytest.raises(EnvironmentUnavailable) as caught:
        proof._run_child("reference", [tmp_path], tmp_path / "proof.log")
    assert str(caught.value) == (
        "proof: the process `reference`: no room for the figures: 9 bytes needed; free space on that disk"
    )
    assert caught.value.hint == f"its log is {tmp_path / 'proof.log'}"


@pytest.mark.parametrize(("verb", "error"), [("reference", EnvironmentUnavailable), ("examine", GateRefused)])
def test_a_process_that_fails_is_reported_with_its_last_lines(verb: str, error: type, tmp_path: Path) -> None:
    with pytest.raises(error, match=r"(?s)ended with 1:.*request\.json") as caught:  # there is no request.json
        proof._run_child(verb, [tmp_path, tmp_path], tmp_path / "proof.log")
    assert "proof.log" in caught.value.hint
    assert "FileNotFoundError" in (tmp_path / "proof.log").read_text()


def test_the_processes_see_no_token_and_no_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_canary")
    seen: dict[str, Any] = {}

    def run(_command: list[str], **options: Any) -> Any:
        seen.update(options["env"])
        return type("Ended", (), {"returncode": -9})

    monkeypatch.setattr("subprocess.run", run)
    with pytest.raises(EnvironmentUnavailable, match="killed by signal 9"):
        proof._run_child("reference", [tmp_path], tmp_path / "proof.log")
    assert "hf_canary" not in seen.values()
    assert (seen["HF_HUB_OFFLINE"], seen["TRANSFORMERS_OFFLINE"]) == ("1", "1")
