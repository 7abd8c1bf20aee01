"""The proof that a merged model must pass before release: it answers as base + adapter does.

After full fine-tuning read "the trained model" for "base + adapter": the merged model is its weights, rounded once.

Two processes, never both at once, so that the merged model is loaded as its users will load it. `reference` loads base
and adapter, compares the merged files with them and saves their predictions; `examine` loads the merged folder alone,
with plain transformers, and compares its answers. Both see the same rows, teacher-forced. Must not know how the merge
was written: peft's own arithmetic is the judge.

The bound is calibrated in the reference process: every weight is replaced by what a perfect merge would store, peft's
merge in float32 rounded to 16 bits. How far that moves the answers is due to rounding; the merge may be little worse.

Divergences are in nats per position, over the TOP_TOKENS likeliest tokens of base + adapter and one outcome for all
the others. Lumping outcomes never raises a divergence (data-processing inequality): each is a lower bound on the true
one.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from appliance.errors import EnvironmentUnavailable, GateRefused
from appliance.findings import Gate, finite
from appliance.process import files, redact
from appliance.process.child import child_environment
from appliance.process.files import read_json, write_json
from appliance.weights import child_out_of_memory
from appliance.weights.model_config import GREEDY
from appliance.weights.shards import is_adapter

ROWS = 32  # compared at most; with POSITIONS per row this keeps the saved reference below 60 MB for any vocabulary
POSITIONS = 64  # per row at most: the first ones and EOS
TOP_TOKENS = 1024
SAMPLE = 16384  # weights of each merged tensor at which peft's own sum is compared

# Bounds between proper and wrong merges, measured on a CPU: Llama and Qwen3 of 3 layers, heads tied and not, 2 seeds,
# bases and merges in bfloat16 and float16, deltas of 0.3 %, 2 % and 10 % of their weights' norm. 96 proper merges, and
# each with the delta left out, doubled, swapped between layers, left out of one block, left out of one module (480).
#                              proper   wrong at 10 %   at 2 %     at 0.3 %
#   kl_tuned / kl_calibrated   1.00     >= 8.2          >= 1.2     >= 1.0 (hidden by the rounding to bfloat16)
#   agreement - calibrated     0.000    <= -0.02        <= 0.002   <= 0.006
# So the answers reveal a wrong merge if the error is larger than rounding; the weights, which are all compared, always
# do. The factor leaves
# room for a device that sums in a different order; if it computes in 16 bits, kl_calibrated contains that noise too.
KL_FACTOR = 4.0
KL_FLOOR = 1e-6  # a perfect merge had 1.5e-6 or more, unless the adapter is zero: then all divergences are zero
AGREEMENT_MARGIN = 0.01
# Above this share the merged model is nearer to the base than to the trained one (weights/proof_tensors.py, _Tuning).
SWALLOWED_BOUND = 0.5


@dataclass(frozen=True)
class ProofRow:
    """A held-out prompt followed by the tuned answer and EOS; the ids after `prompt_tokens` are compared."""

    input_ids: tuple[int, ...]
    prompt_tokens: int

    def positions(self) -> list[int]:
        """Indices whose next id belongs to the answer or is EOS: the first POSITIONS - 1 of them and the last."""
        found = list(range(self.prompt_tokens - 1, len(self.input_ids) - 1))
        return found if len(found) <= POSITIONS else [*found[: POSITIONS - 1], found[-1]]


@dataclass(frozen=True)
class ProofRequest:
    """What both processes work on. `dtype`: the type the merge stores; `compute_dtype`: the type both sides compute in.

    `weights_dtype`: the type in which the weights are held in memory; 16 bits with float32 computation if nothing
    larger fits (weights/widened.py). `trained_dir`: an adapter of the base or, after full fine-tuning, a whole model.
    `decoding`: how evaluation decoded, as in a generation_config.json. `task`: the name of the recipe's.
    """

    base_dir: Path
    trained_dir: Path
    dtype: str
    compute_dtype: str
    weights_dtype: str
    device: str
    rows: tuple[ProofRow, ...]
    task: str
    decoding: Mapping[str, Any] = field(default_factory=lambda: dict(GREEDY))

    @property
    def weights_dir(self) -> Path:
        """The model folder whose tensors the merged model must have."""
        return self.base_dir if is_adapter(self.trained_dir) else self.trained_dir


@dataclass(frozen=True)
class Measures:
    """What was measured. Divergences in nats per position, agreements as fractions of positions."""

    rows: int
    positions: int
    top_tokens: int
    kl_tuned: float  # KL(base + adapter || merged)
    kl_base: float  # KL(base || merged)
    kl_calibrated: float  # KL(base + adapter || base + adapter rounded as a perfect merge is)
    kl_effect: float  # KL(base + adapter || base): the whole effect of the adapter
    agreement: float  # of merged with base + adapter in the likeliest token
    agreement_calibrated: float
    agreement_evaluated: float  # of merged with the evaluated model's answers, which may be of a model in 4 bits
    agreement_evaluated_16bit: float  # of base + adapter, as computed here, with the same answers
    positions_not_finite: int
    tensors_not_finite: int
    tensors_not_finite_names: str
    tensors_wrong: int
    tensors_wrong_names: str
    unlike_base: int  # tensors that training did not change, with a value that is not the base's
    unlike_base_names: str
    unlike_trained: int  # tensors that it changed, with a value that is not what was trained, rounded
    unlike_trained_names: str
    config_changed: int  # fields of config.json that are neither the base's nor ours
    config_changed_names: str
    decoding_changed: int  # fields of generation_config.json that evaluation did not use
    decoding_changed_names: str
    swallowed: float  # share of the tuning that rounding undid


@dataclass(frozen=True)
class Proof:
    """`device`, the types and `longest_row` (tokens) are those of both processes.

    `notes`: the better places that were passed over because memory ran out or was too small.
    """

    gates: tuple[Gate, ...]
    measures: Measures
    device: str = "cpu"
    compute_dtype: str = "float32"
    weights_dtype: str = "float32"
    longest_row: int = 0
    notes: tuple[str, ...] = ()
    stored_dtype: str = "16 bits"

    @property
    def passed(self) -> bool:
        return all(gate.passed for gate in self.gates)

    @property
    def swallowed(self) -> str:
        """What rounding left of the tuning, in words, if the merged model is nearer to the base; otherwise empty."""
        share = self.measures.swallowed
        return f"rounding to {self.stored_dtype} swallowed {share:.0%} of the tuning" if share > SWALLOWED_BOUND else ""

    @property
    def cautions(self) -> list[dict[str, Any]]:
        """What must stand beside "proven": name, sentence and rows of each."""
        if not self.swallowed:
            return []
        sentence = (
            f"{self.swallowed}: the merged model is nearer to the base than to what was trained; more steps, or a "
            "higher train.learning_rate, would get through"
        )
        return [{"name": "tuning_swallowed", "sentence": sentence, "rows": []}]

    def as_json(self) -> dict[str, Any]:
        """For proof.json. A figure that is not finite is null there."""
        gates = [gate.as_json() for gate in self.gates]
        where = {key: value for key, value in vars(self).items() if key not in ("gates", "measures")}
        said = {"passed": self.passed, "cautions": self.cautions, "gates": gates}
        return {**said, **finite(asdict(self.measures)), **where}


def request(
    base_dir: Path,
    trained_dir: Path,
    *,
    dtype: str,
    device: str,
    rows: Sequence[ProofRow],
    task: str,
    compute_dtype: str = "float32",
    weights_dtype: str = "float32",
) -> ProofRequest:
    """A request for the first ROWS rows, of greedy answers. Which types fit which device: weights/proof_place.py.

    Raises GateRefused: there is no row to compare.
    """
    refuse_no_rows(rows)
    return ProofRequest(base_dir, trained_dir, dtype, compute_dtype, weights_dtype, device, tuple(rows[:ROWS]), task)


def refuse_no_rows(rows: Sequence[ProofRow]) -> None:
    """Raises GateRefused: there is no row to compare."""
    if not rows:
        raise GateRefused("there is no held-out row to prove the merge with", hint="raise data.test_fraction")


@contextmanager
def work_folder(work_dir: Path) -> Iterator[Path]:
    """An empty folder for what one process leaves for the other; removed at the end."""
    shutil.rmtree(work_dir, ignore_errors=True)
    work_dir.mkdir(parents=True)
    try:
        yield work_dir
    finally:
        shutil.rmtree(work_dir)


def run_reference(wanted: ProofRequest, work_dir: Path, merged_dir: Path, log_path: Path) -> None:
    """`write_reference` in a separate process.

    Raises OutOfMemory: another place may work. EnvironmentUnavailable: it failed or was killed. GateRefused: the
    adapter cannot be merged, or the merged files cannot be read.
    """
    write_json(work_dir / "request.json", {k: str(v) if isinstance(v, Path) else v for k, v in asdict(wanted).items()})
    _run_child("reference", [work_dir, merged_dir], log_path)


def run_examination(work_dir: Path, merged_dir: Path, log_path: Path) -> Proof:
    """`examine` in a separate process, on the device and in the types of the reference; then the judgement.

    Raises OutOfMemory: another place may work. EnvironmentUnavailable: it was killed, or the device failed.
    GateRefused: the merged folder does not load.
    """
    _run_child("examine", [work_dir, merged_dir], log_path)
    measures, wanted = Measures(**read_json(work_dir / "measures.json")), read_json(work_dir / "request.json")
    longest_row = max(len(row["input_ids"]) for row in wanted["rows"])
    where = {name: wanted[name] for name in ("device", "compute_dtype", "weights_dtype")}
    return Proof(judge(measures), measures, longest_row=longest_row, stored_dtype=wanted["dtype"], **where)


def judge(seen: Measures) -> tuple[Gate, ...]:
    """The gates. Pure."""
    kl_bound = max(KL_FACTOR * seen.kl_calibrated, KL_FLOOR)
    agreement_bound = max(0.0, seen.agreement_calibrated - max(AGREEMENT_MARGIN, 2 / seen.positions))
    # If an adapter's whole effect is smaller than rounding, its answers cannot be told from the base's; its merge is
    # near both. every_delta_is_in, which looks at the weights, still tells a merge from a copy of the base.
    effect_is_visible = seen.kl_effect > kl_bound
    return (
        _none(
            "all_finite",
            seen.positions_not_finite,
            "",
            "positions with logits that are not finite, in base + adapter and in the merged model",
        ),
        _none(
            "every_tensor_finite",
            seen.tensors_not_finite,
            seen.tensors_not_finite_names,
            "tensors of the merged model with a value that is not finite",
        ),
        _none(
            "tensors_complete",
            seen.tensors_wrong,
            seen.tensors_wrong_names,
            "tensors missing, added, not of the base's shape, or not 16-bit",
        ),
        _none(
            "untrained_is_the_base",
            seen.unlike_base,
            seen.unlike_base_names,
            "tensors that were not trained and are not the base's, bit for bit",
        ),
        _none(
            "every_delta_is_in",
            seen.unlike_trained,
            seen.unlike_trained_names,
            "trained tensors that differ from what was trained by more than rounding",
        ),
        _none(
            "config_is_the_base",
            seen.config_changed,
            seen.config_changed_names,
            "fields of config.json that are neither the base's nor set by training",
        ),
        _none(
            "decodes_as_evaluated",
            seen.decoding_changed,
            seen.decoding_changed_names,
            "fields of generation_config.json that are not what evaluation used",
        ),
        Gate(
            "merged_equals_trained",
            seen.kl_tuned <= kl_bound,
            seen.kl_tuned,
            kl_bound,
            f"KL(base + adapter || merged) per position; a perfect merge has {seen.kl_calibrated:.3g}",
        ),
        Gate(
            "top1_agreement",
            seen.agreement >= agreement_bound,
            seen.agreement,
            agreement_bound,
            "share of positions where merged and base + adapter have the same likeliest token; "
            f"a perfect merge has {seen.agreement_calibrated:.4f}",
        ),
        Gate(
            "nearer_to_tuned",
            seen.kl_tuned < seen.kl_base or (not effect_is_visible and seen.kl_tuned <= kl_bound),
            seen.kl_tuned,
            seen.kl_base if effect_is_visible else max(seen.kl_base, kl_bound),
            "KL(base + adapter || merged) must be below KL(base || merged)"
            + ("" if effect_is_visible else "; the adapter's effect is below rounding, so the weights decide"),
        ),
    )


def _none(name: str, count: int, names: str, meaning: str) -> Gate:
    """A gate that passes if there are none of these."""
    return Gate(name, count == 0, count, 0, meaning + names)


def run_module(module: str, arguments: Sequence[str], log_path: Path) -> tuple[int, str]:
    """Runs `python -m module` without network or token and appends its output to `log_path`; exit code and last lines.

    If the child was killed, the last line says whether the kernel's out-of-memory killer was at work meanwhile.
    """
    kills = child_out_of_memory.kernel_kills()
    command = [sys.executable, "-m", module, *arguments]
    with files.open_own(log_path, "a+", errors="replace") as log:
        begin = log.seek(0, os.SEEK_END)
        code = subprocess.run(command, stdout=log, stderr=log, env=child_environment(), check=False).returncode
        log.seek(begin)
        text = redact.redact(log.read(), redact.names_here())  # a traceback names files in the user's home folder
        log.truncate(begin)
        if code == -signal.SIGKILL and child_out_of_memory.kernel_kills() > kills:
            text += "the kernel's out-of-memory killer ended a process during this time (/proc/vmstat, oom_kill)\n"
        log.write(text)
    return code, "\n".join(text.splitlines()[-5:])


def _run_child(verb: str, paths: Sequence[Path], log_path: Path) -> None:
    code, tail = run_module("appliance.weights.proof_child", [verb, *map(str, paths)], log_path)
    if code == 0:
        return
    process = f"proof: the process `{verb}`"
    child_out_of_memory.refuse(code, process, tail, log_path)
    if code == EnvironmentUnavailable.exit_code and tail:  # its last line says what the machine lacks, and what to do
        raise EnvironmentUnavailable(f"{process}: {tail.splitlines()[-1]}", hint=f"its log is {log_path}")
    message = f"{process} {f'was killed by signal {-code}' if code < 0 else f'ended with {code}'}:\n{tail}"
    # If transformers cannot load a merged folder, that is the merge's fault; anything else is the machine's.
    if code == GateRefused.exit_code or (verb == "examine" and code == 1):
        raise GateRefused(message, hint=f"the trained weights are kept; see {log_path}")
    raise EnvironmentUnavailable(message, hint=f"see {log_path}")
