"""Where the proof computes when memory is short: no card is here, so one is made up whose memory runs out as asked.

The processes are forks with a loader that stands for the card: what is loaded onto it stays in this machine's memory.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from subprocess import CompletedProcess
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from appliance.errors import EnvironmentUnavailable, GateRefused
from appliance.machine import device as machine_device
from appliance.machine import host_memory
from appliance.machine.device import Device
from appliance.pipeline import merge, stages
from appliance.process import console
from appliance.tasks import causal
from appliance.weights import proof, proof_place
from appliance.weights.proof import ProofRow
from appliance.weights.proof_place import Weights, memory_finding, places
from tests.helpers.models import tiny_adapter, tiny_base
from tests.weights.test_proof import rows

GIB = 1 << 30
CPU = Device("cpu", "a CPU", 64 * GIB, "float32")
L4 = Device("cuda", "L4", 24 * GIB, "bfloat16", (8, 9))
T4 = Device("cuda", "T4", 15 * GIB, "float16", (7, 5))

# folder and device of what is loaded, and the tokens of a row that is computed (0: it is being loaded)
RunsOut = Callable[[str, str, int], bool]


@pytest.fixture(scope="module")
def case(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("case")
    tiny_base(folder / "base", family="qwen3", tied=True)
    tiny_adapter(folder / "adapter", folder / "base", strength=0.1)
    return folder


@pytest.fixture
def card(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """`runs_out` says when memory does; `loaded()` lists (folder, device, type of the weights) in order."""
    request.getfixturevalue("warm")
    log, load = tmp_path / "loaded", AutoModelForCausalLM.from_pretrained
    made_up = SimpleNamespace(runs_out=lambda *_: False, error=torch.OutOfMemoryError("CUDA out of memory. Tried"))

    def from_pretrained(path: Path, *, dtype: torch.dtype, device_map: str, **options: Any) -> Any:
        with log.open("a", encoding="utf-8") as lines:
            lines.write(f"{Path(path).name} {device_map} {str(dtype).removeprefix('torch.')}\n")

        def allocate(tokens: int) -> None:
            if made_up.runs_out(Path(path).name, device_map, tokens):
                raise made_up.error

        allocate(0)
        loaded = load(path, dtype=dtype, device_map="cpu", **options)
        model = loaded[0] if isinstance(loaded, tuple) else loaded
        model.register_forward_pre_hook(lambda _m, _a, named: allocate(named["input_ids"].shape[1]), with_kwargs=True)
        return loaded

    monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", from_pretrained)
    made_up.loaded = lambda: [tuple(line.split()) for line in log.read_text().splitlines()]
    return made_up


def merged(case: Path, stage: Path, device: Device, some_rows: list[ProofRow] | None = None) -> dict[str, Any]:
    """The stage; what proof.json says after it."""
    some_rows = some_rows or rows(count=4)
    merge.run(
        case / "base", case / "adapter", stage, dtype="bfloat16", rows=some_rows, device=device, task=causal.TASK.name
    )
    return dict(json.loads((stage / "proof.json").read_text()))


@pytest.mark.parametrize(
    ("device", "dtype", "found"),
    [
        (CPU, "bfloat16", ["CPU in float32", "CPU in float32, weights held in bfloat16"]),
        (L4, "bfloat16", ["GPU in bfloat16", "CPU in float32", "CPU in float32, weights held in bfloat16"]),
        (L4, "float16", ["GPU in float16", "CPU in float32", "CPU in float32, weights held in float16"]),
        (T4, "float16", ["GPU in float16", "CPU in float32", "CPU in float32, weights held in float16"]),
        (
            T4,  # multiplies no bfloat16; float16 would round the merge once more
            "bfloat16",
            [
                *("GPU in float32", "GPU in float32, weights held in bfloat16"),
                *("CPU in float32", "CPU in float32, weights held in bfloat16"),
            ],
        ),
    ],
)
def test_the_places_of_a_machine(device: Device, dtype: str, found: list[str]) -> None:
    weights = Weights(count=4 * 10**9, largest=4 * 10**8, dtype=dtype)
    ahead = places(weights, device)
    assert [str(place) for place in ahead] == [f"on the {words}" for words in found]
    for place in ahead:
        each = 4 if place.weights_dtype == "float32" else 2
        once_more = 0 if place.weights_dtype == place.compute_dtype else 4 * weights.largest
        assert place.needed_bytes == each * weights.count + once_more + machine_device.OVERHEAD_BYTES


def test_the_first_place_is_the_gpu_and_says_nothing(case: Path, card: SimpleNamespace, tmp_path: Path) -> None:
    written = merged(case, tmp_path / "merge", L4)
    assert card.loaded() == [("base", "cuda", "bfloat16"), ("model.unproven", "cuda", "bfloat16")]
    assert (written["device"], written["compute_dtype"], written["weights_dtype"]) == ("cuda", "bfloat16", "bfloat16")
    assert (written["rows"], written["longest_row"], written["notes"]) == (4, 62, [])


@pytest.mark.parametrize("where", ["base", "model.unproven"])
def test_a_gpu_that_is_full_after_all_gives_way_to_the_cpu_for_both(
    where: str, case: Path, card: SimpleNamespace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []
    monkeypatch.setattr(console, "say", lambda words, **_: said.append(words))
    card.runs_out = lambda folder, device, _: (folder, device) == (where, "cuda")

    written = merged(case, tmp_path / "merge", L4)

    on_gpu = [("base", "cuda", "bfloat16"), ("model.unproven", "cuda", "bfloat16")][: 1 + (where != "base")]
    assert card.loaded() == [*on_gpu, ("base", "cpu", "float32"), ("model.unproven", "cpu", "float32")]
    assert written["passed"]
    assert (written["device"], written["compute_dtype"]) == ("cpu", "float32")
    assert len(written["notes"]) == 1
    assert written["notes"][0].startswith("not on the GPU in bfloat16 with rows of up to 62 tokens (needs 1.0 GiB, 24.")
    assert "out of memory: CUDA out of memory" in written["notes"][0]
    assert said == [f"the proof: {written['notes'][0]}"]


def test_the_merge_is_not_blamed_when_there_is_no_memory_anywhere(
    case: Path, card: SimpleNamespace, tmp_path: Path
) -> None:
    card.runs_out = lambda folder, _device, _tokens: folder == "model.unproven"
    with pytest.raises(
        EnvironmentUnavailable, match=r"(?s)needs 1\.0 GiB, .* are free\).*CPU in float32, weights"
    ) as e:
        merged(case, tmp_path / "merge", L4)
    assert e.value.exit_code == 4
    assert "merge is not at fault" in e.value.hint
    # each place had both of its processes, the reference first
    assert [device for _, device, _ in card.loaded()] == ["cuda", "cuda", "cpu", "cpu", "cpu", "cpu"]
    written = json.loads((tmp_path / "merge" / "proof.json").read_text())
    assert (written["passed"], "not enough memory to prove" in written["error"]) == (False, True)


@pytest.mark.parametrize(
    ("error", "blamed"),
    [
        (MemoryError(), EnvironmentUnavailable),
        (RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried"), EnvironmentUnavailable),
        (OSError(12, "Cannot allocate memory"), EnvironmentUnavailable),
        (RuntimeError("CUDA error: unspecified launch failure"), EnvironmentUnavailable),  # the device's, not memory
        (KeyError("model.norm.weight"), GateRefused),
    ],
    ids=["python", "torch", "system", "device", "the merge"],
)
def test_what_ends_the_examination_decides_who_is_blamed(
    error: Exception, blamed: type, case: Path, card: SimpleNamespace, tmp_path: Path
) -> None:
    card.error, card.runs_out = error, lambda folder, *_: folder == "model.unproven"
    with pytest.raises(blamed):
        merged(case, tmp_path / "merge", CPU)


def test_long_rows_are_cut_before_the_gpu_is_given_up(case: Path, card: SimpleNamespace, tmp_path: Path) -> None:
    ids = torch.randint(3, 259, (4, 600), generator=torch.Generator().manual_seed(0)).tolist()
    long_rows = [ProofRow((1, *row, 2), prompt_tokens=500) for row in ids]
    card.runs_out = lambda _folder, device, tokens: device == "cuda" and tokens > 300

    written = merged(case, tmp_path / "merge", L4, long_rows)

    assert [device for _, device, _ in card.loaded()] == ["cuda"] * 3
    assert written["passed"]
    assert (written["device"], written["longest_row"], written["positions"]) == ("cuda", 192, 4 * proof.POSITIONS)
    assert "rows of up to 602 tokens" in written["notes"][0]


def test_a_cut_row_is_compared_at_the_same_tokens() -> None:
    row = ProofRow(tuple(range(1000)), prompt_tokens=700)
    cut = proof_place._cut(row)
    assert cut.input_ids == (0, *range(573, 764))
    assert [cut.input_ids[at + 1] for at in cut.positions()] == list(range(700, 764))
    assert len(cut.positions()) == proof.POSITIONS
    short = rows(count=1)[0]
    assert proof_place._cut(short) == short


def test_the_place_is_chosen_by_what_is_free_when_the_proof_starts(
    case: Path, card: SimpleNamespace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The card could hold it, and another program does not leave the room."""
    monkeypatch.setattr(machine_device, "room_bytes", lambda _: 300 << 20)
    written = merged(case, tmp_path / "merge", L4)
    assert [device for _, device, _ in card.loaded()] == ["cpu", "cpu"]
    assert written["notes"] == ["not on the GPU in bfloat16: needs 1.0 GiB, 300.0 MiB are free"]
    monkeypatch.setattr(host_memory, "memory_available_bytes", lambda: 200 << 20)
    with pytest.raises(EnvironmentUnavailable, match=r"CPU in float32: needs 1\.0 GiB, 200\.0 MiB are free"):
        merged(case, tmp_path / "none", L4)


def test_a_card_without_bfloat16_computes_in_float32(case: Path, card: SimpleNamespace, tmp_path: Path) -> None:
    written = merged(case, tmp_path / "merge", T4)
    assert card.loaded() == [("base", "cuda", "float32"), ("model.unproven", "cuda", "float32")]
    assert (written["device"], written["compute_dtype"]) == ("cuda", "float32")


def test_weights_that_fit_only_in_16_bits_are_proven_in_float32_all_the_same(
    case: Path, card: SimpleNamespace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = merged(case, tmp_path / "whole", CPU)
    in_float32, in_16_bits = places(Weights.of(tmp_path / "whole" / "model", "bfloat16"), CPU)
    assert in_16_bits.needed_bytes < in_float32.needed_bytes
    monkeypatch.setattr(host_memory, "memory_available_bytes", lambda: in_16_bits.needed_bytes)

    held = merged(case, tmp_path / "held", CPU)

    assert [kind for *_, kind in card.loaded()] == ["float32", "float32", "bfloat16", "bfloat16"]
    assert (held["weights_dtype"], held["compute_dtype"], held["passed"]) == ("bfloat16", "float32", True)
    for measure in ("kl_tuned", "kl_base", "kl_calibrated", "kl_effect", "agreement", "swallowed"):
        assert held[measure] == pytest.approx(whole[measure], rel=1e-6, abs=1e-12), measure


def test_a_killed_child_is_not_tried_again(case: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[list[str]] = []
    counts = iter([7, 8])

    def killed(command: list[str], **_: Any) -> CompletedProcess[str]:
        started.append(command)
        return CompletedProcess(command, -9)

    monkeypatch.setattr("subprocess.run", killed)
    monkeypatch.setattr("appliance.weights.child_out_of_memory.kernel_kills", lambda: next(counts))
    with pytest.raises(EnvironmentUnavailable, match=r"(?s)killed by signal 9, which the kernel sends.*oom_kill") as e:
        merged(case, tmp_path / "merge", CPU)
    assert "may use" in str(e.value)
    assert "are free now" in str(e.value)
    assert len(started) == 1


def test_the_summary_says_what_was_swallowed_and_where_if_it_was_not_the_first_choice() -> None:
    measures = SimpleNamespace(rows=4, positions=100, kl_tuned=1e-4, kl_base=0.1, agreement=1.0)
    first = SimpleNamespace(measures=measures, device="cuda", compute_dtype="bfloat16", notes=(), swallowed="")
    later = SimpleNamespace(measures=measures, device="cpu", compute_dtype="float32", notes=("not on the GPU",))
    later.swallowed = "rounding to bfloat16 swallowed 71% of the tuning"
    assert "of 4 test rows: divergence" in stages.proof_words(first)  # type: ignore[arg-type]
    words = stages.proof_words(later)  # type: ignore[arg-type]
    assert words.startswith("proven, but rounding to bfloat16 swallowed 71% of the tuning, on 100 tokens")
    assert "of 4 test rows, on the CPU in float32 for lack of memory: " in words


@pytest.mark.parametrize(
    ("billions", "device", "gpu_free", "host_free", "verdict", "needed"),
    [
        (4, L4, 20, 60, "ok", "8.5 GiB on the GPU if that much is free then, otherwise 9.9 GiB on the CPU"),
        (4, L4, 4, 60, "ok", "8.5 GiB on the GPU if that much is free then, otherwise 9.9 GiB on the CPU"),
        (4, L4, 4, 6, "warning", "8.5 GiB on the GPU if that much is free then, otherwise 9.9 GiB on the CPU"),
        (4, T4, 14, 12, "ok", "9.9 GiB on the GPU if that much is free then, otherwise 9.9 GiB on the CPU"),
        (8, T4, 14, 60, "ok", "17.4 GiB on the CPU (17.4 GiB is more than the GPU has)"),
        (8, T4, 14, 12, "fails", "17.4 GiB on the CPU (17.4 GiB is more than the GPU has)"),
        (4, CPU, 0, 12, "ok", "9.9 GiB"),
        (4, CPU, 0, 9, "fails", "9.9 GiB"),
    ],
)
def test_check_says_where_the_proof_will_compute(
    billions: int,
    device: Device,
    gpu_free: int,
    host_free: int,
    verdict: str,
    needed: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    free = {"cuda": gpu_free * GIB, "cpu": host_free * GIB}
    monkeypatch.setattr(machine_device, "room_bytes", lambda on: free[on.kind])
    monkeypatch.setattr(host_memory, "memory_available_bytes", lambda: free["cpu"])
    found = memory_finding(Weights(billions * 10**9, 4 * 10**8, "bfloat16"), device)
    assert (found.what, found.verdict, found.needed) == ("memory for the proof", verdict, needed)
    assert bool(found.fix) == (verdict != "ok")
