"""A few val questions, answered at each evaluation of training: a loss does not show what a model says.

The same questions each time; their answers go to samples.jsonl and, cut to its width, to the terminal. They are rows of
the user: the log file holds none of them. How a model answers, the caller says; knows neither decoding nor engines.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from transformers import TrainerCallback

from appliance.machine.out_of_memory import is_out_of_memory
from appliance.process import console, files
from appliance.rows import csv_file
from appliance.rundir import results
from appliance.training import checkpoints, validation

if TYPE_CHECKING:
    from appliance.training.trainer import Ordered


@dataclass(frozen=True)
class Question:
    """A val row. `row`: its line in the user's CSV; `question`: with its input, as predictions.csv has it."""

    row: int
    question: str
    wanted: str


def chosen(count: int, seed: int, prepare_dir: Path) -> list[int]:
    """Lines, in the user's CSV, of the val rows that are asked, ascending; all of them if there are no more.

    Groups come in the order of a keyed hash and give one row each, their first: rows of a group ask the same. If the
    groups are too few, or there is no val_groups.csv, their other rows follow.
    """
    path = prepare_dir / validation.GROUPS_FILE
    if path.is_file():
        groups: Mapping[int, str] = results.read_groups(path)
    else:
        groups = {row.line: str(row.line) for row in csv_file.iter_canonical(prepare_dir / "val.csv")}
    seen = dict[str, int]()
    places = []
    for line in sorted(groups):
        place = seen[groups[line]] = seen.get(groups[line], 0) + 1
        places.append((place, blake2b(f"{seed}:sample:{groups[line]}".encode(), digest_size=16).digest(), line))
    return sorted(line for _, _, line in sorted(places)[:count])


class SampleAnswers(TrainerCallback):  # type: ignore[misc]
    """Writes one line per evaluation to samples.jsonl, and shows each answer beside the one before training.

    `answer`: the texts that a model answers to the questions, in their order. What it takes of torch's random numbers
    is given back: training goes on as if nothing had been asked. If memory runs out, it does so without answers.
    """

    def __init__(
        self, path: Path, questions: Sequence[Question], answer: Callable[[Any], Sequence[str]], *, resume_step: int
    ) -> None:
        """Drops the lines of `path` that are later than `resume_step`: those steps are trained again."""
        self._path, self._questions, self._answer = path, questions, answer
        self._fits = True
        self.trainer: Ordered | None = None
        lines = results.read_samples(path) if files.is_there(path) else []
        kept = [line for line in lines if line["step"] <= resume_step]
        if len(kept) < len(lines):
            files.write_text(path, "".join(json.dumps(line) + "\n" for line in kept))
        self._before = {one["row"]: one["answer"] for one in kept[0]["rows"]} if kept else {}

    def on_evaluate(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:  # noqa: ARG002
        if not (self._questions and self._fits):
            return
        assert self.trainer
        answers: Sequence[str] = ()
        devices = [torch.cuda.current_device()] if args.device.type == "cuda" else []
        try:
            with torch.random.fork_rng(devices), self.trainer.compute_loss_context_manager():
                answers = self._answer(model)
        except (RuntimeError, MemoryError) as error:
            if isinstance(error, RuntimeError) and not is_out_of_memory(error):
                raise
            self._fits = False
        if not self._fits:  # after the handler: the exception's traceback keeps the failed call's tensors alive
            torch.cuda.empty_cache()
            console.say("sample answers: out of memory; training goes on without them", style="warning")
            return
        given = list(zip(self._questions, answers, strict=True))
        rows = [{**one.__dict__, "answer": text} for one, text in given]
        checkpoints.append_line(self._path, {"step": state.global_step, "rows": rows})
        for one, text in given:
            before = self._before.get(one.row)
            now = (text,) if before is None else (before, "→", text)
            console.glimpse(f"step {state.global_step}", "│", one.question, "│", *(part or "(nothing)" for part in now))
        self._before = self._before or {one.row: text for one, text in given}
