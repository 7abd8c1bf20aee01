"""Whether the tokenizer that training will save reads the prepared rows as training does. A part of `prepare`."""

from __future__ import annotations

import json
import logging
import subprocess
import sys
from itertools import islice
from pathlib import Path

from appliance.machine import packages
from appliance.process import child
from appliance.prompt.format import Prompt, user_message
from appliance.rows import csv_file
from appliance.training import tokenizer_files

ROWS_READ_AGAIN = 100  # of each side
MODULE = "appliance.pipeline.saved_tokenizer_child"

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

    A process of its own asks transformers, which this one need not import. False too if anything there goes wrong:
    `refuse_lossy` says what. `eos_token`: that of the run's TokenChoice. `stage_dir`: prepare's; None: no rows are
    there.
    """
    job = {
        "base_dir": str(base_dir),
        "format": prompt.name,
        "eos_token": eos_token,
        "fingerprint": prompt.fingerprint,
        "stage_dir": None if stage_dir is None else str(stage_dir),
    }
    done = subprocess.run(
        [sys.executable, "-m", MODULE],
        input=json.dumps(job).encode() + b"\n",
        capture_output=True,
        env=child.child_environment(),
        start_new_session=True,  # the terminal's Ctrl-C is for this process, which then ends the child
        check=False,
    )
    said = [child.message_in(line) for line in done.stdout.splitlines()]
    if done.returncode == 0 and said == [{"fingerprint": prompt.fingerprint}]:
        return True
    shown = done.stderr.decode(errors="replace").strip()[-2000:]
    _log.info("transformers is asked again in this process: the other %s %s", child.ending(done.returncode), shown)
    return False
