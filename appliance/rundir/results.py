"""What the stages wrote for others to read: the names of those files, their columns, and the one reader of each.

Nobody else opens them, so that a column has one name and a file that is missing or damaged has one message.

>>> read_predictions(Path("runs/demo"))[0]["verdict"]
'win'
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from appliance import bounds
from appliance.errors import RunDirError
from appliance.findings import Caution
from appliance.process import files
from appliance.rundir import run_json
from appliance.rundir.directory import STAGES, RunDir

COMPARISON = "metrics.json"  # of the stage evaluate: base against tuned, as evaluation/verdict.py defines it
PROOF = "proof.json"  # of the stage merge
PREDICTIONS = "predictions.csv"  # its `verdict` is win, closer, tie, loss or not judged
EXTRA_ANSWERS = "extra_answers.csv"
STEPS = "steps.json"  # of the stage train: `steps`, how many there will be at most; `from`, where this process began
EXPORT = "export.json"  # of the stage export: the GGUF files, and what was found about each
ROW_LEDGER = "rows.csv"  # of the stage prepare: what became of every row
SAMPLES = "samples.jsonl"  # of the stage train: a few val questions, answered at each evaluation
TEST_GROUPS = "test_groups.csv"  # of the stage prepare, as the next ones
VAL_GROUPS = "val_groups.csv"
TRAIN_GROUPS = "train_groups.csv"  # only if a column groups the rows
TAKEN = "taken.csv"  # rows of an earlier run that this one continues: which they were there
TAKEN_COLUMNS = ("row", "side", "run", "row there")
ADAPTER_WEIGHTS = "adapter_model.safetensors"
EARLIER = "earlier"  # the earlier run's adapter, and the sides of all questions that it and those before it know
PREDICTION_COLUMNS = ("row", "question", "wanted", "base", "tuned", "verdict")
OTHER_COLUMN = "other"  # behind those, if another model's answers were scored as well
# And behind that, the answers of the base asked in another way than the one in `base`: rundir/base_asked.py names them.
BASE_COLUMN = "base_{}"
# The answers of the earlier run that this one continues, and whether the row tested it: rundir/earlier_compared.py.
EARLIER_COLUMN, TEST_COLUMN = "earlier", "test_rows"
STOPPED_COLUMN = "stopped"  # the last: whether the tuned answer ended by itself; not in runs of earlier versions
YES, NO = "yes", "no"
PROBABILITY_COLUMN = "probability"  # of the tuned answer, if it is one of a few: a class, or a part of the input
NBEST = "nbest.jsonl"  # of the stage evaluate: the likeliest parts of each test row's input, if answers stand there
EXTRA_COLUMNS = ("from", "row", "question", "wanted", "base", "tuned")
SAMPLE_TEXTS = ("question", "wanted", "answer")  # of each row in samples.jsonl, beside `row`
TEXT_COLUMNS = ("question", "wanted", "base", "tuned")  # of both: cells that hold the text of a row or an answer


@contextmanager
def damage_named(*run_paths: Path) -> Iterator[None]:
    """Raises RunDirError if the block fails over a result file that holds something else than its stage left.

    Which file it is, the records say: one with another sha256, else those that no finished stage vouches for. If every
    file is as it was left, the exception is a bug and stays what it is.
    """
    try:
        yield
    except (ValueError, LookupError, TypeError, AttributeError, ArithmeticError, RecursionError) as error:
        for run_path in run_paths:
            refuse_damaged(run_path)
            _refuse_unproven(run_path, f"{type(error).__name__}: {error!s:.200}")
        raise


def refuse_damaged(run_path: Path) -> None:
    """Compares every file of the finished stages, weights aside, with the sha256 that its stage left.

    For whoever shows what they hold: a number that became a text may be shown as something else. Raises RunDirError: a
    file differs, or a stage.json is damaged.
    """
    run_dir = RunDir(run_path)
    for stage in STAGES:
        record = run_dir.record(stage)
        outputs = record.outputs.items() if record else ()
        small = {name: output for name, output in outputs if not name.endswith(".safetensors")}
        if record and (faults := run_dir.faults(stage, replace(record, outputs=small))):
            raise RunDirError(faults[0], hint=f"restore the file, or make it again with --redo {stage}")


def _refuse_unproven(run_path: Path, seen: str) -> None:
    """Raises RunDirError: there are files that neither a stage's record nor a copy vouches for."""
    run_dir = RunDir(run_path)
    unproven = [] if run_json.is_as_written(run_path) else [run_path / run_json.FILE]
    for folder in (run_dir.stage_dir(stage) for stage in STAGES if run_dir.record(stage) is None):
        unproven += sorted(path for path in folder.glob("*") if path.suffix in (".json", ".jsonl", ".csv"))
    if unproven:
        names = ", ".join(str(path.relative_to(run_path)) for path in unproven)
        raise RunDirError(
            f"{run_path}: what this version does not expect is in {names} ({seen})",
            hint="restore what was changed, or make it again with --redo for its stage",
        )


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
        if files.is_there(run_path / stage / name):
            listed = _object(run_path, stage, name).get("cautions", ())
            try:
                found += map(Caution.from_json, listed)
            except (TypeError, KeyError, AttributeError) as error:
                hint = f"make it again with --redo {stage}"
                raise RunDirError(f"{run_path / stage / name}: its cautions are damaged: {error}", hint=hint) from error
    return found


def read_predictions(run_path: Path) -> list[dict[str, str]]:
    """PREDICTION_COLUMNS, and what the run has behind them, of each evaluated test row, in the order of the CSV.

    Raises RunDirError: the file is missing or has other columns.
    """
    return _table(run_path / "evaluate" / PREDICTIONS, PREDICTION_COLUMNS)


def read_extra_answers(run_path: Path) -> list[dict[str, str]]:
    """EXTRA_COLUMNS of each question that was not scored; empty if none was asked. Raises as `read_predictions`."""
    path = run_path / "evaluate" / EXTRA_ANSWERS
    return _table(path, EXTRA_COLUMNS) if files.is_there(path) else []


def read_groups(path: Path) -> dict[int, str]:
    """Row -> group of one side, as prepare wrote them. Raises RunDirError: the file is missing or has other columns."""
    try:
        return {int(line["row"]): line["group"] for line in _table(path, ("row", "group"))}
    except ValueError as error:
        raise _damaged(path, error) from error


def read_sides(path: Path) -> list[dict[str, str]]:
    """key (hex) and side of each question or group that an earlier run knows. Raises RunDirError as `read_groups`."""
    return _table(path, ("key", "side"))


def read_taken(prepare_dir: Path) -> dict[int, dict[str, str]]:
    """Row -> TAKEN_COLUMNS of each row that was taken from an earlier run; empty if none was.

    Raises RunDirError as `read_groups`.
    """
    path = prepare_dir / TAKEN
    try:
        return {int(line["row"]): line for line in _table(path, TAKEN_COLUMNS)} if files.is_there(path) else {}
    except ValueError as error:
        raise _damaged(path, error) from error


def earlier_adapter(prepare_dir: Path) -> Path | None:
    """The folder of the adapter that training begins with; None if the run continues no other."""
    folder = prepare_dir / EARLIER
    return folder if files.is_there(folder / ADAPTER_WEIGHTS) else None


def read_row_ledger(path: Path) -> list[dict[str, str]]:
    """row (line in the CSV), side, reason of every row of the CSV. Raises RunDirError as `read_predictions`."""
    return _table(path, ("row", "side", "reason"))


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The lines of metrics.jsonl; a last line cut off by a kill is left out. Raises RunDirError: another is damaged."""
    return _lines(path)


def read_samples(path: Path) -> list[dict[str, Any]]:
    """The lines of samples.jsonl: `step`, and `rows` with `row` (its line in the CSV), `question`, `wanted`, `answer`.

    A last line cut off by a kill is left out. Raises RunDirError: another is damaged.
    """
    found = _lines(path)
    try:
        for row in (row for line in found for row in line["rows"]):
            if not (isinstance(row["row"], int) and all(isinstance(row[key], str) for key in SAMPLE_TEXTS)):
                raise ValueError("expected a number as row, and texts beside it")
    except (ValueError, KeyError, TypeError) as error:
        raise _damaged(path, error) from error
    return found


def _lines(path: Path) -> list[dict[str, Any]]:
    """The whole lines of a file with one JSON object, which has a step, on each. Raises RunDirError."""
    try:
        found = [bounds.json_of(line) for line in bounds.read_text(path).split("\n")[:-1]]
        if not all(isinstance(line, dict) and isinstance(line.get("step"), int) for line in found):
            raise ValueError("expected an object with a step on every line")
        return found
    except ValueError as error:
        raise _damaged(path, error) from error


def _table(path: Path, columns: tuple[str, ...]) -> list[dict[str, str]]:
    if not files.is_there(path):
        raise RunDirError(f"{path} is missing", hint=_again(path))
    try:
        bounds.refuse_odd_file(path)
        text = path.read_bytes().decode("utf-8")  # as it is: a cell may hold any kind of line break
        reader = csv.DictReader(io.StringIO(text, newline=""), strict=True)
        header = tuple(reader.fieldnames or ())
        if header[: len(columns)] != columns:
            raise ValueError(f"its columns are {', '.join(header) or 'none'}, expected {', '.join(columns)}")
        rows = list(reader)
        if odd := next((number for number, row in enumerate(rows, 1) if None in row or None in row.values()), None):
            raise ValueError(f"row {odd} has another number of cells than its header")
    except (ValueError, csv.Error) as error:
        raise _damaged(path, error) from error
    return rows


def _damaged(path: Path, error: Exception) -> RunDirError:
    return RunDirError(f"{path} is damaged: {error!s:.300}", hint=_again(path))


def _again(path: Path) -> str:
    return f"make it again with --redo {path.parent.name}"
