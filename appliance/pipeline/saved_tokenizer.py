"""Whether the tokenizer that training will save reads the prepared rows as training does. A part of `prepare`."""

from __future__ import annotations

from itertools import islice
from pathlib import Path

from appliance.machine import packages
from appliance.prompt.format import Prompt, user_message
from appliance.rows import csv_file
from appliance.training import tokenizer_files

ROWS_READ_AGAIN = 100  # of each side


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
