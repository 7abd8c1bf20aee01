"""What the stages wrote for others to read: the names of those files, their columns, and the one reader of each.

Nobody else opens them, so that a column has one name and a file that is missing or damaged has one message.

>>> read_predictions(Path("runs/demo"))[0]["verdict"]
'win'
"""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

from appliance.errors import RunDirError
from appliance.findings import Caution
from appliance.process import files

COMPARISON = "metrics.json"  # of the stage evaluate: base against tuned, as evaluation/verdict.py defines it
PROOF = "proof.json"  # of the stage merge
PREDICTIONS = "predictions.csv"  # its `verdict` is win, closer, tie, loss or not judged
EXTRA_ANSWERS = "extra_answers.csv"
STEPS = "steps.json"  # of the stage train: how many steps the training will have at most
TEST_GROUPS = "test_groups.csv"  # of the stage prepare
PREDICTION_COLUMNS = ("row", "question", "wanted", "base", "tuned", "verdict")
OTHER_COLUMN = "other"  # behind those, if another model's answers were scored as well
# And behind that, the answers of the base asked in another way than the one in `base`: rundir/base_asked.py names them.
BASE_COLUMN = "base_{}"
EXTRA_COLUMNS = ("from", "row", "question", "wanted", "base", "tuned")
TEXT_COLUMNS = ("question", "wanted", "base", "tuned")  # of both: cells that hold the text of a row or an answer


def read(run_path: Path, stage: str, name: str) -> Any:
    """A JSON file that a stage wrote. Raises RunDirError: it is missing or damaged."""
    path = run_path / stage / name
    try:
        return files.read_json(path)
    except (FileNotFoundError, ValueError) as error:
        reason = "is missing" if isinstance(error, FileNotFoundError) else f"is damaged: {error}"
        raise RunDirError(f"{path} {reason}", hint=f"make it again with --redo {stage}") from error


def _object(run_path: Path, stage: str, name: str) -> dict[str, Any]:
    found = read(run_path, stage, name)
    if not isinstance(found, dict):
        reason = f"is damaged: it holds {files.kind(found)}, expected an object"
        raise RunDirError(f"{run_path / stage / name} {reason}", hint=f"make it again with --redo {stage}")
    return found


def read_comparison(run_path: Path) -> dict[str, Any]:
    """Scores of base and tuned model, fractions 0-1. Raises RunDirError as `read`."""
    return _object(run_path, "evaluate", COMPARISON)


def read_cautions(run_path: Path) -> list[Caution]:
    """What must stand beside the run's verdict and proof: `cautions` in the result files of evaluate and merge.

    Empty for stages not done, and for runs of versions that wrote none. Raises RunDirError: a file is damaged.
    """
    found: list[Caution] = []
    for stage, name in (("evaluate", COMPARISON), ("merge", PROOF)):
        if (run_path / stage / name).is_file():
            listed = _object(run_path, stage, name).get("cautions", ())
            try:
                found += map(Caution.from_json, listed)
            except (TypeError, KeyError, AttributeError) as error:
                hint = f"make it again with --redo {stage}"
                raise RunDirError(f"{run_path / stage / name}: its cautions are damaged: {error}", hint=hint) from error
    return found


def read_predictions(run_path: Path) -> list[dict[str, str]]:
    """PREDICTION_COLUMNS, and OTHER_COLUMN if there is one, of each evaluated test row, in the order of the CSV.

    Raises RunDirError: the file is missing or has other columns.
    """
    return _table(run_path / "evaluate" / PREDICTIONS, PREDICTION_COLUMNS)


def read_extra_answers(run_path: Path) -> list[dict[str, str]]:
    """EXTRA_COLUMNS of each question that was not scored; empty if none was asked. Raises as `read_predictions`."""
    path = run_path / "evaluate" / EXTRA_ANSWERS
    return _table(path, EXTRA_COLUMNS) if path.is_file() else []


def read_groups(path: Path) -> dict[int, str]:
    """Row -> group of one side, as prepare wrote them. Raises RunDirError: the file is missing or has other columns."""
    return {int(line["row"]): line["group"] for line in _table(path, ("row", "group"))}


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The lines of metrics.jsonl; a last line cut off by a kill is left out."""
    lines = path.read_text(encoding="utf-8").split("\n")[:-1]
    return [json.loads(line) for line in lines]


def _table(path: Path, columns: tuple[str, ...]) -> list[dict[str, str]]:
    hint = f"make it again with --redo {path.parent.name}"
    if not path.is_file():
        raise RunDirError(f"{path} is missing", hint=hint)
    with path.open(encoding="utf-8", newline="") as handle:
        reader = csv.DictReader(handle)
        header = tuple(reader.fieldnames or ())
        if header[: len(columns)] != columns:
            expected = f"expected {', '.join(columns)}"
            raise RunDirError(
                f"{path} is damaged: its columns are {', '.join(header) or 'none'}, {expected}", hint=hint
            )
        return list(reader)
