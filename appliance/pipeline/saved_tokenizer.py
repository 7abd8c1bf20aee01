"""Whether the tokenizer that training will save reads the prepared rows as training does. A part of `prepare`."""

from __future__ import annotations

import logging
import os
from itertools import islice
from pathlib import Path

from appliance.machine import packages
from appliance.process import child, imports
from appliance.process.forked import Worker
from appliance.prompt import format as prompt_format
from appliance.prompt import tokenizer
from appliance.prompt.format import Prompt, user_message
from appliance.rows import csv_file
from appliance.rundir.token_choice import TokenChoice
from appliance.training import tokenizer_files

ROWS_READ_AGAIN = 100  # of each side
CPU_SECONDS = 600  # for transformers to read a tokenizer; a vocabulary of 260,000 words takes ten

_log = logging.getLogger(__name__)


def refuse_lossy(stage_dir: Path, base_dir: Path, prompt: Prompt) -> None:
    """Saves and loads the tokenizer again, before the first step. `stage_dir`: prepare's.

    Raises EnvironmentUnavailable: a prompt gets other ids. Without the `train` extra nothing is asked: training asks.
    """
    if packages.can_train():
        rows = [
            row
            for side in ("train", "val", "test")
            for row in islice(csv_file.iter_canonical(stage_dir / f"{side}.csv"), ROWS_READ_AGAIN)
        ]
        asked = [user_message(row.instruction, row.input) for row in rows]
        tokenizer_files.refuse_lossy(stage_dir, base_dir, prompt, asked)


def is_trained_with(prompt: Prompt, base_dir: Path, eos_token: str | None, stage_dir: Path | None) -> bool:
    """Whether a prompt that was read without transformers is the one that training loads, and saves without loss.

    A fork asks transformers, which this process need not import. False too if anything there goes wrong: `refuse_lossy`
    says what. `eos_token`: that of the run's TokenChoice. `stage_dir`: prepare's; None: no rows are there.
    """

    def ask(_: None) -> str:
        loaded = tokenizer.load(base_dir)
        TokenChoice(eos_token).apply_to(loaded)
        found = prompt_format.from_transformers(prompt.name, loaded)
        if stage_dir is not None and found.fingerprint == prompt.fingerprint:
            refuse_lossy(stage_dir, base_dir, found)
        return found.fingerprint

    with Worker(ask, before=_import_transformers) as worker:
        worker.send(None, cpu_seconds=CPU_SECONDS)
        try:
            found = worker.receive(wall_seconds=CPU_SECONDS * 10)
        except Exception as error:  # noqa: BLE001  whatever it is, it is found again by this process, for people
            _log.info("transformers is asked again in this process: %s", str(error)[-2000:])
            return False
    return found == prompt.fingerprint


def _import_transformers() -> None:
    """Without torch, with which it takes six seconds of CPU time instead of one and a half."""
    child.take_environment()
    os.environ["TRANSFORMERS_NO_ADVISORY_WARNINGS"] = "1"
    child.leave_out("torch", "pygments", *child.UNUSED)  # pygments: for the command line of the Hub's HTTP client
    with imports.uncollected("transformers"):
        from transformers import AutoTokenizer, PreTrainedTokenizerFast  # noqa: F401
