"""The contract of tests/engines/test_engines.py on the card: bfloat16 and 4 bits, Unsloth's kernels compiled, its own
trainer.

Only here does Unsloth rewrite trl's trainer. Each run is a process of its own.
"""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from appliance.machine import disk
from appliance.process import files
from appliance.rundir import results
from tests.conftest import write_qa
from tests.gpu.shapes import Setting, run_engine, wanted_batches
from tests.helpers.models import Family, tiny_base

pytestmark = [pytest.mark.gpu, pytest.mark.slow, pytest.mark.timeout(900)]

ENGINES = ("unsloth", "transformers")
BATCHES_SEEN = 30  # 15 steps: into the second epoch
# Relative, on losses. Both compute in bfloat16 (8 bits of mantissa) and round in different places, which training
# amplifies (float32 against bfloat16, on a CPU: 1.3 %); in 4 bits peft keeps norms and embeddings in float32 as well,
# Unsloth in bfloat16.
TOLERANCE = {False: 0.05, True: 0.08}
# Of the merged elements. Both merge in float32, but the card adds in another order: 1e-7, which a rounding to
# bfloat16 shows in about one element of ten thousand.
SHARE_ROUNDED_OTHERWISE = 1e-3
BFLOAT16_ULP = 2**-7  # relative; of numbers just above a power of two, and half as much of those just below


@dataclass(frozen=True)
class Ran:
    """What the runs of one base left behind. `reports` and `runs` by engine; `stdout` of the Unsloth process."""

    folder: Path
    setting: Setting
    runs: dict[str, Path]
    reports: dict[str, dict[str, Any]]
    stdout: str

    def val_losses(self, engine: str) -> dict[int, float]:
        lines = results.read_metrics(self.runs[engine] / "train" / "metrics.jsonl")
        return {line["step"]: line["val_loss"] for line in lines if "val_loss" in line}


def run_both(
    folder: Path,
    family: Family,
    *,
    load_in_4bit: bool,
    hidden: int = 256,
    layers: int = 2,
    rows: int = 60,
    **setting: Any,
) -> Ran:
    """The transformers engine, Unsloth, and each of them evaluating what the other trained."""
    names = ["사과", "배", "감", "귤", "밤"]
    questions = [(f"{names[i % 5]} " * (1 + i % 4) + f"{i}?", f"{names[i % 5]}!") for i in range(rows)]
    common = {"gradient_accumulation_steps": 2, "learning_rate": 1e-3, "eval_every": 15}
    chosen = Setting(
        base=tiny_base(folder / "base", family=family, hidden=hidden, layers=layers, short_prompts=True),
        csv=write_qa(folder / "train.csv", questions),
        load_in_4bit=load_in_4bit,
        **(common | setting),
    )
    runs = {engine: folder / engine for engine in ENGINES}
    plain, _ = run_engine(chosen, "transformers", runs["transformers"], batches_seen=BATCHES_SEEN)
    handed_over, taken_over = folder / "handed-over", folder / "taken-over"
    _copy_trained(runs["transformers"], handed_over)
    fast, stdout = run_engine(
        chosen,
        "unsloth",
        runs["unsloth"],
        batches_seen=BATCHES_SEEN,
        unsloth_merge="" if load_in_4bit else str(folder / "merged-by-unsloth"),
        then=str(handed_over),
    )
    _copy_trained(runs["unsloth"], taken_over)
    run_engine(chosen, "transformers", taken_over, until="evaluate")
    return Ran(folder, chosen, runs, {"transformers": plain, "unsloth": fast}, stdout)


def _copy_trained(run: Path, target: Path) -> None:
    shutil.copytree(run, target, ignore=shutil.ignore_patterns("evaluate", "merge", "publish", "checkpoints"))


@pytest.fixture(
    scope="module",
    params=[(family, bits) for family in ("llama", "qwen3") for bits in (False, True)],
    ids=lambda param: f"{param[0]}-{'4-bit' if param[1] else '16-bit'}",
)
def ran(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Ran:
    family, load_in_4bit = request.param
    return run_both(tmp_path_factory.mktemp(family), family, load_in_4bit=load_in_4bit)


@pytest.mark.parametrize("engine", ENGINES)
def test_the_same_batches_reach_the_model_as_we_encode_order_and_pad_them(ran: Ran, engine: str) -> None:
    assert files.read_json(ran.runs[engine] / "run.json")["engine"] == engine
    seen = ran.reports[engine]["batches"]
    assert seen == wanted_batches(ran.setting, ran.runs[engine], len(seen))
    assert len(seen) == min(BATCHES_SEEN, ran.setting.steps * ran.setting.gradient_accumulation_steps)
    for batch in seen:
        for ids, labels in zip(batch["input_ids"], batch["labels"], strict=True):
            trained = [token for token in labels if token != -100]
            assert trained[-1] == 2  # EOS, once
            assert trained.count(2) == ids.count(2) == 1


@pytest.mark.parametrize("engine", ENGINES)
def test_it_learns_and_the_merge_is_proven(ran: Ran, engine: str) -> None:
    losses = ran.val_losses(engine)
    assert min(losses) == 0
    assert max(losses) == ran.setting.steps
    assert losses[ran.setting.steps] < 0.5 * losses[0]
    assert files.read_json(ran.runs[engine] / "merge" / "proof.json")["passed"]
    scores = files.read_json(ran.runs[engine] / "evaluate" / "metrics.json")
    assert scores["tuned"]["loss"] < scores["base"]["loss"]


def test_both_learn_the_same(ran: Ran) -> None:
    losses = [ran.val_losses(engine) for engine in ENGINES]
    assert losses[0] == pytest.approx(losses[1], rel=TOLERANCE[ran.setting.load_in_4bit])


def test_both_leave_the_same_files(ran: Ran) -> None:
    for part in ("train/adapter", "merge/model"):
        names = [{path.name for path in (ran.runs[engine] / part).iterdir()} for engine in ENGINES]
        assert names[0] == names[1], part


@pytest.mark.parametrize(("trained_by", "other"), [("transformers", "handed-over"), ("unsloth", "taken-over")])
def test_an_adapter_of_one_is_evaluated_by_the_other(ran: Ran, trained_by: str, other: str) -> None:
    mine, theirs = (
        files.read_json(run / "evaluate" / "metrics.json") for run in (ran.runs[trained_by], ran.folder / other)
    )
    for who in ("base", "tuned"):
        assert theirs[who]["loss"] == pytest.approx(mine[who]["loss"], rel=TOLERANCE[ran.setting.load_in_4bit])


def test_our_merge_is_unsloths_own(ran: Ran) -> None:
    """Up to the last bit of a few elements. In 4 bits there is nothing to compare: Unsloth merges only when asked."""
    merged = ran.folder / "merged-by-unsloth" / "model.safetensors"
    assert merged.exists() != ran.setting.load_in_4bit
    if ran.setting.load_in_4bit:
        return
    fit = files.read_json(ran.runs["unsloth"] / "train" / "fit.json")
    assert fit["best_step"] == ran.setting.steps  # ours merges the best adapter, Unsloth the last
    ours, theirs = load_file(ran.runs["unsloth"] / "merge" / "model" / "model.safetensors"), load_file(merged)
    assert ours.keys() == theirs.keys()
    otherwise, elements = 0, 0
    for name, tensor in ours.items():
        assert tensor.dtype == theirs[name].dtype == torch.bfloat16
        # around zero, where base and delta cancel, the float32 sums themselves differ by more than such a unit
        torch.testing.assert_close(tensor, theirs[name], rtol=BFLOAT16_ULP, atol=1e-7)
        otherwise, elements = otherwise + int((tensor != theirs[name]).sum()), elements + tensor.numel()
    assert otherwise / elements <= SHARE_ROUNDED_OTHERWISE, f"{otherwise} of {elements} elements"


def test_unsloth_comes_first_and_keeps_off_stdout(ran: Ran) -> None:
    assert ran.reports["unsloth"]["before_unsloth"] == []
    assert ran.stdout == ""  # only results belong there; Unsloth's banner is in the log
    assert "Unsloth" in (ran.runs["unsloth"] / "appliance.log").read_text(encoding="utf-8")


@pytest.mark.parametrize("engine", ENGINES)
def test_peak_memory_is_recorded(ran: Ran, engine: str, record_property: Any) -> None:
    peak_bytes = ran.reports[engine]["peak_bytes"]
    assert peak_bytes > 0
    lines = results.read_metrics(ran.runs[engine] / "train" / "metrics.jsonl")
    assert all(0 < line["peak_memory_bytes"] <= peak_bytes for line in lines if "loss" in line)
    record_property("peak_bytes", peak_bytes)
    print(f"{engine}, {'4' if ran.setting.load_in_4bit else '16'}-bit: peak {disk.human(peak_bytes)}")  # noqa: T201
