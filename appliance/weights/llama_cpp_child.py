"""What llama.cpp makes of a GGUF file, beside what transformers makes of the merged model: in processes of their own.

`reference` loads the merged model with plain transformers and saves its predictions; `llama` loads the GGUF file alone
and saves its own, the ids of texts, and its answers. Measures; pipeline/export.py judges.

>>> python -m appliance.weights.llama_cpp_child reference WORK_DIR
>>> python -m appliance.weights.llama_cpp_child llama WORK_DIR FILE.gguf
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from appliance.errors import ApplianceError, EnvironmentUnavailable, GateRefused
from appliance.machine import write_errors
from appliance.process import child
from appliance.process.files import read_json, write_json
from appliance.weights import child_out_of_memory, llama_cpp_model
from appliance.weights.proof import TOP_TOKENS, ProofRow, run_module

_THREADS = 8  # more help no small batch


@dataclass(frozen=True)
class Request:
    """What both processes are asked.

    `rows`: answers that the tuned model gave, each behind its prompt. `prompts`: ids of the test questions; `limit`:
    tokens of an answer; `ends`: ids that end one. `texts`: prompts as a server is given them, without BOS, and the ids
    that were trained.
    """

    model_dir: str
    rows: Sequence[ProofRow]
    prompts: Sequence[Sequence[int]]
    limit: int
    ends: Sequence[int]
    texts: Sequence[tuple[str, Sequence[int]]]

    @property
    def room(self) -> int:
        """Tokens of the longest sequence that is computed."""
        longest = max((len(row.input_ids) for row in self.rows), default=1)
        return max(longest, max((len(ids) for ids in self.prompts), default=1) + self.limit)


@dataclass(frozen=True)
class Measured:
    """Of one file. `answers`: the ids of each answer. `other_ids`: texts whose ids differ from those trained.

    `kl`: mean over positions of KL(merged || GGUF) in nats. `agreement`: share of positions with the same likeliest
    token.
    """

    answers: Sequence[Sequence[int]]
    other_ids: Sequence[str]
    kl: float
    agreement: float
    positions: int


def write_request(work_dir: Path, asked: Request) -> None:
    """request.json, which both processes read."""
    rows = [{"input_ids": row.input_ids, "prompt_tokens": row.prompt_tokens} for row in asked.rows]
    write_json(work_dir / "request.json", {**vars(asked), "rows": rows})


def write_reference(work_dir: Path, log_path: Path) -> None:
    """Runs `reference`. Raises EnvironmentUnavailable: it ended otherwise than it should."""
    _run(["reference", str(work_dir)], "the merged model's predictions", log_path)


def measure(work_dir: Path, gguf_path: Path, log_path: Path) -> Measured:
    """Runs `llama` after `reference`. Raises GateRefused: llama.cpp does not load the file or compute with it."""
    _run(["llama", str(work_dir), str(gguf_path)], f"llama.cpp with {gguf_path.name}", log_path)
    return Measured(**read_json(work_dir / "measured.json"))


def _run(arguments: Sequence[str], process: str, log_path: Path) -> None:
    code, tail = run_module(__name__, arguments, log_path)
    if code == 0:
        return
    child_out_of_memory.refuse(code, process, tail, log_path)
    message = f"{process} {f'was killed by signal {-code}' if code < 0 else f'ended with {code}'}:\n{tail}"
    kind = GateRefused if code == GateRefused.exit_code else EnvironmentUnavailable
    raise kind(message, hint=f"the merged model is untouched; see {log_path}")


def _read_request(work_dir: Path) -> Request:
    saved = read_json(work_dir / "request.json")
    rows = [ProofRow(tuple(row["input_ids"]), row["prompt_tokens"]) for row in saved["rows"]]
    return Request(**{**saved, "rows": rows})


def _reference(work_dir: Path) -> None:
    """reference.safetensors: `ids` (P, K) the likeliest tokens, best first; `merged` (P, K + 1) their log-probabilities
    and that of all others, float64.
    """
    import torch
    from safetensors.torch import save_file
    from transformers import AutoModelForCausalLM

    from appliance.tasks import causal
    from appliance.weights import proof_child

    asked = _read_request(work_dir)
    model = AutoModelForCausalLM.from_pretrained(
        asked.model_dir, dtype=torch.float32, local_files_only=True, use_safetensors=True
    ).eval()
    kept, lumped = [], []
    with torch.no_grad():
        for row in asked.rows:
            said = proof_child.log_probs(model, row, causal.TASK)
            kept.append(said.topk(min(TOP_TOKENS, said.shape[1] - 1)).indices)
            lumped.append(proof_child.lump(said, kept[-1]))
    save_file({"ids": torch.cat(kept).int(), "merged": torch.cat(lumped)}, work_dir / "reference.safetensors")


def _llama(work_dir: Path, gguf_path: Path) -> dict[str, Any]:
    """Measured, as JSON."""
    import torch
    from safetensors.torch import load_file

    from appliance.weights import proof_child

    asked, reference = _read_request(work_dir), load_file(work_dir / "reference.safetensors")
    ends = set(asked.ends)
    threads = min(_THREADS, len(os.sched_getaffinity(0)))
    with llama_cpp_model.loaded(gguf_path, asked.room, threads) as model:
        other = model.others(asked.texts)
        said = []
        for row in asked.rows:
            model.forget()
            for logits in model.read(row.input_ids[:-1], 0, row.positions()):
                said.append(torch.from_numpy(logits).double().log_softmax(-1))
        answers = [model.answer(ids, asked.limit, lambda given: given[-1] in ends) for ids in asked.prompts]
    merged, ids = reference["merged"], reference["ids"].long()
    theirs = torch.stack(said)
    lumped = proof_child.lump(theirs, ids)
    return {
        "answers": answers,
        "other_ids": other,
        "kl": proof_child.divergence(merged, lumped),
        "agreement": (theirs.argmax(1) == ids[:, 0]).float().mean().item(),
        "positions": len(said),
    }


def main(arguments: Sequence[str]) -> int:
    """The child process."""
    child.die_with_parent()
    verb, work_dir, *rest = arguments
    try:
        with write_errors.explaining(Path(work_dir), writes_only=True), child_out_of_memory.ends_the_process():
            if verb == "reference":
                _reference(Path(work_dir))
            else:
                write_json(Path(work_dir) / "measured.json", _llama(Path(work_dir), Path(rest[0])))
    except ApplianceError as error:
        sys.stderr.write(f"{error}{'; ' if error.hint else ''}{error.hint}\n")
        return error.exit_code
    return 0


if __name__ == "__main__":
    child.leave_out(*child.UNUSED)
    sys.exit(main(sys.argv[1:]))
