"""What was found out about the tokens that every prompt holds: which EOS ends an answer, and which rows to train.

Kept in the folder of the stage train, so that a training continues with what it began with, and that later stages need
not read the base's weights. Runs of earlier versions have no such file: theirs is the tokenizer's own EOS, and no row
is trained.
"""

from __future__ import annotations

import hashlib
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from appliance.errors import RunDirError
from appliance.process import files
from appliance.rundir import ledger

FILE = "tokens.json"  # in the folder of the stage train


@dataclass(frozen=True)
class TokenChoice:
    """`eos_token` ends an answer in place of the tokenizer's own; None: it is the tokenizer's own.

    `untrained`: text -> id of EOS and of the template's tokens whose rows the base never trained. `notes`: why, for
    people. `is_compared`: whether the base's rows were looked at; `why_not`: if they were not, for people, but for a
    record of an earlier version, which has no reason.
    """

    eos_token: str | None = None
    untrained: dict[str, int] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    is_compared: bool = False
    why_not: str = ""

    @property
    def rows(self) -> list[int]:
        """The ids whose rows are trained beside an adapter."""
        return sorted(self.untrained.values())

    def apply_to(self, tokenizer: Any) -> None:
        """Makes the chosen EOS that of a transformers tokenizer, and so of the release."""
        if self.eos_token is not None:
            tokenizer.eos_token = self.eos_token  # in the vocabulary: nothing is added

    def write(self, train_dir: Path) -> None:
        ledger.write_copy(train_dir.parent, FILE, asdict(self))
        files.write_json(train_dir / FILE, asdict(self))


def read(train_dir: Path) -> TokenChoice:
    """What training recorded; nothing for a run of an earlier version. Raises RunDirError: the file is damaged."""
    path = train_dir / FILE
    if not path.is_file():
        return TokenChoice()
    try:
        found = files.read_object(path)
        return TokenChoice(**found | {"notes": tuple(found["notes"]), "untrained": dict(found["untrained"])})
    except (ValueError, TypeError, KeyError) as error:
        hint = "train again with --redo train"
        if ledger.read_copy(train_dir.parent, FILE) is not None:
            hint = f"`appliance run {train_dir.parent}` restores it from {ledger.COPIES}/"
        raise RunDirError(f"{path} is damaged: {error}", hint=hint) from error


def restore(train_dir: Path, sha256: str | None) -> bool:
    """Writes the file from its copy if it is missing or damaged. Returns whether it was.

    `sha256`: what the finished stage recorded of it, which the copy has to have; None: the training is not done.
    """
    path, copy = train_dir / FILE, ledger.read_copy(train_dir.parent, FILE)
    if copy is None or sha256 not in (None, hashlib.sha256(files.as_json(copy).encode()).hexdigest()):
        return False
    with suppress(OSError, ValueError):
        if files.read_object(path) == copy:
            return False
    files.write_json(path, copy)
    return True
